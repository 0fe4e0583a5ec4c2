import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from local_rows import rows_of
from tiny_turns import group, picture, plain_logprobs

from learner.objective.batch_plan import cut, plan, share_out
from learner.objective.packed_attention import ATTENTIONS, attention_of, sees
from learner.objective.sibling_packing import Response, Row, pack
from learner.objective.token_logprobs import Scorer, inputs_of, packed
from rollout.policies import load_policy
from rollout.records import Image


def row(prompt: int, *responses: int, image: Image | None = None) -> Row:
    return Row(
        np.arange(prompt, dtype=np.int32),
        image,
        tuple(Response(np.full(n, 7, np.int32), np.zeros(n, np.float32), 1.0, 1.0) for n in responses),
    )


PICTURES = st.sampled_from([None, *(picture(seed) for seed in range(3))])
ROWS = st.lists(st.builds(row, st.integers(1, 30), st.integers(1, 9), st.integers(1, 9), image=PICTURES), max_size=25)


def score(policy, rows, attention="auto"):
    scorer = Scorer(policy)
    return scorer(**inputs_of(packed(rows, policy), policy, policy.device, attention))


UNCOMPILED = pytest.mark.filterwarnings("ignore:flex_attention called without torch.compile")
"""On a CPU `flex` can be checked, slowly; it learns on GPUs."""


@UNCOMPILED
@pytest.mark.parametrize("attention", ATTENTIONS)
def test_packed_siblings_have_the_logprobs_of_rows_of_their_own(policy, attention):
    shared = picture(1)
    turns = group(policy, 1, 5, shared) + group(policy, 2, 3) + group(policy, 3, 4, picture(3, 84)) + group(policy, 4, 2, shared)
    with torch.no_grad():
        logprobs, entropy = score(policy, rows_of(turns, [1.0] * len(turns), [1.0] * len(turns), 10_000), attention)
        expected = torch.cat([plain_logprobs(policy, t.prompt_ids, t.image, t.turn.response_ids) for t in turns])
    torch.testing.assert_close(logprobs, expected, atol=1e-5, rtol=0)
    assert (entropy > 0).all()


def test_cutting_a_long_group_into_rows_changes_no_logprob(policy):
    turns = group(policy, 1, 6, picture(1))
    ones = [1.0] * len(turns)
    whole, cut_up = rows_of(turns, ones, ones, 10_000), rows_of(turns, ones, ones, 40)
    assert len(whole) == 1
    assert len(cut_up) > 1
    torch.testing.assert_close(score(policy, whole)[0], score(policy, cut_up)[0], atol=1e-5, rtol=0)


def test_a_batch_without_pictures_still_gives_the_vision_tower_gradients_of_zero(policy_path):
    policy = load_policy(policy_path)
    turns = group(policy, 2, 3)
    score(policy, rows_of(turns, [1.0] * 3, [1.0] * 3, 999))[0].sum().backward()
    gradients = [p.grad for p in policy.model.model.visual.parameters()]
    assert all(g is not None and not g.any() for g in gradients)


def test_an_empty_batch_has_no_tokens_and_gives_every_parameter_a_gradient_of_zeros(policy_path):
    policy = load_policy(policy_path)
    logprobs, _ = score(policy, [])
    assert logprobs.shape == (0,)
    logprobs.sum().backward()
    assert all(p.grad is not None and not p.grad.any() for p in policy.model.parameters())


def test_a_token_sees_the_prompt_and_its_own_response_up_to_itself():
    segments = torch.tensor([0, 0, 1, 1, 2])
    whole = [
        [1, 0, 0, 0, 0],
        [1, 1, 0, 0, 0],
        [1, 1, 1, 0, 0],
        [1, 1, 1, 1, 0],
        [1, 1, 0, 0, 1],
    ]
    assert sees(segments, segments, segments).int().tolist() == whole
    assert sees(segments[2:], segments[2:], segments).int().tolist() == whole[2:]


@UNCOMPILED
@settings(max_examples=25)
@given(st.lists(st.builds(row, st.integers(1, 6), st.integers(1, 5), st.integers(1, 5)), min_size=1, max_size=4), st.integers(0, 99))
def test_every_way_to_attend_is_attention_with_one_mask_over_everything(rows, seed):
    batch = pack(rows, [np.zeros((3, len(r.prompt_ids)), np.int64) for r in rows], 0)
    numbers, segments, parents = (torch.from_numpy(column) for column in (batch.rows, batch.segments, batch.parents))
    mask = sees(segments, parents, segments) & (numbers[:, None] == numbers[None])
    query, key, value = (
        torch.randn(8, 1, len(numbers), 16, generator=torch.Generator().manual_seed(seed)).transpose(0, 1).split([4, 2, 2], 1)
    )
    served_by = [0, 0, 1, 1]
    expected = torch.nn.functional.scaled_dot_product_attention(query, key[:, served_by], value[:, served_by], mask, scale=0.3)
    for name in ATTENTIONS:
        found = attention_of(name, batch, query.device, query.dtype)(query, key, value, 0.3)
        torch.testing.assert_close(found, expected, atol=1e-5, rtol=0)


def test_a_model_that_scored_packed_rows_still_hides_padding_in_an_ordinary_forward_pass(policy):
    (turn,) = group(policy, 2, 1)
    score(policy, rows_of([turn], [1.0], [1.0], 99))
    prompt, response = torch.from_numpy(turn.prompt_ids), torch.from_numpy(turn.turn.response_ids)
    ids = torch.cat([torch.full((5,), policy.pad_token_id), prompt, response]).long()[None]
    mask = (torch.arange(ids.shape[1]) >= 5).long()[None]
    positions = (torch.arange(ids.shape[1]) - 5).clamp(min=0)[None, None].expand(3, 1, -1)
    logits = policy.model(input_ids=ids, attention_mask=mask, position_ids=positions).logits[0, 4 + len(prompt) : -1]
    found = torch.log_softmax(logits, -1).gather(1, response.long()[:, None])[:, 0]
    torch.testing.assert_close(found, plain_logprobs(policy, turn.prompt_ids, None, turn.turn.response_ids), atol=1e-5, rtol=0)


@given(ROWS, st.integers(1, 400))
def test_micro_batches_hold_every_row_once_and_stay_within_their_bound(rows, tokens):
    batches = cut(rows, tokens)
    assert sorted(id(r) for batch in batches for r in batch) == sorted(map(id, rows))
    assert all(len(batch) == 1 or sum(r.length for r in batch) <= tokens for batch in batches)


@given(ROWS, st.integers(1, 400))
def test_micro_batches_are_full_no_two_of_them_would_fit_into_one(rows, tokens):
    filled = [sum(r.length for r in batch) for batch in cut(rows, tokens)]
    assert all(a + b > tokens for i, a in enumerate(filled) for b in filled[:i])


@given(ROWS)
def test_a_micro_batch_holds_no_padding_and_every_token_of_a_response_is_predicted_once(rows):
    batch = pack(rows, [np.tile(np.arange(len(r.prompt_ids)), (3, 1)) for r in rows], 0)
    assert len(batch.input_ids) == batch.positions.shape[1] == len(batch.rows) == max(1, sum(r.length for r in rows))
    assert len(batch.sources) == len(batch.targets) == sum(len(x.ids) for r in rows for x in r.responses)


@given(ROWS, st.integers(1, 400))
def test_rows_with_one_picture_share_a_micro_batch_where_they_fit_into_one(rows, tokens):
    batches = cut(rows, tokens)
    for key in {r.image.key for r in rows if r.image}:
        pictured = [r for r in rows if r.image and r.image.key == key]
        if sum(r.length for r in pictured) <= tokens:
            assert sum(any(r.image and r.image.key == key for r in batch) for batch in batches) == 1


@given(ROWS, st.integers(1, 4))
def test_ranks_share_the_rows_and_differ_by_at_most_the_longest(rows, ranks):
    shares = share_out(rows, ranks)
    assert sorted(id(r) for share in shares for r in share) == sorted(map(id, rows))
    loads = [sum(r.length for r in share) for share in shares]
    assert max(loads) - min(loads) <= max((r.length for r in rows), default=0)


@given(ROWS, st.integers(1, 4), st.integers(1, 400))
def test_every_rank_runs_the_same_number_of_micro_batches(rows, ranks, tokens):
    assert len({len(batches) for batches in plan(rows, ranks, tokens)}) == 1


@given(ROWS, st.integers(1, 400), st.integers(1, 3))
def test_however_the_rows_are_cut_the_weights_add_up_to_the_same_denominator(rows, tokens, ranks):
    total = sum(r.weight for r in rows)
    batches = [pack(b, [np.tile(np.arange(len(r.prompt_ids)), (3, 1)) for r in b], 0) for share in plan(rows, ranks, tokens) for b in share]
    assert sum(float(batch.weights.sum()) for batch in batches) == pytest.approx(total)

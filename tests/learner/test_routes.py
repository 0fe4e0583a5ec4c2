"""`learner.routes=all`: the gradient of the expected reward over all knowledge bases, and nothing else, on the tokens of their names."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
import torch
from asking_turns import asking_turns
from hypothesis import given
from hypothesis import strategies as st
from local_rows import dealt_rows, denominators
from test_group import CONFIG, assert_same_update, weights
from tiny_turns import group, picture, plain_logprobs

from learner.config import LearnerConfig
from learner.objective.advantages import turn_advantages
from learner.objective.batch_plan import balance, cut
from learner.objective.losses import RouteTokens, route_loss
from learner.objective.packed_attention import ATTENTIONS
from learner.objective.sibling_packing import pack
from learner.objective.token_logprobs import Scorer, inputs_of, packed
from learner.ranks.deepspeed_engine import prepare
from learner.ranks.learner_rank import LearnerRank
from rollout.policies import Policy, load_policy
from rollout.records import ScoredTurn

ALL = LearnerConfig(routes="all", routes_weight=3.0)


def some_turns(policy: Policy, pictured: bool = False) -> list[ScoredTurn]:
    """A group with variance, with siblings that are equal up to the name; one of equal siblings, without variance; one in which every route earns
    the same; and answers, which have no routes."""
    image, other = (picture(1), picture(2)) if pictured else (None, None)
    asked = [("capital of Kor-mu", 0), ("flag 1 2", 1), ("capital of Kor-mu", 2), ("flag 1 2", 1), ("red", 0)]
    return [
        *asking_turns(policy, 1, asked, [0.2, 1.0, 0.5], image),
        *asking_turns(policy, 2, [("flag 3", 0)] * 3 + [("the red flag", 0)], [0.3, 0.8, 0.1]),
        *asking_turns(policy, 3, [("blue", 0), ("red and blue", 1)], [0.0, 0.0, 0.0], image),
        *group(policy, 4, 3, other, "answer"),
    ]


def packed_loss(policy: Policy, turns: list[ScoredTurn], config: LearnerConfig, tokens: int) -> tuple[torch.Tensor, dict[str, float]]:
    """As a learner rank computes it, micro-batch by micro-batch."""
    rank = LearnerRank(0, 1, config, "")
    rank.policy, rank.engine = policy, Scorer(policy)
    config, advantages = replace(config, tokens_per_micro_batch=tokens), turn_advantages(turns, config)
    (rows,), (denominator,) = dealt_rows(turns, advantages, config, 0), denominators(turns, advantages, config, 0)
    batches = [packed(batch, policy) for batch in cut(rows, tokens)]
    parts = [rank._loss(batch, denominator, rank._logprobs(batch), None) for batch in batches]
    metrics = {name: sum(found[name].item() for _, found in parts) for name in parts[0][1]}
    return sum(loss for loss, _ in parts), metrics


def expected_loss(policy: Policy, turns: list[ScoredTurn], config: LearnerConfig) -> torch.Tensor:
    """By the library's own forward pass, a row for every sibling and every name; nothing is shared."""
    found, advantages, denominator = torch.zeros(()), turn_advantages(turns, config), 0
    for turn, advantage, learned in zip(turns, advantages.advantages.tolist(), advantages.kept, strict=True):
        ids, routes = turn.turn.response_ids, turn.turn.routes
        start = routes.start if routes else len(ids)
        if learned:
            found = found + advantage * plain_logprobs(policy, turn.prompt_ids, turn.image, ids)[:start].sum()
        if routes:
            rows = [np.concatenate([ids[:start], name]) for name in routes.ids]
            names = torch.stack([plain_logprobs(policy, turn.prompt_ids, turn.image, row)[start:].sum() for row in rows])
            found = found + config.routes_weight * (names.softmax(0) * torch.tensor(turn.route_rewards)).sum()
        differ = len(set(turn.route_rewards)) > 1
        denominator += len(ids) if learned else (len(ids) - start) * differ
    return -found / denominator


def gradient(policy: Policy, loss: torch.Tensor) -> torch.Tensor:
    policy.model.zero_grad()
    loss.backward()
    return torch.cat([(torch.zeros_like(p) if p.grad is None else p.grad).flatten() for p in policy.model.parameters()])


def apart(a: torch.Tensor, b: torch.Tensor) -> float:
    return float((a - b).norm() / b.norm())


UNCOMPILED = pytest.mark.filterwarnings("ignore:flex_attention called without torch.compile")


@pytest.mark.parametrize("kind", ["text", "pictures", "adapters"])
def test_the_gradient_is_that_of_the_expected_reward_by_plain_forward_passes(policy_path, kind):
    policy = load_policy(policy_path)
    if kind == "adapters":
        prepare(policy, LearnerConfig(lora_rank=4))
        for name, parameter in policy.model.named_parameters():
            if "lora_B" in name:
                torch.nn.init.normal_(parameter, std=0.1)
    turns = some_turns(policy, kind == "pictures")
    exact = gradient(policy, expected_loss(policy, turns, ALL))
    for tokens in (10**6, 120, 1):
        loss, metrics = packed_loss(policy, turns, ALL, tokens)
        assert apart(gradient(policy, loss), exact) < 1e-4
        assert metrics["routes"] == 5  # three prefixes in the first group, two in the second, none in the third
    sampled, _ = packed_loss(policy, turns, LearnerConfig(), 10**6)
    assert apart(gradient(policy, sampled), exact) > 0.1


@UNCOMPILED
def test_names_behind_one_copy_of_their_prefix_have_the_logprobs_of_rows_of_their_own_at_temperature_1(policy):
    turns = [replace(turn, turn=replace(turn.turn, temperature=0.7)) for turn in some_turns(policy, pictured=True)]
    (rows,) = dealt_rows(turns, turn_advantages(turns, ALL), ALL, 0)
    batch = packed(rows, policy)
    routed = [(row, response) for row in rows for response in row.responses if response.packed_routes]
    assert len(batch.route_rewards) == 3 * len(routed) == 15
    assert len(batch.input_ids) == sum(row.length for row in rows)
    with torch.no_grad():
        plain = [
            plain_logprobs(policy, row.prompt_ids, row.image, np.concatenate([response.ids[: names.start], ids]))[names.start :]
            for row, response in routed
            for names in [response.routes.names]
            for ids in names.ids
        ]
        for attention in ATTENTIONS:
            found, _ = Scorer(policy)(**inputs_of(batch, policy, policy.device, attention))
            torch.testing.assert_close(found[len(batch.turns) :], torch.cat(plain), atol=1e-5, rtol=0)


def test_the_name_has_no_credit_but_that_of_all_routes(policy):
    """Neither where it is learned from, nor where all routes earn the same; the rest of the turn keeps the advantage of its siblings."""
    turns = some_turns(policy)
    advantages = turn_advantages(turns, ALL)
    (rows,) = dealt_rows(turns, advantages, ALL, 0)
    for row in rows:
        for response in row.responses:
            start = response.routes.names.start if response.routes else len(response.ids)
            assert not response.advantages[start:].any()
            assert (response.advantages[:start] == np.float32(response.advantage)).all()
    assert {len(row.responses) for row in rows} == {5, 2, 3}  # of equal siblings without variance, one is packed


ROUTES = st.lists(st.lists(st.tuples(st.floats(-9, 0), st.floats(0, 1)), min_size=2, max_size=5), min_size=1, max_size=4)


@given(ROUTES, st.integers(0, 99), st.sampled_from([0.0, 0.05, 1.0]))
def test_autograd_of_the_loss_is_the_gradient_of_its_formula(turns, seed, temperature):
    """-sum_k p_k (R_k - sum_j p_j R_j) log p_k, with p and the advantage as constants; with a temperature T, -T sum_k (q_k - p_k) log p_k with
    q ~ p exp(R / T). Each name has two tokens."""
    random = torch.Generator().manual_seed(seed)
    weights = torch.rand(len(turns), generator=random)
    flat = [pair for turn in turns for pair in turn]
    logprobs = torch.tensor([[logprob, -0.5] for logprob, _ in flat], dtype=torch.float64).flatten().requires_grad_()
    rewards = torch.tensor([reward for _, reward in flat], dtype=torch.float64)
    of_turn = torch.repeat_interleave(torch.arange(len(turns)), torch.tensor(list(map(len, turns))))
    tokens = RouteTokens(logprobs, torch.arange(len(flat)).repeat_interleave(2), of_turn, rewards, weights.double())
    loss, metrics = route_loss(tokens, 7.0, temperature)
    by_formula, best, entropy = torch.zeros((), dtype=torch.float64), 0.0, 0.0
    for i, weight in enumerate(weights.double()):
        mine = of_turn == i
        log_p = torch.log_softmax(logprobs.view(-1, 2).sum(1)[mine], 0)
        p, reward = log_p.detach().exp(), rewards[mine]
        gradient = p * (reward - (p * reward).sum())
        if temperature:
            gradient = temperature * (torch.softmax(log_p.detach() + reward / temperature, 0) - p)
        by_formula = by_formula - weight * (gradient * log_p).sum() / 7
        best += float(p[reward == reward.max()].sum())
        entropy -= float((p * log_p.detach()).sum())
    one, other = (torch.autograd.grad(each, logprobs)[0] for each in (loss, by_formula))
    torch.testing.assert_close(one, other, atol=1e-12, rtol=1e-9)
    assert (float(metrics["best_route_probability"]), float(metrics["route_entropy"])) == pytest.approx((best, entropy))


def test_with_a_temperature_the_right_name_rises_also_where_its_probability_has_vanished():
    logprobs, of_turn = torch.tensor([-200.0, 0.0], requires_grad=True), torch.zeros(2, dtype=torch.int64)
    routes = RouteTokens(logprobs, torch.arange(2), of_turn, torch.tensor([1.0, 0.0]), torch.ones(1))
    exact, towards = (torch.autograd.grad(route_loss(routes, 1.0, temperature)[0], logprobs)[0] for temperature in (0.0, 0.001))
    assert exact.tolist() == [0.0, 0.0]
    torch.testing.assert_close(towards, torch.tensor([-0.001, 0.001]))


def test_for_a_high_temperature_the_loss_has_the_exact_gradient():
    logprobs, of_turn = torch.tensor([-2.0, -0.5, -1.0], dtype=torch.float64, requires_grad=True), torch.zeros(3, dtype=torch.int64)
    routes = RouteTokens(logprobs, torch.arange(3), of_turn, torch.tensor([1.0, 0.0, 0.3], dtype=torch.float64), torch.ones(1).double())
    exact, close = (torch.autograd.grad(route_loss(routes, 1.0, temperature)[0], logprobs)[0] for temperature in (0.0, 1e4))
    torch.testing.assert_close(exact, close, atol=1e-5, rtol=1e-4)


def test_without_a_packed_route_the_loss_is_zero_and_still_has_a_gradient():
    batch = pack([], [], 0)
    empty = torch.zeros(0, requires_grad=True)
    columns = map(torch.from_numpy, (batch.route_of, batch.route_turns, batch.route_rewards, batch.route_weights))
    loss, metrics = route_loss(RouteTokens(empty, *columns), 1.0)
    loss.backward()
    assert (loss.item(), metrics["routes"].item()) == (0.0, 0.0)


def test_two_ranks_with_partitioned_weights_make_the_update_of_one(one, two, policy):
    turns = some_turns(policy, pictured=True)
    config = replace(CONFIG, routes="all", kl_weight=0.1)
    one.build(config)
    two.build(replace(config, num_learners=2, zero_stage=3))
    alone, together = one.update(turns), two.update(turns)
    assert alone["turns_with_routes"] == 1.0
    assert 0 < alone["best_route_probability"] < 1
    assert 0 < alone["route_entropy"] <= np.log(3)
    for name in ("loss", "kl", "grad_norm", "best_route_probability", "route_entropy", "learned_tokens"):
        assert together[name] == pytest.approx(alone[name], rel=1e-3), name
    assert_same_update(weights(one), weights(two))
    for _ in range(3):
        after = one.update(turns)
    assert after["best_route_probability"] > alone["best_route_probability"]


@given(st.lists(st.tuples(st.integers(1, 4), st.floats(0.01, 10)), min_size=1, max_size=40))
def test_every_knowledge_base_counts_as_much_as_the_others_and_all_together_as_before(turns):
    best, weights = (np.array(column) for column in zip(*turns, strict=True))
    balanced = weights * balance(best, weights)
    sums = [balanced[best == kb].sum() for kb in np.unique(best)]
    np.testing.assert_allclose(sums, weights.sum() / len(sums))

"""Real DeepSpeed in real Ray actors; the processes are shared by the tests because they take seconds to start."""

import json
import os
import pickle
import time
from dataclasses import replace

import pytest
import ray
import torch
from ray.util.placement_group import placement_group, remove_placement_group
from tiny_turns import fetched, weights_of
from tiny_turns import group as siblings
from transformers import AutoModelForImageTextToText

from learner.config import LearnerConfig
from learner.deadline import DeadlineError, results
from learner.learner_group import LearnerGroup
from learner.ranks.checkpoint_files import CorruptCheckpointError, NoRoomError, facts_of
from rollout.policies import load_policy
from rollout.weight_buckets import copy_into, unpack_weights

CONFIG = LearnerConfig(lr=1e-3, warmup_iterations=1, tokens_per_micro_batch=96, cpus_per_learner=0.5, deadline_s=250)


def slow(*values, name=None):
    return pytest.param(*values, id=name, marks=pytest.mark.slow)


def weights(group: LearnerGroup) -> dict[str, torch.Tensor]:
    return {name: tensor.clone() for name, tensor in unpack_weights(fetched(weights_of(group))).items()}


def assert_close(a, b, **tolerance):
    assert a.keys() == b.keys()
    for name in a:
        torch.testing.assert_close(a[name], b[name], msg=lambda m, name=name: f"{name}: {m}", **tolerance)


def assert_same_update(a, b, exact=True):
    """AdamW divides a gradient by its own size, so where it is almost 0 rounding alone moves a weight: compare all weights, and then on average."""
    if exact:
        assert_close(a, b, atol=CONFIG.lr / 2, rtol=0)
    assert torch.cat([(a[name] - b[name]).abs().flatten() for name in a]).mean() < CONFIG.lr * (1e-4 if exact else 0.5)


def test_an_update_makes_rewarded_turns_likelier_and_counts_versions(one, turns, policy):
    one.build(CONFIG)
    first = one.update(turns)
    assert one.policy_version == 1
    assert weights_of(one).version == 1
    assert (first["groups"], first["dropped_groups"]) == (7, 1)
    assert first["learned_turns"] < first["turns"] == len(turns)
    assert first["mismatch_max"] < 1e-5
    assert abs(first["ratio"] - 1) < 1e-5
    assert first["clip_fraction"] == 0
    assert first["grad_norm"] > 0
    assert first["lr"] == CONFIG.lr
    assert first["tokens_per_second"] > 0
    assert first["entropy"] > 0
    second = one.update(turns)
    assert second["loss"] < first["loss"]
    assert second["mismatch"] > first["mismatch"]


def test_two_ranks_make_the_update_of_one(one, two, turns):
    one.build(CONFIG)
    two.build(replace(CONFIG, num_learners=2))
    for _ in range(2):
        alone, together = one.update(turns), two.update(turns)
    for name in ("loss", "grad_norm", "entropy", "learned_tokens", "ratio"):
        assert together[name] == pytest.approx(alone[name], rel=1e-3), name
    assert_same_update(weights(one), weights(two))


def test_the_update_does_not_depend_on_the_size_of_micro_batches(one, turns):
    found = []
    for tokens in (1, 96, 100_000):
        one.build(replace(CONFIG, tokens_per_micro_batch=tokens))
        one.update(turns)
        found.append(weights(one))
    assert_same_update(found[0], found[1])
    assert_same_update(found[1], found[2])


@pytest.mark.parametrize(
    ("stage", "dtype"),
    [slow(0, "float32"), slow(1, "float32"), (2, "float32"), (3, "float32"), slow(1, "bfloat16"), (3, "bfloat16")],
)
def test_every_zero_stage_makes_the_same_update_and_knows_its_gradient_norm(one, two, turns, stage, dtype):
    one.build(CONFIG)
    two.build(replace(CONFIG, num_learners=2, zero_stage=stage, dtype=dtype))
    alone, together = one.update(turns), two.update(turns)
    exact = dtype == "float32"
    assert together["grad_norm"] == pytest.approx(alone["grad_norm"], rel=1e-5 if exact else 0.05)
    assert alone["grad_norm"] > CONFIG.max_grad_norm, "the norm is told as it is before clipping"
    assert_same_update(weights(one), {name: tensor.float() for name, tensor in weights(two).items()}, exact)


SAVING_MEMORY = {
    "state in main memory": ({"zero_stage": 2, "offload": "optimizer"}, {}),
    "weights in main memory, activations computed again": ({"zero_stage": 3, "offload": "parameters", "gradient_checkpointing": True}, {}),
    "frozen vision tower, KL to a partitioned reference": ({"zero_stage": 3}, {"freeze_vision": True, "kl_weight": 0.1}),
    "frozen vision tower that the reference shares": ({"gradient_checkpointing": True}, {"freeze_vision": True, "kl_weight": 0.1}),
    "LoRA, KL to the policy without adapters": ({"zero_stage": 2}, {"lora_rank": 4, "kl_weight": 0.1}),
    "partitioned LoRA": ({"zero_stage": 3}, {"lora_rank": 4, "kl_weight": 0.1}),
}


@pytest.mark.parametrize(
    ("how", "what"),
    [pytest.param(*both, id=name) if name == "partitioned LoRA" else slow(*both, name=name) for name, both in SAVING_MEMORY.items()],
)
def test_what_saves_memory_does_not_change_the_update(one, two, turns, policy, how, what):
    one.build(replace(CONFIG, **what))
    two.build(replace(CONFIG, num_learners=2, **how, **what))
    start = weights(one)
    assert_close(start, {name: p.detach() for name, p in policy.model.named_parameters()}, atol=0, rtol=0)
    one.update(turns), two.update(turns)
    after = weights(one)
    assert_same_update(after, weights(two))
    alone, together = one.update(turns), two.update(turns)
    for name in {"loss", "grad_norm", "kl"} & set(alone):
        assert together[name] == pytest.approx(alone[name], rel=1e-3), name
    moved = {name for name in start if not torch.equal(start[name], after[name])}
    vision = {name for name in start if ".visual." in name}
    if what:
        assert not moved & vision
        assert alone["kl"] > 0
    if "lora_rank" in what:
        assert {name.split(".")[-2] for name in moved} == set(CONFIG.lora_targets)
    else:
        assert moved >= {name for name in start if "language_model.layers" in name}


def test_a_policy_trained_by_adapters_is_saved_merged(one, turns, tmp_path):
    one.build(replace(CONFIG, lora_rank=4))
    one.update(turns)
    one.save_policy(tmp_path / "policy")
    assert_close(dict(load_policy(tmp_path / "policy").model.named_parameters()), weights(one), atol=0, rtol=0)


def test_ranks_without_anything_to_learn_keep_up_with_the_others(two, policy):
    two.build(replace(CONFIG, num_learners=2, zero_stage=3))
    metrics = two.update(siblings(policy, 3, 2))  # one row: the second rank has none
    assert metrics["learned_turns"] == 2
    assert metrics["grad_norm"] > 0


def test_turns_without_variance_leave_the_weights_alone(one, policy):
    one.build(CONFIG)
    before = weights(one)
    metrics = one.update(siblings(policy, 3, 3, rewards=[1.0, 1.0, 1.0]))
    assert metrics["learned_turns"] == 0
    assert metrics["steps"] == 0
    assert one.policy_version == 1
    assert_close(before, weights(one), atol=0, rtol=0)
    assert one.update([])["turns"] == 0


def test_mini_batches_share_the_turns(one, turns):
    one.build(replace(CONFIG, updates_per_iteration=3))
    metrics = one.update(turns)
    kept = [turn for turn in turns if turn.state_key != turns[-1].state_key]
    assert metrics["steps"] == 3
    assert 0 < metrics["learned_tokens"] <= sum(len(turn.turn.response_ids) for turn in kept) + 60


def test_the_learning_rate_warms_up(one, turns):
    one.build(replace(CONFIG, warmup_iterations=4))
    assert [one.update(turns[:4])["lr"] for _ in range(5)] == pytest.approx([0.25e-3, 0.5e-3, 0.75e-3, 1e-3, 1e-3])


def test_kl_to_the_start_is_zero_at_first_and_holds_the_policy_back(one, turns):
    one.build(CONFIG)
    start = weights(one)
    moved = {}
    for kl_weight in (1e-9, 20.0):
        one.build(replace(CONFIG, kl_weight=kl_weight))
        kl = [one.update(turns)["kl"] for _ in range(4)]
        assert kl[0] == pytest.approx(0, abs=1e-6)
        assert kl[-1] > 0
        moved[kl_weight] = kl[-1]
    assert moved[20.0] < moved[1e-9]
    assert start


OPTIONS = {
    "turn ratios, turns count equally": {"ratio": "turn", "aggregation": "turn_mean"},
    "one ratio for an episode, truncated importance sampling": {
        "ratio": "sequence",
        "sampler_correction": "truncate",
        "aggregation": "sequence_mean",
    },
    "CISPO, entropy bonus, KL in the loss": {"surrogate": "cispo", "entropy_weight": 0.01, "kl_weight": 0.1, "kl_estimator": "k2"},
    "DPPO": {"surrogate": "dppo"},
    "over a constant": {"kl_weight": 0.1, "kl_estimator": "k1", "aggregation": "constant"},
}


@pytest.mark.parametrize(
    "options", [pytest.param(those, id=name) if "CISPO" in name else slow(those, name=name) for name, those in OPTIONS.items()]
)
def test_two_ranks_with_partitioned_state_and_small_micro_batches_make_the_update_of_one(one, two, turns, options):
    config = replace(CONFIG, updates_per_iteration=2, tokens_per_micro_batch=100_000, **options)
    one.build(config)
    two.build(replace(config, num_learners=2, zero_stage=3, tokens_per_micro_batch=96))
    for _ in range(2):
        alone, together = one.update(turns), two.update(turns)
    for name in set(alone) - {"seconds", "tokens_per_second"}:
        assert together[name] == pytest.approx(alone[name], rel=1e-3, abs=1e-5), name
    before, after = weights(one), weights(two)  # on average: four steps of AdamW add up what rounding does where a gradient is 0
    assert torch.cat([(before[name] - after[name]).abs().flatten() for name in before]).mean() < CONFIG.lr * 1e-3


def test_the_mismatch_is_the_mean_difference_between_sampler_and_learner(one, turns):
    one.build(CONFIG)
    assert one.update(turns)["mismatch_k3"] == pytest.approx(0, abs=1e-6)
    one.build(CONFIG)
    off = [replace(turn, turn=replace(turn.turn, logprobs=turn.turn.logprobs - 0.3)) for turn in turns]
    assert one.update(off)["mismatch"] == pytest.approx(0.3, abs=1e-3)


def test_two_updates_and_two_in_a_new_process_equal_four_bit_for_bit_and_nothing_is_compiled(one, turns, policy_path, tmp_path):
    extensions = tmp_path / "extensions"
    extensions.mkdir()
    config = replace(CONFIG, updates_per_iteration=2, environment={"TORCH_EXTENSIONS_DIR": str(extensions)})
    expected = two_and_two(one, config, turns, tmp_path / "checkpoint")
    again = LearnerGroup(config, policy_path)
    again.load(tmp_path / "checkpoint")
    assert again.policy_version == 2
    for _ in range(2):
        again.update(turns)
    assert_close(expected, weights(again), atol=0, rtol=0)
    again.build(replace(config, zero_stage=2, offload="optimizer"))
    again.update(turns)
    assert not list(extensions.rglob("*")), "the fresh process built a C++ extension"
    again.shutdown()


@pytest.mark.parametrize(("stage", "dtype"), [slow(0, "float32"), (1, "bfloat16"), slow(2, "float32"), (3, "float32")])
def test_the_state_of_two_ranks_is_restored_bit_for_bit(two, turns, tmp_path, stage, dtype):
    config = replace(CONFIG, num_learners=2, zero_stage=stage, dtype=dtype)
    expected = two_and_two(two, config, turns, tmp_path / "checkpoint")
    two.build(config)
    two.load(tmp_path / "checkpoint")
    for _ in range(2):
        two.update(turns)
    assert_close(expected, weights(two), atol=0, rtol=0)
    assert not list(tmp_path.glob("*.partial"))


def two_and_two(group, config, turns, checkpoint):
    """The weights after four updates, with a checkpoint after two."""
    group.build(config)
    for i in range(4):
        if i == 2:
            group.save(checkpoint)
        group.update(turns)
    return weights(group)


def test_a_snapshot_written_while_the_learner_goes_on_is_what_a_save_writes(two, turns, tmp_path):
    config = replace(CONFIG, num_learners=2, zero_stage=2)
    two.build(config)
    two.update(turns)
    two.save(tmp_path / "at_once")
    two.snapshot()
    two.update(turns)  # the copy is of before
    two.write(tmp_path / "behind")
    two.update(turns)
    wait_until(two.written)
    files = [json.loads((tmp_path / name / "learner.json").read_text())["files"] for name in ("at_once", "behind")]
    assert files[0].keys() == files[1].keys() >= {"random_0.pt", "random_1.pt", "engine/mp_rank_00_model_states.pt"}
    for name in files[0]:
        assert_equal(*(torch.load(tmp_path / folder / name, weights_only=False) for folder in ("at_once", "behind")), where=name)


def assert_equal(a, b, where):
    if isinstance(a, torch.Tensor):
        assert torch.equal(a, b), where
    elif isinstance(a, dict):
        assert a.keys() == b.keys(), where
        for key in a:
            assert_equal(a[key], b[key], f"{where}: {key}")
    elif isinstance(a, list | tuple):
        assert len(a) == len(b), where
        for i, (one, other) in enumerate(zip(a, b, strict=True)):
            assert_equal(one, other, f"{where}[{i}]")


def wait_until(done, deadline_s=60):
    end = time.monotonic() + deadline_s
    while not done():
        assert time.monotonic() < end
        time.sleep(0.02)


SHAPES = {
    "one learner, nothing partitioned": {"num_learners": 1, "zero_stage": 0},
    "two learners, gradients partitioned": {"num_learners": 2, "zero_stage": 2},
    "two learners, weights partitioned": {"num_learners": 2, "zero_stage": 3},
}


@pytest.mark.parametrize(
    ("written", "read"), [slow(0, 2), (2, 0), slow(1, 0), slow(1, 2)], ids=lambda i: list(SHAPES)[i] if isinstance(i, int) else None
)
def test_a_checkpoint_of_another_shape_gives_its_weights_and_says_what_is_lost(one, two, turns, tmp_path, written, read):
    groups = []
    for place in (written, read):
        shape = list(SHAPES.values())[place]
        groups.append(one if shape["num_learners"] == 1 else two)
        groups[-1].build(replace(CONFIG, **shape))
        if place == written:
            groups[0].update(turns)
            expected = weights(groups[0])
            groups[0].save(tmp_path / "checkpoint")
    lost = groups[1].load(tmp_path / "checkpoint")
    assert "its weights are loaded, the moments of the optimizer start at zero" in lost
    assert f"learner.zero_stage={list(SHAPES.values())[written]['zero_stage']} (now" in lost
    assert_close(expected, weights(groups[1]), atol=0, rtol=0)
    assert groups[1].policy_version == 1
    groups[1].update(turns)


@pytest.mark.parametrize("stage", [slow(1), slow(2), 3])
def test_a_checkpoint_in_bfloat16_gives_its_weights_to_a_learner_in_float32(one, two, turns, tmp_path, stage):
    two.build(replace(CONFIG, num_learners=2, zero_stage=stage, dtype="bfloat16"))
    two.update(turns)
    two.save(tmp_path / "checkpoint")
    one.build(CONFIG)
    assert "learner.dtype=bfloat16 (now float32)" in one.load(tmp_path / "checkpoint")
    assert_close({name: tensor.bfloat16() for name, tensor in weights(one).items()}, weights(two), atol=0, rtol=0)


def test_adapters_go_on_bit_for_bit_and_only_as_they_began(one, turns, tmp_path):
    config = replace(CONFIG, lora_rank=2, freeze_vision=True)
    one.build(config)
    one.update(turns)
    one.save(tmp_path / "checkpoint")
    one.update(turns)
    expected = weights(one)
    one.build(config)
    assert one.load(tmp_path / "checkpoint") == ""
    one.update(turns)
    assert_close(expected, weights(one), atol=0, rtol=0)
    one.build(CONFIG)
    with pytest.raises(ValueError, match=r"learner.lora_rank=2 \(now 0\).*set it back, or begin a new run"):
        one.load(tmp_path / "checkpoint")


def test_an_incomplete_or_damaged_checkpoint_is_refused_and_named(one, tmp_path):
    one.build(CONFIG)
    one.save(tmp_path / "one")
    assert one.load(tmp_path / "one") == ""
    (tmp_path / "empty").mkdir()
    with pytest.raises(FileNotFoundError, match="no complete learner checkpoint"):
        one.load(tmp_path / "empty")
    with (tmp_path / "one/engine/mp_rank_00_model_states.pt").open("ab") as file:
        file.truncate(1000)
    with pytest.raises(CorruptCheckpointError, match=r"mp_rank_00_model_states.pt is corrupt: 1000 bytes, \d+ were written"):
        one.load(tmp_path / "one")


class Running:
    """A pickle of it makes a folder when it is loaded."""

    def __init__(self, folder):
        self.folder = folder

    def __reduce__(self):
        return os.mkdir, (str(self.folder),)


@pytest.mark.parametrize("shape", [{"zero_stage": 0}, {"zero_stage": 2}, {"zero_stage": 2, "dtype": "bfloat16"}], ids=str)
@pytest.mark.parametrize("same", [True, False], ids=["all of it", "its weights"])
def test_a_checkpoint_that_asks_for_a_program_to_be_run_is_refused(one, tmp_path, shape, same):
    one.build(replace(CONFIG, **shape))
    one.save(tmp_path / "one")
    for file in (tmp_path / "one/engine").glob("*states.pt"):
        torch.save(torch.load(file, weights_only=False) | {"more": Running(tmp_path / "ran")}, file)
    manifest = json.loads((tmp_path / "one/learner.json").read_text())
    manifest["files"] = facts_of(tmp_path / "one", manifest["files"])
    (tmp_path / "one/learner.json").write_text(json.dumps(manifest))
    one.build(replace(CONFIG, **shape) if same else replace(CONFIG, zero_stage=3))
    with pytest.raises(pickle.UnpicklingError, match="weights_only"):
        one.load(tmp_path / "one")
    assert not (tmp_path / "ran").exists()


def test_a_save_without_room_writes_nothing_and_names_folder_and_bytes(one, turns, mounted):
    small_disk = mounted("200k")
    one.build(CONFIG)
    with pytest.raises(NoRoomError, match=r"disk0/checkpoint.partial needs [\d,]+ bytes, [\d,]+ are free"):
        one.save(small_disk / "checkpoint")
    with pytest.raises(NoRoomError, match=r"disk0/policy.partial needs [\d,]+ bytes"):
        one.save_policy(small_disk / "policy")
    assert not list(small_disk.rglob("*"))
    one.update(turns)


def test_a_disk_that_fills_up_while_a_checkpoint_is_written_is_an_error_that_names_the_file(one, turns, mounted, tmp_path):
    small_disk = mounted("200k")
    one.build(CONFIG)
    one.snapshot()
    one._snapshot_bytes = -(2**20)  # as if somebody else took the room after the look at it
    one.write(small_disk / "checkpoint")
    with pytest.raises(OSError, match=r"mp_rank_00_model_states.pt could not be written .* are free"):
        wait_until(one.written)
    assert not (small_disk / "checkpoint/learner.json").exists()
    one.update(turns)
    one.save(tmp_path / "elsewhere")
    one.load(tmp_path / "elsewhere")


def test_the_saved_policy_loads_and_has_the_weights_of_the_learner(two, turns, tmp_path):
    two.build(replace(CONFIG, num_learners=2, zero_stage=3))
    two.update(turns)
    two.save_policy(tmp_path / "policy")
    loaded = load_policy(tmp_path / "policy")
    assert_close(dict(loaded.model.named_parameters()), weights(two), atol=0, rtol=0)
    assert loaded.tokenizer.get_vocab()


def test_the_exported_policy_gives_the_logits_of_the_learner_with_and_without_a_picture(one, turns, policy_path, tmp_path):
    one.build(CONFIG)
    one.update(turns)
    one.save_policy(tmp_path / "policy")
    exported = AutoModelForImageTextToText.from_pretrained(tmp_path / "policy").eval()
    assert exported.lm_head.weight.data_ptr() == exported.get_input_embeddings().weight.data_ptr(), "tied weights came apart"
    learned = load_policy(policy_path)
    copy_into(learned.model, unpack_weights(fetched(weights_of(one))))
    for turn in (next(t for t in turns if t.image is None), next(t for t in turns if t.image is not None)):
        ids = torch.from_numpy(turn.prompt_ids.astype("int64"))[None]
        pictured = learned.pictured(ids, [turn.image] if turn.image else [])
        inputs = {"input_ids": ids, "attention_mask": torch.ones_like(ids), **pictured}
        with torch.no_grad():
            torch.testing.assert_close(exported(**inputs).logits, learned.model(**inputs).logits, atol=0, rtol=0)


def test_learners_get_room_all_at_once_or_not_at_all_and_the_error_says_what_to_free(ray_cluster, policy_path):
    with pytest.raises(DeadlineError, match=r"waited 1 s for room for 2 learner processes \(are there enough free CPUs or GPUs\?\)"):
        LearnerGroup(replace(CONFIG, num_learners=2, cpus_per_learner=3.0, deadline_s=1), policy_path)  # one of them would find room
    free = placement_group([{"CPU": 0.5}])
    assert free.wait(30), "what was asked for in vain is still reserved"
    remove_placement_group(free)


def test_a_wait_ends_with_the_name_of_what_it_waits_for(ray_cluster):
    never = ray.remote(num_cpus=10_000)(lambda: None).remote()
    with pytest.raises(DeadlineError, match=r"waited 0.1 s for the moon: 1 of 1 are missing"):
        results([never], "the moon", 0.1)
    ray.cancel(never)

import pytest
import torch
from choices import CHOICES

from learner.config import LearnerConfig, check_rollout
from learner.step_grpo import StepGRPO
from rollout.config import RolloutConfig


@pytest.mark.parametrize("key", CHOICES)
def test_a_value_that_is_not_known_is_refused_with_its_key_and_the_known_ones(key):
    with pytest.raises(ValueError, match=rf"(?s){key}.*{CHOICES[key][0]!r}"):
        LearnerConfig(**{key: "unknown"})


@pytest.mark.parametrize(
    ("key", "value"),
    [
        ("clip_low", 1.5),
        ("clip_high", -0.1),
        ("constant_tokens", 0),
        ("lora_rank", -1),
    ],
)
def test_a_value_out_of_range_is_refused_with_its_key(key, value):
    with pytest.raises(ValueError, match=key):
        LearnerConfig(**{key: value})


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"step_weight": 0.0}, "step_weight and learner.episode_weight are both 0"),
        ({"baseline": "shrunk"}, "baseline=shrunk does not go with learner.normalisation=std"),
        ({"normalisation": "components", "baseline": "leave_one_out"}, "components does not go with learner.baseline=leave_one_out"),
        ({"surrogate": "dppo", "ratio": "turn"}, "surrogate=dppo with learner.ratio=turn .* expected token and none"),
        ({"surrogate": "dppo", "sampler_correction": "mask"}, "surrogate=dppo .*sampler_correction=mask: .* expected token and none"),
        ({"offload": "optimizer"}, "offload=optimizer with learner.zero_stage=0; expected zero_stage 1 or higher"),
        ({"offload": "parameters", "zero_stage": 2}, "offload=parameters with learner.zero_stage=2; expected zero_stage 3"),
        ({"dtype": "bfloat16"}, "dtype=bfloat16 with learner.zero_stage=0.*expected zero_stage 1"),
        ({"attention": "flex"}, "attention=flex with learner.gpus_per_learner=0: it has no gradients on a CPU"),
        ({"lr_schedule": "cosine"}, "lr_decay_iterations is 0 with learner.lr_schedule=cosine; expected more than"),
    ],
)
def test_settings_that_do_not_go_together_are_refused_with_what_does(settings, message):
    with pytest.raises(ValueError, match=message):
        LearnerConfig(**settings)


@pytest.mark.parametrize(
    ("settings", "mode", "group_size", "message"),
    [
        ({}, "branch", 1, "group_size is 1 with learner.baseline=mean: nothing to compare a turn with"),
        ({"baseline": "leave_one_out"}, "chain", 1, "group_size is 1 with learner.baseline=leave_one_out"),
        ({}, "chain", 8, "step_weight is 1 with rollout.mode=chain, learner.baseline=mean and .*=std: .* expected baseline=leave_one_out"),
        ({"ratio": "sequence"}, "offline", 8, "ratio=sequence needs whole episodes .* expected rollout.mode=chain"),
        (
            {"step_weight": 0.0, "episode_weight": 1.0},
            "branch",
            8,
            "episode_weight is 1 with rollout.mode=branch: siblings .* have no outcome",
        ),
        (
            {"episode_weight": 0.5, "baseline": "shrunk", "normalisation": "none"},
            "branch",
            8,
            "episode_weight is 0.5 with rollout.mode=branch",
        ),
        ({"episode_weight": 1.0, "normalisation": "components"}, "branch", 8, "episode_weight is 1 with rollout.mode=branch"),
        ({"episode_weight": 1.0}, "offline", 8, "episode_weight is 1 with rollout.mode=offline"),
        ({"routes": "all"}, "offline", 8, "learner.routes is 'all' with rollout.mode=offline: .* expected rollout.mode=branch"),
        ({"routes": "all"}, "branch", 8, "learner.routes is 'all' with rollout.record_routes=false"),
    ],
)
def test_what_is_sampled_has_to_be_something_that_can_be_learned_from(settings, mode, group_size, message):
    with pytest.raises(ValueError, match=message):
        check_rollout(LearnerConfig(**settings), RolloutConfig(mode=mode, group_size=group_size))
    with pytest.raises(ValueError, match=message):
        StepGRPO.get_default_config().training(
            policy_path="p", data=[1], reward_actors=[1], retriever=1, learner=LearnerConfig(**settings),
            rollout=RolloutConfig(mode=mode, group_size=group_size),
        ).validate()  # fmt: skip


def test_what_goes_together_is_accepted():
    check_rollout(LearnerConfig(), RolloutConfig(group_size=2, temperature=0.7, top_p=0.9, top_k=20))
    check_rollout(LearnerConfig(baseline="shrunk", normalisation="none"), RolloutConfig(mode="offline", group_size=1))
    check_rollout(LearnerConfig(ratio="sequence", step_weight=0.0, episode_weight=1.0), RolloutConfig(mode="chain"))
    check_rollout(LearnerConfig(baseline="leave_one_out", normalisation="none"), RolloutConfig(mode="chain"))


@pytest.mark.parametrize("instructions", ["avx512_bf16", "amx_bf16", ""])
def test_auto_is_bfloat16_where_the_cpu_multiplies_in_it_and_on_gpus(monkeypatch, instructions):
    monkeypatch.setattr(torch.cpu, "get_capabilities", lambda: {"avx512_bf16": False, instructions: True})
    assert LearnerConfig(dtype="auto", zero_stage=1).dtype == ("bfloat16" if instructions else "float32")
    assert LearnerConfig(dtype="auto", zero_stage=1, gpus_per_learner=1).dtype == "bfloat16"

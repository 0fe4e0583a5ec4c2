from dataclasses import replace

import pytest

from learner.config import CHOICES, LearnerConfig
from learner.config_checks import check_rollout
from learner.step_grpo_config import StepGRPOConfig
from rollout.config import RolloutConfig


@pytest.mark.parametrize("key", CHOICES)
def test_a_value_that_is_not_known_is_refused_with_its_key_the_known_ones_and_the_nearest(key):
    known = CHOICES[key]
    with pytest.raises(ValueError, match=rf"learner.{key} is '{known[0]}x'; it must be one of .*{known[0]!r}"):
        LearnerConfig(**{key: f"{known[0]}x"})


def test_the_nearest_known_value_is_offered():
    with pytest.raises(ValueError, match=r"learner.aggregation is 'tokenmean'.*did you mean token_mean\?"):
        LearnerConfig(aggregation="tokenmean")


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"step_weight": 0.0}, "step_weight and learner.episode_weight are both 0"),
        ({"baseline": "shrunk"}, "baseline=shrunk does not go with learner.normalisation=std"),
        ({"normalisation": "components", "baseline": "leave_one_out"}, "components does not go with learner.baseline=leave_one_out"),
        ({"normalisation": "components", "step_comparison": "return"}, "learner.step_comparison=return; expected mean and reward"),
        ({"component_weights": {"query": 2.0}}, "component_weights are set, but learner.normalisation is 'std'"),
        ({"dual_clip": 1.1}, "dual_clip is 1.1 .* more than 1 . learner.clip_high = 1.2"),
        ({"dual_clip": 3.0, "surrogate": "cispo"}, "dual_clip is 3.0 with learner.surrogate=cispo"),
        ({"sampler_cap": 0.5}, "sampler_cap is 0.5; expected 0 .off. or at least 1"),
        ({"clip_low": 1.5}, "clip_low is 1.5; it must lie between 0 and 1"),
        ({"clip_high": -0.1}, "clip_high is -0.1; it must not be negative"),
        ({"constant_tokens": 0}, "constant_tokens is 0; it must be greater than 0"),
        ({"offload": "optimizer"}, "offload=optimizer with learner.zero_stage=0; expected zero_stage 1 or higher"),
        ({"offload": "parameters", "zero_stage": 2}, "offload=parameters with learner.zero_stage=2; expected zero_stage 3"),
        ({"dtype": "bfloat16"}, "dtype=bfloat16 with learner.zero_stage=0.*expected zero_stage 1"),
        ({"attention": "flex"}, "attention=flex with learner.gpus_per_learner=0: it has no gradients on a CPU"),
        ({"lora_rank": 8, "lora_targets": []}, "lora_targets is empty with learner.lora_rank=8"),
        ({"lora_rank": -1}, "lora_rank is -1; it must not be negative"),
        ({"lr_schedule": "cosine"}, "lr_decay_iterations is 0 with learner.lr_schedule=cosine; expected more than"),
        ({"lr_decay_iterations": 9}, "lr_decay_iterations is 9, but learner.lr_schedule is 'constant'"),
        ({"lr_floor": 2.0}, "lr_floor is 2.0; it must lie between 0 and 1"),
        ({"kind_weights": {"plans": 1.0}}, "a key of learner.kind_weights is 'plans'.*did you mean plan"),
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
        ({"step_comparison": "return"}, "branch", 8, "step_comparison=return needs whole episodes .* expected rollout.mode=chain"),
        ({"ratio": "sequence"}, "offline", 8, "ratio=sequence needs whole episodes"),
        ({"step_weight": 0.0, "episode_weight": 1.0}, "branch", 8, "step_weight is 0 with rollout.mode=branch"),
    ],
)
def test_what_is_sampled_has_to_be_something_that_can_be_learned_from(settings, mode, group_size, message):
    with pytest.raises(ValueError, match=message):
        check_rollout(LearnerConfig(**settings), mode, group_size)
    with pytest.raises(ValueError, match=message):
        StepGRPOConfig().training(
            policy_path="p", data=[1], reward_actors=[1], retriever=1, learner=LearnerConfig(**settings),
            rollout=RolloutConfig(mode=mode, group_size=group_size),
        ).validate()  # fmt: skip


def test_what_goes_together_is_accepted():
    check_rollout(LearnerConfig(), "branch", 2)
    check_rollout(LearnerConfig(baseline="shrunk", normalisation="none"), "offline", 1)
    check_rollout(LearnerConfig(step_comparison="return", ratio="sequence", episode_weight=1.0), "chain", 8)
    assert replace(LearnerConfig(), dual_clip=3.0, clip_high=0.28).dual_clip == 3.0

"""A whole training loop small enough for a test: recorded turns, a policy of a few thousand weights, and a reward that it can earn."""

from __future__ import annotations

import functools
import sys
from collections.abc import Sequence

import numpy as np
import ray

from learner.config import LearnerConfig
from learner.question_ledger import ShuffledQuestions
from learner.step_grpo import StepGRPO
from learner.step_grpo_config import StepGRPOConfig
from rewards.actor import RETRIEVERS, RewardActor
from rewards.config import RewardConfig
from rollout.config import RolloutConfig
from rollout.records import GoldStep, Question, RecordedTurn, ScoredTurn, Trajectory, TurnReward

ray.cloudpickle.register_pickle_by_value(sys.modules[__name__])  # the processes of Ray cannot import what lies beside a test


class LowIds(RewardActor):
    """Rewards the share of small token ids: a random policy earns some of it, in varying amounts."""

    def __init__(self):
        self._config, self._retrievers = RewardConfig(), RETRIEVERS

    def score(self, trajectories: Sequence[Trajectory]) -> list[ScoredTurn]:
        return [
            ScoredTurn(
                group.state.key,
                group.state.prompt_ids,
                group.state.image,
                turn,
                TurnReward(reward := float(np.mean(turn.response_ids < 100)), {"low_ids": reward}),
                trajectory.question.id,
                0.0,
                trajectory.question.id,
            )
            for trajectory in trajectories
            for group in trajectory.groups
            for turn in group.turns
        ]


class NothingKnown:
    """Retrieval without a knowledge base."""

    catalog = ()

    def search_routed(self, asked, k):
        raise AssertionError("there is nothing to search")


def questions(n: int) -> list[Question]:
    return [Question(f"q{i}", f"Which capital has flag {i} ?", ("red",), gold_steps=()) for i in range(n)]


def recorded(n: int) -> list[RecordedTurn]:
    return [RecordedTurn(q, "final", "", q.text, GoldStep(q.text, "", "red")) for q in questions(n)]


def offline_config(policy_path: str, **training) -> StepGRPOConfig:
    reward_actors = [ray.remote(num_cpus=0)(LowIds).remote() for _ in range(2)]
    learner = LearnerConfig(lr=3e-3, warmup_iterations=1, cpus_per_learner=0.2, deadline_s=250)
    return (
        StepGRPO.get_default_config()
        .env_runners(num_env_runners=2, num_cpus_per_env_runner=0.2)
        .training(
            policy_path=policy_path,
            rollout=RolloutConfig(mode="offline", group_size=4, max_new_tokens=8),
            learner=learner,
            reward_actors=reward_actors,
            data=ShuffledQuestions(recorded(10), seed=1),
            questions_per_iteration=6,
            questions_per_chunk=2,
            deadline_s=250,
        )
        .training(**training)
    )


@functools.cache
def shared_algorithm(policy_path: str) -> StepGRPO:
    """One algorithm for all tests that do not ask for special settings: starting its processes takes longer than the tests. It ends with Ray."""
    return offline_config(policy_path).build_algo()

"""The configuration of `StepGRPO`, in the form that RLlib and Ray Tune take."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from ray.rllib.algorithms.algorithm_config import AlgorithmConfig
from ray.rllib.connectors.env_to_module import EnvToModulePipeline
from ray.rllib.connectors.module_to_env import ModuleToEnvPipeline
from ray.rllib.core.rl_module.multi_rl_module import MultiRLModuleSpec

from learner.config import LearnerConfig, check_overlap, check_rollout
from learner.learner_group import LearnerGroup
from learner.question_ledger import ShuffledQuestions
from rollout.config import RolloutConfig
from rollout.rollout_worker import NO_SPACE, RolloutWorker

SETTINGS = {
    *("policy_path", "rollout", "learner", "retriever", "reward_actors", "data", "questions_per_iteration", "questions_per_chunk"),
    *("overlap", "trace", "sampling_seed", "deadline_s"),
}


class StepGRPOConfig(AlgorithmConfig):
    """Made by `StepGRPO.get_default_config()`, set with `.training(...)`; workers and their CPUs and GPUs with RLlib's `.env_runners(...)`."""

    def __init__(self, algo_class: type | None = None):
        super().__init__(algo_class=algo_class)
        self.policy_path = ""  # policy to start from: a folder in Hugging Face format, or a hub name
        self.rollout = RolloutConfig()
        self.learner = LearnerConfig()
        self.retriever: Any = None  # handle of the knowledge bases; None in `offline` mode
        self.reward_actors: Sequence[Any] = ()  # handles of reward actors; the trajectories of an iteration are split among them
        self.data: ShuffledQuestions | None = None  # where questions (`offline`: recorded turns) come from. The algorithm works on a copy.
        self.questions_per_iteration = 16
        self.questions_per_chunk = 4  # questions that a worker takes at a time: more is faster to sample, fewer balances the workers better
        self.overlap = 0  # 0: roll out, then learn. 1: during learning, roll out the next batch with the old weights (one step off).
        self.trace = False  # record timelines of all processes (`StepGRPO.timelines`)
        self.sampling_seed = 0  # with policy version and question it decides every random draw of a rollout
        self.deadline_s = 600.0  # any wait for rollout workers or rewards ends with an error after this

        self.env_runner_cls = RolloutWorker
        self.num_env_runners = 2
        self.num_cpus_per_env_runner = 0.5
        self.create_local_env_runner = False
        self.validate_env_runners_after_construction = False  # without a deadline; `StepGRPO` waits for them with one
        self.restart_failed_env_runners = True
        self.merge_env_runner_states = False
        self.broadcast_env_runner_states = False
        self._reserve()

    def training(self, **settings: Any) -> StepGRPOConfig:
        for name in SETTINGS & settings.keys():
            setattr(self, name, settings.pop(name))
        super().training(**settings)
        self._reserve()
        return self

    def _reserve(self) -> None:
        """Copy the resources of the learners to the fields that RLlib and Tune read."""
        self.num_learners = self.learner.num_learners
        self.num_cpus_per_learner, self.num_gpus_per_learner = self.learner.cpus_per_learner, self.learner.gpus_per_learner

    def validate(self) -> None:
        """Raises ValueError for a missing setting, and for settings that exclude each other."""
        super().validate()
        for key in ("policy_path", "data", "reward_actors"):
            if not getattr(self, key):
                raise ValueError(f"StepGRPOConfig.{key} is not set; pass it to .training({key}=...)")
        if self.retriever is None and self.rollout.mode != "offline":
            raise ValueError(f"StepGRPOConfig.retriever is not set: rollout.mode={self.rollout.mode} searches; pass one, or use offline")
        check_rollout(self.learner, self.rollout)
        check_overlap(self.overlap, self.learner, self.rollout)
        if self.num_env_runners < 1 and not self.in_evaluation:
            raise ValueError(f"num_env_runners is {self.num_env_runners}; at least 1 rollout worker is needed")

    def build_learner_group(self, *args: Any, **kwargs: Any) -> LearnerGroup:
        return LearnerGroup(self.learner, self.policy_path)

    def get_default_rl_module_spec(self) -> None:
        return None

    def get_multi_rl_module_spec(self, *args: Any, **kwargs: Any) -> MultiRLModuleSpec:
        return MultiRLModuleSpec(rl_module_specs={})

    def build_env_to_module_connector(self, *args: Any, **kwargs: Any) -> EnvToModulePipeline:
        return EnvToModulePipeline(NO_SPACE, NO_SPACE, connectors=[])

    def build_module_to_env_connector(self, *args: Any, **kwargs: Any) -> ModuleToEnvPipeline:
        return ModuleToEnvPipeline(NO_SPACE, NO_SPACE, connectors=[])

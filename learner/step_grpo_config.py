"""What `StepGRPO` needs to know, in the form that RLlib and Ray Tune take."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any

from ray.rllib.algorithms.algorithm_config import AlgorithmConfig, NotProvided
from ray.rllib.connectors.env_to_module import EnvToModulePipeline
from ray.rllib.connectors.module_to_env import ModuleToEnvPipeline
from ray.rllib.core.rl_module.multi_rl_module import MultiRLModuleSpec
from ray.rllib.utils.checkpoints import Checkpointable

from learner.config import LearnerConfig
from learner.config_checks import check_overlap, check_rollout
from learner.group import LearnerGroup
from learner.question_source import QuestionSource
from rollout.config import RolloutConfig
from rollout.worker import NO_SPACE, RolloutWorker


class StepGRPOConfig(AlgorithmConfig):
    """Set with `.training(...)`; how many workers, and their CPUs and GPUs, with RLlib's `.env_runners(...)`."""

    def __init__(self, algo_class: type | None = None):
        if algo_class is None:
            from learner.step_grpo import StepGRPO

            algo_class = StepGRPO
        super().__init__(algo_class=algo_class)
        self.policy_path = ""
        """Policy to start from: a folder in Hugging Face format, or a hub name."""
        self.rollout = RolloutConfig()
        self.learner = LearnerConfig()
        self.retriever: Any = None
        """Handle of the knowledge bases; None in `offline` mode."""
        self.reward_actors: Sequence[Any] = ()
        """Handles of reward actors, which share the trajectories of an iteration."""
        self.data: QuestionSource | None = None
        """Where training questions (in `offline` mode: recorded turns) come from. The algorithm works on a copy."""
        self.questions_per_iteration = 16
        self.questions_per_chunk = 4
        """Questions that a worker takes at a time: more are sampled faster, fewer keep workers evenly busy and are lost with a worker."""
        self.overlap = 0
        """0: roll out, then learn. 1: while a batch is learned from, the next one is rolled out with the weights from before (one step off)."""
        self.trace = False
        """Keep what every process did when (`StepGRPO.timelines`)."""
        self.sampling_seed = 0
        """With the policy version and the question, it decides every random draw of a rollout."""
        self.deadline_s = 600.0
        """Any wait for rollout workers or rewards ends with an error after this many seconds."""

        self.env_runner_cls = RolloutWorker
        self.num_env_runners = 2
        self.num_cpus_per_env_runner = 0.5
        self.create_local_env_runner = False
        self.validate_env_runners_after_construction = False  # without a deadline; `StepGRPO` waits for them with one
        self.restart_failed_env_runners = True
        self.merge_env_runner_states = False
        self.broadcast_env_runner_states = False
        self._reserve()

    def training(
        self,
        *,
        policy_path: str = NotProvided,
        rollout: RolloutConfig = NotProvided,
        learner: LearnerConfig = NotProvided,
        retriever: Any = NotProvided,
        reward_actors: Sequence[Any] = NotProvided,
        data: QuestionSource = NotProvided,
        questions_per_iteration: int = NotProvided,
        questions_per_chunk: int = NotProvided,
        overlap: int = NotProvided,
        trace: bool = NotProvided,
        sampling_seed: int = NotProvided,
        deadline_s: float = NotProvided,
        **kwargs: Any,
    ) -> StepGRPOConfig:
        """Settings of the algorithm; see the attributes."""
        given = {name: value for name, value in locals().items() if name not in ("self", "kwargs", "__class__")}
        super().training(**kwargs)
        for name, value in given.items():
            if value is not NotProvided:
                setattr(self, name, value)
        self._reserve()
        return self

    def _reserve(self) -> None:
        """Say what the learners need where RLlib and Tune look for it."""
        self.num_learners = self.learner.num_learners
        self.num_cpus_per_learner = self.learner.cpus_per_learner
        self.num_gpus_per_learner = self.learner.gpus_per_learner

    def validate(self) -> None:
        """Raises ValueError for a setting that is missing, or for settings that do not go together."""
        super().validate()
        for key in ("policy_path", "data", "reward_actors"):
            if not getattr(self, key):
                raise ValueError(f"StepGRPOConfig.{key} is not set; pass it to .training({key}=...)")
        if self.retriever is None and self.rollout.mode != "offline":
            raise ValueError(
                f"StepGRPOConfig.retriever is not set, and rollout.mode={self.rollout.mode} searches; pass one, or use offline"
            )
        check_rollout(self.learner, self.rollout.mode, self.rollout.group_size)
        check_overlap(self.overlap, self.learner)
        if self.num_env_runners < 1 and not self.in_evaluation:
            raise ValueError(f"num_env_runners is {self.num_env_runners}; at least 1 rollout worker is needed")

    def build_learner_group(self, *args: Any, **kwargs: Any) -> CheckpointableLearnerGroup:
        return CheckpointableLearnerGroup(self.learner, self.policy_path)

    def get_default_rl_module_spec(self) -> None:
        return None

    def get_multi_rl_module_spec(self, *args: Any, **kwargs: Any) -> MultiRLModuleSpec:
        return MultiRLModuleSpec(rl_module_specs={})

    def build_env_to_module_connector(self, *args: Any, **kwargs: Any) -> EnvToModulePipeline:
        return EnvToModulePipeline(NO_SPACE, NO_SPACE, connectors=[])

    def build_module_to_env_connector(self, *args: Any, **kwargs: Any) -> ModuleToEnvPipeline:
        return ModuleToEnvPipeline(NO_SPACE, NO_SPACE, connectors=[])


class CheckpointableLearnerGroup(LearnerGroup, Checkpointable):
    """The learner group in RLlib's terms: `save` and `load` under the names that `Algorithm` calls."""

    is_remote = True
    _only_snapshots = False

    @contextmanager
    def only_snapshots(self) -> Iterator[None]:
        """In this block `save_to_path` takes a snapshot and writes nothing: `write` it afterwards, behind the training."""
        self._only_snapshots = True
        try:
            yield
        finally:
            self._only_snapshots = False

    def save_to_path(self, path: Any = None, **kwargs: Any) -> str:
        if self._only_snapshots:
            self.snapshot()
        else:
            self.save(path)
        return str(path)

    def restore_from_path(self, path: Any, **kwargs: Any) -> None:
        self.load(path)

    def get_state(self, *args: Any, **kwargs: Any) -> dict[str, Any]:
        """Nothing that fits in memory; RLlib asks for the key `learner` when it starts."""
        return {"learner": {}}

    def set_state(self, state: dict[str, Any]) -> None:
        pass

    def get_ctor_args_and_kwargs(self) -> tuple[tuple, dict[str, Any]]:
        return (self.config, self.policy_path), {}

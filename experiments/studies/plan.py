"""The plan of a study: its arms, the points of its sweep, and the configuration of every training."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from experiments.config import RunConfigError, TrainConfig, flat, load_config
from experiments.config.reading import is_setting, read_settings
from experiments.tracking.run_folder import RunFolder

COLD_START, STEP_GRPO = "cold_start", "step_grpo"


@dataclass(frozen=True)
class Arm:
    """One way to train (or the untrained cold start), or one point of the sweep."""

    label: str = ""
    settings: tuple[str, ...] = ()  # Settings that differ from the base configuration, which is Step-GRPO
    seed: int = 0  # Of a point of the sweep; arms are trained with `study.seeds`


ARMS: Mapping[str, Arm] = {
    COLD_START: Arm("cold start only"),
    "outcome_grpo": Arm(
        "outcome GRPO",
        (
            *("reward.terms.outcome=1", "rollout.mode=chain", "learner.step_weight=0", "learner.episode_weight=1"),
            "learner.routes=sampled",
        ),
    ),
    STEP_GRPO: Arm("Step-GRPO"),
    "all_routes": Arm("Step-GRPO, gradient over all routes", ("learner.routes=all",)),
    "all_routes_mpo": Arm("Step-GRPO, all routes, towards p exp(reward / .05)", ("learner.routes=all", "learner.routes_temperature=0.05")),
    "retrieval_cost": Arm("Step-GRPO, retrieval cost", ("reward.terms.step=1", "reward.terms.retrieval_cost=0.1")),
    "gigpo": Arm(
        "GiGPO",
        (
            *("reward.terms.outcome=1", "rollout.mode=chain", "learner.step_weight=1", "learner.episode_weight=1"),
            *("learner.baseline=leave_one_out", "learner.normalisation=none", "learner.routes=sampled"),
        ),
    ),
    "found_steps": Arm("Step-GRPO, found steps", ("data.gold=found", "data.gold_samples=1", "data.train_questions=96")),
    "route_regret": Arm(
        "route regret",
        (
            *("data.gold=hidden", "reward.terms.query_value.plan=1", "reward.terms.route_regret.plan=1"),
            *("reward.terms.step.answer=1", "reward.terms.step.final=1"),
            *("rollout.plan_siblings=4", "learner.routes=all", "learner.normalisation=batch_std"),
        ),
    ),
    "one_step_off": Arm("Step-GRPO, one step off", ("train.overlap=1", "learner.sampler_correction=truncate")),
}
POINTS: Mapping[str, Arm] = {  # One factor at a time. The default has three seeds: differences smaller than between seeds prove nothing.
    "default": Arm(),
    # alpha is the weight of the query (its text and its names, 2 to 3), beta that of routing; together 1, in the default 0.5 each.
    "beta-0.2": Arm(settings=("reward.query_weight=0.32", "reward.entity_weight=0.48", "reward.routing_weight=0.20")),
    "beta-0.8": Arm(settings=("reward.query_weight=0.08", "reward.entity_weight=0.12", "reward.routing_weight=0.80")),
    # As many turns an iteration as with the default of 8 siblings and 16 questions.
    "group-4": Arm(settings=("rollout.group_size=4", "train.questions_per_iteration=32")),
    "group-16": Arm(settings=("rollout.group_size=16", "train.questions_per_iteration=8")),
    "epsilon-0.05": Arm(settings=("learner.clip_low=0.05", "learner.clip_high=0.05")),
    "epsilon-0.4": Arm(settings=("learner.clip_low=0.4", "learner.clip_high=0.4")),
    "default-seed1": Arm(seed=1),
    "default-seed2": Arm(seed=2),
}


@dataclass
class StudySettings:
    """Settings `study.KEY=VALUE` of the command."""

    arms: list[str] = field(default_factory=lambda: [COLD_START, "outcome_grpo", STEP_GRPO, "retrieval_cost", "one_step_off"])
    """Arms of `studies/plan.py`; there are also all_routes, all_routes_mpo, gigpo, found_steps and route_regret. All are compared with `cold_start`
    and `step_grpo`."""
    seeds: list[int] = field(default_factory=lambda: [0, 1, 2])
    """Every arm is trained and measured once with each seed."""
    turns: int = 12_000
    """Sampled turns after which a training ends (with the current iteration); in the sweep half as many."""
    tokens: int = 0
    """Sampled tokens after which a training ends, with those of route values and found steps, instead of `turns`; 0: `turns` decides."""
    sweep: list[str] = field(default_factory=lambda: list(POINTS))
    """Points of `studies/plan.py`, trained by Ray Tune; empty: none."""
    render_only: bool = False
    """Only write results and tables from what was measured so far."""


@dataclass(frozen=True)
class Training:
    name: str
    arm: str  # In the sweep, the point
    seed: int
    config: TrainConfig

    @property
    def folder(self) -> RunFolder:
        return RunFolder(Path(self.config.runs_folder) / self.config.name)

    @property
    def finished(self) -> bool:
        settings, found = self.config.train, self.folder.summary()
        sampled = found.get("sampled_tokens", 0) + found.get("gold_tokens", 0)
        reached = [(found.get("turns", 0), settings.turns), (sampled, settings.tokens), (found.get("iterations", 0), settings.iterations)]
        return bool(found) and any(bound and count >= bound for count, bound in reached) and self.folder.policy.is_dir()


@dataclass(frozen=True)
class Study:
    settings: StudySettings
    base: TrainConfig  # The settings that all runs share
    trainings: tuple[Training, ...]  # Seed by seed, so that a study that is stopped early can be compared
    sweep: tuple[Training, ...]

    @property
    def folder(self) -> Path:
        return Path(self.base.runs_folder) / self.base.name


def read_study(arguments: Sequence[str]) -> Study:
    """The study of `[CONFIG.yaml] [study.key=value ...] [key=value ...]`. Raises RunConfigError."""
    ours = [argument for argument in arguments if argument.startswith("study.") and is_setting(argument)]  # not study.yaml
    own = [argument.removeprefix("study.") for argument in ours]
    rest = [argument for argument in arguments if argument not in ours]
    settings = read_settings(StudySettings, own)
    if all(is_setting(argument) for argument in rest):
        rest.insert(0, "study.yaml")
    for key, found, known in (("arms", settings.arms, ARMS), ("sweep", settings.sweep, POINTS)):
        if unknown := set(found) - set(known):
            raise RunConfigError(f"study.{key} names {', '.join(sorted(unknown))}; expected some of {', '.join(known)}")
    if not settings.seeds or (settings.turns < 2 and not settings.tokens):
        raise RunConfigError("study.seeds or study.turns: nothing to train; expected a seed, and at least 2 turns (or study.tokens)")
    base = load_config(rest)
    if base.rollout.mode == "offline":
        raise RunConfigError("rollout.mode is offline; a study compares ways to retrieve, expected branch or chain")
    folder, parent = f"runs_folder={base.runs_folder}/{base.name}", f"tracking.parent={base.tracking.parent or base.name}"

    def training(name: str, arm: str, seed: int, *changed: str) -> Training:
        return Training(name, arm, seed, load_config([*rest, *changed, f"name={name}", f"train.seed={seed}", "train.resume=auto"]))

    def trained(arm: str, seed: int) -> Training:
        return training(f"{arm}-seed{seed}", arm, seed, *ARMS[arm].settings, folder, parent, *length())

    def length(divisor: int = 1) -> list[str]:
        sampled = {"tokens": settings.tokens // divisor, "turns": 0 if settings.tokens else settings.turns // divisor}
        return [f"train.{key}={value}" for key, value in sampled.items()]

    def swept(name: str) -> Training:
        point = POINTS[name]
        return training(name, name, point.seed, *point.settings, f"{folder}/sweep", f"{parent}-sweep", *length(2))

    arms = [arm for arm in settings.arms if arm != COLD_START]
    return Study(settings, base, tuple(trained(arm, seed) for seed in settings.seeds for arm in arms), tuple(map(swept, settings.sweep)))


def check_earlier(training: Training) -> None:
    """Raises RunConfigError if the folder holds a run with other settings, as a study must not mix settings."""
    folder = training.folder
    if not (folder.path / "config.yaml").exists():
        return
    before, now = flat(folder.config()), flat(training.config)
    measuring = tuple(f"evaluation.{key}" for key in ("questions", "baselines", "start_baselines", "methods", "samples", "folder"))
    ignored = ("train.resume", "tracking.", "ray.", "data.kb_folder", *measuring)
    changed = [key for key in {**before, **now} if before.get(key) != now.get(key) and not key.startswith(ignored)]
    if changed:
        other = f"{folder.path} was trained with another {', '.join(changed)}"
        raise RunConfigError(f"{other}; set it back, or give the study another name (name=...)")

"""What a study consists of: its arms, the points of its sweep, and the settings of every training."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from experiments.command_settings import read_settings
from experiments.config import RunConfigError, TrainConfig, flat, load_config

COLD_START = "cold_start"
STEP_GRPO = "step_grpo"


@dataclass(frozen=True)
class Arm:
    """One way to train, or none."""

    label: str
    settings: tuple[str, ...] = ()
    """What differs from Step-GRPO as the configuration has it."""


ARMS: Mapping[str, Arm] = {
    COLD_START: Arm("cold start only"),
    "outcome_grpo": Arm(
        "outcome GRPO", ("reward.terms.outcome=1", "rollout.mode=chain", "learner.step_weight=0", "learner.episode_weight=1")
    ),
    STEP_GRPO: Arm("Step-GRPO"),
    "retrieval_cost": Arm("Step-GRPO, retrieval cost", ("reward.terms.step=1", "reward.terms.retrieval_cost=0.1")),
    "one_step_off": Arm("Step-GRPO, one step off", ("train.overlap=1", "learner.sampler_cap=2")),
}


@dataclass(frozen=True)
class Point:
    """One training of the sweep: Step-GRPO with one factor changed."""

    factor: str
    """`alpha and beta`, `group size`, `epsilon`; empty: nothing is changed."""
    value: str
    """As a table says it."""
    settings: tuple[str, ...] = ()
    seed: int = 0


def _weights(beta: float) -> tuple[str, ...]:
    """alpha is what asking earns (a query and its names, 2 to 3), beta what routing earns; together 1."""
    return tuple(
        f"reward.{name}_weight={weight:.2f}"
        for name, weight in (("query", 0.4 * (1 - beta)), ("entity", 0.6 * (1 - beta)), ("routing", beta))
    )


def _group(size: int, questions: int) -> tuple[str, ...]:
    """As many turns an iteration, whatever the size."""
    return (f"rollout.group_size={size}", f"train.questions_per_iteration={questions}")


def _clip(epsilon: float) -> tuple[str, ...]:
    return (f"learner.clip_low={epsilon:g}", f"learner.clip_high={epsilon:g}")


POINTS: Mapping[str, Point] = {
    "default": Point("", "as it is"),
    "beta-0.2": Point("alpha and beta", "0.8 and 0.2", _weights(0.2)),
    "beta-0.8": Point("alpha and beta", "0.2 and 0.8", _weights(0.8)),
    "group-4": Point("group size", "4", _group(4, 32)),
    "group-16": Point("group size", "16", _group(16, 8)),
    "epsilon-0.05": Point("epsilon", "0.05", _clip(0.05)),
    "epsilon-0.4": Point("epsilon", "0.4", _clip(0.4)),
    "default-seed1": Point("", "as it is", seed=1),
    "default-seed2": Point("", "as it is", seed=2),
}
"""One factor at a time. The default has three seeds: what differs less than they do among themselves was not told apart."""
DEFAULTS = {"alpha and beta": "0.5 and 0.5", "group size": "8", "epsilon": "0.2"}
"""Factor -> what `default` has."""


@dataclass
class StudySettings:
    """Settings `study.KEY=VALUE` of the command."""

    arms: list[str] = field(default_factory=lambda: list(ARMS))
    """Of `studies/plan.py`; `cold_start` and `step_grpo` are what the others are compared with."""
    seeds: list[int] = field(default_factory=lambda: [0, 1, 2])
    """Every arm is trained once with each; it is the seed of its measurements, too."""
    turns: int = 12_000
    """Turns that every training samples (it ends with the iteration in which they are reached)."""
    sweep: list[str] = field(default_factory=lambda: list(POINTS))
    """Points of `studies/plan.py`, trained by Ray Tune; empty: none."""
    sweep_turns: int = 6_000
    """Turns that a training of the sweep samples."""
    page: str = "docs/study.md"
    """The page that is written; its figures as .json beside it, its pictures in images/ there."""
    render_only: bool = False
    """Write the page from what is there, and start nothing."""


@dataclass(frozen=True)
class Training:
    """One run of the study."""

    name: str
    arm: str
    """Name of the arm; of the point, in the sweep."""
    seed: int
    config: TrainConfig


@dataclass(frozen=True)
class Study:
    settings: StudySettings
    base: TrainConfig
    """What all runs have in common."""
    trainings: tuple[Training, ...]
    """Seed by seed, so that what is there when a study is stopped can be compared."""
    sweep: tuple[Training, ...]

    @property
    def folder(self) -> Path:
        return Path(self.base.runs_folder) / self.base.name

    @property
    def page(self) -> Path:
        return Path(self.settings.page)


def read_study(arguments: Sequence[str]) -> Study:
    """The study that `[CONFIG.yaml] [study.key=value ...] [key=value ...]` says. Raises RunConfigError."""
    own = [argument.removeprefix("study.") for argument in arguments if argument.startswith("study.")]
    rest = [argument for argument in arguments if not argument.startswith("study.")]
    settings = read_settings(StudySettings, own)
    if all("=" in argument for argument in rest):
        rest.insert(0, "study.yaml")
    for key, found, known in (("arms", settings.arms, ARMS), ("sweep", settings.sweep, POINTS)):
        if unknown := set(found) - set(known):
            raise RunConfigError(f"study.{key} names {', '.join(sorted(unknown))}; expected some of {', '.join(known)}")
    if not settings.seeds or settings.turns < 1 or settings.sweep_turns < 1:
        raise RunConfigError("study.seeds, study.turns or study.sweep_turns: nothing to train; expected a seed, and at least 1 turn")
    base = load_config(rest)
    study = str(Path(base.runs_folder) / base.name)

    def training(arm: str, seed: int, turns: int, changed: Sequence[str], folder: str, name: str, parent: str) -> Training:
        told = [f"name={name}", f"runs_folder={folder}", f"train.seed={seed}", f"train.turns={turns}", "train.resume=auto"]
        told.append(f"tracking.parent={parent}")
        return Training(name, arm, seed, load_config([*rest, *changed, *told]))

    trainings = [
        training(arm, seed, settings.turns, ARMS[arm].settings, study, f"{arm}-seed{seed}", parent_of(base))
        for seed in settings.seeds
        for arm in settings.arms
        if arm != COLD_START
    ]
    sweep = [
        training(point, POINTS[point].seed, settings.sweep_turns, POINTS[point].settings, f"{study}/sweep", point, sweep_parent_of(base))
        for point in settings.sweep
    ]
    return Study(settings, base, tuple(trainings), tuple(sweep))


def parent_of(base: TrainConfig) -> str:
    """Name of the run under which MLflow shows the trainings of the arms."""
    return base.tracking.parent or base.name


def sweep_parent_of(base: TrainConfig) -> str:
    """And that of the sweep."""
    return f"{parent_of(base)}-sweep"


def differing(earlier: TrainConfig, now: TrainConfig) -> list[str]:
    """Settings in which two configurations of one training differ, but for those that do not decide what is learned."""
    before, after = flat(earlier), flat(now)
    keys = dict.fromkeys([*before, *after])
    measuring = tuple(f"evaluation.{key}" for key in ("questions", "baselines", "start_baselines", "methods", "samples", "folder"))
    indifferent = ("train.resume", "tracking.", "ray.", "data.kb_folder", *measuring)
    return [key for key in keys if before.get(key) != after.get(key) and not key.startswith(indifferent)]

"""What `experiments.evaluate` can measure: every method of rollout/methods, and the router's sampled episodes averaged (avg@k)."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace

from experiments.config import RunConfigError, TrainConfig
from rollout.config import RolloutConfig
from rollout.methods.registry import METHODS, expected_names, is_method, label_of

SAMPLED = "sampled"


@dataclass(frozen=True)
class Measured:
    """One way to answer all questions."""

    name: str
    label: str
    isolates: str
    rollout: RolloutConfig
    """`rollout.group_size` episodes of each question, on their own."""


def measured_methods(config: TrainConfig, kbs: Sequence[str]) -> list[Measured]:
    """What `evaluation.methods` says, without repetition; where it is empty, the policy and `evaluation.baselines`.

    Raises RunConfigError for an unknown method, for a knowledge base that is not there, and for methods that need one where there is none.
    """
    if config.rollout.mode == "offline":
        return [_measured("policy", config)]
    names = list(config.evaluation.methods or ["policy", *config.evaluation.baselines])
    if "every" in names:
        names = [*_every(kbs)]
    for name in names:
        if name != SAMPLED and not is_method(name):
            raise RunConfigError(f"evaluation.methods names {name!r}; expected every, {SAMPLED}, or some of {expected_names()}")
        kb = name.partition(":")[2]
        if kb and kb not in kbs:
            raise RunConfigError(f"evaluation.methods names {name!r}; the knowledge bases are {', '.join(kbs) or 'none'}")
        if name != "direct" and not kbs:
            raise RunConfigError(
                f"evaluation.methods names {name!r}, and data.name={config.data.name} brings no knowledge base: name some in retrieval.folders, "
                "or measure method=direct"
            )
    return [_measured(name, config) for name in dict.fromkeys(names)]


def _every(kbs: Sequence[str]) -> Iterable[str]:
    for name, method in METHODS.items():
        yield from (f"{name}:{kb}" for kb in kbs) if method.per_kb else (name,)
        if name == "policy":
            yield SAMPLED


def as_measured(config: TrainConfig, temperature: float) -> RolloutConfig:
    """How the rollout is set where its outcome is measured: one answer a question, no clock, nothing that only a reward asks for."""
    return replace(config.rollout, group_size=1, temperature=temperature, episode_s=0.0, gold_gains=False)


def _measured(name: str, config: TrainConfig) -> Measured:
    once = as_measured(config, config.evaluation.temperature)
    if once.mode != "offline":
        once = replace(once, mode="chain")
    if name == SAMPLED:
        samples, temperature = config.evaluation.samples, config.rollout.temperature
        label = f"the router, sampled at {temperature:g}, avg@{samples}"
        isolates = "how far the most probable episode stands for what was trained: sampled ones, averaged"
        return Measured(name, label, isolates, replace(once, routing="policy", group_size=samples, temperature=temperature))
    return Measured(name, label_of(name), METHODS[name.partition(":")[0]].isolates, replace(once, routing=name))

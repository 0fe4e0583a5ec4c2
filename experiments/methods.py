"""What `experiments.evaluate` can measure: every method of rollout/methods, and the router's sampled episodes averaged (avg@k)."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace
from typing import Any

from experiments.config import RunConfigError, TrainConfig
from rollout.config import RolloutConfig
from rollout.methods.registry import METHODS, expected_names, is_method, label_of

SAMPLED, ORACLE, EVERY = "sampled", "oracle", "every"
WITHOUT_GOLD = "no held-out question has gold steps: oracle routing, which follows them, is left out"


@dataclass(frozen=True)
class Measured:
    """One way to answer all questions."""

    name: str
    label: str
    isolates: str
    rollout: RolloutConfig
    """`rollout.group_size` episodes of each question, on their own."""


def has_gold(items: Iterable[Any]) -> bool:
    """Whether some question says what has to be found out; where none does, nobody can route by it."""
    return any(getattr(item, "gold_steps", None) is not None for item in items)


def routable(names: Sequence[str], gold: bool) -> list[str]:
    """Those of the methods that can be measured; `gold`: some held-out question has gold steps."""
    return [name for name in names if gold or name != ORACLE]


def leaves_out_oracle(config: TrainConfig, gold: bool) -> bool:
    """Whether `measured_methods` does what nobody asked for by name: the user is to be told."""
    names = config.evaluation.methods or config.evaluation.baselines
    return config.rollout.mode != "offline" and not gold and bool({EVERY, ORACLE}.intersection(names))


def measured_methods(config: TrainConfig, kbs: Sequence[str], gold: bool = True) -> list[Measured]:
    """What `evaluation.methods` says, without repetition; where it is empty, the policy and `evaluation.baselines`. `gold`: some held-out question
    has gold steps; where none has, `every` and the baselines are without `oracle`.

    Raises RunConfigError for an unknown method, for a knowledge base that is not there, for methods that need one where there is none, and for
    `oracle` where nobody knows what it should follow.
    """
    if config.rollout.mode == "offline":
        return [_measured("policy", config)]
    names = list(config.evaluation.methods or ["policy", *routable(config.evaluation.baselines, gold)])
    if EVERY in names:
        names = routable([*_every(kbs)], gold)
    for name in names:
        if name != SAMPLED and not is_method(name):
            raise RunConfigError(f"evaluation.methods names {name!r}; expected {EVERY}, {SAMPLED}, or some of {expected_names()}")
        kb = name.partition(":")[2]
        if kb and kb not in kbs:
            raise RunConfigError(f"evaluation.methods names {name!r}; the knowledge bases are {', '.join(kbs) or 'none'}")
        if name != "direct" and not kbs:
            raise RunConfigError(
                f"evaluation.methods names {name!r}, and data.name={config.data.name} brings no knowledge base: name some in retrieval.folders, "
                "or measure method=direct"
            )
        if name == ORACLE and not gold:
            raise RunConfigError(
                f"evaluation.methods names oracle, and no held-out question of data.name={config.data.name} has gold steps to route by: leave it "
                "out, or give the questions gold_steps"
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

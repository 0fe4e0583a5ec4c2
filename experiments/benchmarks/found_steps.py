"""`bench found_steps`: gold steps that were found from questions and answers alone, against the true ones of the atlas."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

from experiments.benchmarks.bench_results import FOLDER, BenchResult
from experiments.command_line.terminal import Console
from experiments.config import find_policy, load_config
from experiments.datasets import training_dataset
from experiments.run.found_steps_folder import find_steps
from experiments.worlds.atlas import FAMILIES
from rollout.needs import asked_need
from rollout.records import GoldStep, Question
from rollout.turn_parser import normalise

PRECISION = 0.95


def found_steps_rows(quick: bool) -> Iterator[BenchResult]:
    size = ["smoke.yaml", "data.train_questions=64"] if quick else ["laptop.yaml", "data.train_questions=512"]
    config = load_config([*size, "data.gold=found", f"data.kb_folder={FOLDER / 'found_steps_kbs'}"])
    given = training_dataset(config)
    found = find_steps(config, find_policy(config.train.policy), given, Console())
    true_steps = [question.gold_steps or () for question in given.train if isinstance(question, Question)]
    asked = list(zip((question for question in found.train if isinstance(question, Question)), true_steps, strict=True))
    for name, families in {"": FAMILIES, **{f", {family}": (family,) for family in FAMILIES}}.items():
        some = [(true, question.gold_steps) for question, true in asked if question.family in families]
        judged = [right for true, steps in some for right in judged_routes(steps or (), true)]
        if judged:
            precision = sum(judged) / len(judged)
            yield BenchResult.of(f"right knowledge bases, of those of found steps{name}", precision, "", bar=None if name else PRECISION)
        yield BenchResult(f"questions with found steps{name}", sum(steps is not None for _, steps in some) / len(some), "")
        as_many = [len(steps) == len(true) for true, steps in some if steps is not None]
        yield BenchResult(f"with as many as are true{name}", sum(as_many) / max(1, len(as_many)), "")


def judged_routes(steps: Sequence[GoldStep], true: Sequence[GoldStep]) -> Iterator[bool]:
    """For every knowledge base of every found step: whether it holds the true step with the same answer, or that the query asks for."""
    for step in steps:
        same = next((need for need in true if normalise(need.answer) == normalise(step.answer)), None) or asked_need(step.query, true)
        yield from (same is not None and kb in same.kbs for kb in step.kbs)

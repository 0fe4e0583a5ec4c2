"""`python -m experiments.bench NAME [quick=true]`: measure one thing on this machine; a table, and `bench/NAME.json`.

A row is one figure: its value, the baseline it was measured against in the same run, their ratio, the bar it should reach, and whether it
does. A missed bar is shown, never hidden.
"""

from __future__ import annotations

import dataclasses
import json
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from rich.console import Console
from rich.table import Table

from experiments.command_settings import read_settings
from experiments.config import RunConfigError, TrainConfig, find_policy
from experiments.summary import git_commit, machine

FOLDER = Path("bench")


@dataclass
class BenchSettings:
    quick: bool = False
    """Smaller, in seconds instead of minutes; the figures are rougher."""


@dataclass(frozen=True)
class Row:
    name: str
    value: float
    unit: str
    baseline: float | None = None
    ratio: float | None = None
    """value / baseline."""
    bar: float | None = None
    """What `ratio` (or `value`, without a baseline) should reach."""
    holds: bool | None = None
    """None where there is no bar, or the hardware is absent."""

    @classmethod
    def of(cls, name: str, value: float, unit: str, baseline: float | None = None, bar: float | None = None) -> Row:
        ratio = value / baseline if baseline else None
        reached = ratio if ratio is not None else value
        return cls(name, value, unit, baseline, ratio, bar, None if bar is None else reached >= bar)


def rollout(quick: bool) -> list[Row]:
    """Sampling 8 siblings of a prompt at once, against sampling the same 8 as separate prompts."""
    import torch

    from experiments.atlas import Atlas
    from rollout.engines.base import Request, Sampling
    from rollout.engines.transformers_engine import TransformersEngine
    from rollout.policy import Policy
    from rollout.prompts import SHORT

    torch.set_num_threads(1)
    policy = Policy.load(find_policy(TrainConfig().train.policy))
    questions = Atlas("validation", worlds=1).questions(8 if quick else 32)
    prompts = [(policy.encode(SHORT.plan(q.text, q.image is not None, (), ""), q.image), q.image) for q in questions]
    siblings, sampling = 8, Sampling(max_new_tokens=32)

    def tokens_per_second(requests: list[Request]) -> float:
        engine = TransformersEngine(policy)
        engine.generate(requests[:1], sampling)
        before, began = engine.sampled_tokens, time.perf_counter()
        engine.generate(requests, sampling)
        return (engine.sampled_tokens - before) / (time.perf_counter() - began)

    together = [Request(ids, image, siblings, seed) for seed, (ids, image) in enumerate(prompts)]
    apart = [Request(ids, image, 1, seed) for seed, (ids, image) in enumerate(prompts * siblings)]
    separate = tokens_per_second(apart)
    return [Row.of(f"{len(prompts)} prompts x {siblings} siblings, one thread", tokens_per_second(together), "tokens/s", separate)]


def retrieval(quick: bool) -> list[Row]:
    """Exact search of one shard in this process, with the ties and near ties settled, against plain FAISS."""
    import faiss

    from retrieval_actors.exact_search import exact_top_k

    faiss.omp_set_num_threads(1)
    rng = np.random.default_rng(0)
    passages, queries = (10_000, 64) if quick else (100_000, 256)

    def unit_rows(n: int) -> np.ndarray:
        rows = rng.standard_normal((n, 384), dtype=np.float32)
        return rows / np.linalg.norm(rows, axis=1, keepdims=True)

    stored = unit_rows(passages)
    index = faiss.IndexFlatIP(384)
    index.add(stored)
    asked = unit_rows(queries)

    def queries_per_second(search: Callable[[], object]) -> float:
        search()
        rounds, began = 3, time.perf_counter()
        for _ in range(rounds):
            search()
        return rounds * queries / (time.perf_counter() - began)

    plain = queries_per_second(lambda: index.search(asked, 10))
    exact = queries_per_second(lambda: exact_top_k(stored, asked, 10))
    return [Row.of(f"{passages:,} x 384, {queries} queries, one thread", exact, "queries/s", plain)]


BENCHMARKS: dict[str, Callable[[bool], list[Row]]] = {"retrieval": retrieval, "rollout": rollout}


def main(arguments: list[str]) -> int:
    console = Console(width=None if sys.stdout.isatty() else 140)
    try:
        name = arguments[0] if arguments and "=" not in arguments[0] else ""
        if name not in BENCHMARKS:
            raise RunConfigError(
                f"which benchmark? {name!r} is none of {', '.join(BENCHMARKS)}; python -m experiments.bench NAME [quick=true]"
            )
        settings = read_settings(BenchSettings, arguments[1:])
        began = time.perf_counter()
        rows = BENCHMARKS[name](settings.quick)
    except RunConfigError as error:
        console.print(f"error: {error}", style="red", soft_wrap=True, markup=False)
        return 2
    found = {
        "machine": machine(),
        "commit": git_commit(),
        "seconds": time.perf_counter() - began,
        "rows": list(map(dataclasses.asdict, rows)),
    }
    FOLDER.mkdir(exist_ok=True)
    (FOLDER / f"{name}.json").write_text(json.dumps(found, indent=2) + "\n", encoding="utf-8")
    console.print(_table(name, rows))
    return 0


def _table(name: str, rows: list[Row]) -> Table:
    table = Table(title=f"{name} ({FOLDER / name}.json)", title_justify="left", title_style="bold")
    for heading in ("figure", "value", "baseline", "ratio", "bar", ""):
        table.add_column(heading, justify="left" if heading == "figure" else "right")
    for row in rows:
        held = "" if row.holds is None else "[green]holds" if row.holds else "[red]missed"
        numbers = (f"{row.value:,.1f} {row.unit}", *(f"{x:,.2f}" if x is not None else "–" for x in (row.baseline, row.ratio, row.bar)))
        table.add_row(row.name, *numbers, held)
    return table


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))

"""`summary.json`: what a run comes to."""

from __future__ import annotations

import dataclasses
import time
from collections.abc import Mapping
from typing import Any

from experiments.parts import Run
from experiments.provenance import git_commit, machine


def summary(run: Run, measured: Mapping[str, Any]) -> dict[str, Any]:
    """`measured` (`before`, `after`, `difference`, `baselines`, ... as far as they are known) and the facts of the run around it."""
    tally = run.tally
    return {
        "name": run.config.name,
        **measured,
        "iterations": run.iteration,
        "policy_version": run.parts.algorithm.policy_version,
        "best": tally.best,
        "warnings": tally.warnings,
        "failed_saves": tally.failed_saves,
        "seconds": {phase: round(seconds, 2) for phase, seconds in tally.seconds.items()},
        "turns": tally.turns,
        "sampled_tokens": tally.sampled_tokens,
        "search_errors": tally.search_errors,
        "tracking_failures": run.tracker.failures,
        "finished": time.time(),
        "git_commit": git_commit(),
        "machine": machine(),
        "config": dataclasses.asdict(run.config),
    }

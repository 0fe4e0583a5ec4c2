"""`summary.json`: what a run comes to."""

from __future__ import annotations

import dataclasses
import os
import platform
import subprocess
import time
from collections.abc import Mapping
from typing import Any

from experiments.config import REPOSITORY
from experiments.parts import Run


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


def git_commit() -> str | None:
    """Of the repository that this file lies in, with `+changes` where files differ from it; None without git."""

    def git(*arguments: str) -> str:
        return subprocess.run(["git", *arguments], cwd=REPOSITORY, capture_output=True, text=True, check=True, timeout=30).stdout.strip()

    try:
        return git("rev-parse", "HEAD") + ("+changes" if git("status", "--porcelain") else "")
    except (OSError, subprocess.SubprocessError):
        return None


def machine() -> dict[str, Any]:
    """What figures of speed depend on; nothing that names the machine."""
    import psutil
    import torch

    return {
        "cpus": os.cpu_count(),
        "processor": platform.processor() or platform.machine(),
        "memory_gib": round(psutil.virtual_memory().total / 2**30),
        "gpus": [torch.cuda.get_device_name(i) for i in range(torch.cuda.device_count())],
        "python": platform.python_version(),
        "torch": torch.__version__,
    }

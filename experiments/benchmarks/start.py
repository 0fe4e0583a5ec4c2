"""The start of a run: seconds until everything runs and until the first iteration begins, and what each process costs until then."""

from __future__ import annotations

import json
import re
import subprocess
import sys
import tempfile
import time
from collections import Counter, defaultdict
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path

import psutil

from experiments.benchmarks.bench_results import BenchResult

EVERY_S = 0.25
DEADLINE_S = 900.0
MIB = 2**20
ALL_RUN = "evaluate before"  # the first phase in which every process is up


@dataclass
class Kind:
    """Processes of one name."""

    began: float = float("inf")  # seconds after the command, of the first of them
    cpu: dict[int, float] = field(default_factory=dict)  # process id -> CPU seconds
    peak: dict[int, float] = field(default_factory=dict)  # process id -> largest resident memory, in MiB


def start_rows(quick: bool) -> Iterator[BenchResult]:
    """`laptop.yaml` (`quick`: `smoke.yaml`), one iteration, with knowledge bases that are built: the first run builds them."""
    config = "smoke.yaml" if quick else "laptop.yaml"
    with tempfile.TemporaryDirectory() as place:
        folder = Path(place)
        if not Path("kbs").is_dir():
            yield BenchResult.of(
                "a first run that builds its knowledge bases, until everything runs", *_run(config, folder, "built")[:1], "s"
            )
        everything, first, kinds, peak = _run(config, folder, "start")
    what = f"{config}, knowledge bases built before"
    yield BenchResult.of(f"from the command until everything runs, {what}", everything, "s", bar=35, at_most=True)
    yield BenchResult.of(f"from the command to the first iteration, {what}", first, "s", bar=60, at_most=True)
    yield BenchResult.of("largest memory of all processes together, shared pages counted once", peak / 1024, "GiB", bar=5, at_most=True)
    for name, kind in sorted(kinds.items(), key=lambda item: -sum(item[1].cpu.values())):
        cpu, memory = sum(kind.cpu.values()), max(kind.peak.values())
        yield BenchResult.of(f"{len(kind.cpu)} x {name}, from second {kind.began:.0f} on, at most {memory:,.0f} MiB each", cpu, "CPU s")


def _run(config: str, folder: Path, name: str) -> tuple[float, float, dict[str, Kind], float]:
    """(seconds until everything runs, seconds until the first iteration, processes until then, peak MiB). Raises RuntimeError if it fails."""
    small = ("train.iterations=1", "evaluation.baselines=[]", "evaluation.start_baselines=[]", "tracking.mlflow=false")
    command = [sys.executable, "-m", "experiments.train", config, f"runs_folder={folder}", f"name={name}", *small]
    began, kinds, peak, everything = time.monotonic(), defaultdict[str, Kind](Kind), 0.0, float("nan")
    metrics = folder / name / "metrics.jsonl"
    with (folder / f"{name}.log").open("w") as log:
        driver = psutil.Popen(command, stdout=log, stderr=subprocess.STDOUT)
    try:
        while not (metrics.is_file() and metrics.stat().st_size):
            seconds, said = time.monotonic() - began, Path(log.name).read_text(errors="replace")
            if driver.poll() is not None or seconds > DEADLINE_S:
                raise RuntimeError(f"{' '.join(command)} ended without an iteration: {said[-500:]}")
            if ALL_RUN not in said:
                everything = seconds
            peak = max(peak, _look(driver, seconds, kinds))
            time.sleep(EVERY_S)
        row = json.loads(metrics.read_text().splitlines()[0])
        took = time.time() - row["finished"] + sum(value for key, value in row.items() if key.startswith("seconds_"))
        first = time.monotonic() - began - took
        driver.wait(DEADLINE_S)
    finally:
        for process in (*driver.children(recursive=True), driver) if driver.is_running() else ():
            process.kill()
    return everything, first, dict(kinds), peak


def _look(driver: psutil.Process, seconds: float, kinds: dict[str, Kind]) -> float:
    """Add what the processes have used so far; returns the MiB of all together now."""
    together = 0.0
    for process in (driver, *driver.children(recursive=True)):
        try:
            command = process.cmdline()
            kind = kinds[_name(command)] if command else None
            times, memory = process.cpu_times(), process.memory_full_info()
        except (psutil.Error, ProcessLookupError):
            continue
        if kind is not None:
            kind.began = min(kind.began, seconds)
            kind.cpu[process.pid] = times.user + times.system
            kind.peak[process.pid] = max(kind.peak.get(process.pid, 0.0), memory.rss / MIB)
            together += memory.pss / MIB
    return together


def _name(command: list[str]) -> str:
    """`ray::ShardActor`, `raylet`, `driver`, ..."""
    if found := re.match(r"ray::\w+", command[0]):
        return found[0]
    if "experiments.train" in command:
        return "driver"
    words = Counter(re.findall(r"raylet|gcs_server|dashboard|log_monitor|runtime_env|default_worker", " ".join(command[:3])))
    return next(iter(words), Path(command[0]).name).replace("default_worker", "a worker of Ray without an actor yet")

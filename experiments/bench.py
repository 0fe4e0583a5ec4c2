"""`r1-router bench NAME [quick=true]`: run a benchmark, print a table and write bench/NAME.json.

retrieval   exact search, actors, growth, 1M vectors, an HTTP server; then recall on real questions
rollout     sampling, log-probs, slots; whole episodes
learner     shared prefixes, DeepSpeed against a bare loop, weights to the rollout workers
found_steps gold steps that are found from questions and answers, against the true ones
rewards     the need matcher, on relations that its calibration was not fitted on
serve       the service: overhead and throughput
start       from the command to the first iteration: seconds, processes, memory
peers       SmolLM2-135M: rollouts, updates, iterations against transformers, vLLM and TRL (sets up vLLM once)
scale       the driver of a simulated cluster of 1 to 64 nodes: CPU and bytes per trajectory
gpu         a GPU in `minutes`, most valuable first: parity, decoding, learning, weights, a run; needs neither Ray nor DeepSpeed nor FAISS
"""

import os
from dataclasses import dataclass
from importlib import import_module

from pydantic import PositiveFloat

from experiments.benchmarks.bench_results import FOLDER, measure_rows, measured_rows
from experiments.command_line.entry_point import QUIET, command
from experiments.command_line.terminal import Console
from experiments.config import RunConfigError, TrainConfig
from experiments.config.reading import read_settings
from retrieval_actors.folder_lock import hold

BENCHMARKS = "retrieval rollout learner found_steps rewards serve start peers scale gpu".split()
"""`NAME_rows` of `experiments/benchmarks/NAME.py`; imported only when it runs."""


@dataclass
class BenchSettings:
    quick: bool = False
    """Smaller sizes: seconds instead of minutes, and rougher results. `gpu`: a rehearsal with tiny shapes, on the CPU where there is no GPU."""
    minutes: PositiveFloat = 8
    """Of `gpu`: what was not measured by then is named, and measured by the next call."""


@command
def main(arguments: list[str]) -> int:
    for key, value in QUIET.items():  # before a model is loaded, here or in a process that is started from here
        os.environ.setdefault(key, value)
    name = arguments[0] if arguments and "=" not in arguments[0] else ""
    if name not in BENCHMARKS:
        raise RunConfigError(f"which benchmark? {name!r} is none of {', '.join(BENCHMARKS)}; r1-router bench NAME [quick=true]")
    settings = read_settings(BenchSettings, arguments[1:])
    if name != "gpu":
        from experiments.cluster.ray_session import check_start  # `gpu` runs without Ray

        check_start(TrainConfig())
    out = "gpu_quick" if name == "gpu" and settings.quick else name
    hold(FOLDER / out)
    more = (settings.minutes, measured_rows(out)) if name == "gpu" else ()
    rows = getattr(import_module(f"experiments.benchmarks.{name}"), f"{name}_rows")
    measure_rows(out, rows(settings.quick, *more), Console())
    return 0

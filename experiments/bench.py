"""`r1-router bench NAME [quick=true]`: run a benchmark, print a table and write bench/NAME.json.

retrieval   exact search, actors, growth, 1M vectors, an HTTP server; then recall on real questions
rollout     sampling, log-probs, slots; whole episodes
learner     shared prefixes, DeepSpeed against a bare loop, weights to the rollout workers; a GPU, if available
found_steps gold steps that are found from questions and answers, against the true ones
rewards     the need matcher, on relations that its calibration was not fitted on
serve       the service: overhead and throughput
start       from the command to the first iteration: seconds, processes, memory
peers       SmolLM2-135M: rollouts, updates, iterations against transformers, vLLM and TRL (sets up vLLM once)
scale       the driver of a simulated cluster of 1 to 64 nodes: CPU and bytes per trajectory
"""

from __future__ import annotations

import os
from dataclasses import dataclass

from experiments.benchmarks.bench_results import FOLDER, measure_rows
from experiments.benchmarks.found_steps import found_steps_rows
from experiments.benchmarks.learner import learner_rows
from experiments.benchmarks.peers import peers_rows
from experiments.benchmarks.retrieval import retrieval_rows
from experiments.benchmarks.rewards import rewards_rows
from experiments.benchmarks.rollout import rollout_rows
from experiments.benchmarks.scale import scale_rows
from experiments.benchmarks.serve import serve_rows
from experiments.benchmarks.start import start_rows
from experiments.cluster.ray_session import QUIET, check_start
from experiments.command_line.entry_point import command
from experiments.command_line.terminal import Console
from experiments.config import RunConfigError, TrainConfig
from experiments.config.reading import read_settings
from retrieval_actors.folder_lock import hold

BENCHMARKS = {
    "retrieval": retrieval_rows,
    "rollout": rollout_rows,
    "learner": learner_rows,
    "found_steps": found_steps_rows,
    "rewards": rewards_rows,
    "serve": serve_rows,
    "start": start_rows,
    "peers": peers_rows,
    "scale": scale_rows,
}


@dataclass
class BenchSettings:
    quick: bool = False
    """Smaller sizes: seconds instead of minutes, and rougher results."""


@command
def main(arguments: list[str]) -> int:
    for key, value in QUIET.items():  # before a model is loaded, here or in a process that is started from here
        os.environ.setdefault(key, value)
    name = arguments[0] if arguments and "=" not in arguments[0] else ""
    if name not in BENCHMARKS:
        raise RunConfigError(f"which benchmark? {name!r} is none of {', '.join(BENCHMARKS)}; r1-router bench NAME [quick=true]")
    settings = read_settings(BenchSettings, arguments[1:])
    check_start(TrainConfig())
    hold(FOLDER / name)
    measure_rows(name, BENCHMARKS[name](settings.quick), Console())
    return 0

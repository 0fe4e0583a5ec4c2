"""`r1-router compare [RUN ...]`: compare runs: paired differences with intervals, and caveats.

RUN is a run folder, a name in runs/, or the MLflow id of one of them; by default all of runs/. The others are compared with the first.
MLflow's own page shows curves and searches over many runs: select runs there and press Compare.

    r1-router compare laptop seed1 seed2
"""

from pathlib import Path

from experiments.command_line.entry_point import command
from experiments.command_line.terminal import Console
from experiments.evaluation.compare_runs import compare_runs, find_runs, print_comparison


@command
def main(arguments: list[str]) -> int:
    print_comparison(Console(), compare_runs(find_runs(arguments, Path("runs"))))
    return 0

"""What a run shows."""

from __future__ import annotations

import io

from rich.console import Console

from experiments.command_line.progress import Progress

ROW = {"iteration": 3, "reward": 0.5, "routing": 0.25, "tokens_per_second": 1234.0}


def test_every_iteration_is_one_line():
    console = Console(file=io.StringIO(), force_terminal=False, width=200)
    with Progress(console, "mine", iterations=6, minutes=0) as progress:
        progress.phase("evaluate before")
        progress.detail("questions", 1, 2)
        progress.phase("train")
        progress.iteration(ROW, trained_seconds=30)
    lines = console.file.getvalue().splitlines()
    assert len(lines) == 2
    assert lines[1].split() == "iteration 3 reward 0.500 routing 0.250 tokens_per_second 1,234 0:30 left".split()


def test_on_a_terminal_a_status_line_shows_phase_and_time_left():
    console = Console(file=io.StringIO(), force_terminal=True, width=100)
    with Progress(console, "mine", iterations=100, minutes=1) as progress:
        progress.phase("train")
        progress.detail("questions", 1, 2)
        for i in range(1, 30):
            progress.iteration(ROW | {"iteration": i, "reward": i / 30}, trained_seconds=i)
        with console.capture() as captured:
            console.print(progress._status())
    for part in ("mine: train questions 1/2", "0:31 left"):
        assert part in captured.get()

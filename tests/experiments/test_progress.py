"""What a run shows."""

from __future__ import annotations

import io

import pytest
from rich.console import Console

from experiments.progress import Progress, sparkline

ROW = {"iteration": 3, "reward": 0.5, "routing": 0.25, "tokens_per_second": 1234.0}


def test_without_a_terminal_every_iteration_is_one_line():
    console = Console(file=io.StringIO(), force_terminal=False, width=200)
    with Progress(console, "mine", iterations=6, minutes=0) as progress:
        progress.phase("evaluate before")
        progress.detail("questions", 1, 2)
        progress.phase("train")
        progress.iteration(ROW, trained_seconds=30)
    lines = console.file.getvalue().splitlines()
    assert len(lines) == 2
    assert lines[1].split() == "iteration 3 reward 0.500 routing 0.250 1,234 tokens/s 0:30 left".split()


def test_on_a_terminal_a_panel_shows_phase_figures_and_time_left():
    console = Console(file=io.StringIO(), force_terminal=True, width=100)
    progress = Progress(console, "mine", iterations=100, minutes=1)
    progress.phase("train")
    for i in range(1, 30):
        progress.iteration(ROW | {"iteration": i, "reward": i / 30}, trained_seconds=i)
    with console.capture() as captured:
        console.print(progress._panel())
    shown = captured.get()
    assert "mine" in shown
    assert "train" in shown
    assert "0:31 left" in shown
    assert "1,234" in shown
    assert "█" in shown


@pytest.mark.parametrize(("values", "expected"), [([], ""), ([1.0, 1.0], "▁▁"), ([0.0, 1.0], "▁█"), ([0.0, 0.5, 1.0], "▁▅█")])
def test_a_sparkline_goes_from_the_smallest_to_the_largest(values, expected):
    assert sparkline(values) == expected


def test_a_long_history_fits_its_place():
    assert len(sparkline([float(i) for i in range(1000)], width=40)) <= 40

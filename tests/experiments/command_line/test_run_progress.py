"""What a run shows."""

from __future__ import annotations

import io
import json
import re

import pytest
from rich.console import Console

from experiments.command_line import progress as progress_file
from experiments.command_line.progress import Progress
from experiments.config import CONFIGS, load_config
from experiments.datasets import training_dataset
from experiments.evaluation.result_tables import print_results, what_happened
from experiments.run.opening import opening_lines

ROW = {"iteration": 3, "reward": 0.5, "routing": 0.25, "tokens_per_second": 1234.0}


def test_elsewhere_than_on_a_terminal_lines_are_half_a_minute_apart(monkeypatch):
    now = [0.0]
    monkeypatch.setattr(progress_file.time, "monotonic", lambda: now[0])
    console = Console(file=io.StringIO(), force_terminal=False, width=200)
    with Progress(console, "mine", iterations=60, minutes=0) as progress:
        progress.phase("evaluate before")
        progress.detail("questions", 1, 2)
        progress.phase("train")
        for number in range(1, 9):
            now[0] += 10
            progress.iteration(ROW | {"iteration": number}, trained_seconds=now[0])
        progress.phase("evaluate after")
    lines = [line.split() for line in console.file.getvalue().splitlines()]
    assert lines[0][-2:] == ["evaluate", "before"]
    assert [line[1] for line in lines[1:-1]] == ["1", "4", "7", "8"]  # the last one is shown where the phase ends
    assert lines[2] == "iteration 4 reward 0.500 routing 0.250 tokens/s 1,234 9:20 left".split()


def test_on_a_terminal_a_status_line_shows_phase_figures_and_time_left():
    console = Console(file=io.StringIO(), force_terminal=True, width=100)
    with Progress(console, "mine", iterations=100, minutes=1) as progress:
        progress.phase("train")
        for i in range(1, 30):
            progress.iteration(ROW | {"iteration": i, "reward": i / 30}, trained_seconds=i)
        with console.capture() as captured:
            console.print(progress._status())
    for part in ("mine: train iteration 29", "reward 0.967", "0:31 left"):
        assert part in captured.get()
    printed = [
        line for line in re.sub(r"\x1b\[[0-9;?]*[A-Za-z]", "\n", console.file.getvalue()).splitlines() if line.startswith("iteration")
    ]
    assert len(printed) == 1  # one line that stays in its place; the last is kept


@pytest.mark.parametrize("config", ["laptop.yaml", "smoke.yaml"])
def test_a_run_opens_with_at_most_15_lines_that_name_what_differs(config):
    config = load_config([config, "learner.lr=3e-5", "name=mine"])
    lines = list(opening_lines(config, training_dataset(config), config.train.policy))
    assert len(lines) <= 15
    assert max(map(len, lines)) <= 120
    said = "\n".join(lines)
    for part in (
        "mine: Step-GRPO",
        "1.4 million weights; sampled by the engine transformers",
        "runs/mine",
        "learner.lr=3e-05",
        "text, text_image, table",
    ):
        assert part in said
    assert "runs_folder=" not in said


def test_every_shipped_configuration_opens_briefly():
    for file in CONFIGS.glob("*.yaml"):
        config = load_config([file.name])
        if config.data.name == "atlas":
            assert len(list(opening_lines(config, training_dataset(config), config.train.policy))) <= 15, file


def summary(after: float, oracle: float, learned: float) -> dict:
    def measured(f1: float, routing: float) -> dict:
        names = {"f1_recall": f1, "exact_match": f1, "routing_accuracy": routing, "stop_accuracy": 1.0, "retrievals_per_question": 1.5}
        overall = {name: {"value": value, "low": value - 0.02, "high": value + 0.02} for name, value in names.items()}
        return {"questions": 512, "overall": overall}

    change = {"value": learned, "low": learned - 0.02, "high": learned + 0.02}
    baselines = {"all": measured(0.3, float("nan")), "oracle": measured(oracle, 1.0)}
    difference = {"f1_recall": {"value": after - 0.4, "low": after - 0.42, "high": after - 0.38}, "routing_accuracy": change}
    return {"before": measured(0.4, 0.44), "after": measured(after, 0.44 + learned), "difference": difference, "baselines": baselines}


def test_the_end_says_what_happened_in_a_sentence():
    said = what_happened(summary(0.66, 0.67, 0.55))
    assert said.startswith("learned where to search: routing 0.44 → 0.99; answers 0.40 → 0.66, the ceiling of its reading")
    assert "answers 0.40 → 0.50, of 0.67 with the right knowledge base" in what_happened(summary(0.5, 0.67, 0.55))
    assert what_happened(summary(0.41, 0.67, 0.01)).startswith("did not learn where to search")
    assert "answers 0.40 → 0.41 (within chance)" in what_happened(summary(0.41, 0.67, 0.01))


@pytest.mark.parametrize("width", [80, 100])
def test_the_table_at_the_end_fits_the_terminal(width, tmp_path):
    found = json.loads(json.dumps(summary(0.66, 0.67, 0.55)))
    found["before"]["by_family"] = found["after"]["by_family"] = {}
    console = Console(file=io.StringIO(), width=width)
    print_results(console, found)
    table = [line for line in console.file.getvalue().splitlines() if line.startswith(("│", "┃", "┏", "└"))]
    assert {len(line) for line in table} == {len(table[0])}
    assert len(table[0]) <= width
    assert len(table) == 3 + 4  # no cell is folded: headings in their frame, four rows, the last line

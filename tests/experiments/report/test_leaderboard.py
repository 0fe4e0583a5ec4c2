"""The leaderboard: a row for each recipe, and a command that gives its settings again."""

from __future__ import annotations

import dataclasses
import shlex
from pathlib import Path

import pytest
from made_run import begun, finished

from experiments import results
from experiments.config import TrainConfig, load_config
from experiments.report.leaderboard import BEGIN, COLUMNS, END, recipe_of, row
from experiments.tracking.run_folder import flat_yaml


def config(tmp_path: Path, *settings: str) -> TrainConfig:
    return load_config([*settings, f"runs_folder={tmp_path / 'runs'}", f"data.folder={tmp_path}", "tracking.mlflow=false"])


def add(page: Path, *runs: Path) -> int:
    return results.main(["add", *map(str, runs), f"file={page}"])


def table(page: Path) -> list[list[str]]:
    inside = page.read_text().partition(BEGIN)[2].partition(END)[0].strip().splitlines()
    assert inside[0] == f"| {' | '.join(COLUMNS)} |"
    return [line.strip("| ").split(" | ") for line in inside[2:]]


@pytest.fixture
def page(tmp_path: Path) -> Path:
    file = tmp_path / "page.md"
    file.write_text(f"# Results\n\n{BEGIN}\n{END}\n\n## Below\n")
    return file


def test_rows_are_sorted_by_result_and_the_same_run_replaces_its_row(tmp_path, page):
    half = finished(config(tmp_path, "laptop.yaml", "name=half"), seconds={"set_up": 30.0, "train": 90.0, "evaluate_before": 600.0})
    most = finished(config(tmp_path, "smoke.yaml", "name=most", "train.seed=3"), right_after=lambda number: number % 5 != 0)
    assert add(page, half.path) == add(page, most.path) == 0
    assert [cells[0] for cells in table(page)] == ["smoke.yaml", "laptop.yaml"]
    second = dict(zip(COLUMNS, table(page)[1], strict=True))
    overall = half.summary()["after"]["overall"]["f1_recall"]
    assert second["F1-Recall"] == f"0.208 → 0.500 [{overall['low']:.3f}, {overall['high']:.3f}]"
    assert (second["minutes"], second["hardware"], second["commit"]) == ("2.0", "2 cores, 24 GiB", "0123456789 with changes")
    assert (second["data"], second["date"]) == ("atlas, 24 questions", "2023-11-14")
    again = finished(config(tmp_path, "laptop.yaml", "name=half"), right_after=lambda number: True)
    assert add(page, again.path) == 0
    assert [cells[0] for cells in table(page)] == ["laptop.yaml", "smoke.yaml"]
    assert page.read_text().startswith("# Results\n\n")
    assert page.read_text().endswith(f"{END}\n\n## Below\n")
    assert str(tmp_path) not in page.read_text()


def test_the_command_of_a_row_gives_the_settings_of_the_run(tmp_path):
    settings = [
        "learner.betas=[0.9,0.9]",
        "evaluation.baselines=[]",
        "learner.routes=all",
        "train.seed=7",
        "name=a b",
        "retrieval.folders.text=kbs/x",
    ]
    asked = config(tmp_path, "real_text.yaml", *settings)
    file = begun(asked).path / "config.yaml"
    recipe, command = recipe_of({**flat_yaml(file), "learner.of_an_older_version": 1})
    assert recipe == "real_text.yaml"
    assert len(shlex.split(command)) == 3 + len(settings)
    found = load_config(shlex.split(command)[2:])
    found.runs_folder, found.data.folder, found.tracking = asked.runs_folder, asked.data.folder, asked.tracking
    assert dataclasses.asdict(found) == dataclasses.asdict(asked)


def test_a_folder_of_the_machine_is_not_published(tmp_path):
    cells = row(finished(config(tmp_path, f"train.policy={tmp_path}/mine", "learner.ratio=turn")))
    assert cells[COLUMNS.index("policy")] == "FOLDER/mine"
    assert "train.policy=FOLDER/mine" in cells[-1]


def test_what_cannot_be_added_is_said_in_a_line_and_the_page_stays(tmp_path, page, capsys):
    unfinished = begun(config(tmp_path, "name=unfinished"))
    before = page.read_text()
    assert add(page, unfinished.path) == 2
    assert "unfinished: has no results in summary.json; let it finish" in capsys.readouterr().out
    assert page.read_text() == before
    page.write_text("# Results\n")
    assert add(page, finished(config(tmp_path, "name=other")).path) == 2
    assert "has no leaderboard; expected the two lines <!-- leaderboard" in capsys.readouterr().out
    assert results.main(["add"]) == 2

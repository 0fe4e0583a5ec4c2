"""The report: whole without any other file, and honest about text that others wrote."""

from __future__ import annotations

import html.parser
import io
import re
from dataclasses import asdict, replace
from pathlib import Path

import PIL.Image
import pytest
from episodes import RETRIEVERS, episode, malformed, question, step, stop

from experiments.charts import line_chart, moving_mean
from experiments.config import TrainConfig
from experiments.evaluate import Evaluation
from experiments.measures import count, paired_difference
from experiments.report import write_report
from experiments.run_folder import RunFolder
from rollout.records import Image, Trajectory

VOID = {"meta", "img", "br"}


class Balance(html.parser.HTMLParser):
    """Fails on tags that are not closed, and collects what the page refers to."""

    def __init__(self) -> None:
        super().__init__()
        self.open: list[str] = []
        self.sources: list[str] = []
        self.words: list[str] = []

    def handle_starttag(self, tag, attributes):
        self.sources += [value for key, value in attributes if key in ("src", "href")]
        if tag not in VOID:
            self.open.append(tag)

    def handle_startendtag(self, tag, attributes):
        pass

    def handle_endtag(self, tag):
        assert self.open.pop() == tag

    def handle_data(self, data):
        self.words.append(data)


def flag() -> Image:
    data = io.BytesIO()
    PIL.Image.new("RGB", (8, 6), (200, 10, 10)).save(data, "PNG")
    return Image.of(data.getvalue())


def measured(trajectories: list[Trajectory]) -> Evaluation:
    return Evaluation(trajectories, [count(trajectory, {name: kb for kb, name in RETRIEVERS.items()}) for trajectory in trajectories])


@pytest.fixture
def folder(tmp_path: Path) -> RunFolder:
    folder = RunFolder.start(TrainConfig(name="mine", runs_folder=str(tmp_path)))
    asked = [
        replace(question(i, family, flag()), text="What is <script>alert(1)</script>?") for i, family in enumerate(["image", "table"] * 4)
    ]
    before = measured([episode(q, step("table", "unknown"), malformed(), answer="") for q in asked])
    after = measured([episode(q, step("text", "Tasla"), stop(), answer="Tasla" if i % 3 else "Runo") for i, q in enumerate(asked)])
    folder.write_trajectories("before", before.trajectories, before.counts)
    folder.write_trajectories("after", after.trajectories, after.counts)
    for i in range(1, 40):
        row = {
            "iteration": i,
            "reward_plan": i / 40,
            "routing": 0.5,
            "use_text": 0.5,
            "use_text_image": 0.25,
            "use_table": 0.15,
            "use_stop": 0.1,
        }
        folder.add_metrics(row | ({"validation_f1_recall": i / 50} if i % 10 == 0 else {}))
    difference = {name: asdict(interval) for name, interval in paired_difference(before.counts, after.counts).items()}
    summary = {"name": "mine", "before": before.summary(), "after": after.summary(), "difference": difference, "seconds": {"train": 12.5}}
    folder.write_summary(summary | {"baselines": {"random": before.summary()}, "start_baselines": {"oracle": after.summary()}})
    write_report(folder)
    return folder


def test_the_page_is_whole_and_needs_nothing_from_elsewhere(folder: RunFolder):
    page = folder.report.read_text()
    parser = Balance()
    parser.feed(page)
    assert parser.open == []
    assert parser.sources
    assert all(source.startswith("data:image/") for source in parser.sources)
    assert "http" not in page.replace("http-equiv", "")
    assert "nan" not in re.sub(r"<style>.*?</style>", "", page, flags=re.S).lower().replace("banana", "")
    assert "prefers-color-scheme: dark" in page


def test_text_of_questions_and_passages_is_never_markup(folder: RunFolder):
    page = folder.report.read_text()
    assert "<script" not in page
    assert "&lt;script&gt;alert(1)&lt;/script&gt;" in page
    assert "&lt;b&gt;Runo&lt;/b&gt; &amp; sons" in page


def test_right_and_wrong_answers_are_both_shown(folder: RunFolder):
    page = folder.report.read_text()
    assert "✓ Tasla" in page
    assert "✗ Runo" in page
    assert "malformed" in page


def test_a_report_of_a_run_that_measured_nothing_yet_can_be_written(tmp_path: Path):
    folder = RunFolder.start(TrainConfig(name="empty", runs_folder=str(tmp_path)))
    write_report(folder)
    assert "Settings" in folder.report.read_text()


def test_a_chart_without_points_is_left_out_and_one_point_is_drawn():
    assert line_chart({"a": []}, label="nothing") == ""
    assert "circle" in line_chart({"a": [(1, 0.5)]}, label="one")


def test_the_moving_mean_of_a_line_is_the_line():
    points = [(float(i), 2.0) for i in range(100)]
    assert moving_mean(points) == points

"""The report: whole without any other file, and honest about text that others wrote."""

from __future__ import annotations

import base64
import dataclasses
import html.parser
import io
import json
import re
import zlib
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace

import PIL.Image
import pytest
from episodes import RETRIEVERS, episode, malformed, question, recorded, step, stop
from made_run import begun, config_in

from experiments.config import TrainConfig
from experiments.evaluation.evaluator import Evaluation
from experiments.evaluation.metrics import confusion, count
from experiments.evaluation.significance import paired_difference
from experiments.report.browser import browser_data
from experiments.report.html_sections import confusion_section
from experiments.report.report_page import STYLE, main, write_report
from experiments.run.measure_before_and_after import report_so_far
from experiments.run.run_state import Totals
from experiments.serving.http_routes import PAGE as SERVED
from experiments.tracking.run_folder import RunFolder
from rollout.records import GoldStep, Image, Trajectory

VOID = {"meta", "img", "br", "input"}


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
            "kb_entropy": 0.9,
            "kb_entropy_text": 1 / i,
            "seconds_rollout": 0.2,
        }
        folder.add_metrics(row | ({"validation_f1_recall": i / 50} if i % 10 == 0 else {}))
    seconds = {"set_up": 10.0, "train": 12.5, "train_rollout": 7.5, "train_learn": 2.5}
    summary = {
        "name": "mine",
        "iterations": 39,
        "before": before.summary(),
        "after": after.summary(),
        "difference": paired_difference(before.counts, after.counts),
        "seconds": seconds,
    }
    folder.write_summary(summary | {"baselines": {"random": before.summary()}, "start_baselines": {"oracle": after.summary()}})
    write_report(folder)
    return folder


def unpacked(page: str) -> dict:
    """The trajectories in a page, read as a browser reads them."""
    (stored,) = re.findall(r'id="trajectories">([A-Za-z0-9+/=]+)</script>', page)
    return json.loads(zlib.decompress(base64.b64decode(stored), -zlib.MAX_WBITS))


def test_the_page_is_whole_and_needs_nothing_from_elsewhere(folder: RunFolder):
    page = folder.report.read_text()
    parser = Balance()
    parser.feed(page)
    assert parser.open == []
    assert all(source.startswith("#") for source in parser.sources)
    assert "http" not in re.sub(r"http-equiv|http://www\.w3\.org/(2000/svg|1999/xlink)", "", page)  # names of XML, which nobody fetches
    assert "nan" not in re.sub(r"<(style|script).*?</\1>", "", page, flags=re.S).lower()
    assert "prefers-color-scheme: dark" in page
    assert "Entropy of routes, by what was needed" in page
    assert all(url.startswith("data:image/png;base64,") for url in unpacked(page)["pictures"])


def test_no_text_of_questions_and_passages_stands_in_the_page_as_it_is(folder: RunFolder):
    """The script that shows it makes text nodes only, which tests/browser/test_report_page.py looks at."""
    page = folder.report.read_text()
    assert page.count("<script") == page.count("</script>") == 2
    assert "alert(1)" not in page
    assert unpacked(page)["trajectories"][0]["question"] == "What is <script>alert(1)</script>?"


def test_right_wrong_and_failed_are_told_apart(folder: RunFolder):
    data = unpacked(folder.report.read_text())
    outcomes = {(data["sets"][t["set"]], t["id"]): t["outcome"] for t in data["trajectories"]}
    assert outcomes["after training", "q0"] == "wrong"
    assert outcomes["after training", "q1"] == "right"
    assert {outcome for (when, _), outcome in outcomes.items() if when == "before training"} == {"failed"}


def test_gold_steps_are_shown_with_every_right_knowledge_base_and_those_of_older_runs_with_theirs(tmp_path: Path):
    several = GoldStep("Who?", ("text", "table"), "Ann")
    made = [replace(episode(question(), stop(), answer="Ann"), question=replace(question(), gold_steps=(several,)))]
    folder = RunFolder.start(TrainConfig(name="several", runs_folder=str(tmp_path)))
    folder.write_trajectories("after", made, measured(made).counts)
    (row,) = folder.read_trajectories("after")
    assert browser_data(folder, ["text"])["trajectories"][0]["gold"] == [[["text", "table"], "Who?", "Ann"]]
    old = [{"kb": "text", **{key: row["gold"][0][key] for key in ("query", "answer")}}]
    folder.read_trajectories = lambda name: [{**row, "gold": old}]
    assert browser_data(folder, ["text"])["trajectories"][0]["gold"] == [[["text"], "Who?", "Ann"]]


def test_recorded_turns_are_shown_with_what_they_decided_or_answered(tmp_path: Path):
    asks, said = GoldStep("Who?", "text", ""), "<think>a</think><answer>Yes.</answer>"
    plan = "<think>t</think><sub-question>Who?</sub-question><ret>{}</ret>"
    made = [recorded("plan", asks, plan.format(name)) for name in ("Text Retriever", "Table Retriever")]
    made += [recorded("final", GoldStep("", "", answer), said) for answer in ("yes", "no")] + [recorded("final", asks, "yes")]
    folder = RunFolder.start(TrainConfig(name="offline", runs_folder=str(tmp_path)))
    folder.write_trajectories("after", made, measured(made).counts)
    shown = browser_data(folder, ["text"])["trajectories"]
    assert [t["outcome"] for t in shown] == ["right", "wrong", "right", "wrong", "failed"]
    groups = [t["groups"][0] for t in shown[:2]]
    assert [group["siblings"][group["trunk"]][:3] for group in groups] == [["t", "Who?", "text"], ["t", "Who?", "table"]]
    assert shown[2]["answer"] == "Yes."


def test_passages_and_pictures_stand_in_the_page_once(folder: RunFolder):
    data = unpacked(folder.report.read_text())
    assert len(data["trajectories"]) == 16
    assert len(data["pictures"]) == 1
    assert len(data["passages"]) == 4  # two of each knowledge base that was asked


def test_the_confusion_matrix_counts_every_plan_turn_of_the_trunks(folder: RunFolder):
    before, after = (confusion(folder.read_trajectories(when)) for when in ("before", "after"))
    assert before == {("text", "table"): 8, ("text", "malformed"): 8}  # `unknown` came back, so the need is still there
    assert after == {("text", "text"): 8, ("stop", "stop"): 8}
    shown = re.sub(r"<[^>]+>", " ", confusion_section(before, after, ["text", "table"]))
    assert "before training: 0.0% of 16 plan turns right" in shown
    assert "after training: 100.0% of 16 plan turns right" in shown


def test_where_two_knowledge_bases_are_right_either_is(folder: RunFolder):
    rows = [{"steps": [{"gold": ["table", "text"], "kb": kb, "plan": "", "stops": False} for kb in ("text", "table", "text_image")]}]
    counts = confusion(rows)
    assert counts == {("table or text", "text"): 1, ("table or text", "table"): 1, ("table or text", "text_image"): 1}
    assert "66.7% of 3" in confusion_section({}, counts, ["text", "text_image", "table"])


def test_a_report_of_a_run_that_measured_nothing_yet_can_be_written(tmp_path: Path):
    folder = RunFolder.start(TrainConfig(name="empty", runs_folder=str(tmp_path)))
    write_report(folder)
    assert "Settings" in folder.report.read_text()


def test_a_report_of_no_run_is_refused_in_one_line(tmp_path: Path, capsys):
    assert main([str(tmp_path)]) == 2
    assert "no run folder (config.yaml is missing)" in capsys.readouterr().out


def test_knowledge_bases_have_the_colours_of_the_page_of_the_service():
    served = SERVED.read_text()
    for number in range(8):
        shown = [re.findall(rf"--kb{dash}{number}: (#[0-9a-f]+)", text) for dash, text in (("", served), ("-", STYLE))]
        assert len(shown[0]) == 2
        assert shown[0] == shown[1]


def test_a_run_that_ends_early_leaves_a_report_with_its_warnings_and_no_figures_after_training(tmp_path: Path):
    said: list[str] = []
    folder = begun(config_in(tmp_path, "early"))
    sign = {"iteration": 2, "name": "entropy", "found": 0.01, "threshold": 0.1, "cause": "it fell", "advice": "less"}
    actors = SimpleNamespace(algorithm=SimpleNamespace(policy_version=3))
    run = SimpleNamespace(
        config=dataclasses.make_dataclass("Config", ["name"])("early"),
        folder=folder,
        actors=actors,
        dataset=SimpleNamespace(gold_tokens=0),
        totals=Totals(warnings=[sign]),
        tracker=SimpleNamespace(failures=0),
        iteration=3,
    )
    report_so_far(folder, run, lambda line, style="": said.append(line))
    page = folder.report.read_text()
    assert said == [f"report so far: {folder.report}"]
    assert "iteration 2: entropy" in page
    assert "not measured after training" in page
    assert "Before and after" not in page
    assert folder.summary()["warnings"] == [sign]


def test_a_report_that_cannot_be_written_ends_nothing_and_is_said(tmp_path: Path):
    said: list[str] = []
    folder = begun(config_in(tmp_path, "early"))
    (folder.path / "config.yaml").unlink()
    report_so_far(folder, None, lambda line, style="": said.append(line))
    assert [line.partition(":")[0] for line in said] == ["warning"]
    report_so_far(begun(config_in(tmp_path, "none"), rows=0), None, lambda line, style="": said.append(line))
    assert len(said) == 1

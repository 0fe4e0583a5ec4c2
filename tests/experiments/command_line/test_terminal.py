"""Data is not terminal language: what files, models and errors say is shown, never obeyed."""

from __future__ import annotations

import ast
import dataclasses
import io
import re
from pathlib import Path

import numpy as np
import pytest
from made_run import finished
from rich.progress import Progress as Bars

from experiments import compare, doctor, kb, serve, study, train
from experiments.cluster.findings import Finding, findings_table
from experiments.cluster.kb_status import card_lines
from experiments.cluster.supervisor import Failure
from experiments.command_line import progress as progress_file
from experiments.command_line.progress import Progress
from experiments.command_line.terminal import Console, markdown_cell, visible
from experiments.config import TrainConfig
from experiments.evaluation.compare_runs import compare_runs, find_runs, print_comparison
from experiments.evaluation.metrics import METRICS
from experiments.evaluation.result_tables import failure_warnings, metric_table, print_methods
from experiments.report import report_page as report
from experiments.studies.study_results import markdown
from retrieval_actors.build.from_passages import write_knowledge_base
from retrieval_actors.knowledge_base import KnowledgeBase
from retrieval_actors.records import Passage

NASTY = "[red]x[/] :bomb: \x1b[2J\x1b]0;t\x07 a\rb \x00 \u202eabc\u2066 \x9b31m \ud800 [/nothing] \\[y]"
SHOWN = r"[red]x[/] :bomb: \x1b[2J\x1b]0;t\x07 a\rb \x00 \u202eabc\u2066 \x9b31m \ud800 [/nothing] \[y]"
OBEYED = re.compile("[\x00-\x08\x0b-\x1f\x7f-\x9f\u202a-\u202e\u2066-\u2069\ud800-\udfff]")
FIGURES = {name: {"value": 0.5, "low": 0.4, "high": 0.6} for name in METRICS}


def printed(show, width: int = 400) -> str:
    """What `show(console)` writes to a file: no colours there, so no escape is Rich's own."""
    out = io.StringIO()
    show(Console(file=out, width=width))
    assert not OBEYED.search(out.getvalue()), out.getvalue()
    return out.getvalue()


def test_what_a_terminal_would_obey_is_an_escape_and_other_text_is_as_it_was():
    assert visible(NASTY) == SHOWN
    assert visible(visible(NASTY)) == SHOWN
    plain = "Zoë\t東京 👩‍🚀 نص\nnext"
    assert visible(plain) == plain


def a_failure() -> Failure:
    texts = {field.name: NASTY for field in dataclasses.fields(Failure) if field.type == "str"}
    known = {"iteration": 1, "policy_version": 1, "process": 7, "fatal": True, "log": [NASTY]}
    return Failure(**texts | {field.name: known[field.name] for field in dataclasses.fields(Failure) if field.name in known})


def evaluation() -> dict:
    method = {"label": NASTY, "questions": 1, "overall": FIGURES, "kb_shares": {NASTY: FIGURES["f1"]}, "search_errors": 1}
    method["by_family"] = {NASTY: {"questions": 1, **FIGURES}}
    tested = {name: figure | {"p": 0.1, "p_corrected": 0.1} for name, figure in FIGURES.items()}
    return {"methods": {"a": method, "b": method}, "against": "a", "differences": {"b": tested}}


def bars(console: Console) -> None:
    with Bars(console=console) as shown, progress_file.bars(console) as advance:
        advance(NASTY, 1, 2)
        shown.console.print(NASTY)


def progress(console: Console) -> None:
    with Progress(console, NASTY, 3, 0) as run:
        run.say(NASTY, style="yellow")
        run.phase(NASTY)
        run.detail(NASTY, 1, 2)
        console.print(run._status())


@pytest.mark.parametrize(
    "show",
    {
        "a line": lambda console: console.print(NASTY, soft_wrap=True),
        "an error": lambda console: console.print(f"error: {NASTY}", style="red", soft_wrap=True, markup=False, highlight=False),
        "passages of kb search": lambda console: kb.show(console, kb.passage_lines([Passage(NASTY, NASTY, NASTY)])),
        "an error passage of kb search": lambda console: kb.show(console, kb.passage_lines([Passage("e", "", error=NASTY)])),
        "the bars of kb build": bars,
        "progress of train and evaluate": progress,
        "findings of doctor and the dry run": lambda console: console.print(findings_table([Finding(NASTY, NASTY, NASTY)])),
        "a failure": lambda console: console.print(a_failure().details()),
        "evaluate": lambda console: print_methods(console, evaluation(), NASTY),
        "warnings": lambda console: console.print(*failure_warnings({NASTY: {"failed_episodes": 1}})),
    }.items(),
    ids=lambda show: show[0],
)
def test_nothing_that_is_printed_obeys_its_data(show):
    assert SHOWN in re.sub(r"\s*\n\s*", " ", printed(show[1]))


def test_the_card_of_a_knowledge_base_is_shown_as_it_was_written(tmp_path):
    said = NASTY.replace("\ud800", "")
    card = {"retriever_name": said, "description": said, "modality": "text", "embedder": "minilm"}
    write_knowledge_base(tmp_path / "kb", name="kb", passages=[Passage("1", "a")], vectors=np.eye(1, 384, dtype=np.float32), **card)
    base = KnowledgeBase.open(str(tmp_path / "kb"), verify=False)
    assert printed(lambda console: kb.show(console, card_lines(base))).count(visible(said)) == 2


def test_runs_with_nasty_names_are_compared_and_reported_without_being_obeyed(tmp_path):
    name = re.sub("[/\x00\ud800]", "", NASTY) + "<b>bold</b>".replace("/", "")
    runs = [finished(TrainConfig(name=one, runs_folder=str(tmp_path))) for one in ("plain", name)]
    found = compare_runs(find_runs([str(run.path) for run in runs], tmp_path))
    assert visible(name) in printed(lambda console: print_comparison(console, found))
    report.write_report(runs[1])
    page = runs[1].report.read_text(encoding="utf-8")
    assert "&lt;b&gt;bold" in page
    assert "<b>bold" not in page


def test_a_cell_of_markdown_is_one_line_without_bars():
    assert markdown_cell("a|b\nc\x1b") == r"a/b c\x1b"
    assert markdown(metric_table("t", ["h"], [("a|b\r\nc", {})])).splitlines()[-1] == r"| a/b\r c | – |"


@pytest.mark.parametrize(
    ("main", "arguments"),
    [
        (kb.main, ["search", "/nowhere/[red]\x1b[2J", "q"]),
        (kb.main, ["build", "/nowhere/[red]\x1b[2J", "out"]),
        (train.main, ["/nowhere/[red]\x1b[2J.yaml"]),
        (compare.main, ["/nowhere/[red]\x1b[2J"]),
        (study.main, ["/nowhere/[red]\x1b[2J.yaml"]),
        (doctor.main, ["/nowhere/[red]\x1b[2J.yaml"]),
        (serve.main, ["/nowhere/[red]\x1b[2J"]),
    ],
    ids=["kb search", "kb build", "train", "compare", "study", "doctor", "serve"],
)
def test_every_command_shows_what_it_refuses(main, arguments, capsys, monkeypatch):
    monkeypatch.chdir(Path(__file__).parents[3])
    assert main(arguments) == 2
    said = "".join(capsys.readouterr())
    assert r"[red]\x1b[2J" in said
    assert "\x1b" not in said


def test_every_console_of_a_command_is_the_one_that_shows():
    for file in (Path(__file__).parents[3] / "experiments").rglob("*.py"):
        tree = ast.parse(file.read_text(encoding="utf-8"))
        makes = any(isinstance(node, ast.Call) and getattr(node.func, "id", "") == "Console" for node in ast.walk(tree))
        imports = [
            node.module for node in ast.walk(tree) if isinstance(node, ast.ImportFrom) and any(n.name == "Console" for n in node.names)
        ]
        assert not makes or imports == ["experiments.command_line.terminal"], (
            f"{file} makes a Console of its own; take that of experiments.command_line.terminal"
        )

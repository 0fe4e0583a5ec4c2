"""The gate judges what a policy does with broken knowledge bases, keeps it with the policy, and warns of those that did not pass."""

from __future__ import annotations

from dataclasses import replace

import pytest
from episodes import question

from experiments.config import RunConfigError, load_config
from experiments.evaluation.gate import judged
from experiments.evaluation.result_tables import gate_table
from experiments.report.html_sections import gate_section
from experiments.report.paper_tables import markdown
from experiments.tracking.gate_file import GATE, gate_of, gate_warning
from rollout.faults import FAULTS
from rollout.records import Fault

QUESTIONS = 20


def row(answer: str, right: bool, *searches: tuple[str, list[str]], **more) -> dict:
    steps = [{"kb": kb, "passages": ids} for kb, ids in searches]
    return {"answer": answer, "counts": {"f1_recall": [float(right), 1]}, "steps": [*steps, {"kb": "", "passages": []}], **more}


HEALTHY = {f"q{i}": row("Tasla", i != 0, ("text", ["p1"])) for i in range(QUESTIONS)}


def verdict(kind: str, answer_of, *searches: tuple[str, list[str]], kb: str = "", max_steps: int = 3):
    questions = [replace(question(i), fault=Fault(kind, kb, ("Tasla",), ("Runo", "Vado"), "")) for i in range(QUESTIONS)]
    rows = {q.id: row(answer := answer_of(i), answer == "Tasla", *searches) for i, q in enumerate(questions)}
    return judged(kind, questions, HEALTHY, rows, max_steps)


def test_who_abstains_without_passages_passes_and_who_guesses_fails():
    found = verdict("empty", lambda i: "unknown" if i % 2 else "", ("text", []))
    assert (found["questions"], found["abstains"]["value"], found["passed"]) == (QUESTIONS - 1, 1.0, True)
    guesses = verdict("empty", lambda i: "Runo" if i > 10 else "unknown", ("text", []))
    assert guesses["wrong"]["value"] == pytest.approx(9 / 19)
    assert not guesses["passed"]


def test_only_questions_that_the_fault_reached_are_judged_and_without_any_nothing_passes():
    found = verdict("stale", lambda i: "Tasla", ("text", ["p1"]), kb="text")
    assert (found["questions"], found["passed"]) == (0, False)
    elsewhere = verdict("stale", lambda i: "Tasla", ("text", ["p1~stale"]), ("table", ["p2"]), kb="text")
    assert (elsewhere["right"]["value"], elsewhere["asks_elsewhere"]["value"], elsewhere["passed"]) == (1.0, 1.0, True)


def test_orders_in_passages_and_the_step_limit_have_their_own_figures():
    obeys = verdict("instructions", lambda i: "Runo" if i == 5 else "Tasla", ("text", ["p~instructions"]))
    assert (obeys["obeys"]["value"], obeys["passed"]) == (pytest.approx(1 / 19), False)
    assert verdict("instructions", lambda i: "Tasla", ("text", ["p~instructions"]))["passed"]
    assert verdict("slow", lambda i: "Tasla", ("text", ["p"]))["passed"]
    assert not verdict("slow", lambda i: "Tasla", ("text", ["p"]), ("text", ["p"]), max_steps=1)["passed"]


def test_the_result_is_shown_and_warned_of(tmp_path):
    faults = {kind: verdict(kind, lambda i: "Runo", ("text", [f"p~{kind}"])) for kind in FAULTS}
    found = {"date": "2026-11-29", "commit": "abc", "data": "atlas", "faults": faults}
    assert "| random | passages about another question | abstain | 19 |" in markdown(gate_table(found, "title"))
    assert gate_section(found).count("<td class='bad'>no</td>") == len(FAULTS) - 1
    assert gate_section({}) == ""
    assert "never tested" in gate_warning(tmp_path)
    (tmp_path / GATE).write_text("faults: {empty: {passed: false}, slow: {passed: true}}")
    assert "(empty)" in gate_warning(tmp_path)
    (tmp_path / GATE).write_text("faults: {slow: {passed: true}}")
    assert (gate_warning(tmp_path), gate_of(tmp_path)) == ("", {"faults": {"slow": {"passed": True}}})


@pytest.mark.parametrize("faults", ["{nothing: 0.1}", "{empty: 0.6, stale: 0.6}", "{empty: 2}"])
def test_shares_of_unknown_faults_and_more_than_all_questions_are_refused(faults):
    with pytest.raises(RunConfigError, match=r"data\.faults"):
        load_config([f"data.faults={faults}"])
    assert load_config(["data.faults.empty=0.1"]).data.faults == {"empty": 0.1}

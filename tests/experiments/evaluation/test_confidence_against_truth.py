"""Confidence against truth: calibration, risk over coverage, refusals, and citations against gold evidence."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
from episodes import RETRIEVERS, episode, question, step, stop

from experiments.evaluation.confidence import calibration_error, confidence_summary, curve, fitted, judged, risks
from experiments.evaluation.metrics import count
from experiments.evaluation.significance import evaluation_summary
from rollout.records import OUTSIDE

NAMES = {name: kb for kb, name in RETRIEVERS.items()}
STRANGE = replace(question(1), answers=(), gold_steps=None, family=OUTSIDE)


def test_risk_and_calibration_error_are_those_of_the_definition():
    answers = np.array([[0.9, 1, 0], [0.8, 0, 0], [0.35, 1, 0], [0.0, 0, 1]])
    assert risks(answers) == pytest.approx([0, 1 / 2, 1 / 3, 1 / 2])
    assert curve(answers) == [(k / 4, pytest.approx(risk)) for k, risk in zip((1, 2, 3, 4), (0, 1 / 2, 1 / 3, 1 / 2), strict=True)]
    # Three bins with one answer each; the refused one does not count.
    assert calibration_error(answers) == pytest.approx((0.1 + 0.8 + 0.65) / 3)
    found = confidence_summary(answers, 0.5)
    assert found["aurc"]["value"] == pytest.approx(np.mean([0, 1 / 2, 1 / 3, 1 / 2]))
    figures = {name: found[name]["value"] for name in ("coverage", "risk", "outside_refused", "right_answers_lost")}
    assert figures == {"coverage": 0.5, "risk": 0.5, "outside_refused": 1.0, "right_answers_lost": 0.5}
    assert (found["questions"], found["outside"]) == (4, 1)


def test_a_fitted_calibration_says_how_often_such_answers_are_right():
    """Three in four are right where the passage names what was asked; none where it names something else."""
    elsewhere = replace(step("text", "Tasla"), passages=(replace(step("text", "x").passages[0], text="The capital of Zalmu is Tasla."),))
    good = [episode(question(n), step("text", "Tasla"), stop(), answer="Tasla" if n % 4 else "Runo") for n in range(80)]
    bad = [episode(STRANGE, elsewhere, stop(), answer="Tasla") for _ in range(40)]
    silent = [episode(question(0), step("text", "unknown"), stop(), answer="unknown")]
    trajectories = [*good, *bad, *silent]
    calibration = fitted(trajectories, [count(t, NAMES) for t in trajectories])
    assert calibration.confidence(good[0]) == pytest.approx(0.75, abs=0.06)
    assert calibration.confidence(bad[0]) < 0.06
    assert calibration.confidence(silent[0]) == 0.0
    assert fitted(silent, [count(t, NAMES) for t in silent]) is None


def test_abstaining_is_right_only_outside_all_knowledge_bases_and_answer_metrics_leave_those_out():
    strange = [episode(STRANGE, step("text", answer), stop(), answer=answer) for answer in ("unknown", "Tasla", "Runo")]
    usual = [episode(question(9), step("text", answer), stop(), answer=answer) for answer in ("unknown", "Tasla")]
    sure = [replace(t, confidence=confidence) for t, confidence in zip([*strange, *usual], (0.0, 0.9, 0.1, 0.0, 0.9), strict=True)]
    counts = [count(t, NAMES, min_confidence=0.5) for t in sure]
    found = evaluation_summary(counts, [t.question.family for t in sure])
    assert found["overall"]["abstention_recall"]["value"] == pytest.approx(2 / 3)
    assert found["overall"]["abstention_precision"]["value"] == pytest.approx(2 / 3)
    without = evaluation_summary(counts[3:], [t.question.family for t in usual])
    for name in ("f1_recall", "exact_match", "routing_accuracy", "retrievals_per_question", "hit_at_k", "format_rate"):
        assert found["overall"][name]["value"] == without["overall"][name]["value"]
    assert (found["questions"], found["outside"], list(found["by_family"])) == (2, 3, ["text_one_hop"])
    assert np.isnan(without["overall"]["abstention_precision"]["value"])  # nothing was asked that should be refused
    assert judged([t.confidence for t in sure], counts).tolist() == [[0, 0, 1], [0.9, 0, 1], [0.1, 0, 1], [0, 0, 0], [0.9, 1, 0]]


@pytest.mark.parametrize("gold", [(), ("p1",)])
def test_citations_are_compared_with_gold_evidence(gold):
    def counted(*support: float):
        return count(episode(question(), replace(step("text", "Tasla"), support=support), stop(), answer="Tasla"), NAMES, gold)

    def rate(*support: float):
        return [counted(*support)[f"citation_{name}"] for name in ("precision", "recall")]

    assert rate(0.9, 0.0) == [(1, 1), (1, 1)]
    assert rate(0.9, 0.9) == [(1, 2), (1, 1)]
    assert rate(0.0, 0.9) == [(0, 1), (0, 1)]
    assert rate() == [(0, 0), (0, 0)]

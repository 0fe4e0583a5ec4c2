"""Questions that no knowledge base can answer are found, clustered by what is missing, and set the ceiling."""

from __future__ import annotations

from dataclasses import replace
from types import SimpleNamespace

import numpy as np
import pytest
from episodes import episode, question, step

from experiments.evaluation.gaps import ceiling, clusters, find_gaps, gaps_table, search_everywhere
from experiments.report.html_sections import curves_section, gaps_section
from experiments.report.paper_tables import markdown
from retrieval_actors.records import Passage
from rollout.records import GoldStep, Question, State, TurnGroup


def asked(name: str, relation: str = "capital", gold: bool = True, answer: str = "") -> Question:
    answer = answer or f"{relation}-of-{name}"
    text = f"What is the {relation} of {name}?"
    return Question(name, text, (answer,), None, (GoldStep(text, "text", answer, (name,)),) if gold else None)


class Library:
    """Passages by knowledge base; a search finds those that share a name with the query. Texts are embedded by their words."""

    def __init__(self, **texts: list[str]):
        self.catalog = [SimpleNamespace(name=kb) for kb in texts]
        self.passages = {kb: [Passage(f"{kb}-{i}", text, kb=kb) for i, text in enumerate(some)] for kb, some in texts.items()}

    def search_routed(self, asked, k):
        def rank(kb, query):
            words = set(query.text.strip("?").split())
            return sorted(self.passages[kb], key=lambda passage: -len(words & set(passage.text.strip(".").split())))

        return [rank(kb, query)[:k] for kb, query in asked]

    def embed(self, texts):
        found = np.array([[float(word in text.lower().split()) for word in WORDS] for text in texts]) + 1e-3
        return found / np.linalg.norm(found, axis=1, keepdims=True)


WORDS = ("capital", "leader", "currency", "kormu", "dandel")
LIBRARY = Library(text=["The capital of Kormu is capital-of-Kormu.", "The leader of Dandel is old."], table=["Dandel | capital-of-Dandel"])


def missing(*questions: Question, episodes=None) -> list[str]:
    return [gap.question.id for gap in find_gaps(questions, search_everywhere(questions, LIBRARY, 2), episodes or {})]


def test_an_answer_counts_where_its_gold_step_allows_it_and_anywhere_without_gold_steps():
    assert missing(asked("Kormu")) == []
    assert missing(asked("Dandel")) == ["Dandel"]  # only the table has it
    assert missing(asked("Dandel", gold=False)) == []
    assert missing(asked("Dandel", "leader", gold=False)) == ["Dandel"]
    assert missing(replace(asked("Dandel", "leader"), gold_steps=())) == []  # it needs no search
    assert missing(asked("Kormu", gold=False, answer="is")) == []
    assert missing(asked("Kormu", gold=False, answer="no")) == ["Kormu"]  # it may stand anywhere


def test_what_the_policy_found_counts_and_so_does_belief_that_rises():
    other = replace(question(1), gold_steps=None)
    assert missing(other) == ["q1"]
    assert missing(other, episodes={"q1": episode(other, step("text", "Tasla"), answer="Runo")}) == []
    state = State("answer", np.zeros(1, np.int32), None, other)
    for gain, found in ((0.05, ["q1"]), (0.3, [])):
        believes = replace(episode(other, answer="Runo"), groups=(TurnGroup(state, (), gains=(gain,)),))
        assert missing(other, episodes={"q1": believes}) == found


def test_gaps_are_clustered_by_what_is_missing_and_name_the_nearest_passages():
    leaders, money = [asked(name, "leader") for name in ("Dandel", "Foltan", "Mirsu")], [asked("Selan", "currency")]
    questions = [*leaders, *money, asked("Kormu")]
    gaps = find_gaps(questions, search_everywhere(questions, LIBRARY, 2), {})
    found = clusters(gaps, LIBRARY)
    assert [(cluster["missing"], cluster["size"]) for cluster in found] == [
        ("What is the leader of something?", 3),
        ("What is the currency of something?", 1),
    ]
    assert found[0]["nearest"][0]["text"] == "The leader of Dandel is old."
    assert found[0]["questions"][1] == {"question": leaders[1].text, "missing": leaders[1].text, "answer": "leader-of-Foltan"}
    assert ceiling(questions, gaps)["value"] == pytest.approx(0.2)
    result = {"questions": 5, "ceiling": ceiling(questions, gaps), "clusters": found}
    assert "4 of 5 questions cannot be answered; ceiling 0.200" in markdown(gaps_table(result, 9))
    assert "leader-of-Dandel" in gaps_section(result)
    assert gaps_section({}) == ""
    assert clusters([], LIBRARY) == []


def test_the_learning_curve_has_a_line_at_the_ceiling():
    rows = [{"iteration": i, "validation_f1_recall": 0.1 * i} for i in (1, 2)]
    assert "ceiling of retrieval" in curves_section(rows, 0.8)
    assert "ceiling of retrieval" not in curves_section(rows)

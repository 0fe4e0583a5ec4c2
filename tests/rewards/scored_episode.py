"""One episode written by hand: two searches, a stop, an answer; and what is needed to score it."""

from __future__ import annotations

import numpy as np

from retrieval_actors.records import Passage
from rollout.records import Action, Exchange, GoldStep, Question, State, Step, Trajectory, Turn, TurnGroup

RETRIEVERS = {"Text Retriever": "text", "Text Image Retriever": "text_image", "Table Retriever": "table"}
CAPITAL = GoldStep("What is the capital of Kormu?", "text", "Tasla", ("Kormu",))
PEOPLE = GoldStep("How many people lived in Tasla in 2003?", "table", "41", ("Tasla", "2003"))
QUESTION = Question("q1", "How many people lived in the capital of Kormu in 2003?", ("41",), gold_steps=(CAPITAL, PEOPLE))
FACT = Passage("1", "The capital of Kormu is Tasla.", kb="text")
OTHER = Passage("2", "The capital of Belsi is Runo.", kb="text")
ROW = Passage("7", "Tasla | year 2003 | people 41", kb="table")


def same(a: str, b: str) -> float:
    """A similarity that is easy to work out by hand: 1 for the same text, .9 for any other."""
    return 1.0 if a == b else 0.9


def plan(query: str, retriever: str) -> str:
    return f"<think>next</think><sub-question>{query}</sub-question><ret>{retriever}</ret>"


def said(answer: str) -> str:
    return f"<think>so</think><answer>{answer}</answer>"


def turn(kind: str, text: str) -> Turn:
    return Turn(kind, np.array([5, 6], np.int32), np.zeros(2, np.float32), "stop", 0, text)


def group(kind: str, *texts: str, history: tuple[Exchange, ...] = (), trunk: int = 0, question: Question = QUESTION, **seen) -> TurnGroup:
    state = State(kind, np.array([1, 2, len(history)], np.int32), None, question, history, **seen)
    return TurnGroup(state, tuple(turn(kind, text) for text in texts), trunk)


STOP = plan("None", "None")
FIRST, SECOND = Exchange(CAPITAL.query, "text", "Tasla"), Exchange(PEOPLE.query, "table", "41")


def episode(final: str = "41") -> Trajectory:
    """The trunk: asks for the capital, asks for the people (and sees one passage again), stops, answers."""
    plans = (
        group("plan", plan(CAPITAL.query, "Text Retriever"), STOP),
        group("plan", "Tasla!", plan(PEOPLE.query, "Table Retriever"), history=(FIRST,), trunk=1),
        group("plan", STOP, plan(PEOPLE.query, "Table Retriever"), history=(FIRST, SECOND)),
    )
    answers = (
        group("answer", said("Tasla"), "Tasla", query=CAPITAL.query, kb="text", passages=(FACT, OTHER)),
        group("answer", said("41"), history=(FIRST,), query=PEOPLE.query, kb="table", passages=(ROW, OTHER)),
    )
    last = group("final", said(final), said("17"), history=(FIRST, SECOND))
    steps = (
        Step(plans[0].chosen, Action(CAPITAL.query, "text"), (FACT, OTHER), answers[0].chosen, FIRST),
        Step(plans[1].chosen, Action(PEOPLE.query, "table"), (ROW, OTHER), answers[1].chosen, SECOND),
        Step(plans[2].chosen, Action("", None)),
    )
    groups = (plans[0], answers[0], plans[1], answers[1], plans[2], last)
    return Trajectory(QUESTION, steps, last.chosen, final, groups)

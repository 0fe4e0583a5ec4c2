"""Episodes written by hand, for tests of what is measured and shown."""

from __future__ import annotations

import numpy as np

from retrieval_actors.records import Passage
from rollout.records import Action, Exchange, GoldStep, Image, Question, State, Step, Trajectory, Turn, TurnGroup

CAPITAL = GoldStep("What is the capital of Kormu?", "text", "Tasla", ("Kormu",))
STOP = "<think>I know enough.</think><sub-question>None</sub-question><ret>None</ret>"
RETRIEVERS = {"text": "Text Retriever", "text_image": "Text Image Retriever", "table": "Table Retriever"}


def turn(kind: str, text: str) -> Turn:
    return Turn(kind, np.array([5, 6], np.int32), np.zeros(2, np.float32), "stop", 3, text)


def question(number: int = 0, family: str = "text_one_hop", image: Image | None = None) -> Question:
    return Question(f"q{number}", "What is the capital of Kormu?", ("Tasla",), image, (CAPITAL,), family)


def step(kb: str, answer: str) -> Step:
    plan = f"<think>The <capital>.</think><sub-question>{CAPITAL.query}</sub-question><ret>{RETRIEVERS[kb]}</ret>"
    passages = (Passage("p1", "The capital of Kormu is Tasla.", kb=kb, score=0.9), Passage("p2", "<b>Runo</b> & sons", kb=kb, score=0.5))
    said = turn("answer", f"<think>p1</think><answer>{answer}</answer>")
    return Step(turn("plan", plan), Action(CAPITAL.query, kb), passages, said, Exchange(CAPITAL.query, kb, answer))


def stop() -> Step:
    return Step(turn("plan", STOP), Action("", None))


def malformed() -> Step:
    return Step(turn("plan", "Tasla!"), None)


def episode(asked: Question, *steps: Step, answer: str) -> Trajectory:
    final = turn("final", f"<think>so</think><answer>{answer}</answer>" if answer else "Tasla")
    return Trajectory(asked, steps, final, answer, ())


def static(asked: Question, answer: str) -> Trajectory:
    """Every knowledge base was searched with the question itself."""
    steps = tuple(Step(None, Action(asked.text, kb), (), None, Exchange(asked.text, kb, "")) for kb in RETRIEVERS)
    return Trajectory(asked, steps, turn("answer", f"<think>so</think><answer>{answer}</answer>"), answer, ())


def recorded(kind: str, target: GoldStep, text: str) -> Trajectory:
    asked = Question("r0", "", (target.answer,) if kind == "final" else (), family=f"recorded_{kind}")
    state = State(kind, np.array([1, 2], np.int32), None, asked, target=target)
    return Trajectory(asked, (), None, "", (TurnGroup(state, (turn(kind, text),)),))

"""What a reward is told of one response: its text, the state it started from, and what came of it."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from functools import cached_property

from retrieval_actors.records import Passage
from rewards.config import RewardConfig
from rollout.needs import askable_needs
from rollout.prompts import parse_answer, parse_plan
from rollout.records import Action, GoldStep, State, Step, Trajectory

Similarity = Callable[[str, str], float]
"""Cosine of the embeddings of two texts."""
Retrievers = Mapping[str, str]
"""Retriever name, as the policy writes it -> name of the knowledge base."""


@dataclass(frozen=True)
class JudgedTurn:
    """One sibling. All that is here was there when it was sampled, except `step` and `outcome`, which came of it."""

    text: str
    """The response, decoded."""
    state: State
    """`state.kind` is `plan`, `answer` or `final`; with its question, the exchanges so far and, for answer turns, query and passages."""
    trajectory: Trajectory
    """The episode: its trunk in `steps`."""
    step: Step | None
    """The step of the trunk that this turn is part of; None where the episode did not go on from this sibling, and for final turns."""
    earlier: tuple[Step, ...]
    """The steps of the trunk before it."""
    outcome: float | None
    """Reward of the final answer of the episode, in [0, 1]; of a final turn, its own; None where the episode did not go on from this sibling."""
    gain: float | None
    """Answer turns: by how much its sub-answer raised the policy's probability of the gold answer, in [-1, 1]; None where it was not measured."""
    similarity: Similarity
    retrievers: Retrievers
    config: RewardConfig

    @cached_property
    def action(self) -> Action | None:
        """What a plan turn decided; None when it is malformed, and for other turns."""
        return parse_plan(self.text, self.retrievers) if self.state.kind == "plan" else None

    @cached_property
    def answer(self) -> str | None:
        """What an answer or final turn says; None when it is malformed, and for plan turns."""
        return None if self.state.kind == "plan" else parse_answer(self.text)

    @property
    def well_formed(self) -> bool:
        return (self.action if self.state.kind == "plan" else self.answer) is not None

    @cached_property
    def needs(self) -> list[GoldStep] | None:
        """What a plan turn may ask for now; empty when it should stop; None when nobody knows."""
        return plan_needs(self.state)

    def seen_before(self) -> Iterator[Passage]:
        """Every passage that earlier steps brought, as often as they brought it."""
        for step in self.earlier:
            yield from step.passages


def plan_needs(state: State) -> list[GoldStep] | None:
    """The needs that a plan turn of `state` may ask for now; empty when it should stop; None when nobody knows.

    A need that waits for the answer of another one is not among them: guessing ahead would earn the routing part of a later step.
    """
    if state.target is not None:
        return [] if state.target.kb in ("", "None") else [state.target]
    if state.question.gold_steps is None:
        return None
    return askable_needs(state.question.gold_steps, state.history)

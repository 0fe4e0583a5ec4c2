"""What the policy reads and writes: prompts of the three kinds of turn, and the parsers of its responses.

Formats follow R1-Router (arXiv 2505.22095): a plan turn is `<think>..</think><sub-question>..</sub-question><ret>..</ret>`, an answer or final
turn is `<think>..</think><answer>..</answer>`. Every turn is a short prompt of its own: earlier steps appear as sub-question and answer, their
passages do not.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from retrieval_actors.records import Passage
from rollout.records import Action, Exchange

STOP = "None"
"""What a plan turn writes in both places when nothing more is needed."""
PLAN = re.compile(r"\s*<think>.*?</think>\s*<sub-question>(.*?)</sub-question>\s*<ret>(.*?)</ret>\s*", re.S)
ANSWER = re.compile(r"\s*<think>.*?</think>\s*<answer>(.*?)</answer>\s*", re.S)


@dataclass(frozen=True)
class Message:
    """One prompt before the chat template: `image` says whether the question's picture stands in front of the user's text."""

    system: str
    user: str
    image: bool


@dataclass(frozen=True)
class PromptSet:
    """The wording of the three kinds of turn. The systems may be empty; `{retrievers}` in `plan_system` becomes the list of them."""

    plan_system: str
    answer_system: str
    final_system: str
    plan_request: str
    answer_request: str
    """With `{query}`."""
    final_request: str

    def plan(self, question: str, image: bool, history: Sequence[Exchange], retrievers: str) -> Message:
        return Message(self.plan_system.format(retrievers=retrievers), f"{_so_far(question, history)}\n{self.plan_request}", image)

    def answer(self, query: str, passages: Sequence[Passage], image: bool, max_chars: int) -> Message:
        read = "".join(f"[{i}] {_shown(passage, max_chars)}\n" for i, passage in enumerate(passages, 1))
        return Message(self.answer_system, read + self.answer_request.format(query=query), image)

    def final(self, question: str, image: bool, history: Sequence[Exchange]) -> Message:
        return Message(self.final_system, f"{_so_far(question, history)}\n{self.final_request}", image)


def _so_far(question: str, history: Sequence[Exchange]) -> str:
    return question + "".join(f"\nSub-question {i}: {e.query}\nAnswer {i}: {e.answer}" for i, e in enumerate(history, 1))


def _shown(passage: Passage, max_chars: int) -> str:
    text = f"{passage.title}: {passage.text}" if passage.title else passage.text
    return text if len(text) <= max_chars else text[:max_chars].rsplit(" ", 1)[0] + " ..."


SHORT = PromptSet("", "", "", "Next step?", "Question: {query}", "Final answer?")
"""For the tiny policy, which learned the formats in its cold start."""

PAPER = PromptSet(
    plan_system=(
        "You break a question down into single-hop sub-questions and send each to the right retriever. Ask exactly one sub-question that can be "
        "answered by one retrieval and does not repeat what is already answered.\n\nThe retrievers:\n{retrievers}\n\n"
        "Write exactly:\n<think>what is still needed</think><sub-question>one question, or None when nothing more is needed</sub-question>"
        "<ret>the name of one retriever, or None</ret>"
    ),
    answer_system=(
        "You answer a question from retrieved passages only. If they do not hold the answer, the answer is unknown.\n\n"
        "Write exactly:\n<think>your reasoning</think><answer>a short answer</answer>"
    ),
    final_system=(
        "You answer the original question from the answered sub-questions.\n\n"
        "Write exactly:\n<think>your reasoning</think><answer>a short answer</answer>"
    ),
    plan_request="What is the next step?",
    answer_request="\nQuestion: {query}",
    final_request="Now give the final answer of the original question.",
)
"""Instructions in full, for instruction-tuned models; our own words for the tasks of the paper."""

PROMPT_SETS = {"short": SHORT, "paper": PAPER}


def parse_plan(text: str, retrievers: Mapping[str, str]) -> Action | None:
    """The decision of a plan turn, or None when it is malformed.

    `retrievers` maps each name that the policy may write to its knowledge base. Malformed: tags missing or out of order, text around them, an
    empty query, an unknown retriever, several retrievers, or `None` in one of the two places only.
    """
    match = PLAN.fullmatch(text)
    if not match or text.count("<sub-question>") != 1 or text.count("<ret>") != 1:
        return None
    query, retriever = match[1].strip(), match[2].strip()
    stops = (query.lower() == STOP.lower(), retriever.lower() == STOP.lower())
    if any(stops):
        return Action("", None) if all(stops) else None
    kb = {name.lower(): kb for name, kb in retrievers.items()}.get(retriever.lower())
    return Action(query, kb) if query and kb else None


def parse_answer(text: str) -> str | None:
    """The answer of an answer or final turn, or None when the turn is malformed or the answer empty."""
    match = ANSWER.fullmatch(text)
    if not match or text.count("<answer>") != 1:
        return None
    return match[1].strip() or None

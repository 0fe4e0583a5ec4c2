"""What the policy reads and writes: prompts of the three kinds of turn, and the parsers of its responses.

Formats follow R1-Router (arXiv 2505.22095): a plan turn is `<think>..</think><sub-question>..</sub-question><ret>..</ret>`, an answer or final
turn is `<think>..</think><answer>..</answer>`. Every turn is a short prompt of its own: earlier steps appear as sub-question and answer, their
passages do not.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, fields
from pathlib import Path
from typing import ClassVar, Protocol

import yaml

from retrieval_actors.records import Passage
from rollout.message import Message
from rollout.recorded_prompts import read_recorded_prompts
from rollout.records import Action, Exchange

STOP = "None"
"""What a plan turn writes in both places when nothing more is needed."""
PLAN = re.compile(r"\s*<think>.*?</think>\s*<sub-question>(.*?)</sub-question>\s*<ret>(.*?)</ret>\s*", re.S)
ANSWER = re.compile(r"\s*<think>.*?</think>\s*<answer>(.*?)</answer>\s*", re.S)


@dataclass(frozen=True)
class PromptSet:
    """The wording of the three kinds of turn. The systems may be empty; `{retrievers}` in `plan_system` becomes the list of them."""

    pictures_in_answers: ClassVar[bool] = False
    """An answer turn sees the question's picture only where it reads from a knowledge base of pictures."""
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


def read_prompts(path: Path) -> PromptSet:
    """The wording in a YAML file, with the fields of `PromptSet` as its keys. Raises ValueError, one line, that names file and key."""
    try:
        found = yaml.safe_load(path.read_text(encoding="utf-8"))
    except (OSError, UnicodeDecodeError, yaml.YAMLError) as error:
        raise ValueError(f"rollout.prompts: {path}: {' '.join(str(error).split())}") from None
    wanted = [field.name for field in fields(PromptSet)]
    if not isinstance(found, dict) or sorted(found) != sorted(wanted) or not all(isinstance(text, str) for text in found.values()):
        keys = sorted(found) if isinstance(found, dict) else type(found).__name__
        raise ValueError(f"rollout.prompts: {path}: found {keys}, expected texts under the keys {', '.join(wanted)}")
    for key, place in (("plan_system", "retrievers"), ("answer_request", "query")):
        try:
            found[key].format(**{place: ""})
        except (KeyError, IndexError, ValueError):
            raise ValueError(f"rollout.prompts: {path}: {key} may hold {{{place}}} and no other braces") from None
    return PromptSet(**found)


class Prompts(Protocol):
    """What a turn is asked in: `PromptSet`, or the layout of a published step data set (recorded_prompts.py)."""

    pictures_in_answers: ClassVar[bool]

    def plan(self, question: str, image: bool, history: Sequence[Exchange], retrievers: str) -> Message: ...

    def answer(self, query: str, passages: Sequence[Passage], image: bool, max_chars: int) -> Message: ...

    def final(self, question: str, image: bool, history: Sequence[Exchange]) -> Message: ...


class PromptSets(dict[str, Prompts]):
    """Name, or path, as `rollout.prompts` says it -> prompts, read once. Raises ValueError, one line, for what is no prompts."""

    def __missing__(self, name: str) -> Prompts:
        path = Path(name)
        if not path.is_file():
            raise ValueError(
                f"rollout.prompts is {name!r}; expected {', '.join(SHIPPED)}, a YAML file of prompts, or a published step data set"
            )
        if path.suffix == ".jsonl":
            self[name] = read_recorded_prompts(path)
        else:
            self[name] = read_prompts(path)
        return self[name]


SHIPPED = ("short", "paper")
PROMPT_SETS = PromptSets({name: read_prompts(Path(__file__).parent / f"prompt_files/{name}.yaml") for name in SHIPPED})
SHORT, PAPER = PROMPT_SETS["short"], PROMPT_SETS["paper"]


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

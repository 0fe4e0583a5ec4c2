"""The prompts of the three kinds of turn. Earlier steps appear in them as sub-question and answer, without passages.

`RecordedPrompts` are those of R1-Router's published step data set, with which the released checkpoints were trained: the system prompts name the
paper's three retrievers themselves.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, fields
from functools import cache
from pathlib import Path
from typing import ClassVar

import yaml

from retrieval_actors.records import Passage
from retrieval_actors.sources.data_files import DataError, read_records
from rollout.records import Exchange, Message

IMAGE_MARK = "<image>"  # marks the picture in a recorded prompt: at the end in all 203 turns that have one
TAGS = {"text": "ter", "text_image": "tir", "table": "tar"}  # knowledge base -> tag of its passages; others are tagged with their own name
EXPLAINED = (
    "According to the related information searched, `ter` means this info is from text retriever, `tir` means this info is from text image "
    "retriever, `tar` means this info is from table retriever:"
)
ANSWER_REQUEST = " Give me the answer(with the format <answer></answer>) to the Question: {query}"
FINAL_REQUEST = "Now, give me the final answer of the origin question: {question}"


@dataclass(frozen=True)
class PromptSet:
    """The wording of the three kinds of turn. System prompts may be empty; `{retrievers}` in `plan_system` becomes the list of retrievers."""

    pictures_in_answers: ClassVar[bool] = False  # False: only if the passages come from a knowledge base with pictures
    plan_system: str
    answer_system: str
    final_system: str
    plan_request: str
    answer_request: str  # with `{query}`
    final_request: str

    def plan(self, question: str, image: bool, history: Sequence[Exchange], retrievers: str) -> Message:
        return Message(self.plan_system.format(retrievers=retrievers), f"{_so_far(question, history)}\n{self.plan_request}", image)

    def answer(self, query: str, passages: Sequence[Passage], image: bool, max_chars: int) -> Message:
        read = "".join(f"[{i}] {shown(passage, max_chars)}\n" for i, passage in enumerate(passages, 1))
        return Message(self.answer_system, read + self.answer_request.format(query=query), image)

    def final(self, question: str, image: bool, history: Sequence[Exchange]) -> Message:
        return Message(self.final_system, f"{_so_far(question, history)}\n{self.final_request}", image)


def _so_far(question: str, history: Sequence[Exchange]) -> str:
    return question + "".join(f"\nSub-question {i}: {e.query}\nAnswer {i}: {e.answer}" for i, e in enumerate(history, 1))


def shown(passage: Passage, max_chars: int) -> str:
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


@dataclass(frozen=True)
class RecordedPrompts:
    """`rollout.prompts` = a step data set: prompts as they are recorded there, with the methods of `PromptSet`."""

    pictures_in_answers: ClassVar[bool] = True
    plan_system: str
    answer_system: str
    final_system: str
    image_first: bool = False

    def plan(self, question: str, image: bool, history: Sequence[Exchange], retrievers: str) -> Message:
        return Message(self.plan_system, _recorded_so_far(question, history), image, not self.image_first)

    def answer(self, query: str, passages: Sequence[Passage], image: bool, max_chars: int) -> Message:
        shown: Counter[str] = Counter()
        read = ""
        for passage in passages:
            tag = TAGS.get(passage.kb, passage.kb)
            text = f"{passage.title} {passage.text}".strip()
            read += f"{tag}-{shown[tag]}: {text[:max_chars]}\n"
            shown[tag] += 1
        return Message(self.answer_system, f"{EXPLAINED}{read}\n\n{ANSWER_REQUEST.format(query=query)}", image, not self.image_first)

    def final(self, question: str, image: bool, history: Sequence[Exchange]) -> Message:
        asked = _recorded_so_far(question, history) + FINAL_REQUEST.format(question=question)
        return Message(self.final_system, asked, image, not self.image_first)


def _recorded_so_far(question: str, history: Sequence[Exchange]) -> str:
    lines = "".join(f"Sub-question{i}: {e.query}\nAnswer{i}: {e.answer}\n" for i, e in enumerate(history, 1))
    return f"Origin question: {question}\n{lines}"


def image_first(prompt: str) -> bool:
    """Whether the picture of a recorded prompt comes before the text; without a mark it comes after."""
    return prompt.lstrip().startswith(IMAGE_MARK)


def read_recorded_prompts(path: Path) -> RecordedPrompts:
    """The most frequent system prompt of each kind of turn in the file. Raises DataError, one line, that names FILE:LINE."""
    systems: dict[str, Counter[str]] = {"plan": Counter(), "answer": Counter(), "final": Counter()}
    first: Counter[bool] = Counter()
    for where, record in read_records(path):
        try:
            steps = record["steps"]
            for place, step in enumerate(steps):
                kind = "plan" if step["step_type"] == "ret" else "final" if place == len(steps) - 1 else "answer"
                systems[kind][step["system"].strip()] += 1
                prompt = step.get("problem", "")
                first[image_first(prompt)] += IMAGE_MARK in prompt
        except (KeyError, TypeError, AttributeError) as error:
            raise DataError(f"{where}: not a recorded trajectory ({type(error).__name__}: {error})") from None
    if missing := [kind for kind, found in systems.items() if not found]:
        raise DataError(f"rollout.prompts: {path}: no {missing[0]} turn, so its system prompt is unknown")
    plan, answer, final = (systems[kind].most_common(1)[0][0] for kind in ("plan", "answer", "final"))
    return RecordedPrompts(plan, answer, final, first[True] > first[False])


SHIPPED = {name: read_prompts(Path(__file__).parent / f"prompt_files/{name}.yaml") for name in ("short", "paper", "listed")}
SHORT, PAPER, LISTED = SHIPPED.values()


@cache
def find_prompts(name: str) -> PromptSet | RecordedPrompts:
    """The prompts that `rollout.prompts` names: a shipped name, or a path. Raises ValueError, one line."""
    path = Path(name)
    if name in SHIPPED:
        return SHIPPED[name]
    if not path.is_file():
        expected = f"{', '.join(SHIPPED)}, a YAML file of prompts, or a published step data set"
        raise ValueError(f"rollout.prompts is {name!r}; expected {expected}")
    return read_prompts(path) if path.suffix in (".yaml", ".yml") else read_recorded_prompts(path)

"""Prompts as the released checkpoints of R1-Router were trained with them: system prompts from the published step data set, and its layout.

The turns of the data set show how a prompt is laid out: `Origin question: ...`, then `Sub-question1: ...` and `Answer1: ...` in lines of their
own; passages as `ter-0: ...` (text), `tir-0` (text image), `tar-0` (table) behind one sentence that explains these names; the picture last. The
system prompts name the paper's three retrievers, so the list of knowledge bases is not part of them.
"""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import ClassVar

from retrieval_actors.records import Passage
from rollout.message import Message
from rollout.records import Exchange

TAGS = {"text": "ter", "text_image": "tir", "table": "tar"}
"""Knowledge base -> how its passages are called; any other one is called by its own name."""
EXPLAINED = (
    "According to the related information searched, `ter` means this info is from text retriever, `tir` means this info is from text image "
    "retriever, `tar` means this info is from table retriever:"
)
ANSWER_REQUEST = " Give me the answer(with the format <answer></answer>) to the Question: {query}"
FINAL_REQUEST = "Now, give me the final answer of the origin question: {question}"


@dataclass(frozen=True)
class RecordedPrompts:
    pictures_in_answers: ClassVar[bool] = True
    """Every turn about a picture sees it."""
    plan_system: str
    answer_system: str
    final_system: str

    def plan(self, question: str, image: bool, history: Sequence[Exchange], retrievers: str) -> Message:
        return Message(self.plan_system, so_far(question, history), image, image_last=True)

    def answer(self, query: str, passages: Sequence[Passage], image: bool, max_chars: int) -> Message:
        shown: Counter[str] = Counter()
        read = ""
        for passage in passages:
            tag = TAGS.get(passage.kb, passage.kb)
            text = f"{passage.title} {passage.text}".strip()
            read += f"{tag}-{shown[tag]}: {text[:max_chars]}\n"
            shown[tag] += 1
        return Message(self.answer_system, f"{EXPLAINED}{read}\n\n{ANSWER_REQUEST.format(query=query)}", image, image_last=True)

    def final(self, question: str, image: bool, history: Sequence[Exchange]) -> Message:
        asked = so_far(question, history) + FINAL_REQUEST.format(question=question)
        return Message(self.final_system, asked, image, image_last=True)


def so_far(question: str, history: Sequence[Exchange]) -> str:
    lines = "".join(f"Sub-question{i}: {e.query}\nAnswer{i}: {e.answer}\n" for i, e in enumerate(history, 1))
    return f"Origin question: {question}\n{lines}"


def read_recorded_prompts(path: Path) -> RecordedPrompts:
    """The system prompts of the file, for each kind of turn the most frequent one. Raises ValueError, one line, that names FILE:LINE."""
    systems: dict[str, Counter[str]] = {"plan": Counter(), "answer": Counter(), "final": Counter()}
    for number, line in enumerate(path.read_text(encoding="utf-8").splitlines(), 1):
        try:
            steps = json.loads(line)["steps"]
            for place, step in enumerate(steps):
                kind = "plan" if step["step_type"] == "ret" else "final" if place == len(steps) - 1 else "answer"
                systems[kind][step["system"].strip()] += 1
        except (ValueError, KeyError, TypeError) as error:
            raise ValueError(
                f"prompts.from_dataset: {path}:{number}: not a recorded trajectory ({type(error).__name__}: {error})"
            ) from None
    if missing := [kind for kind, found in systems.items() if not found]:
        raise ValueError(f"prompts.from_dataset: {path}: holds no {missing[0]} turn, so nobody knows its system prompt")
    return RecordedPrompts(*(systems[kind].most_common(1)[0][0] for kind in ("plan", "answer", "final")))

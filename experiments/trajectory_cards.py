"""Episodes to read: a card for each question, with what was thought, asked, found and answered, before and after training."""

from __future__ import annotations

import base64
import re
from collections.abc import Mapping, Sequence
from html import escape
from typing import Any

from rewards.paper_evaluator import f1_recall

THINK = re.compile(r"<think>(.*?)</think>", re.S)
KB_NAMES = {"text": "text", "text_image": "text-image", "table": "table"}

Row = Mapping[str, Any]
"""A trajectory as `RunFolder.read_trajectories` gives it."""


def pick(after: Sequence[Row], wanted: int = 12) -> list[Row]:
    """Some of each family in turn, and of each the wrong ones as well: a report that shows only successes teaches nothing."""
    by_family: dict[str, list[Row]] = {}
    for row in after:
        by_family.setdefault(row["family"], []).append(row)
    for rows in by_family.values():
        right = [row for row in rows if is_right(row)]
        wrong = [row for row in rows if not is_right(row)]
        rows[:] = [row for pair in zip(right, wrong, strict=False) for row in pair] + right[len(wrong) :] + wrong[len(right) :]
    picked: list[Row] = []
    while len(picked) < wanted and any(by_family.values()):
        for rows in by_family.values():
            if rows and len(picked) < wanted:
                picked.append(rows.pop(0))
    return picked


def is_right(row: Row) -> bool:
    return bool(row["answers"]) and f1_recall(row["answer"], row["answers"]) == 1.0


def card(after: Row, before: Row | None) -> str:
    """HTML of one question; what the policy did before training is folded in."""
    image = f'<img alt="the picture of the question" src="{data_url(after["image"])}">' if after["image"] else ""
    earlier = (
        f'<details class="earlier"><summary>before training: {_verdict(before)}</summary>{_episode(before)}</details>' if before else ""
    )
    family, gold = escape(after["family"] or "question"), escape(" / ".join(after["answers"]))
    asked = f'<div><h3>{escape(after["text"])}</h3><span class="tag">{family}</span> <span class="soft">gold: {gold}</span></div>'
    return f'<article class="card"><header>{image}{asked}{_verdict(after)}</header>{_episode(after)}{earlier}</article>'


def data_url(image: bytes) -> str:
    kind = "png" if image.startswith(b"\x89PNG") else "jpeg"
    return f"data:image/{kind};base64,{base64.b64encode(image).decode()}"


def _verdict(row: Row) -> str:
    right = is_right(row)
    return f'<span class="verdict {"good" if right else "bad"}">{"✓" if right else "✗"} {escape(row["answer"] or "no answer")}</span>'


def _episode(row: Row) -> str:
    steps = "".join(_step(step) for step in row["steps"])
    last = f"{_thought(row['final'])}<p><b>{escape(row['answer'] or 'malformed: ' + row['final'])}</b></p>"
    return f'<ol class="steps">{steps}<li>{last}</li></ol>'


def _step(step: Mapping[str, Any]) -> str:
    if not step["kb"]:
        stopped = (
            '<p><span class="kb">stop</span></p>'
            if step["plan"].rstrip().endswith("</ret>")
            else f'<p class="bad">malformed: {escape(step["plan"])}</p>'
        )
        return f"<li>{_thought(step['plan'])}{stopped}</li>"
    kb = f'<span class="kb {escape(step["kb"])}">{escape(KB_NAMES.get(step["kb"], step["kb"]))}</span>'
    found = "".join(f"<li>{escape(passage['error'] or _passage(passage))}</li>" for passage in step["passages"])
    read = f"<details><summary>{len(step['passages'])} passages</summary><ul>{found}</ul></details>" if found else ""
    asked = f"{_thought(step['plan'])}<p>{kb} {escape(step['query'])}</p>"
    return f"<li>{asked}{read}{_thought(step['response'])}<p>→ {escape(step['answer'] or '–')}</p></li>"


def _passage(passage: Mapping[str, Any]) -> str:
    text = passage["text"] if len(passage["text"]) <= 300 else passage["text"][:300] + " …"
    return f"{passage['title']}: {text}" if passage["title"] and not text.startswith(passage["title"]) else text


def _thought(response: str) -> str:
    found = THINK.search(response)
    return f'<p class="think">{escape(found[1].strip())}</p>' if found and found[1].strip() else ""

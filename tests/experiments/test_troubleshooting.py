"""The page on troubleshooting quotes messages; each of them is still said somewhere."""

from __future__ import annotations

import ast
import re
from functools import cache
from pathlib import Path

import pytest

REPOSITORY = Path(__file__).parents[2]
PAGE = REPOSITORY / "docs/troubleshooting.md"
ROOMS = ("retrieval_actors", "rollout", "rewards", "learner", "experiments")
VARIES = "…"


def quoted() -> list[str]:
    """First cells of the rows of tables that begin with `message`."""
    found, inside = [], False
    for line in PAGE.read_text(encoding="utf-8").splitlines():
        inside = line.startswith("| message |") or (inside and line.startswith("|"))
        if inside and (cell := re.match(r"\| `([^`]+)` \|", line)):
            found.append(cell[1])
    return found


@cache
def said() -> str:
    """Every text of the code, with … for what is filled in, each on a line of its own; and the Makefile."""
    texts = [(REPOSITORY / "Makefile").read_text(encoding="utf-8")]
    for room in ROOMS:
        for file in (REPOSITORY / room).rglob("*.py"):
            for node in ast.walk(ast.parse(file.read_text(encoding="utf-8"))):
                if isinstance(node, ast.JoinedStr):
                    parts = [part.value if isinstance(part, ast.Constant) else VARIES for part in node.values]
                    texts.append("".join(map(str, parts)))
                elif isinstance(node, ast.Constant) and isinstance(node.value, str):
                    texts.append(node.value)
    return "\n".join(texts)


@pytest.mark.parametrize("message", quoted())
def test_a_quoted_message_is_still_said(message):
    assert message in said()


def test_a_message_that_nobody_says_would_be_found():
    assert "waited … s for …: … of … are lost in the woods" not in said()
    assert len(quoted()) > 60


def test_every_quoted_message_says_enough_to_be_recognised():
    assert not [message for message in quoted() if len(message.replace(VARIES, "").strip(" :;,")) < 12]


def test_every_row_has_a_cause_and_a_mend():
    rows = [line for line in PAGE.read_text(encoding="utf-8").splitlines() if line.startswith("| `")]
    assert rows
    assert not [row for row in rows if not all(cell.strip() for cell in row.strip("|").split(" | "))]


def test_keys_that_the_page_names_exist():
    """Dotted settings in code marks are real ones."""
    from experiments.config import TrainConfig, flat
    from experiments.serving.settings import ServeSettings

    known = set(flat(TrainConfig())) | {f"serve.{name}" for name in ServeSettings.__dataclass_fields__}
    sections = {key.partition(".")[0] for key in known}
    named = {
        key for text in re.findall(r"`([^`]+)`", PAGE.read_text(encoding="utf-8")) for key in re.findall(r"\b([a-z]+(?:\.[a-z_]+)+)=", text)
    }
    unknown = {key for key in named if key.partition(".")[0] in sections and key not in known and not key.startswith("retrieval.folders.")}
    assert not unknown

"""docs/12_troubleshooting.md quotes messages: the code still has each of them, and the settings that the page names exist."""

from __future__ import annotations

import ast
import re
from pathlib import Path

from experiments.config import TrainConfig, flat

ROOT = Path(__file__).parents[2]
PAGE = (ROOT / "docs/12_troubleshooting.md").read_text(encoding="utf-8")
ROOMS = ("retrieval_actors", "rollout", "rewards", "learner", "experiments")
VARIES = "…"
ROWS = [line for line in PAGE.splitlines() if line.startswith("| `")]


def texts_of_the_code() -> str:
    """Every string of the code, with … for what is filled in, each on a line of its own; the signs of collapse and the Makefile."""
    found = [(ROOT / name).read_text(encoding="utf-8") for name in ("Makefile", "learner/collapse_signs.yaml")]
    for file in [file for room in ROOMS for file in (ROOT / room).rglob("*.py")]:
        for node in ast.walk(ast.parse(file.read_text(encoding="utf-8"))):
            if isinstance(node, ast.JoinedStr):
                found.append("".join(str(part.value) if isinstance(part, ast.Constant) else VARIES for part in node.values))
            elif isinstance(node, ast.Constant) and isinstance(node.value, str):
                found.append(node.value)
    return "\n".join(found)


def test_quoted_messages_are_in_the_code_and_long_enough_to_be_recognised():
    quoted, said = [re.match(r"\| `([^`]+)` \|", row)[1] for row in ROWS], texts_of_the_code()
    assert len(quoted) > 30
    assert not [message for message in quoted if message not in said]
    assert not [message for message in quoted if len(message.replace(VARIES, "").strip(" :;,")) < 12]


def test_every_row_has_a_cause_and_a_fix():
    assert not [row for row in ROWS if not all(cell.strip() for cell in row.strip("|").split(" | "))]


def test_keys_that_the_page_names_exist():
    """Dotted settings in code marks are real ones."""
    from experiments.serving.settings import ServeSettings

    known = set(flat(TrainConfig())) | {f"serve.{name}" for name in ServeSettings.__dataclass_fields__}
    sections = {key.partition(".")[0] for key in known}
    named = {key for text in re.findall(r"`([^`]+)`", PAGE) for key in re.findall(r"\b([a-z]+(?:\.[a-z_]+)+)=", text)}
    unknown = {key for key in named if key.partition(".")[0] in sections and key not in known and not key.startswith("retrieval.folders.")}
    assert not unknown

"""The trajectory browser of the report: compressed data, with each passage and picture once, and the script in page/ that unpacks it."""

from __future__ import annotations

import base64
import hashlib
import json
import re
import zlib
from collections.abc import Mapping, Sequence
from itertools import chain
from pathlib import Path
from typing import Any

from experiments.evaluation.metrics import MALFORMED, chosen
from experiments.evaluation.recorded_episodes import retriever_names
from experiments.tracking.run_folder import RunFolder
from retrieval_actors.pictures import data_url, small_picture
from rewards.actor import RETRIEVERS
from rewards.answer_metrics import f1_recall
from rollout.records import Image
from rollout.turn_parser import ANSWER, PLAN

PAGE = Path(__file__).parent / "page"
SCRIPT = (PAGE / "browser.js").read_text(encoding="utf-8")
STYLE = (PAGE / "browser.css").read_text(encoding="utf-8")
MARKUP = (PAGE / "browser.html").read_text(encoding="utf-8")
SHOWN_AT_MOST = 6000  # Trajectories
PICTURE_BYTES_AT_MOST = 12 * 2**20  # Of all pictures; later ones are left out
ANSWERS_AT_MOST = 5  # Gold answers of a question that are shown; a numeric range has thousands
THINK = re.compile(r"\s*<think>(.*?)</think>", re.S)
LABELS = {"after": "after training", "before": "before training"}
Row = Mapping[str, Any]  # A row of `RunFolder.read_trajectories`


def browser_section(data: Mapping[str, Any]) -> str:
    """Empty without trajectories. The data is JSON, raw deflate (for `DecompressionStream`), base64: that cannot close a script element."""
    if not data["trajectories"]:
        return ""
    deflate = zlib.compressobj(9, zlib.DEFLATED, -zlib.MAX_WBITS)
    plain = json.dumps(data, ensure_ascii=False, separators=(",", ":")).encode()
    packed = base64.b64encode(deflate.compress(plain) + deflate.flush()).decode()
    return f'{MARKUP}<script type="application/octet-stream" id="trajectories">{packed}</script><script>{SCRIPT}</script>'


def security_policy() -> str:
    """For the page: only the trajectory browser's own script may run, and nothing is fetched."""
    script = base64.b64encode(hashlib.sha256(SCRIPT.encode()).digest()).decode()
    return (
        f"default-src 'none'; script-src 'sha256-{script}'; style-src 'unsafe-inline'; img-src data:; base-uri 'none'; form-action 'none'"
    )


def browser_data(folder: RunFolder, kbs: Sequence[str]) -> dict[str, Any]:
    """What browser.js reads; its head lists the keys. Held-out trajectories come first, then the latest iterations."""
    found = [(name, row) for name in folder.trajectory_names() for row in folder.read_trajectories(name)]
    rows = found[:SHOWN_AT_MOST]
    retrievers = {name.lower(): kb for name, kb in retriever_names((row for _, row in rows), [], RETRIEVERS).items()}
    data = _Data(folder.read_pictures(), retrievers, list(dict.fromkeys([*LABELS, *(name for name, _ in found)])))
    trajectories = [data.trajectory(name, row) for name, row in rows]
    valued = (query for _, row in rows for group in row["groups"] if "values" in group for query in group["values"]["queries"])
    tried = (kb for *_, routes in valued for kb, _, _ in routes)
    used = dict.fromkeys([*kbs, *(step["kb"] for _, row in rows for step in row["steps"] if step["kb"]), *tried])
    return {
        "kbs": list(used),
        "sets": [LABELS.get(name) or f"training iteration {int(name.removeprefix('iteration-'))}" for name in data.sets],
        "passages": data.passages,
        "pictures": data.pictures,
        "trajectories": trajectories,
        "left_out": len(found) - len(rows),
    }


def outcome(row: Row) -> str:
    """`right` (F1-Recall 1), `partly`, `wrong`, `failed` (the episode or a search failed, or no answer could be parsed), `open` (no gold answer is
    known). Recorded plan turns are `right` or `wrong` by their decision."""
    if row["error"] or any(passage["error"] for step in row["steps"] for passage in step["passages"]):
        return "failed"
    if not row["answers"]:
        decided = [row["counts"][name] for name in ("routing_accuracy", "stop_accuracy") if name in row["counts"] and not row["steps"]]
        right = [top for top, bottom in decided if bottom]  # of a recorded plan turn, which has a gold decision
        return "open" if not right else "right" if all(right) else "wrong"
    if not row["answer"]:
        return "failed"
    found = f1_recall(row["answer"], row["answers"])
    return "right" if found == 1.0 else "partly" if found > 0 else "wrong"


class _Data:
    """Collects the tables of passages and pictures while it converts trajectories."""

    def __init__(self, pictures: Mapping[str, bytes], retrievers: Mapping[str, str], sets: Sequence[str]):
        self.sets = sets
        self.passages: list[list[Any]] = []  # [id, knowledge base, title, text, index of the picture or -1, error]
        self.pictures: list[str] = []
        self._stored, self._retrievers = pictures, retrievers
        self._passage_numbers: dict[tuple, int] = {}
        self._picture_numbers: dict[str, int] = {}
        self._room = PICTURE_BYTES_AT_MOST

    def trajectory(self, name: str, row: Row) -> dict[str, Any]:
        groups = {kind: iter([g for g in row["groups"] if g["kind"] == kind]) for kind in ("plan", "answer", "final")}
        image = row["image"]
        return {
            "set": self.sets.index(name),
            "id": row["question_id"],
            "family": row["family"],
            "question": row["text"],
            "picture": self._picture(Image.of(image).key, small_picture(image)) if image else -1,
            "answers": row["answers"][:ANSWERS_AT_MOST],
            "more_answers": max(len(row["answers"]) - ANSWERS_AT_MOST, 0),
            "gold": [_gold(step) for step in row["gold"]] if row["gold"] is not None else None,
            "steps": [self._step(step, groups) for step in row["steps"]],
            "thought": _thought(row["final"]),
            "answer": row["answer"],
            "raw": "" if ANSWER.fullmatch(row["final"]) else row["final"],
            "groups": [self._group(group) for group in chain(groups["final"], groups["plan"], groups["answer"])],
            "outcome": outcome(row),
            "seconds": round(row["seconds"], 3),
            "version": row["policy_version"],
            "error": row["error"] or "",
        }

    def _step(self, step: Mapping[str, Any], groups: Mapping[str, Any]) -> dict[str, Any]:
        choice = chosen(step)
        return {
            "choice": choice,
            "gold": step["gold"],
            "thought": _thought(step["plan"]),
            "query": step["query"],
            "raw": step["plan"] if choice == MALFORMED else "",
            "passages": [[self._passage(passage), passage["score"]] for passage in step["passages"]],
            "read": _thought(step["response"]),
            "answer": step["answer"],
            "raw_answer": step["response"] if step["response"] and not ANSWER.fullmatch(step["response"]) else "",
            "plan": self._group(next(groups["plan"], None)) if step["plan"] else None,
            "reading": self._group(next(groups["answer"], None)) if step["response"] else None,
        }

    def _group(self, group: Mapping[str, Any] | None) -> dict[str, Any] | None:
        return {**group, "siblings": [self._sibling(sibling) for sibling in group["siblings"]]} if group else None

    def _sibling(self, sibling: Mapping[str, Any]) -> list[Any]:
        """[thought, text, knowledge base, times, reward, advantage, parts]."""
        text = sibling["text"]
        thought, said, kb = _thought(text), text, ""
        if plan := PLAN.fullmatch(text):
            said, retriever = plan[1].strip(), plan[2].strip()
            kb = "stop" if retriever.lower() == "none" else self._retrievers.get(retriever.lower(), retriever)
        elif answer := ANSWER.fullmatch(text):
            said = answer[1].strip()
        else:
            thought, kb = "", MALFORMED
        return [thought, said, kb, sibling["times"], sibling["reward"], sibling["advantage"], list(sibling["parts"].items())]

    def _passage(self, passage: Mapping[str, Any]) -> int:
        key = (passage["kb"], passage["id"], passage["text"], passage["error"])
        if key not in self._passage_numbers:
            self._passage_numbers[key] = len(self.passages)
            picture = passage["picture"]
            shown = self._picture(picture, self._stored.get(picture)) if picture else -1
            self.passages.append([passage["id"], passage["kb"], passage["title"], passage["text"], shown, passage["error"]])
        return self._passage_numbers[key]

    def _picture(self, key: str, data: bytes | None) -> int:
        if key not in self._picture_numbers:
            fits = data is not None and len(data) <= self._room
            self._picture_numbers[key] = len(self.pictures) if fits else -1
            if data is not None and fits:
                self._room -= len(data)
                self.pictures.append(data_url(data))
        return self._picture_numbers[key]


def _gold(step: Mapping[str, Any]) -> list[Any]:
    """[knowledge bases that are right, query, answer]. Older runs name one, as `kb`."""
    return [step["kbs"] if "kbs" in step else [step["kb"]], step["query"], step["answer"]]


def _thought(text: str) -> str:
    return found[1].strip() if (found := THINK.match(text)) else ""

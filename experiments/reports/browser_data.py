"""The trajectories of a run as data for the page: passages and pictures once each, and no more of all than a page can hold."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from itertools import chain
from typing import Any

from experiments.reports.confusion import chosen
from experiments.run_folder import RunFolder
from experiments.serving.pictures import data_url, small_picture
from rewards.actor import RETRIEVERS
from rewards.paper_evaluator import f1_recall
from rollout.prompts import ANSWER, PLAN
from rollout.records import Image

SHOWN_AT_MOST = 6000
"""Trajectories."""
PICTURE_BYTES_AT_MOST = 12 * 2**20
"""Of all pictures together; later ones are left out."""
ANSWERS_AT_MOST = 5
"""Gold answers of a question that are shown; a numeric range has thousands."""
THINK = re.compile(r"\s*<think>(.*?)</think>", re.S)
LABELS = {"after": "after training", "before": "before training"}

Row = Mapping[str, Any]
"""A trajectory as `RunFolder.read_trajectories` gives it."""


def browser_data(folder: RunFolder, kbs: Sequence[str], at_most: int = SHOWN_AT_MOST) -> dict[str, Any]:
    """What browser.js reads; its keys are told there. Held-out trajectories come first, then the latest iterations."""
    sets = {name: folder.read_trajectories(name) for name in folder.trajectory_names()}
    total = sum(map(len, sets.values()))
    rows = chosen_rows(sets, at_most)
    data = _Data(folder.read_pictures(), _retrievers(rows), [*LABELS, *(name for name in sets if name not in LABELS)])
    trajectories = [data.trajectory(name, row) for name, row in rows]
    used = dict.fromkeys([*kbs, *(step["kb"] for _, row in rows for step in row["steps"] if step["kb"])])
    return {
        "kbs": list(used),
        "sets": [LABELS.get(name) or f"training iteration {int(name.removeprefix('iteration-'))}" for name in data.sets],
        "passages": data.passages,
        "pictures": data.pictures,
        "trajectories": trajectories,
        "left_out": total - len(rows),
    }


def chosen_rows(sets: Mapping[str, Sequence[Row]], at_most: int) -> list[tuple[str, Row]]:
    """(set, row), at most so many: of a held-out set too large every so-many-th question, the same ones before and after training."""
    heldout = [name for name in sets if name in LABELS]
    every = -(-sum(len(sets[name]) for name in heldout) // at_most) or 1
    first = chain.from_iterable(((name, row) for row in sets[name][::every]) for name in heldout)
    others = chain.from_iterable(((name, row) for row in sets[name]) for name in sets if name not in LABELS)
    return [*first, *others][:at_most]


def outcome(row: Row) -> str:
    """`right` (F1-Recall 1), `partly`, `wrong`, `failed` (broken off, or without a readable answer), `open` (nobody knows the answer).
    Recorded plan turns are right where they decided as the gold does."""
    if row.get("error"):
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
    """Fills the tables of passages and pictures while it goes through the trajectories."""

    def __init__(self, pictures: Mapping[str, bytes], retrievers: Mapping[str, str], sets: Sequence[str]):
        self.sets = list(sets)
        self.passages: list[list[Any]] = []
        """[id, knowledge base, title, text, number of the picture or -1, error]."""
        self.pictures: list[str] = []
        """Data URLs."""
        self._stored, self._retrievers = pictures, retrievers
        self._passage_numbers: dict[tuple, int] = {}
        self._picture_numbers: dict[str, int] = {}
        self._room = PICTURE_BYTES_AT_MOST

    def trajectory(self, name: str, row: Row) -> dict[str, Any]:
        groups = {kind: iter([g for g in row["groups"] or () if g["kind"] == kind]) for kind in ("plan", "answer", "final")}
        image = row["image"]
        key = Image.of(image).key if image else ""
        answer = ANSWER.fullmatch(row["final"])
        thought = THINK.match(row["final"])
        return {
            "set": self.sets.index(name),
            "id": row["question_id"],
            "family": row["family"],
            "question": row["text"],
            "picture": self._picture(key, small_picture(image)) if image else -1,
            "answers": row["answers"][:ANSWERS_AT_MOST],
            "more_answers": max(len(row["answers"]) - ANSWERS_AT_MOST, 0),
            "gold": [[gold["kb"], gold["query"], gold["answer"]] for gold in row["gold"]] if row["gold"] is not None else None,
            "steps": [self._step(step, groups) for step in row["steps"]],
            "thought": thought[1].strip() if thought else "",
            "answer": row["answer"],
            "raw": "" if answer else row["final"],
            "groups": [self._group(group) for group in chain(groups["final"], groups["plan"], groups["answer"])],
            "outcome": outcome(row),
            "seconds": round(row["seconds"], 3),
            "version": row["policy_version"],
            "error": row.get("error") or "",
        }

    def _step(self, step: Mapping[str, Any], groups: Mapping[str, Any]) -> dict[str, Any]:
        read = THINK.match(step["response"])
        thought = THINK.match(step["plan"])
        choice = chosen(step)
        return {
            "choice": choice,
            "gold": step.get("gold"),
            "thought": thought[1].strip() if thought else "",
            "query": step["query"],
            "raw": step["plan"] if choice == "malformed" else "",
            "passages": [[self._passage(passage), passage["score"]] for passage in step["passages"]],
            "read": read[1].strip() if read else "",
            "answer": step["answer"],
            "raw_answer": step["response"] if step["response"] and not ANSWER.fullmatch(step["response"]) else "",
            "plan": self._group(next(groups["plan"], None)) if step["plan"] else None,
            "reading": self._group(next(groups["answer"], None)) if step["response"] else None,
        }

    def _group(self, group: Mapping[str, Any] | None) -> dict[str, Any] | None:
        """{kind, trunk, siblings: [[thought, said, knowledge base, times, reward, advantage, parts]]}."""
        if group is None:
            return None
        return {"kind": group["kind"], "trunk": group["trunk"], "siblings": [self._sibling(sibling) for sibling in group["siblings"]]}

    def _sibling(self, sibling: Mapping[str, Any]) -> list[Any]:
        text = sibling["text"]
        thought, plan, answer = THINK.match(text), PLAN.fullmatch(text), ANSWER.fullmatch(text)
        kb = ""
        if plan:
            retriever = plan[2].strip()
            kb = "stop" if retriever.lower() == "none" else self._retrievers.get(retriever.lower(), retriever)
        said = plan[1].strip() if plan else answer[1].strip() if answer else text
        shown = thought[1].strip() if thought and (plan or answer) else ""
        parts = [[name, value] for name, value in sibling["parts"].items()]
        return [shown, said, kb if plan or answer else "malformed", sibling["times"], sibling["reward"], sibling["advantage"], parts]

    def _passage(self, passage: Mapping[str, Any]) -> int:
        key = (passage["kb"], passage["id"], passage["text"], passage["error"])
        if key not in self._passage_numbers:
            self._passage_numbers[key] = len(self.passages)
            picture = passage.get("picture", "")
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


def _retrievers(rows: Sequence[tuple[str, Row]]) -> dict[str, str]:
    """Name as the policy writes it, in small letters -> knowledge base, as the trunks of the trajectories show it."""
    known = {name.lower(): kb for name, kb in RETRIEVERS.items()}
    for _, row in rows:
        for step in row["steps"]:
            if step["kb"] and (plan := PLAN.fullmatch(step["plan"])):
                known[plan[2].strip().lower()] = step["kb"]
    return known

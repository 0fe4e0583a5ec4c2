"""The stored episodes of a run (`trajectories/*.parquet`) as records that can be scored again. They have texts, but no token ids."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, fields, replace
from typing import Any

import numpy as np

from experiments.tracking.trajectory_table import read_values
from retrieval_actors.records import Passage
from rollout.records import Action, Exchange, GoldStep, Image, Question, State, Step, Trajectory, Turn, TurnGroup, TurnKind
from rollout.turn_parser import PLAN

NO_TOKENS = np.zeros(0, np.int32)
Row = Mapping[str, Any]  # of `RunFolder.read_trajectories`


@dataclass(frozen=True)
class RecordedEpisode:
    stored: str  # `before`, `after`, or `iteration-000020`
    trajectory: Trajectory
    siblings: tuple[tuple[Row, ...], ...]  # for each turn of each group: {text, times, reward, parts}, as it was stored


def recorded_episode(stored: str, row: Row, trunk_only: bool) -> RecordedEpisode:
    """`trunk_only`: only the turns that the episode continued from, without their siblings."""
    image, gold = Image.of(row["image"]) if row["image"] else None, row["gold"]
    known = None if gold is None else tuple(_gold_step(step) for step in gold)
    question = Question(row["question_id"], row["text"], tuple(row["answers"]), image, known, row["family"])
    steps = tuple(_step(step) for step in row["steps"])
    searched = [(step, step.exchange) for step in steps if step.exchange]
    exchanges, seen = tuple(exchange for _, exchange in searched), {"plan": 0, "answer": 0, "final": len(searched)}
    groups, siblings = [], []
    for group in row["groups"]:
        kind: TurnKind = group["kind"]
        number, seen[kind] = seen[kind], seen[kind] + 1
        state = State(kind, NO_TOKENS, image, question, exchanges[:number])
        if kind == "answer":
            step, exchange = searched[number]
            state = replace(state, query=exchange.query, kb=exchange.kb, passages=step.passages)
        kept = [group["siblings"][group["trunk"]] | {"times": 1}] if trunk_only else group["siblings"]
        turns, trunk = tuple(_turn(kind, sibling["text"]) for sibling in kept), 0 if trunk_only else group["trunk"]
        groups.append(TurnGroup(state, turns, trunk, values=read_values(group)))
        siblings.append(tuple(kept))
    final = _turn("final", row["final"]) if row["final"] else None
    failed = sum(any(passage.error for passage in step.passages) for step in steps)
    parts = question, steps, final, row["answer"], tuple(groups), row["seconds"], failed, row["error"] or ""
    return RecordedEpisode(stored, Trajectory(*parts), tuple(siblings))


def retriever_names(rows: Iterable[Row], kbs: Sequence[str], usual: Mapping[str, str]) -> dict[str, str]:
    """Retriever name -> knowledge base, of a run with the knowledge bases `kbs`: as most trunks wrote it, else the `usual` one. Not all:
    after a valued plan turn an episode may continue elsewhere than its text says."""
    written = Counter({(kb, name): 0 for name, kb in usual.items() if not kbs or kb in kbs})
    plans = ((step["kb"], PLAN.fullmatch(step["plan"])) for row in rows for step in row["steps"] if step["kb"])
    written.update((kb, plan[2].strip()) for kb, plan in plans if plan)
    found: dict[str, str] = {}
    for (kb, name), _ in written.most_common():
        if name not in found and kb not in found.values():
            found[name] = kb
    return found


def _gold_step(stored: Row) -> GoldStep:
    found = {field.name: stored[field.name] for field in fields(GoldStep) if field.name in stored}
    named: dict[str, Any] = {name: tuple(value) if isinstance(value, list) else value for name, value in found.items()}
    return GoldStep(**({"kbs": stored["kb"]} if "kb" in stored else {}), **named)  # older runs stored one knowledge base


def _step(stored: Row) -> Step:
    plan = _turn("plan", stored["plan"]) if stored["plan"] else None
    if not stored["kb"]:
        return Step(plan, Action("", None) if stored["stops"] else None)
    facts = ("id", "text", "title", "kb", "score", "error")
    passages = tuple(Passage(**{name: passage[name] for name in facts}) for passage in stored["passages"])
    exchange = Exchange(stored["query"], stored["kb"], stored["answer"], any(passage.error for passage in passages))
    return Step(plan, Action(stored["query"], stored["kb"]), passages, _turn("answer", stored["response"]), exchange)


def _turn(kind: TurnKind, text: str) -> Turn:
    return Turn(kind, NO_TOKENS, NO_TOKENS.astype(np.float32), "stop", 0, text)

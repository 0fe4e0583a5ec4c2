"""Rollouts in files: what one half of the training made, for the other half to be worked on alone.

A folder holds the trajectories and scored turns of one iteration as five Parquet tables (nothing is pickled): `images`, `trajectories`, `states`,
`turns`, `scored`. Token ids and log-probs are stored as they are, prompts once per state, pictures once.
"""

from __future__ import annotations

import json
import shutil
from collections.abc import Iterable, Sequence
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from retrieval_actors.records import Passage
from rollout.records import Action, Exchange, GoldStep, Image, Question, ScoredTurn, State, Step, Trajectory, Turn, TurnGroup, TurnReward

TEXT, WHOLE, REAL = pa.string(), pa.int64(), pa.float64()
IDS, LOGPROBS = pa.list_(pa.int32()), pa.list_(pa.float32())
COLUMNS: dict[str, dict[str, pa.DataType]] = {
    "images": {"key": TEXT, "data": pa.binary()},
    "trajectories": {
        "question": TEXT,
        "steps": TEXT,
        "final": TEXT,
        "answer": TEXT,
        "seconds": REAL,
        "search_errors": WHOLE,
        "error": TEXT,
    },
    "states": {"trajectory": WHOLE, "kind": TEXT, "prompt_ids": IDS, "image": TEXT, "more": TEXT, "trunk": WHOLE},
    "turns": {
        **{"state": WHOLE, "kind": TEXT, "response_ids": IDS, "logprobs": LOGPROBS},
        **{"finish_reason": TEXT, "policy_version": WHOLE, "text": TEXT},
    },
    "scored": {
        **{"turn": WHOLE, "state": WHOLE, "state_key": TEXT, "total": REAL, "components": TEXT, "parts": TEXT},
        **{"episode": TEXT, "outcome": REAL, "episode_group": TEXT},
    },
}
"""`steps`, `final`, `more`, ...: JSON. A state or turn of no trajectory has -1 there. `steps` and `final` name turns as [group, sibling]."""


def write_rollouts(folder: str | Path, trajectories: Sequence[Trajectory], scored: Sequence[ScoredTurn]) -> None:
    """Write them aside and rename: a folder of this name is always complete. Raises FileExistsError when there is one already."""
    folder = Path(folder)
    if folder.exists():
        raise FileExistsError(f"{folder}: holds rollouts already; choose another folder, or remove it")
    tables = _Tables()
    for trajectory in trajectories:
        tables.add_trajectory(trajectory)
    for turn in scored:
        tables.add_scored(turn)
    aside = folder.with_name(folder.name + ".partial")
    shutil.rmtree(aside, ignore_errors=True)
    aside.mkdir(parents=True)
    for name, columns in COLUMNS.items():
        pq.write_table(pa.Table.from_pylist(tables.rows[name], schema=pa.schema(columns)), aside / f"{name}.parquet")
    aside.rename(folder)


def read_rollouts(folder: str | Path) -> tuple[list[Trajectory], list[ScoredTurn]]:
    """What `write_rollouts` was given, bit for bit.

    Raises: FileNotFoundError naming the file that is missing; ValueError naming the file whose columns are others.
    """
    folder, rows = Path(folder), {}
    for name, columns in COLUMNS.items():
        file = folder / f"{name}.parquet"
        if not file.is_file():
            raise FileNotFoundError(f"{file} is missing: no rollouts of an iteration; expected a folder that train.dump_rollouts wrote")
        table = pq.read_table(file)
        if table.schema.names != list(columns):
            raise ValueError(f"{file}: its columns are {table.schema.names}, expected {list(columns)}")
        rows[name] = table.to_pylist()
    images = {row["key"]: Image(row["key"], row["data"]) for row in rows["images"]}
    turns = [_turn(row) for row in rows["turns"]]
    trajectories = _trajectories(rows, images, turns)
    states = rows["states"]
    prompts = [np.array(state["prompt_ids"], np.int32) for state in states]
    scored = [
        ScoredTurn(
            state_key=row["state_key"],
            prompt_ids=prompts[row["state"]],
            image=images[states[row["state"]]["image"]] if states[row["state"]]["image"] else None,
            turn=turns[row["turn"]],
            reward=TurnReward(row["total"], json.loads(row["components"]), json.loads(row["parts"])),
            episode=row["episode"],
            outcome=row["outcome"],
            episode_group=row["episode_group"],
        )
        for row in rows["scored"]
    ]
    return trajectories, scored


class _Tables:
    """Rows of the five tables as they are filled."""

    def __init__(self) -> None:
        self.rows: dict[str, list[dict[str, Any]]] = {name: [] for name in COLUMNS}
        self._images: set[str] = set()
        self._turn_rows: dict[tuple, tuple[int, int]] = {}
        """Content of a turn and its state -> rows of both."""

    def add_trajectory(self, trajectory: Trajectory) -> None:
        number, question = len(self.rows["trajectories"]), trajectory.question
        places: dict[tuple, tuple[int, int]] = {}
        for g, group in enumerate(trajectory.groups):
            if group.state.question != question:
                raise ValueError(f"question {question.id}: a turn of its trajectory is about {group.state.question.id}")
            state = self._add_state(number, group.state, group.trunk, group.gains)
            for t, turn in enumerate(group.turns):
                places.setdefault(_content(turn), (g, t))
                self._add_turn(turn, state, group.state.key)
        place = lambda turn: None if turn is None else places[_content(turn)]  # noqa: E731
        steps = [
            {
                "plan": place(step.plan),
                "action": step.action and asdict(step.action),
                "passages": self._passages(step.passages),
                "answer": place(step.answer),
                "exchange": step.exchange and asdict(step.exchange),
            }
            for step in trajectory.steps
        ]
        plain = asdict(replace(question, image=None)) | {"image": self._image(question.image)}
        self.rows["trajectories"].append(
            {
                "question": _json(plain),
                "steps": _json(steps),
                "final": _json(place(trajectory.final)),
                "answer": trajectory.answer,
                "seconds": trajectory.seconds,
                "search_errors": trajectory.search_errors,
                "error": trajectory.error,
            }
        )

    def add_scored(self, scored: ScoredTurn) -> None:
        known = self._turn_rows.get((scored.state_key, *_content(scored.turn)))
        if known is None:  # not a turn of the trajectories
            state = self._row("states", trajectory=-1, kind=scored.turn.kind, prompt_ids=scored.prompt_ids, image=self._image(scored.image))
            known = self._add_turn(scored.turn, state, scored.state_key)
        turn, state = known
        self._row(
            "scored",
            turn=turn,
            state=state,
            state_key=scored.state_key,
            total=scored.reward.total,
            components=_json(scored.reward.components),
            parts=_json(scored.reward.parts),
            episode=scored.episode,
            outcome=scored.outcome,
            episode_group=scored.episode_group,
        )

    def _add_state(self, trajectory: int, state: State, trunk: int, gains: Sequence[float] = ()) -> int:
        more = {
            "history": [asdict(exchange) for exchange in state.history],
            "query": state.query,
            "kb": state.kb,
            "passages": self._passages(state.passages),
            "target": state.target and asdict(state.target),
            "gains": list(gains),
        }
        return self._row(
            "states",
            trajectory=trajectory,
            kind=state.kind,
            prompt_ids=state.prompt_ids,
            image=self._image(state.image),
            more=_json(more),
            trunk=trunk,
        )

    def _add_turn(self, turn: Turn, state: int, state_key: str) -> tuple[int, int]:
        row = self._row(
            "turns",
            state=state,
            kind=turn.kind,
            response_ids=turn.response_ids,
            logprobs=turn.logprobs,
            finish_reason=turn.finish_reason,
            policy_version=turn.policy_version,
            text=turn.text,
        )
        return self._turn_rows.setdefault((state_key, *_content(turn)), (row, state))

    def _image(self, image: Image | None) -> str | None:
        if image is None:
            return None
        if image.key not in self._images:
            self._images.add(image.key)
            self._row("images", key=image.key, data=image.data)
        return image.key

    def _passages(self, passages: Iterable[Passage]) -> list[dict[str, Any]]:
        return [
            asdict(replace(passage, image=None)) | {"image": self._image(Image.of(passage.image) if passage.image else None)}
            for passage in passages
        ]

    def _row(self, table: str, **values: Any) -> int:
        self.rows[table].append(values)
        return len(self.rows[table]) - 1


def _trajectories(rows: dict[str, list[dict[str, Any]]], images: dict[str, Image], turns: Sequence[Turn]) -> list[Trajectory]:
    siblings: dict[int, list[Turn]] = {}
    for row, turn in zip(rows["turns"], turns, strict=True):
        siblings.setdefault(row["state"], []).append(turn)

    def passages(plain: list[dict[str, Any]]) -> tuple[Passage, ...]:
        return tuple(Passage(**p | {"image": images[p["image"]].data if p["image"] else None}) for p in plain)

    questions = [_question(json.loads(row["question"]), images) for row in rows["trajectories"]]
    groups: list[list[TurnGroup]] = [[] for _ in questions]
    for number, row in enumerate(rows["states"]):
        if row["trajectory"] < 0:
            continue
        more = json.loads(row["more"])
        state = State(
            kind=row["kind"],
            prompt_ids=np.array(row["prompt_ids"], np.int32),
            image=images[row["image"]] if row["image"] else None,
            question=questions[row["trajectory"]],
            history=tuple(Exchange(**exchange) for exchange in more["history"]),
            query=more["query"],
            kb=more["kb"],
            passages=passages(more["passages"]),
            target=more["target"] and _gold(more["target"]),
        )
        groups[row["trajectory"]].append(TurnGroup(state, tuple(siblings[number]), row["trunk"], tuple(more["gains"])))
    found = []
    for row, question, mine in zip(rows["trajectories"], questions, groups, strict=True):
        named = lambda place, mine=mine: place and mine[place[0]].turns[place[1]]  # noqa: E731
        steps = tuple(
            Step(
                plan=named(step["plan"]),
                action=step["action"] and Action(**step["action"]),
                passages=passages(step["passages"]),
                answer=named(step["answer"]),
                exchange=step["exchange"] and Exchange(**step["exchange"]),
            )
            for step in json.loads(row["steps"])
        )
        final = named(json.loads(row["final"]))
        found.append(Trajectory(question, steps, final, row["answer"], tuple(mine), row["seconds"], row["search_errors"], row["error"]))
    return found


def _question(plain: dict[str, Any], images: dict[str, Image]) -> Question:
    gold = plain["gold_steps"]
    return Question(
        **plain
        | {
            "answers": tuple(plain["answers"]),
            "answer_range": tuple(found) if (found := plain.get("answer_range")) else None,
            "image": images[plain["image"]] if plain["image"] else None,
            "gold_steps": None if gold is None else tuple(map(_gold, gold)),
        }
    )


def _gold(plain: dict[str, Any]) -> GoldStep:
    return GoldStep(**plain | {"entities": tuple(plain["entities"])})


def _turn(row: dict[str, Any]) -> Turn:
    return Turn(
        row["kind"],
        np.array(row["response_ids"], np.int32),
        np.array(row["logprobs"], np.float32),
        row["finish_reason"],
        row["policy_version"],
        row["text"],
    )


def _content(turn: Turn) -> tuple:
    return turn.kind, turn.response_ids.tobytes(), turn.logprobs.tobytes(), turn.finish_reason, turn.policy_version, turn.text


def _json(value: Any) -> str:
    return json.dumps(value, ensure_ascii=False, default=float)

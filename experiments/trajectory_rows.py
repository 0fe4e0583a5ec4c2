"""A trajectory as a row of Parquet: its trunk step by step, the siblings of every turn with what they earned, and its pictures by their hash."""

from __future__ import annotations

import json
from collections import defaultdict, deque
from collections.abc import Iterable, Sequence
from typing import Any

import numpy as np
import pyarrow as pa

from experiments.passage_pictures import Pictures
from experiments.serving.pictures import small_picture
from rollout.needs import askable_needs
from rollout.prompts import parse_answer
from rollout.records import Exchange, Image, ScoredTurn, Trajectory, TurnGroup

NO_PICTURES: Pictures = {}
TRAJECTORY_SCHEMA = pa.schema(
    [
        ("question_id", pa.string()),
        ("family", pa.string()),
        ("text", pa.string()),
        ("image", pa.binary()),
        ("answers", pa.list_(pa.string())),
        ("gold", pa.string()),
        ("steps", pa.string()),
        ("final", pa.string()),
        ("answer", pa.string()),
        ("groups", pa.string()),
        ("retrievals", pa.int32()),
        ("seconds", pa.float64()),
        ("policy_version", pa.int64()),
        ("error", pa.string()),
        ("counts", pa.string()),
    ]
)
"""JSON in strings:
`gold`: a list of {query, kb, answer}, or null when nobody knows what has to be found out;
`steps`: a list of {plan, query, kb, stops, gold, passages: [{id, title, text, kb, score, error, picture}], response, answer}, where `gold` names
the knowledge bases that it was right to ask ([]: to stop; null: nobody knows) and `picture` is a key of the table of pictures, or empty;
`groups`: a list of {kind, trunk, siblings: [{text, times, reward, advantage, parts}]}, turn by turn: equal siblings stand there once, `parts` is
what adds up to the reward, or what was measured where nothing does;
`counts`: measure -> [numerator, denominator]."""
PICTURE_SCHEMA = pa.schema([("key", pa.string()), ("data", pa.binary())])
"""Pictures of passages, small, each once; the key is the hash of the picture as the knowledge base holds it."""


def trajectory_row(trajectory: Trajectory, groups: Sequence[dict[str, Any]] = (), pictures: Pictures = NO_PICTURES) -> dict[str, Any]:
    """The trunk of an episode; of a recorded turn, its first response. `groups`: of `sibling_groups`; `pictures`: of passages that carry none."""
    question = trajectory.question
    recorded = trajectory.groups[-1].turns[0] if trajectory.groups and not trajectory.error and trajectory.final is None else None
    last = trajectory.final or recorded
    return {
        "question_id": question.id,
        "family": question.family,
        "text": question.text,
        "image": question.image.data if question.image else None,
        "answers": list(question.answers),
        "gold": _json(
            None
            if question.gold_steps is None
            else [{"query": gold.query, "kb": gold.kb, "answer": gold.answer} for gold in question.gold_steps]
        ),
        "steps": _json(_steps(trajectory, pictures)),
        "final": last.text if last else "",
        "answer": trajectory.answer or (parse_answer(recorded.text) or "" if recorded else ""),
        "groups": _json(list(groups)),
        "retrievals": trajectory.retrievals,
        "seconds": trajectory.seconds,
        "policy_version": last.policy_version if last else 0,
        "error": trajectory.error,
        "counts": None,
    }


def _steps(trajectory: Trajectory, pictures: Pictures) -> list[dict[str, Any]]:
    gold, history, steps = trajectory.question.gold_steps, list[Exchange](), []
    for step in trajectory.steps:
        knows = gold is not None and step.plan is not None
        steps.append(
            {
                "plan": step.plan.text if step.plan else "",
                "query": step.action.query if step.action else "",
                "kb": (step.action.kb or "") if step.action else "",
                "stops": step.action is not None and step.action.kb is None,
                "gold": list(dict.fromkeys(need.kb for need in askable_needs(gold or (), history))) if knows else None,
                "passages": [
                    {
                        **{"id": p.id, "title": p.title, "text": p.text, "kb": p.kb, "score": round(p.score, 4), "error": p.error},
                        "picture": Image.of(data).key if (data := p.image or pictures.get((p.kb, p.id))) else "",
                    }
                    for p in step.passages
                ],
                "response": step.answer.text if step.answer else "",
                "answer": step.exchange.answer if step.exchange else "",
            }
        )
        if step.exchange is not None:
            history.append(step.exchange)
    return steps


def picture_rows(trajectories: Iterable[Trajectory], pictures: Pictures = NO_PICTURES) -> list[dict[str, Any]]:
    """Of every picture of a passage: once, and no larger than a page needs it. What does not decode is left out."""
    passages = (p for trajectory in trajectories for step in trajectory.steps for p in step.passages)
    found = {data for p in passages if (data := p.image or pictures.get((p.kb, p.id)))}
    small = {Image.of(data).key: small_picture(data) for data in found}
    return [{"key": key, "data": data} for key, data in sorted(small.items()) if data]


def sibling_groups(
    trajectories: Sequence[Trajectory], turns: Sequence[ScoredTurn] = (), advantages: Sequence[float] | np.ndarray = ()
) -> list[list[dict[str, Any]]]:
    """For each trajectory its groups, turn by turn, as `TRAJECTORY_SCHEMA` has them.

    `turns`: as they were scored; what nobody could judge is not among them. `advantages`: one for each of `turns`, or none where nothing was
    learned. A turn that was sampled alone (`chain` mode) is shown beside those of the other episodes that started from its very state.
    """
    scored: dict[tuple, deque[dict[str, Any]]] = defaultdict(deque)
    for place, turn in enumerate(turns):
        earned = {name: value for name, value in turn.reward.parts.items() if value} or turn.reward.components
        judged: dict[str, Any] = {"reward": _short(turn.reward.total), "parts": {name: _short(value) for name, value in earned.items()}}
        judged["advantage"] = _short(advantages[place]) if len(advantages) else None
        scored[turn.state_key, turn.turn.text, turn.turn.response_ids.tobytes()].append(judged)

    def siblings(group: TurnGroup) -> list[dict[str, Any]]:
        waiting = [scored[group.state.key, turn.text, turn.response_ids.tobytes()] for turn in group.turns]
        unjudged: dict[str, Any] = {"reward": None, "advantage": None, "parts": {}}
        return [{"text": turn.text, **(left.popleft() if left else unjudged)} for turn, left in zip(group.turns, waiting, strict=True)]

    known = [[(group, siblings(group)) for group in trajectory.groups] for trajectory in trajectories]
    by_state: dict[str, list[dict[str, Any]]] = defaultdict(list)
    for groups in known:
        for group, found in groups:
            by_state[group.state.key] += found
    return [
        [_group(group.state.kind, found[group.trunk], found if len(found) > 1 else by_state[group.state.key]) for group, found in groups]
        for groups in known
    ]


def _group(kind: str, trunk: dict[str, Any], siblings: Sequence[dict[str, Any]]) -> dict[str, Any]:
    """Equal siblings stand there once; the most frequent of the best first."""
    distinct: list[dict[str, Any]] = []
    for sibling in siblings:
        same = next((other for other in distinct if all(other[key] == sibling[key] for key in ("text", "reward", "advantage"))), None)
        if same is None:
            distinct.append(sibling | {"times": 1})
        else:
            same["times"] += 1
    distinct.sort(key=lambda sibling: (-(sibling["reward"] or 0.0), -sibling["times"]))
    place = next(i for i, other in enumerate(distinct) if all(other[key] == trunk[key] for key in ("text", "reward", "advantage")))
    return {"kind": kind, "trunk": place, "siblings": distinct}


def _short(number: float) -> float:
    return round(float(number), 4)


def _json(value: Any) -> str:
    return json.dumps(value, ensure_ascii=False)

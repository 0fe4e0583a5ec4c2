"""A trajectory as a row of `trajectories/*.parquet`: its trunk step by step, the siblings of every turn with their rewards, and its pictures."""

import json
from collections import Counter, defaultdict, deque
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict
from operator import itemgetter
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from retrieval_actors.knowledge_base import KnowledgeBase
from retrieval_actors.pictures import small_picture
from retrieval_actors.records import Passage
from rollout.need_matcher import NeedMatcher
from rollout.needs import askable_needs, right_kbs
from rollout.records import Exchange, Image, PlanValues, QueryValues, ScoredTurn, Trajectory, TurnGroup
from rollout.turn_parser import parse_answer

TEXTS = ("question_id", "family", "text", "gold", "steps", "final", "answer", "groups", "error", "counts")
NUMBERS = {"retrievals": pa.int32(), "seconds": pa.float64(), "policy_version": pa.int64()}
TRAJECTORY_SCHEMA = pa.schema(dict.fromkeys(TEXTS, pa.string()) | {"image": pa.binary(), "answers": pa.list_(pa.string())} | NUMBERS)
"""Strings with JSON:
`gold`: a list of gold steps, with all fields, or null where gold steps are not known;
`steps`: a list of {plan, query, kb, stops, gold, passages: [{id, title, text, kb, score, error, picture}], response, answer}; `gold` names the
knowledge bases that were right to choose ([]: to stop; null: not known), `picture` is a key of the table of pictures, or empty;
`groups`: a list of {kind, trunk, siblings: [{text, times, reward, advantage, parts}]}, turn by turn, where equal siblings are one entry; `parts`
add up to the reward, or are the measured components where nothing adds up; valued plan turns have `values` as well:
{stop, queries: [[query, value of `unknown`, [[kb, sub-answer, value]]]]};
`counts`: metric -> [numerator, denominator]."""
PICTURE_SCHEMA = pa.schema([("key", pa.string()), ("data", pa.binary())])  # thumbnails; key: the hash of the picture in the knowledge base
Pictures = Mapping[tuple[str, str], bytes]  # (knowledge base, passage id) -> encoded picture


def passage_pictures(trajectories: Iterable[Trajectory], folders: Mapping[str, str]) -> Pictures:
    """Pictures of all passages in these episodes. Those that searches did not return are read from `folders`: knowledge base -> folder."""
    passages = [passage for trajectory in trajectories for step in trajectory.steps for passage in step.passages]
    found: dict[tuple[str, str], bytes] = {}
    for kb in {passage.kb for passage in passages} & folders.keys():  # the others are of failed searches
        base, ids = KnowledgeBase.open(folders[kb], verify=False), {passage.id for passage in passages if passage.kb == kb}
        if "image" not in base.card.modality:
            continue
        for number in range(base.card.shards):
            table = base.shard(number).table.select(["id", "image"])
            rows = table.filter(pc.is_in(table["id"], value_set=pa.array(sorted(ids))))
            found |= {(kb, id): image for id, image in zip(*(rows[name].to_pylist() for name in ("id", "image")), strict=True) if image}
    return found | {(passage.kb, passage.id): passage.image for passage in passages if passage.image}


def picture_rows(pictures: Pictures) -> list[dict[str, Any]]:
    """Rows of `PICTURE_SCHEMA`, one for each distinct picture that can be decoded."""
    small = {Image.of(data).key: small_picture(data) for data in set(pictures.values())}
    return [{"key": key, "data": data} for key, data in sorted(small.items()) if data]


def trajectory_row(trajectory: Trajectory, groups: Sequence[Any], pictures: Pictures, matcher: NeedMatcher) -> dict[str, Any]:
    """A row of `TRAJECTORY_SCHEMA`: the trunk of an episode; of a recorded turn, its first response. `groups`: of `sibling_groups`."""
    question, gold = trajectory.question, trajectory.question.gold_steps
    recorded = trajectory.groups[-1].turns[0] if trajectory.groups and not trajectory.error and trajectory.final is None else None
    last = trajectory.final or recorded
    known = None if gold is None else [asdict(step) for step in gold]
    row: dict[str, Any] = {"question_id": question.id, "family": question.family, "text": question.text, "answers": list(question.answers)}
    row |= {"image": question.image.data if question.image else None, "gold": _json(known)}
    row |= {"steps": _json(_steps(trajectory, pictures, matcher)), "groups": _json(list(groups)), "counts": None}
    row |= {"final": last.text, "policy_version": last.policy_version} if last else {"final": "", "policy_version": 0}
    row["answer"] = trajectory.answer or (parse_answer(recorded.text) or "" if recorded else "")
    return row | {"retrievals": trajectory.retrievals, "seconds": trajectory.seconds, "error": trajectory.error}


def _steps(trajectory: Trajectory, pictures: Pictures, matcher: NeedMatcher) -> list[dict[str, Any]]:
    def shown(p: Passage) -> dict[str, Any]:
        data = pictures.get((p.kb, p.id))
        facts = {"id": p.id, "title": p.title, "text": p.text, "kb": p.kb, "score": round(p.score, 4), "error": p.error}
        return facts | {"picture": Image.of(data).key if data else ""}

    history, steps = list[Exchange](), []
    for step in trajectory.steps:
        needs = None if step.plan is None else askable_needs(trajectory.question, history, matcher)
        found = {
            "plan": step.plan.text if step.plan else "",
            "query": step.action.query if step.action else "",
            "kb": (step.action.kb or "") if step.action else "",
            "stops": step.action is not None and step.action.kb is None,
            "gold": right_kbs(needs) if needs is not None else None,
            "passages": [shown(passage) for passage in step.passages],
            "response": step.answer.text if step.answer else "",
            "answer": step.exchange.answer if step.exchange else "",
        }
        steps.append(found)
        history += [step.exchange] if step.exchange else []
    return steps


def sibling_groups(
    trajectories: Sequence[Trajectory], turns: Sequence[ScoredTurn] = (), advantages: Sequence[float] | np.ndarray = ()
) -> list[list[dict[str, Any]]]:
    """For each trajectory its `groups`; a turn sampled alone joins those of its state key. `turns`: scored ones; `advantages`: theirs, or none."""
    scored: dict[tuple, deque[dict[str, Any]]] = defaultdict(deque)
    for place, turn in enumerate(turns):
        parts = {name: value for name, value in turn.reward.parts.items() if value} or turn.reward.components
        judged = {"reward": _short(turn.reward.total), "advantage": _short(advantages[place]) if len(advantages) else None}
        key = turn.state_key, turn.turn.text, turn.turn.response_ids.tobytes()
        scored[key].append(judged | {"parts": {name: _short(value) for name, value in parts.items()}})

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
        [
            _group(group.state.kind, found[group.trunk], found if len(found) > 1 else by_state[group.state.key]) | _values(group)
            for group, found in groups
        ]
        for groups in known
    ]


def _group(kind: str, trunk: dict[str, Any], siblings: Sequence[dict[str, Any]]) -> dict[str, Any]:
    """Equal siblings become one entry; sorted by reward, then by number of times."""
    key = itemgetter("text", "reward", "advantage")
    times, first = Counter(map(key, siblings)), {key(sibling): sibling for sibling in reversed(siblings)}
    distinct = [first[one] | {"times": count} for one, count in times.items()]
    distinct.sort(key=lambda sibling: (-(sibling["reward"] or 0.0), -sibling["times"]))
    return {"kind": kind, "trunk": [key(sibling) for sibling in distinct].index(key(trunk)), "siblings": distinct}


def _values(group: TurnGroup) -> dict[str, Any]:
    values = group.values
    if values is None or values.stop is None or not values.queries:
        return {}
    routes = [[*zip(values.kbs, each.answers, map(_short, each.values), strict=True)] for each in values.queries]
    queries = [[each.query, _short(each.unknown), found] for each, found in zip(values.queries, routes, strict=True)]
    return {"values": {"stop": _short(values.stop), "queries": queries}}


def read_values(group: Mapping[str, Any]) -> PlanValues | None:
    """Those of a stored group, without the counts of what was measured."""
    if "values" not in group:
        return None
    queries = [(query, unknown, list(zip(*routes, strict=True))) for query, unknown, routes in group["values"]["queries"]]
    found = tuple(QueryValues(query, answers, values, unknown) for query, unknown, (_, answers, values) in queries)
    return PlanValues(queries[0][2][0], found, group["values"]["stop"], 0, 0, 0, 0, 0)


def _short(number: float) -> float:
    return round(float(number), 4)


def _json(value: Any) -> str:
    return json.dumps(value, ensure_ascii=False)

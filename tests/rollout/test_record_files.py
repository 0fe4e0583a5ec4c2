"""Rollouts that are written and read are what they were: bit for bit where it is numbers."""

from __future__ import annotations

import dataclasses
import json

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from retrieval_actors.records import Passage
from rollout.config import RolloutConfig
from rollout.engines.transformers_engine import TransformersEngine
from rollout.record_files import SCHEMA, read_rollouts, write_rollouts
from rollout.records import (
    Action,
    Exchange,
    GoldStep,
    Image,
    Question,
    RecordedTurn,
    ScoredTurn,
    State,
    Step,
    Trajectory,
    Turn,
    TurnGroup,
    TurnReward,
)  # fmt: skip
from rollout.roll_out import roll_out

GOLD = GoldStep("What is the capital of Kormu?", "text", "Tasla", ("Kormu",))
RANDOM = np.random.default_rng(0)


def turn(kind: str, text: str = "said — 'so'\n") -> Turn:
    n = int(RANDOM.integers(1, 9))
    return Turn(kind, RANDOM.integers(0, 300, n).astype(np.int32), -RANDOM.random(n).astype(np.float32) / 3, "length", 7, text)


def live(number: int) -> Trajectory:
    """One step and a final turn, with pictures and a failed search."""
    asked = Question(f"q{number}", "Flag?", ("a", "b"), Image.of(b"picture" * number), (GOLD,), "image", (1.5, 2.0) if number % 2 else None)
    passages = (
        Passage("p", "text", "title", b"passage picture", "text_image", 0.1 + number),
        Passage("", "", error="the shard is gone"),
    )
    heard = Exchange(GOLD.query, "text", "Tasla")
    states = [
        State("plan", np.arange(5, dtype=np.int32), asked.image, asked),
        State("answer", np.arange(9, dtype=np.int32), None, asked, (), GOLD.query, "text", passages),
        State("final", np.arange(3, dtype=np.int32), None, asked, (heard,)),
    ]
    groups = tuple(TurnGroup(s, tuple(turn(s.kind) for _ in range(3)), trunk=i % 3) for i, s in enumerate(states))
    step = Step(groups[0].chosen, Action(GOLD.query, "text"), passages, groups[1].chosen, heard)
    return Trajectory(asked, (step,), groups[2].chosen, "Tasla", groups, 0.1, 1)


def scored(trajectory: Trajectory) -> list[ScoredTurn]:
    return [
        ScoredTurn(
            g.state.key, g.state.prompt_ids, g.state.image, t, TurnReward(1 / 3, {"query": 0.1, "format": 1}, {"query": 1 / 3}),
            f"{trajectory.question.id}#0", 2 / 7, trajectory.question.id,
        )
        for g in trajectory.groups
        for t in g.turns
    ]  # fmt: skip


def assert_same(a, b) -> None:
    """Equal in value, type and, for arrays, dtype, field by field."""
    assert type(a) is type(b)
    if dataclasses.is_dataclass(a):
        for field in dataclasses.fields(a):
            assert_same(getattr(a, field.name), getattr(b, field.name))
    elif isinstance(a, tuple | list):
        assert len(a) == len(b)
        for x, y in zip(a, b, strict=True):
            assert_same(x, y)
    elif isinstance(a, np.ndarray):
        assert a.dtype == b.dtype
        np.testing.assert_array_equal(a, b)
    else:
        assert a == b


def test_trajectories_and_scored_turns_come_back_bit_for_bit(tmp_path):
    trajectories = [live(1), live(2), live(1)]
    turns = [turn for trajectory in trajectories for turn in scored(trajectory)]
    write_rollouts(tmp_path / "one", trajectories, turns)
    found, found_turns = read_rollouts(tmp_path / "one")
    assert_same(found, trajectories)
    assert_same(found_turns, turns)
    assert [group.state.key for group in found[0].groups] == [group.state.key for group in trajectories[0].groups]
    assert found[0].steps[0].plan is found[0].groups[0].chosen


def test_every_picture_and_every_prompt_is_stored_once(tmp_path):
    trajectories = [live(1), live(1), live(2)]
    write_rollouts(tmp_path / "one", trajectories, [turn for trajectory in trajectories for turn in scored(trajectory)])
    rows = pq.read_table(tmp_path / "one/rollouts.parquet").to_pylist()
    assert len({(row["kind"], row["data"]) for row in rows}) == len(rows)
    kinds = [row["kind"] for row in rows]
    assert kinds.count("bytes") == kinds.count("Image") + 1 == 3  # two questions' and the passage's
    assert kinds.count("State") == 6  # the first two trajectories have the same
    assert kinds.count("Turn") == 27


def test_what_a_real_engine_samples_for_recorded_turns_comes_back(fresh_policy, tmp_path):
    asked = Question("r", "Which capital?", ("red",))
    engine = TransformersEngine(fresh_policy)
    recorded = [RecordedTurn(asked, "final", "", "Which capital?", GoldStep("", "", "red"))]
    sampled = roll_out(recorded, engine, None, RolloutConfig(group_size=4, max_new_tokens=6), 0)
    write_rollouts(tmp_path / "one", sampled, scored(sampled[0]))
    assert_same(read_rollouts(tmp_path / "one")[0], sampled)


def test_scored_turns_without_a_trajectory_come_back_too(tmp_path):
    turns = scored(live(1))
    write_rollouts(tmp_path / "one", [], turns)
    found, found_turns = read_rollouts(tmp_path / "one")
    assert found == []
    assert_same(found_turns, turns)


def test_a_file_whose_gold_steps_name_one_knowledge_base_is_read(tmp_path):
    """As they were written before several could be right."""
    trajectories = [live(1)]
    write_rollouts(tmp_path / "one", trajectories, [])
    file = tmp_path / "one/rollouts.parquet"
    rows = pq.read_table(file).to_pylist()
    for row in rows:
        if row["kind"] == "GoldStep":
            record = json.loads(row["data"])
            row["data"] = json.dumps(record | {"kb": record.pop("kbs")[0]}).encode()
    pq.write_table(pa.Table.from_pylist(rows, schema=SCHEMA), file)
    assert_same(read_rollouts(tmp_path / "one")[0], trajectories)


def test_a_folder_that_is_incomplete_or_of_other_columns_is_refused_with_its_file(tmp_path):
    write_rollouts(tmp_path / "one", [live(1)], [])
    with pytest.raises(FileExistsError, match="one: holds rollouts already"):
        write_rollouts(tmp_path / "one", [], [])
    file = tmp_path / "one/rollouts.parquet"
    table = pq.read_table(file)
    pq.write_table(table.slice(0, len(table) - 1), file)
    with pytest.raises(ValueError, match=r"rollouts.parquet: the row `all` is missing"):
        read_rollouts(tmp_path / "one")
    older = {"kind": ["Action"], "data": [b'{"query": ""}']}
    pq.write_table(pa.table(older, table.schema), file)
    with pytest.raises(ValueError, match=r"rollouts.parquet: Action has the fields \['query'\], expected \['query', 'kb'\]"):
        read_rollouts(tmp_path / "one")
    pq.write_table(table.drop_columns(["data"]), file)
    with pytest.raises(ValueError, match=r"rollouts.parquet: its columns are \['kind'\], expected \['kind', 'data'\]"):
        read_rollouts(tmp_path / "one")
    file.unlink()
    with pytest.raises(FileNotFoundError, match=r"rollouts.parquet is missing: .* train.dump_rollouts"):
        read_rollouts(tmp_path / "one")

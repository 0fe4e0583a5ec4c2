"""What is stored of a trajectory: its trunk, the siblings of every turn with what they earned, and its pictures once."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from many_episodes import World, scored

from experiments.config import TrainConfig
from experiments.tracking.run_folder import RunFolder
from experiments.tracking.trajectory_table import passage_pictures, sibling_groups
from learner.config import LearnerConfig
from learner.objective.advantages import turn_advantages
from retrieval_actors.build.from_passages import write_knowledge_base
from retrieval_actors.records import Passage
from rollout.records import Image, PlanValues, QueryValues, Step, Trajectory, TurnGroup

WORLD = World()


@pytest.fixture
def folder(tmp_path: Path) -> RunFolder:
    return RunFolder.start(TrainConfig(name="mine", runs_folder=str(tmp_path)))


def branched(count: int = 4) -> list[Trajectory]:
    return [WORLD.episode(number, siblings=8) for number in range(count)]


def test_every_sibling_comes_back_with_its_reward_and_its_advantage(folder: RunFolder):
    made = branched()
    turns = scored(made)
    advantages = turn_advantages(turns, LearnerConfig()).advantages
    folder.write_trajectories("iteration-000020", made, turns=turns, advantages=advantages)
    known = {(turn.state_key, turn.turn.text): (turn.reward.total, a) for turn, a in zip(turns, advantages, strict=True)}
    for trajectory, row in zip(made, folder.read_trajectories("iteration-000020"), strict=True):
        assert [group["kind"] for group in row["groups"]] == [group.state.kind for group in trajectory.groups]
        for group, stored in zip(trajectory.groups, row["groups"], strict=True):
            assert sum(sibling["times"] for sibling in stored["siblings"]) == len(group.turns)
            assert stored["siblings"][stored["trunk"]]["text"] == group.chosen.text
            for sibling in stored["siblings"]:
                expected = known[group.state.key, sibling["text"]]
                assert (sibling["reward"], sibling["advantage"]) == pytest.approx(expected, abs=1e-4)
                assert sibling["parts"] == {"routing": sibling["reward"]}


def test_turns_that_nobody_judged_have_neither(folder: RunFolder):
    made = branched(2)
    judged = [turn for turn in scored(made) if turn.turn.kind == "plan"]
    for groups in sibling_groups(made, judged):
        for group in groups:
            assert all((sibling["reward"] is not None) == (group["kind"] == "plan") for sibling in group["siblings"])
            assert all(sibling["advantage"] is None for sibling in group["siblings"])


def test_in_chain_mode_the_turns_of_other_episodes_from_the_same_state_are_siblings():
    (whole,) = branched(1)
    first, *rest = whole.groups
    episodes = [replace(whole, groups=(TurnGroup(first.state, (turn,)), *rest)) for turn in first.turns]
    for episode, groups in zip(episodes, sibling_groups(episodes, scored(episodes)), strict=True):
        assert sum(sibling["times"] for sibling in groups[0]["siblings"]) == 8
        assert groups[0]["siblings"][groups[0]["trunk"]]["text"] == episode.groups[0].chosen.text


def test_gold_of_a_step_is_what_could_be_asked_for_then(folder: RunFolder):
    made = [replace(WORLD.episode(3), steps=WORLD.episode(3).steps)]
    folder.write_trajectories("after", made)
    (row,) = folder.read_trajectories("after")
    kbs = [gold["kbs"] for gold in row["gold"]]
    assert kbs == [list(need.kbs) for need in made[0].question.gold_steps]
    assert set(row["steps"][0]["gold"]) == {kb for of_step in kbs for kb in of_step}  # neither need waits for the other
    unknown = replace(made[0], question=replace(made[0].question, gold_steps=None))
    folder.write_trajectories("after", [unknown])
    (row,) = folder.read_trajectories("after")
    assert row["gold"] is None
    assert all(step["gold"] is None for step in row["steps"])


def test_a_picture_is_stored_once_however_often_it_was_seen(folder: RunFolder):
    made = [WORLD.episode(number) for number in range(200)]
    folder.write_trajectories("after", made)
    stored = folder.read_pictures()
    named = [p["picture"] for row in folder.read_trajectories("after") for step in row["steps"] for p in step["passages"] if p["picture"]]
    assert len(named) > len(stored) > 50
    assert set(named) == set(stored)
    assert all(Image.of(data).key == key for key, data in stored.items())  # small ones are stored as they are


def test_pictures_that_a_search_left_out_are_looked_up_in_the_knowledge_base(tmp_path: Path, folder: RunFolder):
    pictured = [Passage(f"p{i}", f"flag {i}", image=WORLD.pictures[i]) for i in range(7)]
    card = {"name": "text_image", "retriever_name": "Text Image Retriever", "description": "Flags.", "modality": "text_image"}
    write_knowledge_base(tmp_path / "kb", passages=pictured, shards=2, vectors=np.eye(8, dtype=np.float32)[:7], embedder="minilm", **card)
    found = (*(Passage(f"p{i}", f"flag {i}", kb="text_image") for i in (1, 6)), Passage("x", "", kb="gone", error="no answer"))
    made = WORLD.episode(0)
    made = replace(made, steps=(Step(made.steps[0].plan, made.steps[0].action, found, made.steps[0].answer, made.steps[0].exchange),))
    pictures = passage_pictures([made], {"text_image": str(tmp_path / "kb")})
    assert pictures == {("text_image", "p1"): WORLD.pictures[1], ("text_image", "p6"): WORLD.pictures[6]}
    folder.write_trajectories("after", [made], folders={"text_image": str(tmp_path / "kb")})
    (row,) = folder.read_trajectories("after")
    keys = [passage["picture"] for passage in row["steps"][0]["passages"]]
    assert [folder.read_pictures().get(key) for key in keys] == [WORLD.pictures[1], WORLD.pictures[6], None]


def test_a_valued_plan_turn_says_what_each_route_would_have_brought(folder: RunFolder):
    (whole,) = branched(1)
    query = QueryValues("Where?", ("Tasla", "unknown"), (0.96, -0.02), 0.0)
    measured = PlanValues(("text", "table"), (query,), 0.25, 4, 1, 3, 0, 50)
    failed = PlanValues(("text", "table"), (), None, 4, 0, 1, 3, 50)
    made = [replace(whole, groups=(replace(whole.groups[0], values=values), *whole.groups[1:])) for values in (measured, failed)]
    folder.write_trajectories("iteration-000020", made)
    first, second = folder.read_trajectories("iteration-000020")
    routes = [["text", "Tasla", 0.96], ["table", "unknown", -0.02]]
    assert first["groups"][0]["values"] == {"stop": 0.25, "queries": [["Where?", 0.0, routes]]}
    assert not any("values" in group for group in (*first["groups"][1:], *second["groups"]))

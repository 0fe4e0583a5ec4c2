"""Every question is accounted for: what is lost, doubled or unjudged on the way shows."""

from __future__ import annotations

from collections import Counter

import numpy as np
import pytest

from learner.iteration_data import LEFT_OUT, AccountError, IterationData
from learner.question_ledger import AskedQuestion
from learner.reward_calls import ScoredTurns
from learner.rollout_batch import RolledOut, RolloutBatch
from rewards.scored_summary import ScoredSummary
from rollout.records import Question, RecordedTurn, ScoredTurn, State, Trajectory, Turn, TurnGroup, TurnReward
from rollout.trajectory_summary import summary_of


def question(number: int) -> Question:
    return Question(f"q{number}", "Who?", ("Bela",))


def trajectory(number: int, error: str = "") -> Trajectory:
    state = State("final", np.array([1], np.int32), None, question(number))
    turns = tuple(Turn("final", np.array([2], np.int32), np.zeros(1, np.float32), "stop", 0, "Bela") for _ in range(2))
    return Trajectory(question(number), (), None, "", (TurnGroup(state, turns),), error=error)


def scored(*of: Trajectory) -> list[ScoredTurn]:
    return [
        ScoredTurn("k", np.array([1], np.int32), None, turn, TurnReward(1.0), t.question.id, 1.0, t.question.id)
        for t in of
        for turn in t.groups[0].turns
    ]


def parts(found: dict[int, list[Trajectory]]) -> dict[int, RolledOut]:
    return {place: RolledOut([summary_of(t) for t in trajectories], None, 0) for place, trajectories in found.items()}


def turns_of(*trajectories: Trajectory, limit: int | None = None) -> ScoredTurns:
    return ScoredTurns(ScoredSummary.of(scored(*trajectories)[:limit]), ())


def rolled_out(
    found: dict[int, list[Trajectory]], n: int = 4, episodes: int = 1, unscored: int = 0, turns: int | None = None
) -> IterationData:
    """A batch of questions q0, q1, ..., with what came of each place; `unscored`: trajectories that were never handed to a reward actor."""
    data = IterationData()
    asked = [AskedQuestion(question(i), {}, i) for i in range(n)]
    batch = RolloutBatch([entry.question for entry in asked], 2, seed=0)
    batch.found = parts(found)
    trajectories = [t for place in sorted(found) for t in found[place]]
    handed_in = Counter(t.question.id for t in trajectories[unscored:])
    data.add(batch, asked, handed_in, turns_of(*trajectories, limit=turns), attempt=0, episodes=episodes)
    return data


def one_of_each(*without: int) -> dict[int, list[Trajectory]]:
    return {i: [trajectory(i)] for i in range(4) if i not in without}


def test_what_returned_was_cut_off_failed_or_was_left_out_adds_up_to_what_was_asked():
    data = rolled_out(one_of_each(0, 1, 2) | {1: [trajectory(1, error="question q1: too long")], 2: []})
    counts = data.counts()
    assert {name: counts[f"{name}_questions"] for name in ("asked", "returned", "requeued", "failed", "left_out")} == {
        "asked": 4, "returned": 1, "requeued": 1, "failed": 2, "left_out": 1,
    }  # fmt: skip
    assert data.dropped == [("q1", "question q1: too long"), ("q2", LEFT_OUT)]
    assert [entry.question.id for entry in data.asked] == ["q1", "q2", "q3"]


@pytest.mark.parametrize(
    ("found", "said"),
    [
        (one_of_each() | {1: [trajectory(1), trajectory(1)]}, r"q1 \(2 instead of 1\), 1 in all"),
        (one_of_each() | {1: [trajectory(3)]}, r"q1 \(0 instead of 1\), q3 \(2 instead of 1\), 2 in all"),
    ],
    ids=["doubled", "another in its place"],
)
def test_a_trajectory_that_is_doubled_or_not_the_one_that_was_asked_for_is_refused_with_its_id(found, said):
    with pytest.raises(AccountError, match=said):
        rolled_out(found)


@pytest.mark.parametrize("came", [1, 3])
def test_of_several_episodes_of_a_question_none_is_lost_and_none_doubled(came):
    whole = {i: [trajectory(i)] * 2 for i in range(3)}
    rolled_out(whole | {3: [trajectory(3)] * 2}, episodes=2)
    with pytest.raises(AccountError, match="q3"):
        rolled_out(whole | {3: [trajectory(3)] * came}, episodes=2)


def test_a_trajectory_that_was_never_scored_is_refused():
    with pytest.raises(AccountError, match=r"episodes that were scored does not balance: q0 \(0 instead of 1\)"):
        rolled_out(one_of_each(), unscored=1)


def test_a_turn_that_was_scored_twice_is_refused_and_one_that_was_not_is_counted():
    assert rolled_out(one_of_each(), turns=5).counts() | {"unjudged_final": 3.0} == rolled_out(one_of_each(), turns=5).counts()
    data, batch = IterationData(), RolloutBatch([question(0)], 1, seed=0)
    asked = [AskedQuestion(question(0), {}, 0)]
    batch.found = parts({0: [trajectory(0)]})
    with pytest.raises(AccountError, match=r"turns that were sampled does not balance: final \(4 instead of 2\)"):
        data.add(batch, asked, Counter(q0=1), turns_of(trajectory(0), trajectory(0)), attempt=0)


def test_recorded_turns_of_one_question_are_told_apart_by_number_not_by_id():
    data = IterationData()
    turns = [RecordedTurn(question(0), kind, "", "Who?", None) for kind in ("plan", "final")]
    asked = [AskedQuestion(turn, {}, i) for i, turn in enumerate(turns)]
    batch = RolloutBatch(turns, 2, seed=0)
    batch.found = parts({0: [trajectory(0)], 1: [trajectory(0)]})
    data.add(batch, asked, Counter(q0=2), turns_of(), attempt=0)
    assert data.counts()["returned_questions"] == 2

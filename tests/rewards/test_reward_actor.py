"""The reward actor with the real embedder."""

from __future__ import annotations

import os
import signal

import numpy as np
import pytest
import ray

from rewards.actor import batched_similarity, start_reward_actor
from rewards.config import RewardConfig
from rewards.scored_summary import Route
from rollout.nan_check import NotFiniteError
from rollout.records import GoldStep, Question, State, Trajectory, Turn, TurnGroup

CAPITAL = GoldStep("What is the capital of Kormu?", "text", "Tasla", ("Kormu",))


@pytest.fixture(scope="module")
def actor(models):
    actor = start_reward_actor(models, RewardConfig(query_weight=0.5, entity_weight=0.0, routing_weight=0.5))
    yield actor
    ray.kill(actor)


def plan(*queries: str, question: Question | None = None) -> Trajectory:
    question = question or Question("q1", "Capital?", ("Tasla",), gold_steps=(CAPITAL,))
    state = State("plan", np.array([1, 2], np.int32), None, question)
    texts = (f"<think>a</think><sub-question>{query}</sub-question><ret>Text Retriever</ret>" for query in queries)
    turns = tuple(Turn("plan", np.array([3], np.int32), np.zeros(1, np.float32), "stop", 0, text) for text in texts)
    return Trajectory(question, (), None, "", (TurnGroup(state, turns),))


def score(actor, *trajectories: Trajectory):
    return ray.get(actor.score.remote(list(trajectories)), timeout=120)


def test_the_query_part_is_the_cosine_of_the_embedder(actor, models):
    turns = score(actor, plan(CAPITAL.query, "Which city is Kormu's capital?", "How deep is the sea?"))
    a, b, c = models.embed([CAPITAL.query, "Which city is Kormu's capital?", "How deep is the sea?"])
    expected = [0.5 + 0.5 * max(0.0, float(v @ a)) for v in (a, b, c)]
    assert [turn.reward.total for turn in turns] == pytest.approx(expected, abs=1e-5)
    assert expected[0] > expected[1] > expected[2]


def test_an_embedder_that_overflows_is_refused_with_the_text_and_its_nan_is_no_reward_of_zero():
    class Overflowing:
        def embed(self, texts):
            return np.array([[np.nan, 0.0] if text == "sea" else [1.0, 0.0] for text in texts], np.float32)

    with pytest.raises(NotFiniteError, match="the embedder gave NaN or infinity for 'sea'"):
        batched_similarity(["capital", "sea"], Overflowing())
    similarity = batched_similarity(["capital"], Overflowing())
    with pytest.raises(NotFiniteError, match="'sea'"):
        similarity("capital", "sea")


def test_rewards_do_not_depend_on_what_else_is_scored(actor):
    alone = score(actor, plan("Which city is Kormu's capital?"))
    together = score(actor, plan("How deep is the sea?"), plan("Which city is Kormu's capital?"), plan(CAPITAL.query))
    assert together[1].reward.total == pytest.approx(alone[0].reward.total, abs=1e-6)
    assert [turn.episode for turn in together] == ["q1#0", "q1#1", "q1#2"]


def test_the_summary_of_scored_turns_has_the_routes_of_those_that_cannot_be_judged_too(actor):
    unjudged = plan("Who?", question=Question("q2", "Who?", ("Bela",), family="people"))
    summary, turns = actor.score_references.remote([(0, 0), (0, 1)], False, [plan(CAPITAL.query, "Where?"), unjudged])
    assert ray.get(summary, timeout=120).routes == {Route(("text",), "", "text"): 2, Route((), "people", "text"): 1}
    assert len(ray.get(turns, timeout=120)) == 2


def test_nothing_to_score_is_legal(actor):
    assert score(actor) == []


def test_turns_that_nobody_can_judge_are_left_out(actor):
    assert score(actor, plan("Who?", "Where?", question=Question("q2", "Who?", ("Bela",)))) == []


def test_a_dead_reward_actor_comes_back_and_scores(actor, models):
    expected = score(actor, plan(CAPITAL.query))[0].reward
    pid = process_id(actor)
    os.kill(pid, signal.SIGKILL)
    assert score(actor, plan(CAPITAL.query))[0].reward == expected
    assert process_id(actor) != pid


def process_id(actor) -> int:
    return ray.get(actor.__ray_call__.remote(lambda self: os.getpid()), timeout=60)

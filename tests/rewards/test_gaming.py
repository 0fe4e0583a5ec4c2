"""Ways to earn a query's reward without asking the question, with the real embedder: what the cosine pays, and what the guards leave of it."""

from __future__ import annotations

import pytest
from scored_episode import CAPITAL, QUESTION, RETRIEVERS, group, plan

from retrieval_actors.embedders.registry import build_embedder
from retrieval_actors.records import Query
from rewards.actor import judged_turns
from rewards.config import RewardConfig
from rewards.step_rewards import plan_reward
from rewards.terms import TERMS
from rollout.records import Trajectory

PAPER = RewardConfig(query_weight=0.5, entity_weight=0.0, routing_weight=0.5)
WRONG_NAME = "What is the capital of Belsi?"
EVERY_NAME = "What is the capital of Kormu, Belsi, Ankor, Melta and Runo?"
NONSENSE = "capital capital Kormu the is of is What capital Kormu capital"
HONEST = "Which city is the capital of Kormu?"


@pytest.fixture(scope="module")
def similarity():
    embedder = build_embedder("minilm")
    vectors = {}

    def vector(text: str):
        if text not in vectors:
            vectors[text] = embedder.embed_queries([Query(text)])[0]
        return vectors[text]

    return lambda a, b: float(vector(a) @ vector(b))


def by_the_paper(query: str, similarity, config: RewardConfig = PAPER) -> float:
    return plan_reward(plan(query, "Text Retriever"), [CAPITAL], similarity, config, RETRIEVERS).total


def guarded(query: str, similarity) -> float:
    episode = Trajectory(QUESTION, (), None, "", (group("plan", plan(query, "Text Retriever")),))
    ((_, _, turn),) = judged_turns(episode, similarity, RewardConfig(), RETRIEVERS)
    return TERMS["guarded_query"].value(turn)


def test_the_cosine_alone_pays_almost_in_full_for_the_wrong_name_and_the_guards_pay_nothing(similarity):
    assert by_the_paper(WRONG_NAME, similarity) > 0.75
    assert by_the_paper(WRONG_NAME, similarity, RewardConfig()) < 0.7
    assert guarded(WRONG_NAME, similarity) == 0.0


def test_copying_the_whole_question_earns_nothing_for_its_words(similarity):
    assert by_the_paper(QUESTION.text, similarity) > 0.75
    assert guarded(QUESTION.text, similarity) == 0.0
    assert guarded(QUESTION.text + " Please.", similarity) == 0.0


def test_gold_like_nonsense_and_naming_everything_earn_much_less_than_an_honest_query(similarity):
    honest = guarded(HONEST, similarity)
    assert honest > 0.75
    assert guarded(NONSENSE, similarity) < 0.6 * honest
    assert by_the_paper(NONSENSE, similarity) > 0.75
    assert guarded(EVERY_NAME, similarity) < honest / 2


def test_the_gold_query_itself_earns_everything(similarity):
    assert guarded(CAPITAL.query, similarity) == pytest.approx(1.0, abs=1e-5)

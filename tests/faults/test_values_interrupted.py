"""Values of routes, interrupted: a rollout worker is killed while it measures them, and a run goes on from a checkpoint; both change nothing."""

from __future__ import annotations

import copy
import re
import sys
from dataclasses import replace
from typing import NamedTuple

import pytest
import ray
from test_rollout_worker_killed import process_ids, train_and_kill
from tiny_training import offline_config
from tiny_turns import weights_of

from experiments.worlds.atlas import KNOWLEDGE_BASES, Atlas
from learner.config import LearnerConfig
from learner.question_ledger import ShuffledQuestions
from retrieval_actors.records import Passage
from rewards.actor import RewardActor
from rewards.config import RewardConfig
from rollout.config import RolloutConfig, ValueConfig
from rollout.episode import derive_seed

ray.cloudpickle.register_pickle_by_value(sys.modules[__name__])  # the processes of Ray cannot import what lies beside a test


class Card(NamedTuple):
    name: str
    retriever_name: str
    description: str
    modality: str


class ByWords:
    """The passages with the most words of the query; of equals the first."""

    def __init__(self, atlas: Atlas):
        self.catalog = tuple(Card(kb, name, description, kb) for kb, (name, description) in KNOWLEDGE_BASES.items())
        self.texts = {kb: [passage.text for passage in atlas.passages(kb)] for kb in KNOWLEDGE_BASES}

    def search_routed(self, asked, k):
        def words(text):
            return set(re.findall(r"[\w-]+", text.lower()))

        def best(kb, query):
            order = sorted(range(len(self.texts[kb])), key=lambda i: (-len(words(query) & words(self.texts[kb][i])), i))
            return [Passage(f"{kb}-{i}", self.texts[kb][i], kb=kb) for i in order[:k]]

        return [best(kb, query.text) for kb, query in asked]


def measured(trajectories) -> list:
    return [
        (t.question.id, group.trunk, group.values, [turn.response_ids.tolist() for turn in group.turns])
        for t in trajectories
        for group in t.groups
    ]


@pytest.fixture(scope="module")
def algorithm(ray_cluster):
    atlas = Atlas("train", seed=5, worlds=1, countries=6)
    questions = [replace(question, gold_steps=None) for question in atlas.questions(40) if question.image is None][:8]
    reward = RewardConfig(terms={"query_value": 1.0, "route_regret": 1.0, "step": {"final": 1.0}})
    library = ByWords(atlas)
    actor = ray.remote(num_cpus=0)(RewardActor).remote(ray.cloudpickle.dumps(library), reward)
    algorithm = offline_config(
        "experiments/worlds/cold_start_policy",
        rollout=RolloutConfig(group_size=2, max_steps=2, record_routes=True, values=ValueConfig(measured=True, samples=1)),
        learner=LearnerConfig(routes="all", normalisation="batch_std", cpus_per_learner=0.2, deadline_s=250),
        retriever=library,
        reward_actors=[actor],
        data=ShuffledQuestions(questions, seed=1),
    ).build_algo()
    yield algorithm
    algorithm.cleanup()


@pytest.mark.slow
@pytest.mark.timeout(900)
def test_a_worker_that_dies_while_it_values_routes_costs_nothing_but_time(algorithm):
    algorithm.push_weights()
    ahead = copy.deepcopy(algorithm.data).next(6)
    seed = derive_seed(algorithm.config.sampling_seed, algorithm.policy_version)
    expected = measured(algorithm.roll_out(ahead, seed=seed))
    assert any(values for _, _, values, _ in expected)
    result = train_and_kill(algorithm, [process_ids(algorithm)[1]])["rollout"]
    assert (result["lost_workers"], result["requeued_chunks"]) == (1, 1)
    assert result["asked_questions"] == result["returned_questions"] == 6
    assert result["values_asked"] == result["values_reused"] + result["values_sampled"] + result["values_failed"] > 0
    assert result["value_tokens"] < result["sampled_tokens"]
    assert measured(algorithm.trajectories) == expected
    plans = [turn for turn in algorithm.turns if turn.turn.kind == "plan"]  # judged without gold steps
    assert plans
    assert all(turn.reward.components.keys() >= {"query_value", "route_regret"} for turn in plans)


@pytest.mark.slow
@pytest.mark.timeout(900)
def test_a_run_with_route_values_goes_on_from_a_checkpoint_bit_for_bit(algorithm, tmp_path):
    def two_more() -> tuple:
        seen = []
        for _ in range(2):
            algorithm.train()
            seen.append(measured(algorithm.trajectories))
        return seen, weights_of(algorithm.learner_group).checksum

    algorithm.train()
    algorithm.save_to_path(tmp_path / "checkpoint")
    expected = two_more()
    assert any(values for iteration in expected[0] for _, _, values, _ in iteration)
    algorithm.restore_from_path(tmp_path / "checkpoint")
    assert two_more() == expected

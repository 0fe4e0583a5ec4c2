"""A knowledge base whose actors are killed in mid-run: what its searches should have brought is nobody's fault, so nothing that depends on them is
judged, compared or learned from, and everything is counted."""

from __future__ import annotations

from collections import Counter
from dataclasses import replace
from types import SimpleNamespace

import numpy as np
import pytest
import ray
from scripted import Script
from whole_pipeline import ITERATIONS, pipeline, train_and_lose

from experiments.evaluation.metrics import count
from experiments.evaluation.result_tables import failure_warnings
from experiments.evaluation.significance import paired_difference, summarise
from experiments.worlds.teacher import answer_response, plan_response
from learner.config import LearnerConfig
from learner.iteration_data import IterationData, reward_metrics, rollout_metrics
from learner.objective.advantages import turn_advantages
from learner.question_ledger import AskedQuestion
from learner.reward_calls import RewardCalls
from learner.rollout_batch import RolledOut, RolloutBatch
from retrieval_actors.actors.circuit_breaker import CircuitBreaker
from retrieval_actors.actors.start_actors import start_retrieval
from retrieval_actors.build.from_passages import write_knowledge_base
from retrieval_actors.config import RetrievalConfig
from retrieval_actors.records import Passage
from rewards.actor import start_reward_actor
from rewards.config import RewardConfig
from rollout.config import RolloutConfig
from rollout.policies import load_policy
from rollout.records import GoldStep, Question
from rollout.roll_out import roll_out
from rollout.trajectory_summary import summary_of

N = 6
CAPITALS = [GoldStep(f"What is the capital of Land{i}?", "text", f"Town{i}", (f"Land{i}",)) for i in range(N)]
PEOPLE = [GoldStep(f"How many people live in Town{i}?", "table", f"{i}00", (f"Town{i}",)) for i in range(N)]
QUESTIONS = [
    Question(f"q{i}", f"Land{i}: how many people live in its capital?", (f"{i}00",), gold_steps=(CAPITALS[i], PEOPLE[i])) for i in range(N)
]
TERMS = {
    **{"outcome": 1, "new_evidence": 1, "redundancy": 1, "information_gain": 1, "format": 0.1, "retrieval_cost": 0.1},
    "step": {"answer": 1, "final": 1},
}
REWARDS = {"steps": RewardConfig(), "terms": RewardConfig(terms=TERMS)}
COPIES = 4


class Killer(Script):
    """Asks for the capital, then for the people, one in four not; kills the tables as soon as somebody has asked for them."""

    def __init__(self, policy, tables):
        super().__init__(policy, self.says)
        self.tables, self.calls = tables, Counter()

    def says(self, kind, prompt, sibling):
        number = prompt.split("Land")[1][0] if "Land" in prompt else prompt.split("Town")[1][0]
        self.calls[kind, number] += 1
        turn = self.calls[kind, number]
        if kind == "plan" and "Sub-question 1" not in prompt:
            return plan_response("t", CAPITALS[int(number)].query, "Text Retriever" if turn % 5 else "Table Retriever")
        if kind == "plan" and "Sub-question 2" not in prompt and turn % 4:
            for actor in self.tables:
                ray.kill(actor)
            return plan_response("t", PEOPLE[int(number)].query, "Table Retriever")
        if kind == "plan":
            return plan_response("t", "None", "None")
        return answer_response("t", f"Town{number}" if "capital of" in prompt else f"{number}00" if turn % 2 else "unknown")


@pytest.fixture(scope="module")
def folders(models, tmp_path_factory):
    folder, found = tmp_path_factory.mktemp("kbs"), {}
    for kb, golds, name in (("text", CAPITALS, "Text Retriever"), ("table", PEOPLE, "Table Retriever")):
        passages = [Passage(str(i), f"{gold.query} {gold.answer}") for i, gold in enumerate(golds)]
        vectors = models.embed([passage.text for passage in passages])
        card = {"retriever_name": name, "description": "Facts.", "modality": kb, "embedder": "minilm"}
        write_knowledge_base(folder / kb, name=kb, passages=passages, vectors=vectors, shards=2, **card)
        found[kb] = str(folder / kb)
    return found


def killed_in_mid_run(models, folders, mode):
    """Half of the shards of the tables are killed for good: the other half alone would answer wrongly."""
    started = start_retrieval(RetrievalConfig(folders=folders, deadline_s=15.0, shared_mib=0), models_of=models)
    retriever = replace(started, breakers={kb: CircuitBreaker(failures_to_open=1, cooldown_s=600.0) for kb in folders})
    rollout = RolloutConfig(mode=mode, group_size=COPIES, max_steps=2, passages=2, slots=1)
    try:
        return roll_out(
            QUESTIONS, Killer(load_policy("experiments/worlds/cold_start_policy"), retriever.shards["table"][0]), retriever, rollout, seed=1
        )
    finally:
        retriever.close()


@pytest.fixture(scope="module")
def rolled_out(models, folders):
    found = {mode: killed_in_mid_run(models, folders, mode) for mode in ("chain", "branch")}
    for trajectories in found.values():
        assert any(trajectory.search_errors for trajectory in trajectories)
    assert any(trajectory.whole for trajectory in found["chain"])
    return found


@pytest.fixture(scope="module")
def actors(models):
    found = {name: start_reward_actor(models, config) for name, config in REWARDS.items()}
    yield found
    for actor in found.values():
        ray.kill(actor)


@pytest.fixture(scope="module", params=[(mode, reward) for mode in ("chain", "branch") for reward in REWARDS], ids="-".join)
def experience(request, rolled_out, actors):
    mode, reward = request.param
    found, episodes = rolled_out[mode], COPIES if mode == "chain" else 1
    gathered, rewards = IterationData(), RewardCalls([actors[reward]], 120.0, with_parts=True)
    asked = [AskedQuestion(question, {}, i) for i, question in enumerate(QUESTIONS)]
    batch, ref = RolloutBatch(QUESTIONS, N, seed=0), ray.put(found)
    batch.found = {i: RolledOut([summary_of(t) for t in found[i * episodes : (i + 1) * episodes]], ref, i * episodes) for i in range(N)}
    rewards.begin(0, batch.rolled_out())
    gathered.add(batch, asked, rewards.asked, rewards.turns(), 0, episodes)
    return SimpleNamespace(trajectories=found, turns=gathered.turns.fetch(60), data=gathered)


def of_failed(experience):
    names = [f"{t.question.id}#{i}" for i, t in enumerate(experience.trajectories)]
    return {name for name, trajectory in zip(names, experience.trajectories, strict=True) if not trajectory.whole}


def test_no_turn_that_follows_a_failed_search_has_a_reward_and_no_failed_episode_an_outcome(experience):
    failed = of_failed(experience)
    left = Counter((turn.episode, turn.state_key) for turn in experience.turns)
    for i, trajectory in enumerate(experience.trajectories):
        for group in trajectory.groups:
            judged = left[f"{trajectory.question.id}#{i}", group.state.key]
            assert not group.state.after_failure or judged == 0
    assert {turn.outcome is None for turn in experience.turns if turn.episode in failed} == {True}
    assert all(turn.outcome in (0.0, 1.0) for turn in experience.turns if turn.episode not in failed)
    judged = {name for turn in experience.turns if turn.episode in failed for name in turn.reward.components}
    assert not judged & {"outcome", "final"}


def test_whole_episodes_are_compared_as_if_the_failed_ones_had_never_been(experience):
    config = LearnerConfig(step_weight=0.0, episode_weight=1.0)
    failed = of_failed(experience)
    found = turn_advantages(experience.turns, config)
    whole = np.array([turn.episode not in failed for turn in experience.turns])
    alone = turn_advantages([turn for turn in experience.turns if turn.episode not in failed], config)
    assert not found.kept[~whole].any()
    assert not found.advantages[~whole].any()
    np.testing.assert_array_equal(found.advantages[whole], alone.advantages)
    np.testing.assert_array_equal(found.kept[whole], alone.kept)


def test_the_counts_of_the_iteration_add_up(experience):
    data = experience.data
    rollout, counts, rewards = rollout_metrics(data.summaries), data.counts(), reward_metrics(data.turns.summary)
    unjudged = sum(counts[f"unjudged_{kind}"] for kind in ("plan", "answer", "final"))
    assert rollout["turns"] == len(experience.turns) + unjudged
    assert 0 < rollout["masked_turns"] <= unjudged
    assert counts["asked_questions"] == counts["returned_questions"] == N
    outcomes = {turn.episode: turn.outcome for turn in experience.turns if turn.outcome is not None}
    assert rollout["trajectories"] == rollout["failed_episodes"] + len(outcomes)
    assert rollout["failed_episodes"] == len(of_failed(experience))
    assert rollout["search_errors"] == sum(trajectory.search_errors for trajectory in experience.trajectories)
    assert rewards.get("outcome") == (pytest.approx(np.mean(list(outcomes.values()))) if outcomes else None)


def test_an_evaluation_measures_the_whole_episodes_and_counts_the_others(rolled_out):
    found = rolled_out["chain"]
    retrievers = {"Text Retriever": "text", "Table Retriever": "table"}
    counts = [count(trajectory, retrievers) for trajectory in found]
    whole = [count(trajectory, retrievers) for trajectory in found if not trajectory.search_errors]
    assert summarise(counts)["f1_recall"]["value"] == summarise(whole)["f1_recall"]["value"]
    wrong = [{"f1_recall": (0.0, 1.0)} for _ in found]
    assert paired_difference(wrong, counts)["f1_recall"]["value"] == summarise(whole)["f1_recall"]["value"]
    (line,) = failure_warnings({"validation": {"search_errors": 3, "unmeasured_episodes": 2}})
    assert line.endswith("3 searches failed, the 2 episodes that made them are not measured")


@pytest.mark.slow
@pytest.mark.timeout(900)
def test_a_run_goes_on_without_a_knowledge_base_and_learns_nothing_from_what_it_did_not_bring(ray_cluster, tmp_path):
    whole = pipeline(tmp_path / "parts", "retrieval.deadline_s=5", "retrieval.shared_mib=0")
    try:
        shards = [replica for shard in whole.actors.retriever.shards["text"] for replica in shard]
        learner, learned = whole.actors.algorithm.learner_group, []
        update = learner.update
        learner.update = lambda turns: (learned.append(turns.fetch(60)), update(turns))[1]
        outcome = train_and_lose(whole, tmp_path, "", "rollout", kill=lambda: [ray.kill(shard) for shard in shards])
        assert len(outcome.rows) == ITERATIONS
        for row, turns in zip(outcome.rows, learned, strict=True):
            assert row["iteration"] == 1 or row["search_errors"] >= row["failed_episodes"] > 0 < row["masked_turns"]
            assert row["turns"] == row["judged_turns"] + sum(row[f"unjudged_{kind}"] for kind in ("plan", "answer", "final"))
            assert len(turns) == row["judged_turns"]
        assert "searches failed" in outcome.said
        last = whole.actors.algorithm
        masked = {g.state.key for t in last.trajectories for g in t.groups if g.state.after_failure}
        known = {g.state.key for t in last.trajectories for g in t.groups if not g.state.after_failure}
        assert masked
        assert not {turn.state_key for turn in learned[-1]} & (masked - known)
    finally:
        whole.actors.close()

"""Every role of a run killed (SIGKILL, by its process id) in every phase of an iteration: the run finishes, learns what it would have learned,
nothing twice and nothing less, and says who was lost and when."""

from __future__ import annotations

from dataclasses import replace

import pytest
from whole_pipeline import ITERATIONS, Outcome, Pipeline, pipeline, train_and_lose

PHASES = ("push", "rollout", "score", "learn", "checkpoint")
SHARD = "knowledge base text, shard 0; text_image, shard 0; table, shard 0"  # they are small, and share an actor
ROLES = ("rollout worker 1", "reward actor 0", SHARD, "learner rank 0")
CORE = ("reward actor 0", "score")  # the other roles have quick tests of their own
CELLS = [(role, phase) for role in ROLES for phase in PHASES]


@pytest.fixture(scope="module")
def whole(ray_cluster, tmp_path_factory):
    found = pipeline(tmp_path_factory.mktemp("whole"))
    undisturbed = train_and_lose(found, tmp_path_factory.mktemp("undisturbed"))
    assert undisturbed.failures == []
    found.expected = {"checksum": undisturbed.checksum, "learned": undisturbed.learned}
    yield found
    found.actors.close()


def account_balances(outcome: Outcome, questions: int) -> None:
    assert [row["iteration"] for row in outcome.rows] == list(range(1, ITERATIONS + 1))
    assert [row["policy_version"] for row in outcome.rows] == list(range(1, ITERATIONS + 1))
    for row in outcome.rows:
        assert row["asked_questions"] == row["returned_questions"] + row["requeued_questions"] + row["failed_questions"] == questions


@pytest.mark.timeout(900)
@pytest.mark.parametrize(("role", "phase"), [pytest.param(*cell, marks=() if cell == CORE else pytest.mark.slow) for cell in CELLS])
def test_a_process_is_killed_and_the_run_learns_what_it_would_have_learned(whole: Pipeline, tmp_path, role: str, phase: str):
    outcome = train_and_lose(whole, tmp_path, role, phase)
    account_balances(outcome, whole.config.train.questions_per_iteration)
    assert outcome.learned == whole.expected["learned"]
    assert outcome.checksum == whole.expected["checksum"]
    failure = outcome.failures[0]
    assert (failure["role"], failure["iteration"]) == (role, 2)
    assert failure["exit"].startswith("SYSTEM_ERROR: Worker unexpectedly exits")
    assert failure["phase"] == phase
    assert failure["process"] > 0
    assert failure["node"]
    assert failure["fix"]
    assert not failure["fatal"]
    assert f"failure: {role} ({phase}, process {failure['process']}" in outcome.said
    assert outcome.rows[-1]["failures"] == 1
    assert outcome.rows[-1]["learner_restarts"] == role.startswith("learner")


@pytest.mark.slow
@pytest.mark.timeout(900)
@pytest.mark.parametrize(("role", "phase"), [("embedder ", "rollout"), ("rollout worker 1", "validate")])
def test_what_searches_or_validates_is_killed_and_the_run_learns_what_it_would_have_learned(
    whole: Pipeline, tmp_path, role: str, phase: str
):
    role = next(known for known in whole.actors.by_role() if known.startswith(role))
    outcome = train_and_lose(whole, tmp_path, role, phase, evaluate_every=1)
    account_balances(outcome, whole.config.train.questions_per_iteration)
    assert outcome.learned == whole.expected["learned"]
    assert outcome.checksum == whole.expected["checksum"]
    failure = outcome.failures[0]
    assert (failure["role"], failure["phase"], failure["iteration"]) == (role, phase, 2)
    assert all("validation_f1_recall" in row for row in outcome.rows)


@pytest.fixture
def two_ranks(whole: Pipeline):
    learner = whole.actors.algorithm.learner_group
    before, learner.config = learner.config, replace(learner.config, num_learners=2)
    learner.restart()
    yield whole
    learner.config = before
    learner.restart()


@pytest.mark.slow
@pytest.mark.timeout(900)
def test_one_of_two_learner_ranks_is_killed_and_the_policy_is_the_same_bit_for_bit(two_ranks: Pipeline, tmp_path):
    undisturbed = train_and_lose(two_ranks, tmp_path / "undisturbed")
    outcome = train_and_lose(two_ranks, tmp_path / "lost", "learner rank 1", "learn")
    account_balances(outcome, two_ranks.config.train.questions_per_iteration)
    assert (outcome.learned, outcome.checksum) == (undisturbed.learned, undisturbed.checksum)
    failure = outcome.failures[0]
    assert (failure["role"], failure["phase"]) == ("learner rank 1", "learn")
    assert outcome.rows[-1]["learner_restarts"] == 1


@pytest.mark.slow
@pytest.mark.timeout(900)
def test_without_restarts_the_run_ends_with_a_report_in_the_place_of_a_traceback(whole: Pipeline, tmp_path):
    outcome = train_and_lose(whole, tmp_path, "learner rank 0", "learn", max_restarts=0)
    assert [row["iteration"] for row in outcome.rows] == [1]
    assert "Traceback" not in outcome.said
    for part in (
        "error: learner rank 0",
        "learn",
        "SYSTEM_ERROR",
        "train.resume=auto",
    ):
        assert part in outcome.said, part
    (failure,) = outcome.failures
    assert failure["fatal"]
    assert "LearnerLostError" in failure["traceback"]


@pytest.mark.slow
@pytest.mark.timeout(900)
def test_a_learner_that_is_lost_before_the_first_checkpoint_begins_again(whole: Pipeline, tmp_path):
    outcome = train_and_lose(whole, tmp_path, "learner rank 0", "learn", iteration=1)
    account_balances(outcome, whole.config.train.questions_per_iteration)
    assert outcome.checksum == whole.expected["checksum"]
    assert "from the beginning, as there is no checkpoint yet (1 of 3)" in outcome.said


@pytest.mark.slow
@pytest.mark.timeout(900)
def test_a_learner_that_is_lost_between_two_checkpoints_learns_the_iterations_since_once_more(whole: Pipeline, tmp_path):
    outcome = train_and_lose(whole, tmp_path, "learner rank 0", "learn", iteration=3, checkpoint_every=0)
    account_balances(outcome, whole.config.train.questions_per_iteration)
    assert outcome.checksum == whole.expected["checksum"]

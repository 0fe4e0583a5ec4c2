"""A rollout worker is killed while it values routes: the run finishes and learns what it would have learned."""

from __future__ import annotations

import pytest
from whole_pipeline import ITERATIONS, pipeline, train_and_lose

SETTINGS = (
    *("reward.terms.query_value=1", "reward.terms.route_regret=1", "reward.terms.step.final=1", "reward.min_spread=0.01"),
    *("learner.routes=all", "learner.normalisation=batch_std", "rollout.max_steps=2", "rollout.values.samples=1"),
)


@pytest.mark.slow
@pytest.mark.timeout(900)
def test_a_worker_that_dies_while_it_values_routes_costs_nothing_but_time(ray_cluster, tmp_path):
    whole = pipeline(tmp_path, *SETTINGS)
    try:
        undisturbed = train_and_lose(whole, tmp_path / "undisturbed")
        outcome = train_and_lose(whole, tmp_path / "disturbed", "rollout worker 1", "rollout")
    finally:
        whole.actors.close()
    assert (undisturbed.failures, len(outcome.failures)) == ([], 1)
    assert (outcome.learned, outcome.checksum) == (undisturbed.learned, undisturbed.checksum)
    assert [row["iteration"] for row in outcome.rows] == list(range(1, ITERATIONS + 1))
    for row, before in zip(outcome.rows, undisturbed.rows, strict=True):
        assert row["asked_questions"] == row["returned_questions"] + row["requeued_questions"] + row["failed_questions"] == 4
        assert row["values_asked"] == row["values_reused"] + row["values_sampled"] + row["values_failed"] > 0
        names = ("values_asked", "values_reused", "value_tokens", "value_spread", "sampled_tokens", "query_value", "loss")
        assert [row.get(name) for name in names] == [before.get(name) for name in names]

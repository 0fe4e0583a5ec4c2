"""A measurement takes a folder, or weights from the object store, and is the same in a rollout worker and in one of its own."""

from __future__ import annotations

import pytest
import ray
from ray.exceptions import OwnerDiedError
from tiny_training import recorded
from tiny_turns import packed

from experiments.config import load_config
from experiments.evaluation.evaluator import Evaluator
from learner.deadline import LearnerLostError
from rollout.config import RolloutConfig
from rollout.measurement import EvaluationWorker
from rollout.policies import Policy, load_policy
from rollout.weight_buckets import PublishedBucket, PublishedWeights

CONFIG = RolloutConfig(mode="offline", group_size=2, max_new_tokens=8)


def published(policy: Policy, version: int) -> PublishedWeights:
    buckets = packed(policy.model.named_parameters(), bucket_bytes=40_000)
    return PublishedWeights(tuple(PublishedBucket(ray.put(b), b.manifest, b.checksum, len(b.data)) for b in buckets), version)


def sampled(worker: EvaluationWorker, weights: str | PublishedWeights) -> list[tuple[list[int], list[float]]]:
    found = worker.measure(weights, recorded(4), None, CONFIG, seed=5)  # type: ignore[arg-type]
    return [(turn.response_ids.tolist(), turn.logprobs.tolist()) for t in found for group in t.groups for turn in group.turns]


def test_a_policy_that_is_sent_does_what_it_does_from_its_folder_bit_for_bit_and_the_one_before_comes_back(
    ray_cluster, policy_path, tmp_path
):
    policy = load_policy(policy_path)
    for parameter in policy.model.parameters():
        parameter.data.mul_(1.5)
    policy.save(tmp_path / "changed")
    worker = EvaluationWorker(policy_path, CONFIG, False, "float32", 60)
    before = sampled(worker, policy_path)
    weights = published(policy, version=3)
    assert len(weights.buckets) > 2
    sent = sampled(worker, weights)
    assert sent == sampled(EvaluationWorker(str(tmp_path / "changed"), CONFIG, False, "float32", 60), str(tmp_path / "changed"))
    assert sent != before
    assert sampled(worker, policy_path) == before


def test_weights_that_are_gone_are_a_loss_of_the_learner_not_of_the_worker(ray_cluster):
    @ray.remote(num_cpus=0)
    def without_its_weights():
        raise OwnerDiedError("00" * 28, b"", "")

    config = load_config([])
    config.train.num_rollout_workers = 0
    evaluator = Evaluator("policy", config)
    with (
        evaluator.holding(PublishedWeights((), 3)),
        pytest.raises(LearnerLostError, match="learner rank 0 lost during the broadcast of policy version 3"),
    ):
        evaluator._trajectories(without_its_weights.remote())

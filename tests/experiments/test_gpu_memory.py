"""Who is on a GPU together, and what they hold there: as the plan lays them."""

from __future__ import annotations

from experiments.config import TrainConfig, load_config
from experiments.gpu_memory import GpuShare, gpus_of, sampler_share
from experiments.run_asks import RoleResources, asks_of
from learner.memory_plan import Counted

SHARES = {who: GpuShare(who, {"parameters": 1}) for who in ("rollout", "evaluation", "learner")}


def together(*settings: str) -> dict[str, list[str]]:
    config = load_config(list(settings))
    return {
        kind: [share.who for share in shares]
        for kind, shares in gpus_of(config, SHARES, asks_of(config, RoleResources.of(config, ()), [])).items()
    }


def test_workers_with_half_a_gpu_and_less_come_together_on_one():
    found = together("train.num_rollout_workers=4", "train.gpus_per_rollout_worker=0.25", "train.gpus_per_evaluation_worker=0.5")
    assert found == {"rollout GPU": ["rollout"] * 4, "evaluation GPU": ["evaluation"] * 2}
    assert together("train.num_rollout_workers=4", "train.gpus_per_rollout_worker=0.4", "train.gpus_per_evaluation_worker=0.2") == {
        "rollout GPU": ["rollout", "rollout", "evaluation"],
        "evaluation GPU": ["evaluation"] * 2,
    }


def test_no_more_workers_share_a_gpu_than_there_are():
    assert together("train.num_rollout_workers=1", "train.gpus_per_rollout_worker=0.1") == {"rollout GPU": ["rollout", "evaluation"]}


def test_the_shipped_configurations_share_as_they_say():
    assert together("paper_3b.yaml") == {"rollout GPU": ["rollout", "evaluation"], "learner GPU": ["learner"]}
    assert together("one_gpu_3b.yaml") == {"every GPU": ["rollout", "learner", "evaluation"]}
    assert together("smoke.yaml") == {}


def sampler(who: str, *settings: str) -> dict[str, int]:
    from experiments.policy_shape import policy_shape

    config: TrainConfig = load_config([*settings])
    return sampler_share(who, policy_shape("experiments/cold_start_policy", config.learner).config, Counted(1000, 1000, 0), config).parts


def test_a_rollout_worker_keeps_what_a_broadcast_brought_beside_the_policy():
    assert sampler("rollout", "learner.transport=collective")["weights received"] == 4 * 1000
    assert sampler("evaluation", "learner.transport=collective")["weights received"] == 0
    assert sampler("rollout")["weights received"] == 0

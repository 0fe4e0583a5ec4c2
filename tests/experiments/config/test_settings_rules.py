"""Settings that cannot be used: of every section, what is refused, and the key that the error names."""

from __future__ import annotations

import pytest

from experiments.config import RunConfigError, load_config

COLOCATED = ["train.placement=colocated", "train.num_rollout_workers=1"]
SHARES = ["train.gpus_per_rollout_worker=0.6", "learner.gpus_per_learner=0.3"]

TYPES = [
    ("train.iterations=many", r"command line: train\.iterations is 'many'; expected a valid integer"),
    ("train.iterations=1.5", r"train\.iterations is .*expected"),
    ("train.trace=7.5", r"train\.trace is .*expected"),
    ("learner.lr=fast", r"learner\.lr is .*expected"),
    ("learner.collapse.window=[1]", r"learner\.collapse\.window .*expected a valid integer"),
    ("evaluation.baselines=random", r"evaluation\.baselines .*expected a valid list"),
    ("learner.environment=2", r"learner\.environment .*expected a valid dictionary"),
    ("train.gpus_per_rollout_worker=one", r"gpus_per_rollout_worker is 'one'; expected a valid number"),
    ("train.iterations=null", r"train\.iterations.*expected a valid integer"),
]
UNKNOWN = [
    ("train.iteratons=2", r"unknown key train\.iteratons; did you mean train\.iterations\?"),
    ("data.worlz=2", r"unknown key data\.worlz; did you mean data\.worlds\?"),
    ("rollout.groupsize=2", r"did you mean rollout\.group_size\?"),
    ("retrieval.replica=2", r"did you mean retrieval\.replicas\?"),
    ("reward.query=1", r"did you mean reward\.query_weight\?"),
    ("learner.zero=3", r"did you mean learner\.zero_stage\?"),
    ("learner.collapse.stopp=true", r"did you mean learner\.collapse\.stop\?"),
    ("evaluation.question=2", r"did you mean evaluation\.questions\?"),
    ("prompts.from_dataset=x", r"unknown key prompts"),
    ("tracking.url=x", r"did you mean tracking\.uri\?"),
    ("ray.cpus=2", r"did you mean ray\.num_cpus\?"),
    ("group_size=2", r"did you mean rollout\.group_size\?"),
]
TRAIN = [
    ("train.iterations=0", r"train\.iterations is .*expected"),
    ("train.minutes=-1", r"train\.minutes is .*expected"),
    ("train.seed=-1", r"train\.seed is .*expected"),
    ("train.placement=together", r"train\.placement is .*expected"),
    ("train.resume=auto train.rollout_only=true", r"train\.resume is .*expected"),
    ("train.replay_rollouts=a train.dump_rollouts=b", r"train\.dump_rollouts is .*expected"),
    ("train.overlap=1", r"train\.overlap is .*expected"),
    ("train.overlap=2", r"train\.overlap is .*expected"),
    ("train.overlap=1 learner.sampler_correction=truncate train.rollout_only=true", r"train\.overlap is .*expected"),
    ("name=a/b", r"name is 'a/b'; expected a name without slashes"),
    ("name=..", r"name is '\.\.'"),
]
DATA = [
    ("data.worlds=0", r"data\.worlds is .*expected"),
    ("data.hops=9", r"data\.hops is .*expected"),
    ("data.knowledge_bases=1", r"data\.knowledge_bases is .*expected"),
    ("data.doubled=1.5", r"data\.doubled is .*expected"),
    ("data.name=relay", r"rollout\.max_steps is 3; expected at least data\.hops=4: no shorter episode reaches the answer"),
    ("data.train_questions=0", r"data\.train_questions is .*expected"),
    ("data.name=recorded_steps", r"rollout\.mode is 'branch'; expected offline"),
    ("evaluation.validation_questions=0", r"evaluation\.validation_questions is .*expected"),
    ("evaluation.temperature=-1", r"evaluation\.temperature is .*expected"),
    ("evaluation.start_baselines=[al]", r"evaluation\.start_baselines is .*expected"),
    ("rollout.prompts=nowhere.jsonl", r"nowhere\.jsonl"),
]
ROLLOUT = [
    ("rollout.group_size=1", r"rollout\.group_size is .*expected"),
    ("rollout.group_size=0", r"rollout\.group_size is .*expected"),
    ("rollout.temperature=0", r"rollout\.temperature is .*expected"),
    ("rollout.temperature=inf", r"rollout\.temperature is .*expected"),
    ("rollout.top_k=1", r"rollout\.top_k is .*expected"),
    *(
        (
            f"rollout.engine=vllm {changed}",
            r"rollout\.engine is 'vllm' with rollout\.temp",
        )
        for changed in ("rollout.temperature=0.7", "rollout.top_p=0.9", "rollout.top_k=20")
    ),
    (
        "rollout.engine=vllm learner.transport=collective learner.gpus_per_learner=1 train.gpus_per_rollout_worker=1",
        r"learner\.transport is 'collective'; expected object_store with vLLM",
    ),
    (
        "learner.episode_weight=1 learner.baseline=shrunk learner.normalisation=none",
        r"learner\.episode_weight is 1 with rollout\.mode=branch",
    ),
    ("rollout.top_p=0", r"rollout\.top_p is .*expected"),
    ("rollout.enough=1.5", r"rollout\.enough is .*expected"),
    ("rollout.batch_tokens=4096", r"rollout\.batch_tokens is .*expected"),
    ("rollout.routing=best", r"rollout\.routing is .*expected"),
    ("rollout.prompts=long", r"rollout\.prompts"),
]
RETRIEVAL = [
    ("retrieval.replicas=0", r"retrieval\.replicas is .*expected"),
    ("retrieval.deadline_s=0", r"retrieval\.deadline_s is .*expected"),
    ("retrieval.gpus_per_embedder=2", r"retrieval\.gpus_per_embedder is .*expected"),
    ("retrieval.folders.text=", r"retrieval\.folders"),
]
REWARD = [
    ("reward.query_weight=1", r"reward\.query_weight \+ .* has to be 1"),
    ("reward.format_weight=2", r"reward\.format_weight is .*expected"),
    ("reward.spare_answer_tokens=-2", r"reward\.spare_answer_tokens is .*expected"),
    ("reward.query_weight=-0.3 reward.routing_weight=1", r"reward\.query_weight is .*expected"),
    ("reward.terms.nothing=1", r"nothing"),
]
LEARNER = [
    ("learner.lr=0", r"learner\.lr is .*expected"),
    ("learner.collapse.max_mismatch=nan", r"learner\.collapse\.max_mismatch is .*expected"),
    ("rollout.straggler_s=nan", r"rollout\.straggler_s is .*expected"),
    ("learner.collapse.min_entropy=nan", r"learner\.collapse\.min_entropy is .*expected"),
    ("learner.weight_decay=-1", r"learner\.weight_decay is .*expected"),
    ("learner.betas=[0.9,1.0]", r"learner\.betas\.1 is '1\.0'; expected less than 1"),
    ("learner.updates_per_iteration=113", r"updates_per_iteration is 113; expected at most 112: 16 questions"),
    ("learner.num_learners=64 learner.updates_per_iteration=4", r"num_learners is 64; expected at most 28: an update has no more groups"),
    ("learner.transport=collective learner.gpus_per_learner=1", r"learner\.transport is .*expected"),
    ("learner.gpus_per_learner=0.5", r"learner\.gpus_per_learner is .*expected"),
    ("learner.gpus_per_learner=2", r"learner\.gpus_per_learner is .*expected"),
    ("learner.dtype=bfloat16", r"learner\.dtype=bfloat16 with learner\.zero_stage=0"),
    ("learner.transport=objectstore", r"learner\.transport is 'objectstore'.*did you mean object_store\?"),
]
SURROUNDINGS = [
    ("ray.object_store_mb=10", r"ray\.object_store_mb is .*expected"),
    ("ray.join_s=-1", r"ray\.join_s is .*expected"),
    ("tracking.uri=mlruns", r"tracking\.uri is .*expected"),
    ("tracking.experiment=", r"tracking\.experiment is .*expected"),
]


@pytest.mark.parametrize(
    ("settings", "said"), [*TYPES, *UNKNOWN, *TRAIN, *DATA, *ROLLOUT, *RETRIEVAL, *REWARD, *LEARNER, *SURROUNDINGS], ids=lambda v: v[:60]
)
def test_a_setting_that_cannot_be_used_is_one_line_with_key_value_and_what_was_expected(settings: str, said: str):
    with pytest.raises(RunConfigError, match=said) as caught:
        load_config(settings.split(" "))
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("settings", "said"),
    [
        ([], r"train\.gpus_per_rollout_worker is 0\.0; expected more than 0\.5"),
        (["train.gpus_per_rollout_worker=0.6"], r"learner\.gpus_per_learner is 0\.0; expected a share above 0"),
        (["train.gpus_per_rollout_worker=0.7", "learner.gpus_per_learner=0.4"], r"that add up to at most 1 \(found 1\.1\)"),
        (
            [
                "train.gpus_per_rollout_worker=0.6",
                "learner.gpus_per_learner=0.3",
                "learner.num_learners=2",
            ],
            r"learner\.num_learners is 2; expected train\.num_rollout_workers=1",
        ),
        (
            [
                "train.gpus_per_rollout_worker=0.6",
                "learner.gpus_per_learner=0.3",
                "learner.transport=collective",
            ],
            r"learner\.transport is 'collective'; expected object_store with train\.placement=colocated",
        ),
    ],
)
def test_a_learner_and_a_rollout_worker_share_a_gpu_only_by_shares_that_fit(settings: list[str], said: str):
    with pytest.raises(RunConfigError, match=said):
        load_config([*COLOCATED, *settings])


def test_shares_that_fit_are_taken():
    assert load_config([*COLOCATED, *SHARES]).train.gpus_per_rollout_worker == 0.6

"""Settings that cannot be used: every section has its table of what is refused, with key, value and what was expected."""

from __future__ import annotations

import pytest

from experiments.config import CONFIGS, RunConfigError, TrainConfig, load_config

COLOCATED = ["train.placement=colocated", "train.num_rollout_workers=1"]
SHARES = ["train.gpus_per_rollout_worker=0.6", "learner.gpus_per_learner=0.3", "train.gpus_per_evaluation_worker=0.1"]
GPUS = ["learner.gpus_per_learner=1", "train.gpus_per_rollout_worker=1"]

TYPES = [
    ("train.iterations=many", r"command line: train\.iterations is 'many'; expected a whole number"),
    ("train.iterations=1.5", r"train\.iterations is 1\.5; expected a whole number"),
    ("train.trace=7.5", r"train\.trace is 7\.5; expected true or false"),
    ("learner.lr=fast", r"learner\.lr is 'fast'; expected a number"),
    ("learner.collapse.window=[1]", r"learner\.collapse\.window .*expected a whole number"),
    ("evaluation.baselines=random", r"evaluation\.baselines .*expected \[text, \.\.\.\]"),
    ("learner.kind_weights=2", r"learner\.kind_weights .*expected \{key: a number"),
    ("learner.kind_weights.plan=much", r"learner\.kind_weights.* is 'much'; expected"),
    ("train.gpus_per_evaluation_worker=one", r"gpus_per_evaluation_worker is 'one'; expected a number, or null"),
    ("train.iterations=null", r"train\.iterations.*expected a whole number"),
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
    ("prompts.dataset=x", r"did you mean prompts\.from_dataset\?"),
    ("tracking.url=x", r"did you mean tracking\.uri\?"),
    ("ray.cpus=2", r"did you mean ray\.num_cpus\?"),
    ("group_size=2", r"did you mean rollout\.group_size\?"),
]
TRAIN = [
    ("train.iterations=0", r"train\.iterations is 0; expected at least 1"),
    ("train.minutes=-1", r"train\.minutes is -1\.0; expected at least 0"),
    ("train.seed=-1", r"train\.seed is -1; expected at least 0"),
    ("train.placement=together", r"train\.placement is 'together'; expected apart or colocated"),
    ("train.resume=auto train.rollout_only=true", r"train\.resume is 'auto'; expected at most one of"),
    ("train.replay_rollouts=a train.dump_rollouts=b", r"train\.dump_rollouts is 'b'; expected none with train\.replay_rollouts"),
    ("train.overlap=1", r"train\.overlap is 1 with learner\.sampler_cap=0"),
    ("train.overlap=2", r"train\.overlap is 2; it must be 0"),
    ("train.overlap=1 learner.sampler_cap=2 train.rollout_only=true", r"train\.overlap is 1; expected 0 with train\.rollout_only"),
    ("name=a/b", r"name is 'a/b'; expected a name without slashes"),
    ("name=..", r"name is '\.\.'"),
]
DATA = [
    ("data.worlds=0", r"data\.worlds is 0; expected at least 1"),
    ("data.train_questions=0", r"data\.train_questions is 0"),
    ("data.kb_passages=-1", r"data\.kb_passages is -1; expected at least 0"),
    ("data.name=recorded_steps", r"rollout\.mode=branch does not go with data\.name=recorded_steps"),
    ("evaluation.validation_questions=0", r"evaluation\.validation_questions is 0"),
    ("evaluation.temperature=-1", r"evaluation\.temperature is -1\.0; expected at least 0"),
    ("evaluation.start_baselines=[al]", r"evaluation\.start_baselines is \['al'\]; expected some of"),
    ("prompts.from_dataset=nowhere.jsonl", r"nowhere\.jsonl"),
]
ROLLOUT = [
    ("rollout.group_size=1", r"rollout\.group_size is 1 with learner\.baseline=mean: nothing to compare"),
    ("rollout.group_size=0", r"rollout\.group_size is 0; expected at least 1"),
    ("rollout.temperature=0", r"rollout\.temperature is 0\.0; expected more than 0: siblings sampled greedily"),
    ("rollout.top_p=0", r"rollout\.top_p is 0\.0; expected a share above 0"),
    ("rollout.enough=1.5", r"rollout\.enough is 1\.5"),
    ("rollout.max_new_tokens_by_kind.plans=9", r"max_new_tokens_by_kind is \{'plans': 9\}; expected keys among"),
    ("rollout.max_new_tokens_by_kind.plan=0", r"max_new_tokens_by_kind is \{'plan': 0\}; expected at least 1 token"),
    ("rollout.batch_tokens=4096", r"rollout\.batch_tokens is 4096; expected at least 4608: a prompt of rollout\.max_prompt_tokens=4096"),
    ("rollout.engine=vllm", r"rollout\.engine is 'vllm'; expected transformers with train\.gpus_per_rollout_worker=0"),
    ("rollout.compile_decode=true", r"rollout\.compile_decode is True; expected false"),
    ("rollout.routing=best", r"rollout\.routing is 'best'; expected one of policy"),
    ("rollout.prompts=long", r"rollout\.prompts"),
]
RETRIEVAL = [
    ("retrieval.replicas=0", r"retrieval\.replicas is 0; expected at least 1"),
    ("retrieval.deadline_s=0", r"retrieval\.deadline_s is 0\.0; expected seconds above 0"),
    ("retrieval.gpu_float16=true", r"retrieval\.gpu_float16 is True; expected false with retrieval\.gpus_per_shard=0"),
    ("retrieval.reranker=cross-encoder:x retrieval.rerank_candidates=2", r"rerank_candidates is 2; expected at least rollout\.passages=3"),
    ("retrieval.gpus_per_embedder=2", r"retrieval\.gpus_per_embedder is 2\.0; expected 0, 1, or a share"),
    ("retrieval.folders.text=", r"retrieval\.folders"),
]
REWARD = [
    ("reward.query_weight=1", r"reward\.query_weight \+ .* has to be 1"),
    ("reward.format_weight=2", r"reward\.format_weight is 2"),
    ("reward.spare_answer_tokens=-2", r"reward\.spare_answer_tokens is -2; expected at least -1"),
    ("reward.query_weight=-0.3 reward.routing_weight=1", r"reward\.query_weight is -0\.3; expected at least 0"),
    ("reward.terms.nothing=1", r"nothing"),
]
LEARNER = [
    ("learner.lr=0", r"learner\.lr is 0\.0; it must be greater than 0"),
    ("learner.weight_decay=-1", r"learner\.weight_decay is -1\.0; it must not be negative"),
    ("learner.betas=[0.9,1.0]", r"learner\.betas is \[0\.9, 1\.0\]; both must lie between 0 and 1"),
    ("learner.updates_per_iteration=113", r"updates_per_iteration is 113; expected at most 112: 16 questions"),
    ("learner.num_learners=64 learner.updates_per_iteration=4", r"num_learners is 64; expected at most 28: an update has no more groups"),
    ("learner.transport=collective learner.gpus_per_learner=1", r"learner\.transport is 'collective'; expected object_store"),
    ("learner.gpus_per_learner=0.5", r"learner\.gpus_per_learner is 0\.5; expected 0 or 1 with train\.placement=apart"),
    ("learner.gpus_per_learner=2", r"learner\.gpus_per_learner is 2\.0; expected 0, 1, or a share of one GPU"),
    ("learner.dtype=bfloat16", r"learner\.dtype=bfloat16 with learner\.zero_stage=0"),
    ("learner.transport=objectstore", r"learner\.transport is 'objectstore'.*did you mean object_store\?"),
]
SURROUNDINGS = [
    ("ray.object_store_mb=10", r"ray\.object_store_mb is 10; expected at least 80"),
    ("ray.join_s=-1", r"ray\.join_s is -1\.0"),
    ("tracking.uri=mlruns", r"tracking\.uri is 'mlruns'; expected an address with a scheme"),
    ("tracking.experiment=", r"tracking\.experiment is None; expected text"),
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
        (["train.gpus_per_rollout_worker=0.6", "learner.gpus_per_learner=0.4"], r"that add up to at most 1 \(found 1\.6\)"),
        (
            [
                "train.gpus_per_rollout_worker=0.6",
                "learner.gpus_per_learner=0.3",
                "train.gpus_per_evaluation_worker=0.1",
                "learner.num_learners=2",
            ],
            r"learner\.num_learners is 2; expected train\.num_rollout_workers=1",
        ),
        (
            [
                "train.gpus_per_rollout_worker=0.6",
                "learner.gpus_per_learner=0.3",
                "train.gpus_per_evaluation_worker=0.1",
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
    config = load_config([*COLOCATED, *SHARES])
    assert config.evaluation_gpus == 0.1


def test_evaluation_workers_have_what_rollout_workers_have_unless_something_else_is_said():
    assert load_config(GPUS).evaluation_gpus == 1
    assert load_config([*GPUS, "train.gpus_per_evaluation_worker=0"]).evaluation_gpus == 0


def test_every_numeric_bound_names_a_setting_that_there_is():
    from experiments.config_checks import ABOVE_0_UP_TO_1, AT_LEAST, value_of

    for key in (*AT_LEAST, *ABOVE_0_UP_TO_1):
        assert isinstance(value_of(TrainConfig(), key), int | float), key


def test_a_wrong_value_in_a_file_names_the_file(tmp_path):
    file = tmp_path / "mine.yaml"
    file.write_text("train:\n  iterations: soon\n")
    with pytest.raises(RunConfigError, match=r"mine\.yaml: train\.iterations is 'soon'; expected a whole number"):
        load_config([str(file)])


def test_no_shipped_configuration_is_refused():
    assert {load_config([file.name]).name for file in CONFIGS.glob("*.yaml")}

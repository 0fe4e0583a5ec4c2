"""What can be seen to be wrong with a configuration without opening a file: numbers out of range, and settings that do not go together.

A rule names a key, whether it holds, and what was expected; the first that does not hold is the error. `learner/config.py` checks its own section.
"""

from __future__ import annotations

import functools
import math
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

from learner.config_checks import check_overlap, check_rollout, check_shares
from rewards.composition import composed_of
from rewards.terms.information_gain import INFORMATION_GAIN
from rollout.methods.registry import expected_names, is_method
from rollout.prompts import PROMPT_SETS

if TYPE_CHECKING:
    from experiments.config import TrainConfig

Rule = tuple[bool, str, str]
"""(whether it holds, the key whose value is shown, what was expected)."""
AT_LEAST: dict[str, float] = {
    **dict.fromkeys(
        """train.iterations train.questions_per_iteration train.num_rollout_workers train.keep_last evaluation.questions evaluation.samples
        evaluation.validation_questions rollout.group_size rollout.max_steps rollout.passages rollout.max_passage_chars rollout.max_new_tokens
        rollout.max_prompt_tokens rollout.slots rollout.batch_tokens rollout.tokens_in_flight rollout.threads retrieval.replicas
        retrieval.failures_to_open retrieval.search_threads retrieval.embed_threads retrieval.rerank_candidates data.train_questions data.worlds
        data.countries reward.actors""".split(),
        1,
    ),
    **dict.fromkeys(
        """train.minutes train.evaluate_every train.checkpoint_every train.keep_best train.max_restarts train.gpus_per_rollout_worker train.seed
        evaluation.temperature rollout.temperature rollout.top_k rollout.episode_s rollout.straggler_s retrieval.cooldown_s retrieval.cache_size
        retrieval.cpus_per_shard retrieval.cpus_per_embedder retrieval.gpus_per_shard retrieval.gpus_per_embedder reward.query_weight
        reward.entity_weight reward.routing_weight reward.short_answer_words data.kb_passages data.seed ray.num_cpus ray.join_s""".split(),
        0,
    ),
    "reward.spare_answer_tokens": -1,
    "ray.object_store_mb": 80,
}
"""Key -> the smallest value that means something; Ray itself refuses an object store below 75 MB."""
ABOVE_0_UP_TO_1 = ("rollout.enough", "rollout.top_p")
CHOICES = {
    "rollout.mode": ("branch", "chain", "offline"),
    "rollout.engine": ("transformers", "vllm"),
    "train.placement": ("apart", "colocated"),
}
KINDS = {"plan", "answer", "final"}


def check(config: TrainConfig) -> None:
    """Raises ValueError, one line: the key, its value, and what was expected. Settles what follows from other settings (`rollout.gold_gains`)."""
    for rules in (_ranges, _names, _train, _rollout, _retrieval, _gpus):
        for holds, key, expected in rules(config):
            if not holds:
                raise ValueError(f"{key} is {shown(value_of(config, key))}; expected {expected}")
    if config.prompts.from_dataset:
        named, beside = Path(config.prompts.from_dataset), Path(config.data.folder) / config.prompts.from_dataset
        config.rollout.prompts = str(beside if not named.is_file() and beside.is_file() else named)
    PROMPT_SETS[config.rollout.prompts]
    _check_terms(config)
    if (config.data.name == "recorded_steps") != (config.rollout.mode == "offline"):
        raise ValueError(
            f"rollout.mode={config.rollout.mode} does not go with data.name={config.data.name}; recorded steps are for rollout.mode=offline"
        )
    check_rollout(config.learner, config.rollout.mode, config.rollout.group_size)
    check_overlap(config.train.overlap, config.learner)
    check_shares(config.learner, config.rollout.mode, config.train.questions_per_iteration, config.rollout.max_steps)


def value_of(config: TrainConfig, key: str) -> Any:
    """The value of a dotted key."""
    return functools.reduce(getattr, key.split("."), config)


def shown(value: Any) -> str:
    """A value as an error message shows it."""
    return repr(dict(value) if isinstance(value, dict) else value)


def _ranges(config: TrainConfig) -> Iterator[Rule]:
    for key, least in AT_LEAST.items():
        yield value_of(config, key) >= least, key, f"at least {least:g}"
    for key in ABOVE_0_UP_TO_1:
        yield 0 < value_of(config, key) <= 1, key, "a share above 0, up to 1"
    yield config.retrieval.deadline_s > 0, "retrieval.deadline_s", "seconds above 0"


def _names(config: TrainConfig) -> Iterator[Rule]:
    for key, allowed in CHOICES.items():
        yield value_of(config, key) in allowed, key, f"{', '.join(allowed[:-1])} or {allowed[-1]}"
    yield bool(config.name) and not set(config.name) & set("/\\") and config.name not in (".", ".."), "name", "a name without slashes"
    yield bool(config.runs_folder), "runs_folder", "a folder, such as runs"
    yield is_method(config.rollout.routing), "rollout.routing", f"one of {expected_names()}"
    for key in ("baselines", "start_baselines"):
        yield all(map(is_method, getattr(config.evaluation, key))), f"evaluation.{key}", f"some of {expected_names()}"
    yield bool(config.tracking.uri) or not config.tracking.mlflow, "tracking.uri", "an MLflow address such as sqlite:///mlflow.db"
    yield (
        "://" in config.tracking.uri or config.tracking.uri == "databricks" or not config.tracking.mlflow,
        "tracking.uri",
        ("an address with a scheme, such as sqlite:///mlflow.db or http://HOST:5000: MLflow no longer writes into plain folders"),
    )
    yield bool(config.tracking.experiment) or not config.tracking.mlflow, "tracking.experiment", "a name"


def _train(config: TrainConfig) -> Iterator[Rule]:
    train = config.train
    yield (
        sum([train.rollout_only, bool(train.replay_rollouts), train.resume != "none"]) <= 1,
        "train.resume" if train.resume != "none" else "train.replay_rollouts",
        "at most one of train.rollout_only, train.replay_rollouts and train.resume: half a run has no checkpoints, one half is not the other",
    )
    yield (
        not (train.replay_rollouts and train.dump_rollouts),
        "train.dump_rollouts",
        "none with train.replay_rollouts: there is nothing new to write",
    )
    yield (
        not (train.rollout_only and train.overlap),
        "train.overlap",
        "0 with train.rollout_only: nothing is learned meanwhile",
    )


def _rollout(config: TrainConfig) -> Iterator[Rule]:
    rollout = config.rollout
    yield set(rollout.max_new_tokens_by_kind) <= KINDS, "rollout.max_new_tokens_by_kind", "keys among plan, answer and final"
    yield all(n >= 1 for n in rollout.max_new_tokens_by_kind.values()), "rollout.max_new_tokens_by_kind", "at least 1 token for each kind"
    longest = max(rollout.longest(kind) for kind in KINDS)
    needed = rollout.max_prompt_tokens + 8 * math.ceil(longest / 16) * 16
    yield (
        rollout.batch_tokens >= needed or rollout.engine == "vllm",
        "rollout.batch_tokens",
        f"at least {needed}: a prompt of rollout.max_prompt_tokens={rollout.max_prompt_tokens} beside 8 responses of {longest} tokens",
    )
    yield (
        rollout.temperature > 0,
        "rollout.temperature",
        "more than 0: siblings sampled greedily are all the same, so nothing can be learned from them (evaluation.temperature may be 0)",
    )


def _retrieval(config: TrainConfig) -> Iterator[Rule]:
    retrieval = config.retrieval
    yield all(retrieval.folders.values()), "retrieval.folders", "a folder for each name"
    yield (
        not retrieval.reranker or retrieval.rerank_candidates >= config.rollout.passages,
        "retrieval.rerank_candidates",
        f"at least rollout.passages={config.rollout.passages}: those that are shown are chosen among them",
    )
    yield (
        retrieval.gpus_per_shard > 0 or not retrieval.gpu_float16,
        "retrieval.gpu_float16",
        ("false with retrieval.gpus_per_shard=0: vectors in main memory are float32"),
    )


def _gpus(config: TrainConfig) -> Iterator[Rule]:
    train, learner = config.train, config.learner
    for key in ("train.gpus_per_rollout_worker", "retrieval.gpus_per_embedder", "retrieval.gpus_per_shard", "learner.gpus_per_learner"):
        yield 0 <= value_of(config, key) <= 1, key, "0, 1, or a share of one GPU: a process uses one"
    evaluating = train.gpus_per_evaluation_worker
    yield evaluating is None or 0 <= evaluating <= 1, "train.gpus_per_evaluation_worker", "null, 0, 1, or a share of one GPU"
    yield (
        config.rollout.engine != "vllm" or train.gpus_per_rollout_worker > 0,
        "rollout.engine",
        ("transformers with train.gpus_per_rollout_worker=0: vLLM needs a GPU"),
    )
    yield (
        train.gpus_per_rollout_worker > 0 or not config.rollout.compile_decode,
        "rollout.compile_decode",
        ("false with train.gpus_per_rollout_worker=0: it is for GPUs"),
    )
    mixed = (learner.gpus_per_learner > 0) != (train.gpus_per_rollout_worker > 0)
    yield (
        learner.transport != "collective" or not mixed,
        "learner.transport",
        (
            f"object_store with learner.gpus_per_learner={learner.gpus_per_learner:g} and train.gpus_per_rollout_worker="
            f"{train.gpus_per_rollout_worker:g}: one broadcast has both sides on GPUs, or neither"
        ),
    )
    if train.placement == "colocated":
        yield from _colocated(config)
        return
    yield (
        learner.gpus_per_learner in (0, 1),
        "learner.gpus_per_learner",
        (
            "0 or 1 with train.placement=apart: who has a share of a GPU shares it with whom Ray pleases; train.placement=colocated pairs them"
        ),
    )


def _colocated(config: TrainConfig) -> Iterator[Rule]:
    train, learner = config.train, config.learner
    together = train.gpus_per_rollout_worker + config.evaluation_gpus + learner.gpus_per_learner
    yield (
        train.gpus_per_rollout_worker > 0.5,
        "train.gpus_per_rollout_worker",
        ("more than 0.5 with train.placement=colocated, so that no two rollout workers come upon one GPU"),
    )
    yield (
        0 < learner.gpus_per_learner < 0.5,
        "learner.gpus_per_learner",
        ("a share above 0 and below 0.5 with train.placement=colocated: what the rollout worker leaves"),
    )
    yield (
        together <= 1 + 1e-9,
        "train.placement",
        (
            f"apart, or shares of train.gpus_per_rollout_worker={train.gpus_per_rollout_worker:g}, learner.gpus_per_learner="
            f"{learner.gpus_per_learner:g} and train.gpus_per_evaluation_worker={config.evaluation_gpus:g} that add up to at most 1 (found "
            f"{together:g}): they share one GPU"
        ),
    )
    yield (
        learner.num_learners == train.num_rollout_workers,
        "learner.num_learners",
        (f"train.num_rollout_workers={train.num_rollout_workers} with train.placement=colocated: one of each on every GPU"),
    )
    yield (
        learner.transport == "object_store",
        "learner.transport",
        ("object_store with train.placement=colocated: NCCL refuses two processes of one group on the same GPU"),
    )


def _check_terms(config: TrainConfig) -> None:
    terms = composed_of(config.reward.terms)
    config.rollout.gold_gains |= INFORMATION_GAIN.name in config.reward.terms
    if config.rollout.gold_gains and config.rollout.engine != "transformers":
        raise ValueError(
            f"reward.terms.information_gain does not go with rollout.engine={config.rollout.engine}; it asks the policy in place"
        )
    for term in terms:
        if term.needs_chain and config.rollout.mode != "chain":
            raise ValueError(
                f"reward.terms.{term.name} does not go with rollout.mode={config.rollout.mode}; it judges what came of a turn, which is known of "
                "every sibling in chain mode only"
            )

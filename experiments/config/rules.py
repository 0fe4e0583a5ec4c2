"""Rules between settings. Types, ranges and allowed words are declared with the settings themselves, and pydantic checks them."""

import math
import operator
from collections.abc import Iterator
from itertools import chain

from experiments.config.reading import wrong_value
from experiments.config.sections import TrainConfig
from learner.config import check_overlap, check_rollout, check_shares
from rewards.terms import composed_of
from rollout.methods import expected_names, is_method
from rollout.need_matcher import read_calibration
from rollout.prompts import find_prompts

Rule = tuple[bool, str, str]  # (whether it holds, the key whose value is shown, what was expected)


def check(config: TrainConfig) -> None:
    """Raises ValueError, one line: the key, its value, and what was expected."""
    for holds, key, expected in chain(_run(config), _rollout(config), _gpus(config), _colocated(config)):
        if not holds:
            raise wrong_value(key, operator.attrgetter(key)(config), expected)
    find_prompts(config.rollout.prompts)
    read_calibration(config.reward.need_calibration)
    check_rollout(config.learner, config.rollout)
    check_overlap(config.train.overlap, config.learner)
    check_shares(config.learner, config.rollout.mode, config.train.questions_per_iteration, config.rollout.max_steps)


def _run(config: TrainConfig) -> Iterator[Rule]:
    uri, train = config.tracking.uri, config.train
    yield bool(config.name) and not set(config.name) & set("/\\") and config.name not in (".", ".."), "name", "a name without slashes"
    yield bool(config.runs_folder), "runs_folder", "a folder, such as runs"
    yield is_method(config.rollout.routing), "rollout.routing", f"one of {expected_names()}"
    for key in ("baselines", "start_baselines"):
        yield all(map(is_method, getattr(config.evaluation, key))), f"evaluation.{key}", f"some of {expected_names()}"
    if config.tracking.mlflow:
        yield "://" in uri or uri == "databricks", "tracking.uri", "an address with a scheme, such as sqlite:///mlflow.db"
        yield bool(config.tracking.experiment), "tracking.experiment", "a name"
    modes = [train.rollout_only, bool(train.replay_rollouts), train.resume != "none"]
    key = "train.resume" if train.resume != "none" else "train.replay_rollouts"
    yield sum(modes) <= 1, key, "at most one of train.rollout_only, train.replay_rollouts and train.resume"
    yield not (modes[1] and train.dump_rollouts), "train.dump_rollouts", "none with train.replay_rollouts, which rolls nothing out"
    yield not (train.rollout_only and train.overlap), "train.overlap", "0 with train.rollout_only, which learns nothing"


def _rollout(config: TrainConfig) -> Iterator[Rule]:
    rollout, retrieval = config.rollout, config.retrieval
    recorded = config.data.name == "recorded_steps"
    yield not recorded or rollout.mode == "offline", "rollout.mode", "offline with data.name=recorded_steps"
    yield recorded or rollout.mode != "offline", "rollout.mode", f"branch or chain with data.name={config.data.name}"
    reached = config.data.name != "relay" or rollout.max_steps >= config.data.hops
    yield reached, "rollout.max_steps", f"at least data.hops={config.data.hops}: no shorter episode reaches the answer"
    yield not recorded or config.data.gold == "given", "data.gold", "given with data.name=recorded_steps, whose turns have their gold"
    longest = rollout.max_new_tokens
    needed = rollout.max_prompt_tokens + 8 * math.ceil(longest / 16) * 16
    prompt = f"a prompt of rollout.max_prompt_tokens={rollout.max_prompt_tokens}"
    yield rollout.batch_tokens >= needed, "rollout.batch_tokens", f"at least {needed}: {prompt} and 8 responses of {longest} tokens"
    gains = "information_gain" in config.reward.terms
    scores = "reward.terms.information_gain" if gains else "rollout.values.leaf=belief" if rollout.values.leaf == "belief" else ""
    yield not scores or rollout.engine == "transformers", "rollout.engine", f"transformers with {scores}"
    for term in composed_of(config.reward.terms):
        suits = not term.needs_chain or rollout.mode == "chain"
        yield suits, "rollout.mode", f"chain with reward.terms.{term.name}, which needs the outcome of every sibling"
        with_term = f"with reward.terms.{term.name}, which values every route of a plan turn"
        yield not term.needs_values or rollout.mode == "branch", "rollout.mode", f"branch {with_term}"
        yield not term.needs_values or rollout.routing == "policy", "rollout.routing", f"policy {with_term}"
        alike = term.of_route and config.learner.normalisation == "components"
        yield (
            not alike,
            "learner.normalisation",
            f"batch_std, std or none with reward.terms.{term.name}, which is credited to the name alone",
        )
    yield all(retrieval.folders.values()), "retrieval.folders", "a folder for each name"


def _gpus(config: TrainConfig) -> Iterator[Rule]:
    train, learner = config.train, config.learner
    cpu = train.gpus_per_rollout_worker == 0
    alike = (learner.gpus_per_learner == 0) == cpu or learner.transport == "object_store"
    yield alike, "learner.transport", "object_store, or GPUs for both learners and rollout workers, or for neither"
    whole = train.placement == "colocated" or learner.gpus_per_learner in (0, 1)
    expected = "0 or 1 with train.placement=apart; train.placement=colocated shares a GPU with a rollout worker"
    yield whole, "learner.gpus_per_learner", expected


def _colocated(config: TrainConfig) -> Iterator[Rule]:
    train, learner = config.train, config.learner
    if train.placement != "colocated":
        return
    together = train.gpus_per_rollout_worker + learner.gpus_per_learner
    with_it = "with train.placement=colocated"
    yield train.gpus_per_rollout_worker > 0.5, "train.gpus_per_rollout_worker", f"more than 0.5 {with_it}, so that no two share one GPU"
    yield 0 < learner.gpus_per_learner < 0.5, "learner.gpus_per_learner", f"a share above 0 and below 0.5 {with_it}"
    shares = "train.gpus_per_rollout_worker and learner.gpus_per_learner"
    yield together <= 1 + 1e-9, "train.placement", f"apart, or {shares} that add up to at most 1 (found {together:g})"
    same = learner.num_learners == train.num_rollout_workers
    yield same, "learner.num_learners", f"train.num_rollout_workers={train.num_rollout_workers} {with_it}: one of each on every GPU"
    stored = learner.transport == "object_store"
    yield stored, "learner.transport", f"object_store {with_it}: NCCL refuses two processes of one group on the same GPU"

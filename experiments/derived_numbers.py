"""What a configuration comes to: the numbers that follow from several settings at once, printed when a run starts. Pure."""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass

from rich.table import Table

from experiments.config import TrainConfig
from learner.config_checks import most_groups


@dataclass(frozen=True)
class Derived:
    what: str
    value: int
    why: str
    """The arithmetic, in the names of the settings."""
    note: str = ""
    """What the user may not have meant; empty: nothing."""


def derived(config: TrainConfig) -> list[Derived]:
    """Of one iteration, at most: episodes may stop early, groups without variance teach nothing and are left out."""
    return [*_sampled(config), *_learned(config), *_held(config)]


def _sampled(config: TrainConfig) -> Iterator[Derived]:
    train, rollout = config.train, config.rollout
    questions, group, steps = train.questions_per_iteration, rollout.group_size, rollout.max_steps
    yield Derived(
        "questions",
        questions,
        "train.questions_per_iteration",
        f"{train.num_rollout_workers - questions} of {train.num_rollout_workers} rollout workers have no question"
        if questions < train.num_rollout_workers
        else "",
    )
    yield Derived("questions a worker", math.ceil(questions / train.num_rollout_workers), "questions / train.num_rollout_workers")
    turns = 1 if rollout.mode == "offline" else 2 * steps + 1
    yield Derived("turns of an episode", turns, "recorded turns" if turns == 1 else f"(plan + answer) x rollout.max_steps={steps} + final")
    groups = most_groups(rollout.mode, questions, steps)
    yield Derived("groups", groups, "questions x turns: states whose siblings are compared")
    yield Derived("samples", groups * group, f"groups x rollout.group_size={group}")
    kinds = {"plan": steps, "answer": steps, "final": 1}
    tokens = sum(rollout.longest(kind) * times for kind, times in kinds.items()) if turns > 1 else max(map(rollout.longest, kinds))
    yield Derived("sampled tokens", questions * group * tokens, "questions x rollout.group_size x the longest turn of each kind")


def _learned(config: TrainConfig) -> Iterator[Derived]:
    rollout, learner = config.rollout, config.learner
    groups = most_groups(rollout.mode, config.train.questions_per_iteration, rollout.max_steps)
    in_update = math.ceil(groups / learner.updates_per_iteration)
    yield Derived("updates", learner.updates_per_iteration, "learner.updates_per_iteration: optimizer steps")
    yield Derived("groups of an update", in_update, "groups / updates")
    yield Derived("learner ranks", learner.num_learners, "learner.num_learners")
    longest = max(map(rollout.longest, ("plan", "answer", "final")))
    row = rollout.max_prompt_tokens + rollout.group_size * (longest - 1)
    yield Derived("tokens of a row", row, "rollout.max_prompt_tokens + rollout.group_size x (rollout.max_new_tokens - 1)")
    yield Derived(
        "micro-batches of an update",
        micro_batches(math.ceil(in_update / learner.num_learners), rollout.max_prompt_tokens, longest, rollout.group_size, _room(config)),
        f"on each rank; rows cut to learner.tokens_per_micro_batch={_room(config)}",
    )
    yield Derived("updates in all", config.train.iterations * learner.updates_per_iteration, "train.iterations x updates")


def _held(config: TrainConfig) -> Iterator[Derived]:
    rollout, workers = config.rollout, config.train.num_rollout_workers
    yield Derived("responses side by side", workers * rollout.slots, "train.num_rollout_workers x rollout.slots")
    yield Derived("tokens in flight", workers * rollout.tokens_in_flight, "train.num_rollout_workers x rollout.tokens_in_flight")
    yield Derived("tokens with keys and values", workers * rollout.batch_tokens, "train.num_rollout_workers x rollout.batch_tokens")


def _room(config: TrainConfig) -> int:
    return config.learner.tokens_per_micro_batch


def micro_batches(groups: int, prompt: int, response: int, siblings: int, room: int) -> int:
    """How many micro-batches of `room` tokens so many groups of the longest prompts and responses take, as `learner.micro_batches` cuts them."""
    in_row = max(1, min(siblings, (room - prompt) // max(1, response - 1)))
    rows = groups * math.ceil(siblings / in_row)
    at_once = max(1, room // (prompt + in_row * (response - 1)))
    return max(1, math.ceil(rows / at_once))


def derived_table(config: TrainConfig) -> Table:
    table = Table(title="an iteration, at most", box=None, padding=(0, 2, 0, 0), title_justify="left", show_header=False)
    table.add_column("what", no_wrap=True)
    table.add_column("value", justify="right")
    table.add_column("why", style="dim")
    for number in derived(config):
        table.add_row(number.what, f"{number.value:,}", f"{number.why}{f'. NOTE: {number.note}' if number.note else ''}")
    return table

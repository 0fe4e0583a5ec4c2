"""How fast the learner learns: shared prefixes against padded rows, DeepSpeed against a bare loop.

Both sides of a ratio are measured in turn, in one run, with one thread per process. Peak memory is measured in a new process: its maximum
during one update, minus what it held before. `bench gpu` measures on a GPU.
"""

from __future__ import annotations

import multiprocessing
import os
import statistics
import timeit
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import torch
from torch.nn import functional as F

from experiments.benchmarks.bench_results import BenchResult
from experiments.benchmarks.fresh_process import MIB, forget_peak, free_port, in_fresh_process, peak, resident
from experiments.benchmarks.learner_turns import default_turns, rows_of, tokens_of, turns_of_lengths
from experiments.benchmarks.weights import weight_rows
from experiments.config import TrainConfig, find_policy
from experiments.worlds.cold_start_training import Example, response_logits
from learner.config import LearnerConfig
from learner.objective.batch_plan import cut, plan
from learner.objective.losses import loss_of
from learner.objective.sibling_packing import Row
from learner.objective.token_logprobs import Scorer, inputs_of, packed
from learner.ranks.learner_rank import LearnerRank, MiniBatch
from rollout.engines.transformers_engine import TransformersEngine
from rollout.policies import Policy, load_policy

CONFIG = LearnerConfig()
LOADS = {"turns of the default world": 3.0, "prompts of 512 tokens, responses of 32": 5.0}
"""Training data -> the speed that shared prefixes should reach, as a multiple of padded rows."""
GROUP = 8
SAME_UPDATE = 1e-4
"""Gradients of shared and padded rows may differ by this share of the norm."""


def learner_rows(quick: bool) -> Iterator[BenchResult]:
    torch.set_num_threads(1)
    os.environ["DS_ACCELERATOR"] = "cpu"  # for the processes that are forked
    multiprocessing.get_context("forkserver").set_forkserver_preload(["deepspeed", __name__])  # imported once, for all processes
    for load, bar in LOADS.items():
        yield from prefix_rows(load, bar, quick)
    found = in_fresh_process(engine_against_bare_loop, quick)
    name = "one update by the DeepSpeed engine, against a bare torch loop"
    yield BenchResult.of(name, found["engine"], "s", found["bare"], 1.15, at_most=True)
    yield from weight_rows(quick)


def rows_of_load(policy: Policy, load: str, quick: bool) -> list[Row]:
    if load == "turns of the default world":
        turns = default_turns(TransformersEngine(policy), 8 if quick else 16, GROUP)
    else:
        turns = turns_of_lengths(policy, 2 if quick else 8, GROUP, prompt=512, response=32)
    return rows_of(turns, CONFIG)


def prefix_rows(load: str, bar: float, quick: bool) -> Iterator[BenchResult]:
    policy = shipped_policy()
    rows = rows_of_load(policy, load, quick)
    samples = sum(len(row.responses) for row in rows)
    variants = {name: update_of(name, policy, rows) for name in ("shared", "padded")}
    gradients = {}
    for name, update in variants.items():
        update()
        gradients[name] = torch.cat([(torch.zeros_like(p) if p.grad is None else p.grad).flatten() for p in policy.model.parameters()])
    apart = float((gradients["shared"] - gradients["padded"]).norm() / gradients["padded"].norm())
    yield BenchResult.of(f"{load}: difference of the two gradients, of their norm", apart, "", bar=SAME_UPDATE, at_most=True)
    seconds = in_turn(variants, 2 if quick else 5)
    name = f"{load}: shared prefix, against one padded row a sample, group {GROUP}"
    yield BenchResult.of(name, samples / seconds["shared"], "samples/s", samples / seconds["padded"], bar)
    used = {name: in_fresh_process(memory_of, name, load, quick) / MIB for name in variants}
    yield BenchResult.of(f"{load}: peak memory, same samples in one pass", used["shared"], "MiB", used["padded"], 0.5, at_most=True)


def shipped_policy() -> Policy:
    return load_policy(find_policy(TrainConfig().train.policy))


def update_of(variant: str, policy: Policy, rows: Sequence[Row], tokens: int = CONFIG.tokens_per_micro_batch) -> Callable[[], None]:
    """Forward and backward over all rows, up to `tokens` in one pass, gradients added up in the parameters."""
    denominator = sum(row.weight for row in rows)
    batches = cut(rows, tokens) if variant == "shared" else padded_batches(one_sample_rows(rows), tokens)
    scorer = Scorer(policy)

    def update() -> None:
        policy.model.zero_grad()
        for batch in batches:
            if variant == "shared":
                logprobs, entropy = scorer(**inputs_of(packed(batch, policy), policy, policy.device))
            else:
                logprobs, entropy = padded_logprobs(policy, batch)
            loss_of(tokens_of(batch, logprobs, entropy), CONFIG, denominator)[0].backward()

    return update


def one_sample_rows(rows: Sequence[Row]) -> list[Row]:
    return [Row(row.prompt_ids, row.image, (response,)) for row in rows for response in row.responses]


def padded_batches(rows: Sequence[Row], tokens: int) -> list[list[Row]]:
    """Batches of one-sample rows, in order, each of at most `tokens` tokens, padding included."""
    batches: list[list[Row]] = []
    longest = 0
    for row in rows:
        length = len(row.prompt_ids) + len(row.responses[0].ids)
        longest = max(longest, length)
        if batches and longest * (len(batches[-1]) + 1) <= tokens:
            batches[-1].append(row)
        else:
            batches.append([row])
            longest = length
    return batches


def padded_logprobs(policy: Policy, rows: Sequence[Row]) -> tuple[torch.Tensor, torch.Tensor]:
    """Log-probs and entropies (tokens,) of the responses, in the order of the rows; the picture is encoded again for every row."""
    examples = [Example(row.prompt_ids, row.responses[0].ids, row.image, "") for row in rows]
    logits, targets, _ = response_logits(policy, examples)
    logprobs = F.log_softmax(logits.float(), -1)
    with torch.no_grad():
        entropy = -(logprobs.exp() * logprobs).sum(-1)
    return logprobs.gather(1, targets[:, None])[:, 0], entropy


def memory_of(variant: str, load: str, quick: bool) -> int:
    """Peak bytes that an update adds to weights and gradients; all samples of eight states in one pass."""
    torch.set_num_threads(1)
    policy = shipped_policy()
    rows = rows_of_load(policy, load, quick)
    rows = rows[:: max(1, len(rows) // 8)][:8]
    update_of(variant, policy, rows[:1])()
    before = resident()
    forget_peak()
    update_of(variant, policy, rows, tokens=10**9)()
    return peak() - before


def in_turn(variants: dict[str, Callable[[], Any]], times: int) -> dict[str, float]:
    """Median seconds of each variant, measured in turn, so that other load on the machine slows all of them."""
    rounds = [[timeit.timeit(run, number=1) for run in variants.values()] for _ in range(times)]
    return dict(zip(variants, map(statistics.median, zip(*rounds, strict=True)), strict=True))


def engine_against_bare_loop(quick: bool) -> dict[str, float]:
    """Seconds of one update of each, on the same micro-batches."""
    rank = LearnerRank(0, 1, CONFIG, find_policy(TrainConfig().train.policy))
    rank.connect("127.0.0.1", free_port())
    rank.build(CONFIG)
    policy = shipped_policy()
    rows = rows_of_load(policy, "turns of the default world", quick)
    batch = MiniBatch(plan(rows, 1, CONFIG.tokens_per_micro_batch)[0], sum(row.weight for row in rows), CONFIG.lr)
    scorer = Scorer(policy)
    optimizer = torch.optim.AdamW(scorer.parameters(), lr=CONFIG.lr, betas=CONFIG.betas, weight_decay=CONFIG.weight_decay)

    def bare() -> None:
        for rows in batch.micro_batches:
            logprobs, entropy = scorer(**inputs_of(packed(rows, policy), policy, policy.device))
            loss_of(tokens_of(rows, logprobs, entropy), CONFIG, batch.denominator)[0].backward()
        torch.nn.utils.clip_grad_norm_(scorer.parameters(), CONFIG.max_grad_norm)
        optimizer.step()
        optimizer.zero_grad()

    variants: dict[str, Callable[[], Any]] = {"engine": lambda: rank.update([batch]), "bare": bare}
    in_turn(variants, 1)
    return in_turn(variants, 3 if quick else 7)

"""How fast the learner learns: shared prefixes against padded rows, DeepSpeed against a bare loop, its stages, one process against two.

Ratios are taken within one run, one thread a process, the variants in turn. Memory is that of a process of its own: the most it held during one
update, less what it held before. What needs a GPU is in `learner_gpu.py`.
"""

from __future__ import annotations

import os
import shutil
import statistics
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import torch

from experiments.benchmarks.fresh_process import MIB, forget_peak, free_port, in_fresh_process, on_ranks, peak, preload, resident
from experiments.benchmarks.learner_gpu import gpu_rows
from experiments.benchmarks.learner_turns import default_turns, turns_of_lengths
from experiments.benchmarks.padded_rows import one_sample_rows, padded_batches, padded_logprobs
from experiments.benchmarks.row import Row
from experiments.benchmarks.weights import weight_rows
from experiments.config import TrainConfig, find_policy
from experiments.tiny_policy import tiny_policy
from learner.advantages import turn_advantages
from learner.config import LearnerConfig
from learner.micro_batches import Response, cut, plan
from learner.micro_batches import Row as PackedRow
from learner.mini_batches import deal
from learner.objective import Tokens, loss_of
from learner.scorer import Scorer, inputs_of, packed
from learner.worker import LearnerRank, MiniBatch
from rollout.policy import Policy

CONFIG = LearnerConfig()
LOADS = {"turns of the default world": 3.0, "prompts of 512 tokens, responses of 32": 5.0}
"""What is learned from -> the bar for the speed of shared prefixes."""
GROUP = 8
SAME_UPDATE = 1e-4
"""The two ways to compute a gradient may differ by this share of its norm."""


def learner_rows(quick: bool) -> Iterator[Row]:
    torch.set_num_threads(1)
    os.environ["DS_ACCELERATOR"] = "cpu"  # for the processes that are forked; the GPU is measured without DeepSpeed
    preload("deepspeed", __name__)
    for load, bar in LOADS.items():
        yield from prefix_rows(load, bar, quick)
    yield from engine_rows(quick)
    yield from stage_rows(quick)
    yield from weight_rows(quick)
    yield from gpu_rows(quick)


def rows_of_load(policy: Policy, load: str, quick: bool) -> list[PackedRow]:
    if load == "turns of the default world":
        turns = default_turns(policy, 8 if quick else 16, GROUP)
    else:
        turns = turns_of_lengths(policy, 2 if quick else 8, GROUP, prompt=512, response=32)
    return deal(turns, turn_advantages(turns, CONFIG), CONFIG, 0)[0]


def prefix_rows(load: str, bar: float, quick: bool) -> Iterator[Row]:
    policy = shipped_policy()
    rows = rows_of_load(policy, load, quick)
    samples = sum(len(row.responses) for row in rows)
    variants = {name: update_of(name, policy, rows) for name in ("shared", "padded")}
    gradients = {}
    for name, update in variants.items():
        update()
        gradients[name] = torch.cat([(torch.zeros_like(p) if p.grad is None else p.grad).flatten() for p in policy.model.parameters()])
    apart = float((gradients["shared"] - gradients["padded"]).norm() / gradients["padded"].norm())
    if not apart < SAME_UPDATE:
        raise AssertionError(
            f"{load}: gradients with and without shared prefixes differ by {apart:.2g} of their norm; expected {SAME_UPDATE}"
        )
    yield Row.of(f"{load}: difference of the two gradients, of their norm", apart, "", bar=SAME_UPDATE, at_most=True)
    seconds = in_turn(variants, 2 if quick else 5)
    yield Row.of(
        f"{load}: shared prefix, against one padded row a sample, group {GROUP}",
        samples / seconds["shared"],
        "samples/s",
        samples / seconds["padded"],
        bar,
    )
    used = {name: in_fresh_process(memory_of, name, load, quick) / MIB for name in variants}
    yield Row.of(f"{load}: peak memory, same samples in one pass", used["shared"], "MiB", used["padded"], 0.5, at_most=True)


def shipped_policy() -> Policy:
    return Policy.load(find_policy(TrainConfig().train.policy))


def update_of(variant: str, policy: Policy, rows: Sequence[PackedRow], in_one_pass: bool = False) -> Callable[[], None]:
    """Forward and backward over all rows, gradients added up in the parameters."""
    tokens = 10**9 if in_one_pass else CONFIG.tokens_per_micro_batch
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


def tokens_of(rows: Sequence[PackedRow], logprobs: torch.Tensor, entropy: torch.Tensor) -> Tokens:
    responses = [response for row in rows for response in row.responses]
    lengths = torch.tensor([len(response.ids) for response in responses])

    def spread(value: Callable[[Response], float]) -> torch.Tensor:
        return torch.tensor([value(response) for response in responses]).repeat_interleave(lengths).to(logprobs.device)

    return Tokens(
        logprobs=logprobs,
        entropy=entropy,
        sampler_logprobs=torch.cat([torch.from_numpy(response.logprobs) for response in responses]).to(logprobs.device),
        advantages=spread(lambda response: response.advantage),
        weights=spread(lambda response: response.weight),
        turn=torch.arange(len(responses)).repeat_interleave(lengths).to(logprobs.device),
    )


def memory_of(variant: str, load: str, quick: bool) -> int:
    """Bytes that an update takes beyond weights and gradients, which lie there before; all samples of eight states in one pass."""
    torch.set_num_threads(1)
    policy = shipped_policy()
    rows = rows_of_load(policy, load, quick)
    rows = rows[:: max(1, len(rows) // 8)][:8]
    update_of(variant, policy, rows[:1])()
    before = resident()
    forget_peak()
    update_of(variant, policy, rows, in_one_pass=True)()
    return peak() - before


def in_turn(variants: dict[str, Callable[[], Any]], times: int) -> dict[str, float]:
    """Median seconds of each, measured one after the other, so that what else the machine does falls on all."""
    seconds: dict[str, list[float]] = {name: [] for name in variants}
    for _ in range(times):
        for name, run in variants.items():
            begin = time.perf_counter()
            run()
            seconds[name].append(time.perf_counter() - begin)
    return {name: statistics.median(found) for name, found in seconds.items()}


def engine_rows(quick: bool) -> Iterator[Row]:
    found = in_fresh_process(engine_against_bare_loop, quick)
    yield Row.of("one update by the DeepSpeed engine, against a bare torch loop", found["engine"], "s", found["bare"], 1.15, at_most=True)
    path = find_policy(TrainConfig().train.policy)
    one, two = (ranks_on(path, LearnerConfig(num_learners=ranks), quick)[0] for ranks in (1, 2))
    yield Row.of("two ranks, against one, a core each", 1 / two["seconds"], "updates/s", 1 / one["seconds"])


def stage_rows(quick: bool) -> Iterator[Row]:
    """With weights that are large beside the activations, random as they are."""
    folder = tempfile.mkdtemp(prefix="bench-learner-")
    width, layers = (256, 4) if quick else (512, 8)
    try:
        tiny_policy(shipped_policy().tokenizer, hidden=width, layers=layers, heads=width // 32).save(folder)
        base: dict[str, float] = {}
        for stage in (0, 3) if quick else range(4):
            found = ranks_on(folder, LearnerConfig(num_learners=2, zero_stage=stage), quick, load="prompts of 512 tokens, responses of 32")
            measured = {"seconds": max(rank["seconds"] for rank in found), "bytes": max(rank["bytes"] for rank in found)}
            base = base or measured
            yield Row.of(f"ZeRO {stage}, 2 ranks, {width} x {layers}: an update", measured["seconds"], "s", base["seconds"])
            yield Row.of(
                f"ZeRO {stage}, 2 ranks, {width} x {layers}: memory of a rank", measured["bytes"] / MIB, "MiB", base["bytes"] / MIB
            )
    finally:
        shutil.rmtree(folder)


def mini_batch(rows: Sequence[PackedRow], rank: int, ranks: int) -> MiniBatch:
    return MiniBatch(plan(rows, ranks, CONFIG.tokens_per_micro_batch)[rank], sum(row.weight for row in rows), CONFIG.lr)


def engine_against_bare_loop(quick: bool) -> dict[str, float]:
    """Seconds of one update of each, on the same micro-batches."""
    rank = LearnerRank(0, 1, CONFIG, find_policy(TrainConfig().train.policy))
    rank.connect("127.0.0.1", free_port())
    rank.build(CONFIG)
    policy = shipped_policy()
    rows = rows_of_load(policy, "turns of the default world", quick)
    batch = mini_batch(rows, 0, 1)
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


def ranks_on(path: str, config: LearnerConfig, quick: bool, load: str = "turns of the default world") -> list[dict[str, float]]:
    port = free_port()
    return on_ranks(rank_of_several, [(rank, port, path, config, quick, load) for rank in range(config.num_learners)])


def rank_of_several(rank: int, port: int, path: str, config: LearnerConfig, quick: bool, load: str) -> dict[str, float]:
    """Median `seconds` of an update, and the most `bytes` that it held beyond what a process with its libraries does."""
    rows = rows_of_load(shipped_policy(), load, quick)
    learner = LearnerRank(rank, config.num_learners, config, path)
    learner.connect("127.0.0.1", port)
    before = resident()
    learner.build(config)
    forget_peak()
    batch = mini_batch(rows, rank, config.num_learners)
    learner.update([batch])
    seconds = [learner.update([batch])[0]["seconds"] for _ in range(2 if quick else 4)]
    return {"seconds": statistics.median(seconds), "bytes": peak() - before}

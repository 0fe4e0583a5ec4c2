"""Whether engine and learner compute on this device what the library's plain forward pass computes, and flex attention what sdpa computes.

In bfloat16 everything is compared with float32 on the same weights, beside the library's own distance from it.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import numpy as np
import torch

from experiments.benchmarks.bench_results import BenchResult
from experiments.benchmarks.gpu_device import Bench
from experiments.benchmarks.learner_turns import default_turns, rows_of, tokens_of, turns_of_lengths
from experiments.config import TrainConfig, find_policy
from learner.config import LearnerConfig
from learner.objective.batch_plan import cut
from learner.objective.losses import loss_of
from learner.objective.sibling_packing import Row
from learner.objective.token_logprobs import Scorer, inputs_of, packed
from rollout.engines.transformers_engine import TransformersEngine
from rollout.policies import Policy, load_policy
from rollout.records import Image
from rollout.weight_buckets import copy_into

CONFIG = LearnerConfig()
QUESTIONS, SIBLINGS = 8, 2
BARS = {"float32": 1e-4, "bfloat16": 2.0}
"""At most: nats, or share of the gradient's norm; in bfloat16 a multiple of the library's own distance."""


def parity_rows(bench: Bench, dtype: str) -> Iterator[BenchResult]:
    """The shipped policy samples whole episodes; then it learns from them, the engine gets the new weights, and samples again."""
    exact, sampling, learning = (shipped_policy(bench, kind) for kind in ("float32", dtype, dtype))
    engine, scorer = TransformersEngine(sampling), Scorer(learning)
    optimizer = torch.optim.AdamW(scorer.parameters(), lr=1e-3)
    for version, when in enumerate(("", ", after an update")):
        weights = dict(learning.model.named_parameters())
        engine.update_weights(version, weights)
        copy_into(exact.model, weights)
        batches = cut(rows_of(default_turns(engine, QUESTIONS, SIBLINGS, seed=version), CONFIG), CONFIG.tokens_per_micro_batch)
        responses = [(row, response) for batch in batches for row in batch for response in row.responses]
        expected, theirs = (
            np.concatenate([plain_logprobs(policy, row.prompt_ids, row.image, response.ids) for row, response in responses])
            for policy in (exact, learning)
        )
        found = {"engine": np.concatenate([response.logprobs for _, response in responses])}
        found["learner"] = scored(scorer, batches, "auto")[0]
        optimizer.step()
        pictured = np.concatenate([np.full(len(response.ids), row.image is not None) for row, response in responses])
        for who, logprobs in found.items():
            for what, here in (("text", ~pictured), ("pictures", pictured)):
                name = f"log-probs of the {who} vs a plain forward, {what}{when}"
                yield compared(name, "nats", dtype, *(apart(part[here], expected[here], dtype) for part in (logprobs, theirs)))


def attention_rows(bench: Bench, dtype: str) -> Iterator[BenchResult]:
    exact, learning = shipped_policy(bench, "float32"), shipped_policy(bench, dtype)
    copy_into(exact.model, dict(learning.model.named_parameters()))
    batches = cut(rows_of(turns_of_lengths(learning, 4, 8, *bench.sizes.row), CONFIG), CONFIG.tokens_per_micro_batch)
    expected, gradient = scored(Scorer(exact), batches, "sdpa")
    scorer = Scorer(learning)
    theirs, their_gradient = scored(scorer, batches, "sdpa")
    flex, _ = scored(scorer, batches, "flex", backward=False)
    _, flex_gradient = scored(scorer, batches, "flex" if bench.device.type == "cuda" else "sdpa")  # flex has no backward pass on CPUs
    distances = (apart(part, expected, dtype) for part in (flex, theirs))
    yield compared("log-probs vs sdpa", "nats", dtype, *distances)
    shares = (float((part - gradient).norm() / gradient.norm()) for part in (flex_gradient, their_gradient))
    yield compared("gradients vs sdpa, of their norm", "", dtype, *shares)


def compared(name: str, unit: str, dtype: str, ours: float, theirs: float) -> BenchResult:
    return BenchResult.of(name, ours, unit, None if dtype == "float32" else theirs, BARS[dtype], at_most=True)


def apart(found: np.ndarray, expected: np.ndarray, dtype: str) -> float:
    """The largest difference in float32, the mean one in bfloat16."""
    return float((np.max if dtype == "float32" else np.mean)(np.abs(found - expected)))


def shipped_policy(bench: Bench, dtype: str) -> Policy:
    return load_policy(find_policy(TrainConfig().train.policy), dtype=dtype, device=str(bench.device))


def plain_logprobs(policy: Policy, prompt_ids: np.ndarray, image: Image | None, response_ids: np.ndarray) -> np.ndarray:
    """(tokens,) float32, nats, of a response by the library's own forward pass."""
    ids = torch.from_numpy(np.concatenate([prompt_ids, response_ids]).astype(np.int64))[None].to(policy.device)
    pictured = policy.pictured(ids, [image] if image else [])
    with torch.inference_mode():
        logits = policy.model(input_ids=ids, **pictured).logits[0, len(prompt_ids) - 1 : -1].float()
        return logits.log_softmax(-1).gather(1, ids[0, len(prompt_ids) :, None])[:, 0].cpu().numpy()


def scored(scorer: Scorer, batches: Sequence[Sequence[Row]], attention: str, backward: bool = True) -> tuple[np.ndarray, torch.Tensor]:
    """Log-probs (tokens,) of all responses, in order, and the gradient of the loss, which also stays in the parameters."""
    policy, found = scorer.policy, []
    scorer.zero_grad()
    with torch.set_grad_enabled(backward):
        for batch in batches:
            logprobs, entropy = scorer(**inputs_of(packed(batch, policy), policy, policy.device, attention))
            found.append(logprobs.detach().cpu().numpy())
            if backward:
                loss_of(tokens_of(batch, logprobs, entropy), CONFIG, sum(row.weight for row in batch))[0].backward()
    gradient = torch.cat([(torch.zeros_like(p) if p.grad is None else p.grad).float().flatten() for p in scorer.parameters()])
    return np.concatenate(found), gradient

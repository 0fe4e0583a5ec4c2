"""The loss of one micro-batch, put together from `losses.py` as the configuration says."""

from __future__ import annotations

from dataclasses import dataclass

import torch

from learner.config import LearnerConfig
from learner.losses import kl_to_reference, mean_by, mismatch_metrics, policy_loss, sampler_correction, shared_log_ratio


@dataclass(frozen=True)
class Tokens:
    """The sampled tokens of one micro-batch; prompts and retrieved text are not among them. All are (tokens,), log-probs in nats."""

    logprobs: torch.Tensor
    """Of the policy that is being updated, with gradient."""
    entropy: torch.Tensor
    """Of the distribution that the token was drawn from; with gradient where there is a bonus for it."""
    sampler_logprobs: torch.Tensor
    """Of the policy version that drew the token, as the sampler computed them."""
    advantages: torch.Tensor
    weights: torch.Tensor
    turn: torch.Tensor
    """int64: number of the turn it belongs to, within the micro-batch."""
    learner_logprobs: torch.Tensor | None = None
    """Of the same version, as the learner computes them before the update; None: the mini-batch is the first, so they are `logprobs`."""
    reference_logprobs: torch.Tensor | None = None
    """Of the frozen reference; None without a KL term in the loss."""
    sequence_log_ratio: torch.Tensor | None = None
    """`ratio=sequence`: mean log-ratio over all tokens of the episode, wherever its turns were packed."""


def loss_of(tokens: Tokens, config: LearnerConfig, denominator: float) -> tuple[torch.Tensor, dict[str, torch.Tensor]]:
    """Surrogate + kl_weight * KL - entropy_weight * entropy, each weighed over the same tokens and divided by the same denominator.

    Returns the loss and its metrics (sums over tokens, maxima as named in `losses.MAXIMA`), without gradient.
    """
    learner = tokens.logprobs.detach() if tokens.learner_logprobs is None else tokens.learner_logprobs
    old = learner if config.sampler_cap else tokens.sampler_logprobs
    correction = sampler_correction(learner, tokens.sampler_logprobs, config.sampler_cap) if config.sampler_cap else None
    loss, metrics = policy_loss(
        tokens.logprobs,
        old,
        tokens.advantages,
        tokens.weights,
        denominator=denominator,
        clip_low=config.clip_low,
        clip_high=config.clip_high,
        dual_clip=config.dual_clip,
        surrogate=config.surrogate,
        log_ratio=_log_ratio(tokens, old, config.ratio),
        correction=correction,
    )
    metrics |= mismatch_metrics(learner, tokens.sampler_logprobs)
    if correction is not None:
        metrics["correction"] = correction.sum()
    metrics["entropy"] = tokens.entropy.detach().sum()
    if config.entropy_weight:
        loss = loss - config.entropy_weight * (tokens.weights * tokens.entropy).sum() / denominator
    if tokens.reference_logprobs is not None:
        kl, kl_metrics = kl_to_reference(
            tokens.logprobs, tokens.reference_logprobs, tokens.weights, denominator=denominator, estimator=config.kl_estimator
        )
        loss, metrics = loss + config.kl_weight * kl, metrics | kl_metrics
    return loss, metrics


def _log_ratio(tokens: Tokens, old: torch.Tensor, level: str) -> torch.Tensor | None:
    """None: that of each token, which is what `policy_loss` takes by itself."""
    if level == "token":
        return None
    if level == "turn":
        return shared_log_ratio(tokens.logprobs, mean_by((tokens.logprobs - old).detach(), tokens.turn))
    assert tokens.sequence_log_ratio is not None
    return shared_log_ratio(tokens.logprobs, tokens.sequence_log_ratio)

"""The objective: a clipped policy gradient over tokens, with an optional pull towards a reference policy.

Only torch here. Sums are divided by a denominator that is passed in, not by what happens to be in the batch: however a mini-batch is cut into
micro-batches and ranks, the gradients of the pieces add up to the gradient of the whole.
"""

from __future__ import annotations

import torch

MAXIMA = ("ratio_max", "mismatch_max")
"""Metrics that are combined by their maximum; all others are sums over tokens."""


def policy_loss(
    logprobs: torch.Tensor,
    old_logprobs: torch.Tensor,
    advantages: torch.Tensor,
    weights: torch.Tensor,
    *,
    denominator: float,
    clip_low: float,
    clip_high: float,
) -> tuple[torch.Tensor, dict[str, torch.Tensor]]:
    """The clipped surrogate of PPO (arXiv 1707.06347, equation 7) in its token-level form of GRPO (arXiv 2402.03300, equation 3).

    With r = exp(logprobs - old_logprobs): loss = -sum(weights * min(r * A, clip(r, 1 - clip_low, 1 + clip_high) * A)) / denominator.

    All tensors are (tokens,) float32; log-probs in nats, `old_logprobs` from the policy version that sampled the tokens. `denominator` is
    the sum of the weights of all tokens of the mini-batch, over all micro-batches and ranks.
    Returns the loss and its metrics (sums over tokens, maxima as named in `MAXIMA`), without gradient.
    """
    difference = logprobs - old_logprobs
    ratio = difference.exp()
    clipped = ratio.clamp(1 - clip_low, 1 + clip_high)
    surrogate = torch.minimum(ratio * advantages, clipped * advantages)
    with torch.no_grad():
        mismatch = difference.abs()
        metrics = {
            "tokens": logprobs.new_tensor(float(logprobs.numel())),
            "ratio": ratio.sum(),
            "clip_fraction": (clipped * advantages < ratio * advantages).float().sum(),
            "mismatch": mismatch.sum(),
            "ratio_max": _maximum(ratio),
            "mismatch_max": _maximum(mismatch),
        }
    return -(weights * surrogate).sum() / denominator, metrics


def kl_to_reference(
    logprobs: torch.Tensor, reference_logprobs: torch.Tensor, weights: torch.Tensor, *, denominator: float
) -> tuple[torch.Tensor, dict[str, torch.Tensor]]:
    """GRPO's estimate of the KL divergence to the reference policy (arXiv 2402.03300, equation 4; "k3").

    It is exp(d) - d - 1 with d = reference_logprobs - logprobs: never negative for any token, and on tokens that the policy sampled its
    mean is the divergence. Tensors as in `policy_loss`.
    """
    difference = reference_logprobs - logprobs
    estimate = difference.exp() - difference - 1
    return (weights * estimate).sum() / denominator, {"kl": estimate.detach().sum()}


def _maximum(values: torch.Tensor) -> torch.Tensor:
    return values.max() if values.numel() else values.new_zeros(())

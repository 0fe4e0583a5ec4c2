"""The objective: a clipped policy gradient over tokens, with an optional pull towards a reference policy.

Only torch here. Sums are divided by a denominator that is passed in, not by what happens to be in the batch: however a mini-batch is cut into
micro-batches and ranks, the gradients of the pieces add up to the gradient of the whole. `objective.py` puts the pieces together as the
configuration says.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping

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
    dual_clip: float = 0.0,
    surrogate: str = "clip",
    log_ratio: torch.Tensor | None = None,
    correction: torch.Tensor | None = None,
) -> tuple[torch.Tensor, dict[str, torch.Tensor]]:
    """The clipped surrogate of PPO (arXiv 1707.06347, equation 7) in its token-level form of GRPO (arXiv 2402.03300, equation 3).

    With r = exp(logprobs - old_logprobs): loss = -sum(weights * min(r * A, clip(r, 1 - clip_low, 1 + clip_high) * A)) / denominator.

    Options: clip_high > clip_low (clip-higher: DAPO, arXiv 2503.14476, equation 10); `dual_clip`; `surrogate` (see `SURROGATES`); `log_ratio` (the
    logarithm of r, where it is not that of each token: `shared_log_ratio`); `correction` (weights without gradient: `sampler_correction`).

    All tensors are (tokens,) float32; log-probs in nats, `old_logprobs` from the policy version that sampled the tokens. `denominator` is
    the sum of the weights of all tokens of the mini-batch, over all micro-batches and ranks.
    Returns the loss and its metrics (sums over tokens, maxima as named in `MAXIMA`), without gradient.
    """
    difference = logprobs - old_logprobs
    ratio = (difference if log_ratio is None else log_ratio).exp()
    clipped = ratio.clamp(1 - clip_low, 1 + clip_high)
    gained = SURROGATES[surrogate](logprobs, ratio, clipped, advantages, dual_clip)
    if correction is not None:
        gained = gained * correction
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
    return -(weights * gained).sum() / denominator, metrics


def clipped_surrogate(
    logprobs: torch.Tensor, ratio: torch.Tensor, clipped: torch.Tensor, advantages: torch.Tensor, dual_clip: float
) -> torch.Tensor:
    """min(r * A, clip(r) * A). With `dual_clip` = c > 1 it is at least c * A where A < 0: a token that was likely once and got a bad reward later
    cannot dominate the batch (dual-clip PPO, Ye et al. 2020, arXiv 1912.09729)."""
    surrogate = torch.minimum(ratio * advantages, clipped * advantages)
    if dual_clip:
        surrogate = torch.where(advantages < 0, torch.maximum(surrogate, dual_clip * advantages), surrogate)
    return surrogate


def cispo(logprobs: torch.Tensor, ratio: torch.Tensor, clipped: torch.Tensor, advantages: torch.Tensor, dual_clip: float) -> torch.Tensor:
    """clip(r) * A * log-prob, with no gradient through clip(r): no token falls out of the gradient, its weight is bounded instead. CISPO of
    MiniMax-M1 (arXiv 2506.13585, equations 4 and 5), which has no lower bound: `clip_low=1`."""
    return clipped.detach() * advantages * logprobs


SURROGATES: Mapping[str, Callable[..., torch.Tensor]] = {"clip": clipped_surrogate, "cispo": cispo}


def shared_log_ratio(logprobs: torch.Tensor, mean_log_ratio: torch.Tensor) -> torch.Tensor:
    """One ratio for all tokens of a turn or a sequence, in GSPO's token form (Zheng et al. 2025, arXiv 2507.18071, equation 14).

    Its value is exp(mean_log_ratio), the geometric mean of the token ratios (equation 7), and its gradient with respect to the log-prob of a token
    goes to that token alone. Where the tokens of a unit weigh the same, the gradient is that of GSPO's sequence form (equation 5).
    mean_log_ratio: (tokens,) nats, of the unit that each token belongs to.
    """
    return mean_log_ratio.detach() + (logprobs - logprobs.detach())


def mean_by(values: torch.Tensor, unit: torch.Tensor) -> torch.Tensor:
    """(tokens,): the mean over all tokens of the same unit. unit: (tokens,) int64."""
    total, count = sums_by(values, unit, int(unit.max()) + 1 if unit.numel() else 0)
    return (total / count.clamp(min=1))[unit]


def sums_by(values: torch.Tensor, unit: torch.Tensor, units: int) -> torch.Tensor:
    """(2, units): sum of the values of each unit, and how many there are. Such tables add up over micro-batches and ranks."""
    table = values.new_zeros(2, units)
    return table.index_add(1, unit, torch.stack([values, torch.ones_like(values)]))


def sampler_correction(learner_logprobs: torch.Tensor, sampler_logprobs: torch.Tensor, cap: float) -> torch.Tensor:
    """(tokens,): min(cap, probability under the learner before the update / under the sampler), without gradient.

    Sampler and learner hold the same weights but run other kernels, so tokens are slightly off-policy. Truncated importance sampling (Ionides
    2008) at the token level, as in Yao et al. 2025, "Your efficient RL framework secretly brings you off-policy RL training".
    """
    return (learner_logprobs - sampler_logprobs).detach().exp().clamp(max=cap)


def mismatch_metrics(learner_logprobs: torch.Tensor, sampler_logprobs: torch.Tensor) -> dict[str, torch.Tensor]:
    """How far learner and sampler are apart on the tokens that the sampler drew: sum and maximum of |difference|, sum of k3 (which estimates
    KL(sampler || learner)), in nats."""
    difference = (learner_logprobs - sampler_logprobs).detach()
    return {
        "mismatch": difference.abs().sum(),
        "mismatch_max": _maximum(difference.abs()),
        "mismatch_k3": (difference.exp() - 1 - difference).sum(),
    }


def kl_estimate(logprobs: torch.Tensor, reference_logprobs: torch.Tensor, estimator: str = "k3") -> torch.Tensor:
    """(tokens,): estimates of KL(policy || reference) on tokens that the policy sampled, after Schulman 2020, "Approximating KL divergence".

    With d = reference_logprobs - logprobs: k1 = -d, unbiased, of any sign; k2 = d^2 / 2, never negative, biased, and its gradient in the loss is
    that of k1 in the reward; k3 = exp(d) - d - 1, never negative and unbiased: GRPO's (arXiv 2402.03300, equation 4).
    """
    difference = reference_logprobs - logprobs
    if estimator == "k1":
        return -difference
    if estimator == "k2":
        return difference.square() / 2
    return difference.exp() - difference - 1


def kl_to_reference(
    logprobs: torch.Tensor, reference_logprobs: torch.Tensor, weights: torch.Tensor, *, denominator: float, estimator: str = "k3"
) -> tuple[torch.Tensor, dict[str, torch.Tensor]]:
    """The KL divergence to the reference policy as a term of the loss. Tensors and denominator as in `policy_loss`."""
    estimate = kl_estimate(logprobs, reference_logprobs, estimator)
    return (weights * estimate).sum() / denominator, {"kl": estimate.detach().sum()}


def _maximum(values: torch.Tensor) -> torch.Tensor:
    return values.max() if values.numel() else values.new_zeros(())

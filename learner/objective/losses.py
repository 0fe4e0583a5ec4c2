"""The loss: clipped policy gradient, entropy bonus, KL divergence. Its denominator is passed in, so gradients of micro-batches and ranks add up."""

from dataclasses import dataclass

import torch

from learner.config import LearnerConfig

MAXIMA = ("ratio_max", "mismatch_max")  # metrics that are combined by their maximum; all others are sums over tokens


@dataclass(frozen=True)
class Tokens:
    """The sampled tokens of one micro-batch; prompts and retrieved text are not among them. All are (tokens,), log-probs in nats."""

    logprobs: torch.Tensor  # of the policy that is being updated, with gradient
    entropy: torch.Tensor  # of the distribution that the token was drawn from; with gradient if `entropy_weight` is not 0
    sampler_logprobs: torch.Tensor  # of the policy version that drew the token, as the sampler computed them
    advantages: torch.Tensor
    weights: torch.Tensor
    turn: torch.Tensor  # int64: number within the micro-batch
    learner_logprobs: torch.Tensor | None = None  # of the same version, as the learner computes them before the update; None: `logprobs`
    reference_logprobs: torch.Tensor | None = None
    sequence_log_ratio: torch.Tensor | None = None  # `ratio=sequence`: mean over all tokens of the episode, wherever they were packed


def loss_of(tokens: Tokens, config: LearnerConfig, denominator: float) -> tuple[torch.Tensor, dict[str, torch.Tensor]]:
    """The clipped surrogate of PPO (arXiv 1707.06347, equation 7) in the token form of GRPO (arXiv 2402.03300, equation 3):
        -sum(weights * min(r * A, clip(r, 1 - clip_low, 1 + clip_high) * A)) / denominator,   r = exp(logprobs - old logprobs)
    + kl_weight * KL - entropy_weight * entropy, with the same weights and denominator. clip_high > clip_low is DAPO's (arXiv 2503.14476,
    equation 10). Returns the loss and its metrics (sums over tokens, maxima as named in `MAXIMA`), without gradient.
    `surrogate=dppo`: -sum(weights * M * r * A) / denominator (arXiv 2602.04879, equation 12), with M = 0 for tokens `outside_trust_region`."""
    learner = tokens.logprobs.detach() if tokens.learner_logprobs is None else tokens.learner_logprobs
    old = tokens.sampler_logprobs if config.sampler_correction == "none" else learner
    advantages, weights = tokens.advantages, tokens.weights
    ratio = _log_ratio(tokens, old, config.ratio).exp()
    clipped = ratio.clamp(1 - config.clip_low, 1 + config.clip_high)
    held = (clipped * advantages < ratio * advantages).detach()  # no gradient, or a bounded one
    if config.surrogate == "clip":
        gained = torch.minimum(ratio * advantages, clipped * advantages)
    elif config.surrogate == "cispo":  # MiniMax-M1 (arXiv 2506.13585, equations 4 and 5), with clip_low=1: no gradient through the ratio
        gained = clipped.detach() * advantages * tokens.logprobs
    else:
        held = outside_trust_region(tokens.logprobs.detach(), tokens.sampler_logprobs, advantages, config.clip_low, config.clip_high)
        gained = torch.where(held, 0.0, ratio * advantages)
    difference = (learner - tokens.sampler_logprobs).detach()
    with torch.no_grad():
        metrics = {
            "mismatch": difference.abs().sum(),
            "mismatch_max": _maximum(difference.abs()),
            "mismatch_k3": (difference.exp() - 1 - difference).sum(),  # estimates KL(sampler || learner)
            "mismatch_tv": (learner.exp() - tokens.sampler_logprobs.exp()).abs().sum(),  # of probabilities: DPPO's binary total variation
            "tokens": ratio.new_tensor(float(ratio.numel())),
            "ratio": ratio.sum(),
            "ratio_max": _maximum(ratio),
            "clip_fraction": held.float().sum(),
            "entropy": tokens.entropy.sum(),
        }
    if config.sampler_correction != "none":
        correction = sampler_weights(difference.exp(), config)
        gained = gained * correction
        metrics |= {"correction": correction.sum(), "corrected_tokens": (correction != difference.exp()).float().sum()}
    loss = -(weights * gained).sum() / denominator
    if config.entropy_weight:
        loss = loss - config.entropy_weight * (weights * tokens.entropy).sum() / denominator
    if tokens.reference_logprobs is not None:
        estimate = kl_estimate(tokens.logprobs, tokens.reference_logprobs, config.kl_estimator)
        loss, metrics["kl"] = loss + config.kl_weight * ((weights * estimate).sum() / denominator), estimate.detach().sum()
    return loss, metrics


def sampler_weights(q: torch.Tensor, config: LearnerConfig) -> torch.Tensor:
    """(tokens,): weights for tokens that the sampler drew, where q = learner's probability / sampler's, both before the update.
    `truncate`: min(q, sampler_high): truncated importance sampling (Ionides 2008; for engines that differ: Yao et al. 2025).
    `mask`: q within [sampler_low, sampler_high], else 0: IcePop (Ling Team 2025, arXiv 2510.18855, equations 1 and 2)."""
    if config.sampler_correction == "truncate":
        return q.clamp(max=config.sampler_high)
    return torch.where((q >= config.sampler_low) & (q <= config.sampler_high), q, 0.0)


def outside_trust_region(
    logprobs: torch.Tensor, sampler_logprobs: torch.Tensor, advantages: torch.Tensor, fall: float, rise: float
) -> torch.Tensor:
    """(tokens,) bool: DPPO's mask (Qi et al. 2026, arXiv 2602.04879, equation 12) by binary total variation (equation 13): tokens whose update
    would push further away from the sampler's policy p_s: p > p_s + rise and A > 0, or p < p_s - fall and A < 0. In the paper rise = fall."""
    moved = logprobs.exp() - sampler_logprobs.exp()
    return ((advantages > 0) & (moved > rise)) | ((advantages < 0) & (moved < -fall))


@dataclass(frozen=True)
class RouteTokens:
    """The names of all knowledge bases behind each prefix of one micro-batch, at temperature 1 over the whole vocabulary. As in `MicroBatch`."""

    logprobs: torch.Tensor  # (route tokens,) with gradient
    route: torch.Tensor
    turn: torch.Tensor
    rewards: torch.Tensor
    weights: torch.Tensor


def route_loss(routes: RouteTokens, denominator: float, temperature: float = 0.0) -> tuple[torch.Tensor, dict[str, torch.Tensor]]:
    """-sum(weights * expected reward) / denominator, where the expectation is over the knowledge bases of a turn: sum_k p_k R_k, with p_k the
    probability of name k, divided by that of all names. Its gradient is exact: sum_k p_k (R_k - expected reward) grad log p_k; nothing is sampled,
    so there is no ratio and no clipping (all-action policy gradient: Petit et al. 2019, arXiv 1910.09093). It vanishes with p_k.
    `temperature` T above 0: T sum_k q_k log p_k in place of the expectation, with the constant q_k ~ p_k exp(R_k / T): the steps of MPO
    (Abdolmaleki et al. 2018, arXiv 1806.06920), of which the first is exact here. The gradient of logit k is T (q_k - p_k): as before for a large
    T; for a small one it stays where p_k vanishes and name k is right. Metrics are sums over turns."""
    turns = len(routes.weights)
    names = routes.logprobs.new_zeros(len(routes.rewards)).index_add(0, routes.route, routes.logprobs)
    log_p = _log_softmax(names, routes.turn, turns)
    p = log_p.exp()
    gained = p * routes.rewards
    if temperature:
        q = _log_softmax(log_p.detach() + routes.rewards / temperature, routes.turn, turns).exp()
        gained = temperature * q * log_p
    expected = names.new_zeros(turns).index_add(0, routes.turn, gained)
    with torch.no_grad():
        best = routes.rewards.new_full((turns,), -torch.inf).scatter_reduce(0, routes.turn, routes.rewards, "amax")
        metrics = {
            "routes": p.new_tensor(float(turns)),
            "best_route_probability": p[routes.rewards == best[routes.turn]].sum(),
            "route_entropy": torch.special.entr(p).sum(),
        }
    return -(routes.weights * expected).sum() / denominator, metrics


def _log_softmax(values: torch.Tensor, turn: torch.Tensor, turns: int) -> torch.Tensor:
    """As `log_softmax`, over the values of each turn."""
    top = values.detach().new_full((turns,), -torch.inf).scatter_reduce(0, turn, values.detach(), "amax")
    shifted = values - top[turn]
    return shifted - values.new_zeros(turns).index_add(0, turn, shifted.exp()).log()[turn]


def _log_ratio(tokens: Tokens, old: torch.Tensor, level: str) -> torch.Tensor:
    """`turn`, `sequence`: mean over the unit, with each token's own gradient: GSPO's token form (arXiv 2507.18071, equation 14)."""
    if level == "token":
        return tokens.logprobs - old
    mean = tokens.sequence_log_ratio
    if level == "turn":
        total, count = sums_by((tokens.logprobs - old).detach(), tokens.turn, int(tokens.turn.max()) + 1 if tokens.turn.numel() else 0)
        mean = (total / count.clamp(min=1))[tokens.turn]
    assert mean is not None
    return mean.detach() + (tokens.logprobs - tokens.logprobs.detach())


def sums_by(values: torch.Tensor, unit: torch.Tensor, units: int) -> torch.Tensor:
    """(2, units): sum of the values of each unit, and how many there are. Such tables add up over micro-batches and ranks."""
    return values.new_zeros(2, units).index_add(1, unit, torch.stack([values, torch.ones_like(values)]))


def kl_estimate(logprobs: torch.Tensor, reference_logprobs: torch.Tensor, estimator: str = "k3") -> torch.Tensor:
    """(tokens,): estimates of KL(policy || reference) on sampled tokens (Schulman 2020, "Approximating KL divergence"); d = reference - logprobs:
    k1 = -d, unbiased; k2 = d^2 / 2, biased, with the true gradient; k3 = exp(d) - d - 1, unbiased, never negative: GRPO's (2402.03300, eq. 4)."""
    difference = reference_logprobs - logprobs
    if estimator == "k1":
        return -difference
    if estimator == "k2":
        return difference.square() / 2
    return difference.exp() - difference - 1


def _maximum(values: torch.Tensor) -> torch.Tensor:
    return values.max() if values.numel() else values.new_zeros(())

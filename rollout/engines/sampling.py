"""Sampling: the next token of each row from its logits, by temperature, top-p and top-k."""

from __future__ import annotations

import torch

from rollout.engines.base import Sampling


def sample_tokens(
    logits: torch.Tensor, draw: torch.Tensor, banned: torch.Tensor, sampling: Sampling
) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor | None]:
    """Next token of each row, by inverting its cumulative distribution at `draw`; its log-prob as in `Response.logprobs`; and the allowed tokens,
    (rows, vocabulary) bool, where `top_k` or `top_p` leave some out. `logits` (rows, vocabulary) float32, `draw` (rows,) float64 in [0, 1),
    `banned` token ids."""
    allowed = logits.index_fill(1, banned, -torch.inf)
    if sampling.temperature == 0:
        token = allowed.argmax(-1)
    else:
        if sampling.temperature != 1:
            allowed = allowed / sampling.temperature
        allowed = truncate(allowed, sampling.top_p, sampling.top_k)
        peak = allowed.amax(-1, keepdim=True)
        cumulative = (allowed - peak).exp_().cumsum(-1, dtype=torch.float64)  # float32 would lose the tail of a large vocabulary
        total = cumulative[:, -1:]
        token = torch.searchsorted(cumulative, draw[:, None] * total, right=True)[:, 0].clamp(max=logits.shape[1] - 1)
        limited = sampling.top_k > 0 or sampling.top_p < 1
        if limited or sampling.temperature != 1:
            logprob = (allowed.gather(1, token[:, None]) - peak - total.log().float())[:, 0]
            return token, logprob, allowed > -torch.inf if limited else None
    return token, logits.gather(1, token[:, None])[:, 0] - logits.logsumexp(-1), None


def truncate(logits: torch.Tensor, top_p: float, top_k: int) -> torch.Tensor:
    """Logits (rows, vocabulary) with all tokens outside the top k and the top-p nucleus (Holtzman et al., 1904.09751) at -inf."""
    if top_k:
        smallest = logits.topk(min(top_k, logits.shape[1])).values[:, -1:]
        logits = logits.masked_fill(logits < smallest, -torch.inf)
    if top_p < 1:
        ordered, order = logits.sort(-1, descending=True)
        before = ordered.softmax(-1).cumsum(-1) - ordered.softmax(-1)
        logits = logits.masked_fill((before >= top_p).scatter(1, order, before >= top_p), -torch.inf)
    return logits

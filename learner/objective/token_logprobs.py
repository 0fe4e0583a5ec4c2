"""Log-probs of the sampled tokens of a packed micro-batch. Logits are computed in pieces, and again in the backward pass."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any, Self

import torch
from torch import nn
from torch.nn import functional as F
from torch.utils.checkpoint import checkpoint

from learner.objective.packed_attention import PackedAttention, attention_of, install
from learner.objective.sibling_packing import MicroBatch, Row, pack
from rollout.policies import Policy

LOGITS_AT_ONCE = 2**25  # 128 MiB in float32


def piece(vocabulary: int) -> int:
    return max(1, LOGITS_AT_ONCE // vocabulary)  # tokens


@dataclass(frozen=True)
class SampledFrom:
    """How tokens were sampled, unless all were at temperature 1 from the whole vocabulary; fields as in `MicroBatch`."""

    temperatures: torch.Tensor
    support_sizes: torch.Tensor
    support_ids: torch.Tensor

    @classmethod
    def of(cls, batch: MicroBatch, device: torch.device) -> Self | None:
        if not len(batch.support_ids) and (batch.temperatures == 1).all():
            return None
        return cls(*(torch.from_numpy(a).to(device) for a in (batch.temperatures, batch.support_sizes, batch.support_ids)))

    def split(self, tokens: int) -> Iterator[Self]:
        sizes = self.support_sizes.split(tokens)
        ids = self.support_ids.split([int(part.sum()) for part in sizes])
        return map(type(self), self.temperatures.split(tokens), sizes, ids)

    def rescaled(self, logits: torch.Tensor, never_sampled: torch.Tensor) -> torch.Tensor:
        """Logits / temperature, -inf for tokens that could not be drawn; at temperature 1 without a limit `never_sampled` tokens stay."""
        outside = torch.zeros_like(logits, dtype=torch.bool)
        outside[:, never_sampled] = (self.temperatures != 1)[:, None]
        outside[self.support_sizes > 0] = True
        tokens = torch.arange(len(logits), device=logits.device).repeat_interleave(self.support_sizes)
        outside[tokens, self.support_ids] = False
        return (logits / self.temperatures[:, None]).masked_fill(outside, -torch.inf)


class Head(nn.Linear):
    """Replaces a model's `lm_head`, with its weights. All pieces are one call of one module, so ZeRO 3 gathers its weights once."""

    def __init__(self, lm_head: nn.Linear, never_sampled: Sequence[int], entropy_gradient: bool):
        super().__init__(lm_head.in_features, lm_head.out_features, bias=lm_head.bias is not None, device="meta")
        self.weight, self.bias = lm_head.weight, lm_head.bias
        self.entropy_gradient, self._never_sampled = entropy_gradient, list(never_sampled)

    def forward(self, hidden: torch.Tensor, targets: torch.Tensor | None = None, sampled: SampledFrom | None = None) -> Any:
        """Logits; with `targets` (tokens,), which `hidden` (tokens, d) predicts: their log-probs and entropy, both (tokens,) float32, nats."""
        if targets is None:
            return super().forward(hidden)
        tokens = piece(self.out_features)
        if len(targets) <= tokens:
            return self._scores(hidden, targets, sampled)
        parts = hidden.split(tokens), targets.split(tokens)
        ways = sampled.split(tokens) if sampled else [None] * len(parts[0])
        scores = [checkpoint(self._scores, *part, use_reentrant=False, preserve_rng_state=False) for part in zip(*parts, ways, strict=True)]
        logprobs, entropy = zip(*scores, strict=True)
        return torch.cat(logprobs), torch.cat(entropy)

    def _scores(self, hidden: torch.Tensor, targets: torch.Tensor, sampled: SampledFrom | None) -> tuple[torch.Tensor, torch.Tensor]:
        logits = super().forward(hidden).float()
        if sampled:
            logits = sampled.rescaled(logits, torch.tensor(self._never_sampled, dtype=torch.long, device=logits.device))
        logprobs = F.log_softmax(logits, -1)
        chosen = logprobs.gather(1, targets[:, None])[:, 0]
        with torch.set_grad_enabled(self.entropy_gradient and torch.is_grad_enabled()):
            finite = logprobs.clamp(min=torch.finfo(logprobs.dtype).min) if sampled else logprobs  # 0 * -inf is NaN
            entropy = -(logprobs.exp() * finite).sum(-1)
        return chosen, entropy


class Scorer(nn.Module):
    """Computes log-probs of packed micro-batches. Every call runs the vision tower of a VLM, on a blank picture when there is none: all ranks
    have to run the same modules. Each distinct picture is encoded once. `entropy_gradient` costs a second pass over the vocabulary."""

    def __init__(self, policy: Policy, entropy_gradient: bool = False):
        super().__init__()
        self.policy, self.model = policy, policy.model
        install(policy)
        self.model.set_output_embeddings(Head(policy.lm_head, policy.banned_token_ids, entropy_gradient))

    def forward(
        self,
        input_ids: torch.Tensor,
        positions: torch.Tensor,
        packed: PackedAttention,
        sources: torch.Tensor,
        targets: torch.Tensor,
        image_of_row: torch.Tensor,
        pixels: dict[str, torch.Tensor] | None,
        sampled: SampledFrom | None = None,
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """Shapes as in `MicroBatch`; `pixels`: of its images, as the policy makes them. Returns what `Head` does for `targets`."""
        hidden = self.policy.hidden(self._embedded(input_ids, image_of_row, pixels), positions, packed=packed)
        return self.policy.lm_head(hidden[sources], targets, sampled)

    def _embedded(self, ids: torch.Tensor, image_of_row: torch.Tensor, pixels: dict[str, torch.Tensor] | None) -> dict[str, Any]:
        """The vision tower runs first on every rank: with ZeRO-3 all of them have to run the same modules in the same order."""
        shown = pixels or self.policy.blank()
        features = self.policy.features(shown) if shown else []
        embedded = self.policy.embed(ids, [features[i] for i in image_of_row.tolist()] if pixels else [])
        if features and not pixels:
            embedded["inputs_embeds"] = embedded["inputs_embeds"] + 0.0 * features[0].sum()
        return embedded


def packed(rows: Sequence[Row], policy: Policy) -> MicroBatch:
    return pack(rows, [policy.positions(row.prompt_ids, row.image) for row in rows], policy.pad_token_id, policy.axes)


def inputs_of(batch: MicroBatch, policy: Policy, device: torch.device, attention: str = "auto") -> dict[str, Any]:
    arrays = {name: getattr(batch, name) for name in ("input_ids", "positions", "sources", "targets", "image_of_row")}
    tensors: dict[str, Any] = {name: torch.from_numpy(array).to(device) for name, array in arrays.items()}
    attend = attention_of(attention, batch, device, policy.model.dtype)
    pixels = (policy.pixels(batch.images) if batch.images else None) or None
    return tensors | {"pixels": pixels, "packed": attend, "sampled": SampledFrom.of(batch, device)}

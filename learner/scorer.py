"""The module that DeepSpeed wraps: micro-batch in, log-probs of the response tokens out."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import nn
from torch.nn import functional as F

from learner.micro_batches import MicroBatch, Row, pack
from learner.packed_attention import PackedAttention, attention_of, install
from rollout.policy import Policy


class Scorer(nn.Module):
    """A policy's model that scores packed micro-batches.

    Every call runs the vision tower, on a blank picture when the batch has none: ranks have to run the same modules in the same order, and a
    parameter that gets a gradient on one rank has to get one (of zeros) on all. Each distinct picture is encoded once.
    """

    def __init__(self, policy: Policy, entropy_gradient: bool = False):
        """`entropy_gradient`: whether the entropy is part of the loss; it costs memory for a second pass over the vocabulary."""
        super().__init__()
        self.entropy_gradient = entropy_gradient
        self.model = policy.model
        install(policy.model.model.language_model)
        self.image_token_id = policy.image_token_id
        vision = policy.model.config.vision_config
        self.blank_patches = policy.merge**2
        self.patch_values = vision.in_channels * vision.temporal_patch_size * vision.patch_size**2

    def forward(
        self,
        input_ids: torch.Tensor,
        positions: torch.Tensor,
        packed: PackedAttention,
        sources: torch.Tensor,
        targets: torch.Tensor,
        image_of_row: torch.Tensor,
        pixel_values: torch.Tensor | None,
        grids: torch.Tensor | None,
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """Shapes as in `MicroBatch`; pixel_values (patches, d) and grids (images, 3) of its distinct images.

        Returns log-probs of `targets` at temperature 1 over the whole vocabulary and the entropy of their distributions (without gradient unless
        asked for), both (tokens,) float32, nats.
        """
        hidden = self.model.model.language_model(
            inputs_embeds=self._embed(input_ids, image_of_row, pixel_values, grids)[None],
            position_ids=positions[:, None],
            packed=packed,
            use_cache=False,
        ).last_hidden_state[0]
        logprobs = F.log_softmax(self.model.lm_head(hidden[sources]).float(), -1)
        with torch.set_grad_enabled(self.entropy_gradient and torch.is_grad_enabled()):
            entropy = -(logprobs.exp() * logprobs).sum(-1)
        return logprobs.gather(1, targets[:, None])[:, 0], entropy

    def _embed(
        self, input_ids: torch.Tensor, image_of_row: torch.Tensor, pixel_values: torch.Tensor | None, grids: torch.Tensor | None
    ) -> torch.Tensor:
        embedded = self.model.get_input_embeddings()(input_ids)
        if pixel_values is None:
            side = int(self.blank_patches**0.5)
            pixel_values = embedded.new_zeros(self.blank_patches, self.patch_values)
            grids = torch.tensor([[1, side, side]], device=input_ids.device)
            blank = self.model.model.get_image_features(pixel_values, grids).pooler_output
            return embedded + 0.0 * blank[0].sum()
        features = self.model.model.get_image_features(pixel_values, grids).pooler_output
        shown = torch.cat([features[i] for i in image_of_row.tolist()])
        return embedded.masked_scatter((input_ids == self.image_token_id)[..., None], shown.to(embedded.dtype))


def packed(rows: Sequence[Row], policy: Policy) -> MicroBatch:
    """The rows as one micro-batch of this policy."""
    grids = [policy.patches(row.image)[1] if row.image else None for row in rows]
    positions = [policy.positions(row.prompt_ids, grid) for row, grid in zip(rows, grids, strict=True)]
    return pack(rows, positions, policy.pad_token_id)


def inputs_of(batch: MicroBatch, policy: Policy, device: torch.device, attention: str = "auto") -> dict[str, Any]:
    """Keyword arguments of `Scorer.forward`."""
    pixel_values, grids = policy.pixels(batch.images) if batch.images else (None, None)
    arrays = {name: getattr(batch, name) for name in ("input_ids", "positions", "sources", "targets", "image_of_row")}
    tensors: dict[str, Any] = {name: torch.from_numpy(array).to(device) for name, array in arrays.items()}
    return tensors | {"pixel_values": pixel_values, "grids": grids, "packed": attention_of(attention, batch, device, policy.model.dtype)}

"""What a forward pass keeps for its backward pass, counted without computing anything.

One decoder layer, one block of the vision tower and the head are run on the meta device (shapes, no memory), and autograd says which tensors it
would keep. Attention counts as a fused kernel: queries, keys, values, the output and one number a row; a kernel that keeps the scores needs more.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch.nn import functional as F
from transformers.modeling_utils import ALL_ATTENTION_FUNCTIONS

NAME = "counted_attention"
HEAD_BYTES = 12
"""Of each predicted token and word, at the height of it: log-probabilities, their gradient, and that of the logits, all float32."""


@dataclass(frozen=True)
class SavedBytes:
    """Of one micro-batch; in bytes."""

    layer: int
    """Kept by one decoder layer."""
    boundary: int
    """The hidden states between two layers: all that is kept of a layer that is computed again."""
    layers: int
    """How many layers there are."""
    head: int
    """Final norm, logits and what is made of them, at the height of it."""
    vision_block: int
    vision_boundary: int
    vision_blocks: int
    """As above, for the vision tower and all pictures of the micro-batch; 0 where it is frozen, and keeps nothing."""

    def kept(self, checkpointing: bool) -> int:
        """At the height of it. With checkpointing: the hidden states of every layer, and one layer that is being computed again."""
        if not checkpointing:
            return self.layers * self.layer + self.vision_blocks * self.vision_block + self.head
        towers = self.layers * self.boundary + self.vision_blocks * self.vision_boundary
        return towers + max(self.head, self.layer, self.vision_block)


class _Fused(torch.autograd.Function):
    """Attention that keeps what a fused kernel keeps. Its numbers are none: it is for shapes."""

    @staticmethod
    def forward(ctx: Any, query: torch.Tensor, key: torch.Tensor, value: torch.Tensor) -> torch.Tensor:
        out = torch.empty_like(query)
        ctx.save_for_backward(query, key, value, out, query.new_empty(query.shape[:-1], dtype=torch.float32))
        return out


def _attention(
    module: Any, query: torch.Tensor, key: torch.Tensor, value: torch.Tensor, *others: Any, **more: Any
) -> tuple[torch.Tensor, None]:
    return _Fused.apply(query, key, value).transpose(1, 2).contiguous(), None


def saved_bytes(model: Any, tokens: int, predicted: int, patches: int = 0) -> SavedBytes:
    """`model`: a Qwen2.5-VL model on the meta device, frozen and adapted as it will be trained, but without checkpointing, which keeps next to
    nothing of a layer: `SavedBytes.kept` knows of it. `tokens`: of the micro-batch; `predicted`: of
    them; `patches`: of its pictures, before they are merged. The model's attention is another one afterwards."""
    ALL_ATTENTION_FUNCTIONS.register(NAME, _attention)
    text, vision = model.model.language_model, model.model.visual
    text.config._attn_implementation = vision.config._attn_implementation = NAME
    dtype = text.embed_tokens.weight.dtype
    hidden = torch.empty(1, tokens, text.config.hidden_size, dtype=dtype, device="meta", requires_grad=True)
    size = getattr(text.config, "head_dim", None) or text.config.hidden_size // text.config.num_attention_heads
    turned = torch.empty(1, tokens, size, dtype=dtype, device="meta")
    layer = kept_by(model, lambda: text.layers[0](hidden, attention_mask=None, position_embeddings=(turned, turned)))
    trained = patches > 0 and any(parameter.requires_grad for parameter in vision.parameters())
    seen, block = torch.empty(patches, vision.config.hidden_size, dtype=dtype, device="meta", requires_grad=True), 0
    if trained:
        rotated = torch.empty(patches, vision.config.hidden_size // vision.config.num_heads, dtype=dtype, device="meta")
        bounds = torch.tensor([0, patches], dtype=torch.int32)
        block = kept_by(model, lambda: vision.blocks[0](seen, cu_seqlens=bounds, position_embeddings=(rotated, rotated)))
    head = kept_by(model, lambda: F.log_softmax(model.lm_head(text.norm(hidden[0, :predicted])).float(), -1))
    at_its_height = predicted * model.lm_head.out_features * HEAD_BYTES
    return SavedBytes(
        layer=layer,
        boundary=hidden.nbytes,
        layers=len(text.layers),
        head=max(head, at_its_height),
        vision_block=block,
        vision_boundary=seen.nbytes if trained else 0,
        vision_blocks=len(vision.blocks) if trained else 0,
    )


def kept_by(model: Any, run: Callable[[], Any]) -> int:
    """Bytes of the tensors that autograd keeps of `run`, the model's own weights left out, views of one tensor counted once."""
    own = {parameter.untyped_storage()._cdata for parameter in [*model.parameters(), *model.buffers()]}
    kept: dict[int, torch.UntypedStorage] = {}  # the storages themselves are held, or their places would be used again

    def note(tensor: torch.Tensor) -> torch.Tensor:
        storage = tensor.untyped_storage()
        if storage._cdata not in own:
            kept[storage._cdata] = storage
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(note, lambda tensor: tensor):
        result = run()
    del result
    return sum(storage.nbytes() for storage in kept.values())

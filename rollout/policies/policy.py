"""A policy: a language model with its tokenizer, from any folder in Hugging Face format. Token ids are made only here."""

from __future__ import annotations

import functools
from collections.abc import Sequence
from pathlib import Path
from typing import Any, ClassVar

import numpy as np
import torch
from torch import nn
from torch.nn.functional import scaled_dot_product_attention
from torch.nn.utils.rnn import pad_sequence
from transformers import AttentionInterface, AutoModelForCausalLM

from rollout.nan_check import refuse_weights
from rollout.policies.chat import ChatFormat
from rollout.records import Image, Message

PICTURE = "[picture]"  # What a text policy reads in place of a picture; the picture itself goes to the retriever
NO_MASK = torch.zeros(1, 1, 1, 1)  # Four dimensions: the library passes it on as it is, and makes no mask of its own
EXPECTED = "a text model with full attention (Llama, Qwen2.5, Qwen3, ...), or a VLM of the Qwen-VL or the SmolVLM family"


class Policy:
    """A text model; the base class of VLMs. `model`: an `AutoModelForCausalLM`. Everything that engines, learner and serving ask of a model
    is here; they do not know its architecture."""

    axes: ClassVar[int] = 1  # Rows of positions: 1, or 3 for M-RoPE
    reads_pictures: ClassVar[bool] = False
    auto: ClassVar[Any] = AutoModelForCausalLM  # The library's class that reads its folder

    def __init__(self, model: Any, tokenizer: Any = None, image_processor: Any = None):
        """Without a tokenizer (shapes, benchmarks), nothing can be encoded."""
        self.model, self.tokenizer, self.image_processor = model, tokenizer, image_processor

    @classmethod
    def read_image_processor(cls, path: str | Path) -> Any:
        return None

    @functools.cached_property
    def chat(self) -> ChatFormat:
        return ChatFormat(self.tokenizer, lists=self.reads_pictures)

    @functools.cached_property
    def end_token_id(self) -> int:
        return self.chat.end_token_id

    @functools.cached_property
    def banned_token_ids(self) -> tuple[int, ...]:
        """Without those that the tokenizer has and the model has not, as when a padding token was added."""
        return tuple(token for token in self.chat.banned_token_ids if token < self._vocabulary)

    @property
    def pad_token_id(self) -> int:
        padding = self.tokenizer.pad_token_id
        return self.end_token_id if padding is None or padding >= self._vocabulary else padding

    @property
    def _vocabulary(self) -> int:
        return self.model.config.get_text_config().vocab_size

    @property
    def device(self) -> torch.device:
        return self.model.device

    @property
    def text_model(self) -> Any:
        """The decoder: embeddings in, hidden states of the last layer out."""
        return self.model.get_decoder()

    @property
    def lm_head(self) -> Any:
        return self.model.get_output_embeddings()

    @property
    def vision(self) -> dict[str, nn.Module]:
        """All that encodes pictures, by its name in `model.model`. Empty for a text model."""
        return {}

    @property
    def context(self) -> int:
        """Most tokens of prompt and response."""
        return self.model.config.get_text_config().max_position_embeddings

    def save(self, folder: str | Path) -> None:
        """In Hugging Face format. Raises `NotFiniteError`, and writes nothing, for weights that are NaN or infinite."""
        refuse_weights(self.model.named_parameters(), f"the policy for {folder}", "it is not saved; continue from an earlier one")
        for part in filter(None, (self.model, self.tokenizer, self.image_processor)):
            part.save_pretrained(folder)

    def encode(self, message: Message, image: Image | None) -> np.ndarray:
        """Prompt token ids (tokens,) int32, up to where the response begins; a picture is a run of placeholder tokens."""
        text = [{"type": "text", "text": message.user}]
        if message.image and image is not None:
            text.insert(len(text) * message.image_last, self._picture_part(message.image_last))
        return self._tokenized(self.chat.prompt(message.system, text), image)

    def _picture_part(self, last: bool) -> dict[str, str]:
        return {"type": "text", "text": f"\n{PICTURE}" if last else f"{PICTURE}\n"}

    def _tokenized(self, text: str, image: Image | None) -> np.ndarray:
        return np.array(self.tokenizer(text, add_special_tokens=False)["input_ids"], np.int32)

    def decode(self, response_ids: Sequence[int] | np.ndarray) -> str:
        ids = [int(token) for token in response_ids if token != self.end_token_id]  # Not every tokenizer marks it as special
        return self.tokenizer.decode(ids, skip_special_tokens=True, clean_up_tokenization_spaces=False)

    def positions(self, prompt_ids: np.ndarray, image: Image | None) -> np.ndarray:
        """Positions (axes, tokens) int64 of a prompt with at most one picture. A response continues at `.max() + 1` in all rows."""
        return np.tile(np.arange(len(prompt_ids)), (self.axes, 1))

    def embed(self, ids: torch.Tensor, features: Sequence[torch.Tensor] = ()) -> dict[str, Any]:
        """Inputs of `hidden` for the tokens `ids` (tokens,). `features`: those of the pictures, in the order of their placeholders."""
        return {"inputs_embeds": self.model.get_input_embeddings()(ids)[None]}

    def hidden(self, embedded: dict[str, Any], positions: torch.Tensor, **attention: Any) -> torch.Tensor:
        """(tokens, hidden) of one row, from what `embed` returns and positions (axes, tokens). `attention` goes to the attention function that
        the caller has installed; the library makes no mask."""
        placed = positions[:, None] if self.axes == 3 else positions
        mask = NO_MASK.to(positions.device, non_blocking=True)
        return self.text_model(**embedded, position_ids=placed, attention_mask=mask, use_cache=False, **attention).last_hidden_state[0]

    def padded_hidden(self, rows: Sequence[tuple[np.ndarray, Image | None]]) -> torch.Tensor:
        """(rows, longest row, hidden): the library's own forward pass over rows of tokens with at most one picture each, padded at the end."""
        tensors = [torch.from_numpy(ids.astype(np.int64)) for ids, _ in rows]
        ids = pad_sequence(tensors, batch_first=True, padding_value=self.pad_token_id).to(self.device)
        lengths = torch.tensor([len(tensor) for tensor in tensors], device=self.device)
        real = (torch.arange(ids.shape[1], device=self.device)[None] < lengths[:, None]).long()
        pictured = self.pictured(ids, [image for _, image in rows if image is not None])
        return self.model.base_model(input_ids=ids, attention_mask=real, use_cache=False, **pictured).last_hidden_state

    def pixels(self, images: Sequence[Image]) -> dict[str, torch.Tensor]:
        """Inputs of the model's forward pass for these pictures, and of `features`. Empty for a text model: it reads the prompt alone."""
        return {}

    def features(self, pixels: dict[str, torch.Tensor]) -> list[torch.Tensor]:
        """For each picture (parts, tokens, hidden): what replaces its placeholders, then what is added after the first layers (DeepStack)."""
        return []

    def blank(self) -> dict[str, torch.Tensor]:
        """`pixels` of the smallest blank picture; empty for a text model."""
        return {}

    def use_attention(self, name: str) -> None:
        """Let the decoder's layers call this attention function of the library's registry."""
        self.text_model.config._attn_implementation = name

    def pictured(self, ids: torch.Tensor, images: Sequence[Image]) -> dict[str, torch.Tensor]:
        """What the model's own forward pass takes besides these token ids (rows, tokens), for their pictures in order."""
        return {}

    @torch.no_grad()
    def check_forward(self) -> None:
        """Raises `ValueError` when the model computes attention or logits in a way of its own: what engines and learner put in the place of its
        attention would be ignored, or would leave something out (a soft cap, a bias, a scale)."""
        layers = 0

        def causal(
            module: Any, query: torch.Tensor, key: torch.Tensor, value: torch.Tensor, mask: Any, scaling: Any = None, **more: Any
        ) -> Any:
            nonlocal layers
            layers += "checked" in more and key.shape == value.shape
            shared = query.shape[1] != key.shape[1]
            return scaled_dot_product_attention(query, key, value, is_causal=True, scale=scaling, enable_gqa=shared).transpose(1, 2), None

        ids = torch.arange(8, device=self.device)
        expected = self.model(input_ids=ids[None], use_cache=False).logits[0].float()
        AttentionInterface.register("check_forward", causal)
        config = self.text_model.config
        before = config._attn_implementation
        self.use_attention("check_forward")
        try:
            found = self.lm_head(self.hidden(self.embed(ids), ids.expand(self.axes, -1), checked=True)).float()
            close = torch.allclose(found, expected, atol=0.02 * float(expected.abs().max()), rtol=0)
        except (RuntimeError, TypeError):
            close = False
        self.use_attention(before)
        if layers != config.num_hidden_layers or not close:
            raise ValueError(f"{type(self.model).__name__} computes attention or logits in a way of its own; expected {EXPECTED}")

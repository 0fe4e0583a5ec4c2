"""What policies that read pictures share: pictures are encoded once, and their features take the place of placeholder tokens."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, ClassVar

import numpy as np
import torch
from torch import nn
from transformers import AutoModelForImageTextToText

from rollout.policies.policy import Policy
from rollout.records import Image

IMAGE_CACHE = 512  # Pictures whose pixels are kept for later turns


class VisionLanguagePolicy(Policy):
    reads_pictures: ClassVar[bool] = True
    auto: ClassVar[Any] = AutoModelForImageTextToText

    def __init__(self, model: Any, tokenizer: Any = None, image_processor: Any = None):
        super().__init__(model, tokenizer, image_processor)
        self.image_token_id: int = model.config.image_token_id
        self._kept: dict[str, Any] = {}

    @staticmethod
    def fits(base: nn.Module) -> bool:
        """Whether a model without its head is of this family."""
        raise NotImplementedError

    def read(self, image: Image) -> Any:
        """What the image processor makes of a picture; kept for later turns."""
        if image.key not in self._kept:
            if len(self._kept) >= IMAGE_CACHE:
                self._kept.clear()
            self._kept[image.key] = self._processed(image)
        return self._kept[image.key]

    def _processed(self, image: Image) -> Any:
        raise NotImplementedError

    @property
    def vision(self) -> dict[str, nn.Module]:
        return {name: module for name, module in self.model.base_model.named_children() if module is not self.text_model}

    def _picture_part(self, last: bool) -> dict[str, str]:
        return {"type": "image"}

    def _tokenized(self, text: str, image: Image | None) -> np.ndarray:
        pad = self.tokenizer.convert_ids_to_tokens(self.image_token_id)
        return super()._tokenized(text.replace(pad, self._placeholders(image), 1) if image is not None and pad in text else text, image)

    def _placeholders(self, image: Image) -> str:
        """What one image token of the chat template stands for."""
        raise NotImplementedError

    def vectors(self, image: Image) -> int:
        """How many vectors the model makes of a picture, by its config."""
        raise NotImplementedError

    def pictured(self, ids: torch.Tensor, images: Sequence[Image]) -> dict[str, torch.Tensor]:
        return self.pixels(images) if images else {}

    def embed(self, ids: torch.Tensor, features: Sequence[torch.Tensor] = ()) -> dict[str, Any]:
        embedded = self.model.get_input_embeddings()(ids)
        if not features:
            return {"inputs_embeds": embedded[None]}
        shown, (first, *deeper) = ids == self.image_token_id, torch.cat(list(features), 1).to(embedded.dtype)
        inputs = {"inputs_embeds": embedded.masked_scatter(shown[:, None], first)[None]}
        return inputs | {"visual_pos_masks": shown[None], "deepstack_visual_embeds": deeper} if deeper else inputs

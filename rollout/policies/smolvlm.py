"""The SmolVLM family, which is also Idefics3: ordinary positions, and every tile of a picture is the same number of tokens."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from torch import nn
from torch.nn.utils.rnn import pad_sequence
from transformers import AutoImageProcessor
from transformers.models.smolvlm.processing_smolvlm import get_image_prompt_string

from retrieval_actors.pictures import decode
from rollout.policies.vlm import VisionLanguagePolicy
from rollout.records import Image

AROUND, GLOBAL = "<fake_token_around_image>", "<global-img>"


class SmolVLMPolicy(VisionLanguagePolicy):
    @staticmethod
    def fits(base: nn.Module) -> bool:
        return all(hasattr(base, part) for part in ("vision_model", "connector", "text_model", "image_seq_len"))

    @classmethod
    def read_image_processor(cls, path: str | Path) -> Any:
        return AutoImageProcessor.from_pretrained(path, backend="pil")

    def _processed(self, image: Image) -> tuple[torch.Tensor, torch.Tensor, int, int]:
        """Tiles (tiles, channels, height, width) float32; which pixels are real (tiles, height, width); rows and columns of tiles, 0 if not cut."""
        found = self.image_processor(images=[[decode(image.data, "image")]], return_tensors="pt", return_row_col_info=True)
        return found["pixel_values"][0], found["pixel_attention_mask"][0].bool(), found["rows"][0][0], found["cols"][0][0]

    def _placeholders(self, image: Image) -> str:
        _, _, rows, columns = self.read(image)
        pad = self.tokenizer.convert_ids_to_tokens(self.image_token_id)
        return get_image_prompt_string(rows, columns, self.model.base_model.image_seq_len, AROUND, pad, GLOBAL)

    def vectors(self, image: Image) -> int:
        return len(self.read(image)[0]) * self.model.base_model.image_seq_len

    def pixels(self, images: Sequence[Image]) -> dict[str, torch.Tensor]:
        """Tiles of all pictures, one row of (pictures, most tiles) for each; missing tiles are all zero, and the library skips them."""
        tiles, real = ([self.read(image)[part] for image in images] for part in (0, 1))
        return {
            "pixel_values": pad_sequence(tiles, batch_first=True).to(self.device, self.model.dtype),
            "pixel_attention_mask": pad_sequence(real, batch_first=True).to(self.device),
        }

    def blank(self) -> dict[str, torch.Tensor]:
        vision = self.model.config.vision_config
        tile = torch.zeros(1, 1, vision.num_channels, vision.image_size, vision.image_size, dtype=self.model.dtype, device=self.device)
        return {"pixel_values": tile}

    def features(self, pixels: dict[str, torch.Tensor]) -> list[torch.Tensor]:
        found = self.model.base_model.get_image_features(**pixels, return_dict=True).pooler_output
        tiles = pixels["pixel_values"].flatten(2).ne(0).any(-1).sum(1).clamp(min=1).tolist()
        return [picture.flatten(0, 1)[None] for picture in found.split(tiles)]

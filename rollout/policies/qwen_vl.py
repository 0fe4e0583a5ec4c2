"""The Qwen-VL family: Qwen2-VL, Qwen2.5-VL, Qwen3-VL. Positions have three rows (M-RoPE: frame, row, column)."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any, ClassVar

import numpy as np
import torch
from torch import nn
from transformers import Qwen2VLImageProcessorPil

from retrieval_actors.pictures import decode
from rollout.policies.vlm import VisionLanguagePolicy
from rollout.records import Image


class QwenVLPolicy(VisionLanguagePolicy):
    axes: ClassVar[int] = 3

    @staticmethod
    def fits(base: nn.Module) -> bool:
        return hasattr(base, "get_rope_index") and hasattr(base, "visual")

    @classmethod
    def read_image_processor(cls, path: str | Path) -> Any:
        return Qwen2VLImageProcessorPil.from_pretrained(path)

    def _processed(self, image: Image) -> tuple[torch.Tensor, torch.Tensor]:
        """Pixel patches (patches, channels * frames * patch * patch) float32, and their grid (frames, rows, columns) int64."""
        found = self.image_processor(images=[decode(image.data, "image")], return_tensors="pt")
        return found["pixel_values"], found["image_grid_thw"][0]

    def _placeholders(self, image: Image) -> str:
        vectors = int(self.read(image)[1].prod()) // self.image_processor.merge_size**2
        return self.tokenizer.convert_ids_to_tokens(self.image_token_id) * vectors

    def vectors(self, image: Image) -> int:
        return int(self.read(image)[1].prod()) // self.model.config.vision_config.spatial_merge_size**2

    def pixels(self, images: Sequence[Image]) -> dict[str, torch.Tensor]:
        patches, grids = zip(*map(self.read, images), strict=True)
        return {
            "pixel_values": torch.cat(patches).to(self.device, self.model.dtype),
            "image_grid_thw": torch.stack(grids).to(self.device),
        }

    def blank(self) -> dict[str, torch.Tensor]:
        vision = self.model.config.vision_config
        merge = vision.spatial_merge_size
        values = vision.in_channels * vision.temporal_patch_size * vision.patch_size**2
        grid = torch.tensor([[1, merge, merge]], device=self.device)
        return {"pixel_values": torch.zeros(merge**2, values, dtype=self.model.dtype, device=self.device), "image_grid_thw": grid}

    def features(self, pixels: dict[str, torch.Tensor]) -> list[torch.Tensor]:
        found = self.model.base_model.get_image_features(**pixels, return_dict=True)
        layers = [found.pooler_output, *(getattr(found, "deepstack_features", None) or ())]
        return [torch.stack(picture) for picture in zip(*layers, strict=True)]

    def positions(self, prompt_ids: np.ndarray, image: Image | None) -> np.ndarray:
        if image is None:
            return super().positions(prompt_ids, image)
        ids = torch.from_numpy(prompt_ids.astype(np.int64))[None]
        shown = (ids == self.image_token_id).int()
        return self.model.base_model.get_rope_index(ids, shown, self.read(image)[1][None])[0][:, 0].numpy()

    def pictured(self, ids: torch.Tensor, images: Sequence[Image]) -> dict[str, torch.Tensor]:
        return super().pictured(ids, images) | {"mm_token_type_ids": (ids == self.image_token_id).int()} if images else {}

"""The policy: a Qwen2.5-VL model with its tokenizer and image processor, loaded from any folder in Hugging Face format.

Rollout workers, learner ranks and the endpoint load it by the same code, whether it is the tiny one of this repository or
`Qwen/Qwen2.5-VL-3B-Instruct`. Token ids are made here and nowhere else.
"""

from __future__ import annotations

import io
from collections import OrderedDict
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image as PillowImage
from PIL import UnidentifiedImageError
from transformers import AutoModelForImageTextToText, AutoTokenizer, PreTrainedTokenizerBase, Qwen2VLImageProcessorPil

from rollout.message import Message
from rollout.records import Image

IMAGE_CACHE = 512
"""Pictures whose patches are kept: siblings and later turns of an episode look at the same one."""
NEVER_SAMPLED = ("<|endoftext|>", "<|im_start|>", "<|vision_start|>", "<|vision_end|>", "<|vision_pad|>", "<|image_pad|>", "<|video_pad|>")
"""A sampled image placeholder would break the learner's forward pass: no picture belongs to it."""


class Policy:
    """Model, tokenizer and image processor of one policy.

    Attributes: `model` (an `AutoModelForImageTextToText` with M-RoPE positions), `tokenizer`, `device`, `image_token_id`, `pad_token_id`,
    `end_token_id`, `banned_token_ids` (never sampled).
    """

    def __init__(self, model: Any, tokenizer: PreTrainedTokenizerBase, image_processor: Any):
        self.model, self.tokenizer, self.image_processor = model, tokenizer, image_processor
        self.image_token_id: int = model.config.image_token_id
        self.pad_token_id: int = tokenizer.pad_token_id
        self.end_token_id: int = tokenizer.eos_token_id
        known = tokenizer.get_vocab()
        self.banned_token_ids = tuple(sorted(known[token] for token in NEVER_SAMPLED if token in known))
        special = {*tokenizer.all_special_tokens, *(token for token in NEVER_SAMPLED if token in known)}
        self._special = sorted(special, key=len, reverse=True)
        self.merge: int = image_processor.merge_size
        self._patches: OrderedDict[str, tuple[torch.Tensor, torch.Tensor]] = OrderedDict()

    @classmethod
    def load(cls, path: str | Path, *, dtype: str = "float32", device: str = "cpu", trust_remote_code: bool = False) -> Policy:
        """Load from a folder or a hub name. Weights must be safetensors; foreign code runs only when asked for.

        Raises: `FileNotFoundError` when `path` looks like a folder and is none; `ValueError` when the model's positions are not M-RoPE.
        """
        if not Path(path).is_dir() and (str(path).startswith((".", "/")) or str(path).count("/") != 1):
            raise FileNotFoundError(f"policy {path}: no such folder, and not a hub name like Qwen/Qwen2.5-VL-3B-Instruct")
        options = {"trust_remote_code": trust_remote_code}
        model = AutoModelForImageTextToText.from_pretrained(
            path, dtype=getattr(torch, dtype), use_safetensors=True, attn_implementation="sdpa", **options
        )
        if not hasattr(model.model, "get_rope_index"):
            raise ValueError(f"policy {path}: {type(model).__name__} has no M-RoPE positions; expected a model of the Qwen2-VL family")
        processor = Qwen2VLImageProcessorPil.from_pretrained(path, **options)
        return cls(model.eval().to(device), AutoTokenizer.from_pretrained(path, **options), processor)

    @property
    def device(self) -> torch.device:
        return self.model.device

    def save(self, folder: str | Path) -> None:
        """Write everything that `load` and `from_pretrained` need: safetensors, configuration, tokenizer, image processor."""
        for part in (self.model, self.tokenizer, self.image_processor):
            part.save_pretrained(folder)

    def patches(self, image: Image) -> tuple[torch.Tensor, torch.Tensor]:
        """Pixel patches (patches, channels * frames * patch * patch) float32 and their grid (3,) int64 as (frames, rows, columns)."""
        if image.key not in self._patches:
            features = self.image_processor(images=[decode(image.data)], return_tensors="pt")
            self._patches[image.key] = features["pixel_values"], features["image_grid_thw"][0]
            if len(self._patches) > IMAGE_CACHE:
                self._patches.popitem(last=False)
        self._patches.move_to_end(image.key)
        return self._patches[image.key]

    def pixels(self, images: Sequence[Image]) -> tuple[torch.Tensor, torch.Tensor]:
        """The pictures side by side, as the model's forward takes them: patches (sum of patches, d) and grids (images, 3)."""
        patches, grids = zip(*(self.patches(image) for image in images), strict=True)
        return torch.cat(patches).to(self.device, self.model.dtype), torch.stack(grids).to(self.device)

    def encode(self, message: Message, image: Image | None) -> np.ndarray:
        """Prompt token ids (tokens,) int32 of one user message, ready for the response; a picture is one chunk of placeholder tokens."""
        shows = message.image and image is not None
        system, user = self._without_special_tokens(message.system), self._without_special_tokens(message.user)
        content = [{"type": "image"}] * shows + [{"type": "text", "text": user}]
        if message.image_last:
            content.reverse()
        turns = [{"role": "system", "content": system}] * bool(system) + [{"role": "user", "content": content}]
        text = self.tokenizer.apply_chat_template(turns, tokenize=False, add_generation_prompt=True)
        if image is not None and shows:
            pad = self.tokenizer.convert_ids_to_tokens(self.image_token_id)
            tokens = int(self.patches(image)[1].prod()) // self.merge**2
            text = text.replace(pad, pad * tokens, 1)
        return np.array(self.tokenizer(text, add_special_tokens=False)["input_ids"], np.int32)

    def _without_special_tokens(self, text: str) -> str:
        """What questions, passages and queries spell like a special token is text: it opens no turn, and stands for no picture."""
        for token in self._special:
            if token in text:
                text = text.replace(token, f"{token[0]} {token[1:]}")
        return text

    def decode(self, response_ids: Sequence[int] | np.ndarray) -> str:
        """Text of a response without its special tokens: for parsing and reading, never for training."""
        return self.tokenizer.decode(response_ids, skip_special_tokens=True)

    def positions(self, prompt_ids: np.ndarray, grid: torch.Tensor | None) -> np.ndarray:
        """M-RoPE positions (3, tokens) int64 of a prompt with at most one picture of this (frames, rows, columns) grid.

        Equal to the library's `get_rope_index`, without its padding and its loop. A response continues at `.max() + 1` in all three rows.
        """
        length = len(prompt_ids)
        positions = np.tile(np.arange(length), (3, 1))
        if grid is None:
            return positions
        rows, columns = int(grid[1]) // self.merge, int(grid[2]) // self.merge
        start = int(np.argmax(prompt_ids == self.image_token_id))
        end = start + int(grid[0]) * rows * columns
        frames = np.arange(int(grid[0]))
        positions[:, start:end] = start + np.stack(
            [axis.ravel() for axis in np.meshgrid(frames, range(rows), range(columns), indexing="ij")]
        )
        positions[:, end:] = positions[:, start:end].max() + 1 + np.arange(length - end)
        return positions


def decode(data: bytes) -> PillowImage.Image:
    """The picture as RGB. Raises `ValueError` when the bytes are no picture."""
    try:
        return PillowImage.open(io.BytesIO(data)).convert("RGB")
    except (UnidentifiedImageError, OSError) as error:
        raise ValueError(f"image does not decode: {error}") from None

"""The policy: a Qwen2.5-VL model with its tokenizer and image processor, from any folder in Hugging Face format. Token ids are made only here."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from transformers import AutoModelForImageTextToText, AutoTokenizer, PreTrainedTokenizerBase, Qwen2VLImageProcessorPil

from retrieval_actors.pictures import decode
from rollout.nan_check import refuse_weights
from rollout.records import Image, Message

IMAGE_CACHE = 512  # pictures whose patches are kept for later turns
NEVER_SAMPLED = ("<|endoftext|>", "<|im_start|>", "<|vision_start|>", "<|vision_end|>", "<|vision_pad|>", "<|image_pad|>", "<|video_pad|>")
"""A sampled image placeholder, without a picture, would break the learner's forward pass."""


class Policy:
    """`model` (an `AutoModelForImageTextToText` with M-RoPE positions), `tokenizer` and `image_processor` of one policy."""

    def __init__(self, model: Any, tokenizer: PreTrainedTokenizerBase, image_processor: Any):
        self.model, self.tokenizer, self.image_processor = model, tokenizer, image_processor
        self.image_token_id: int = model.config.image_token_id
        self.pad_token_id: int = tokenizer.pad_token_id
        self.end_token_id: int = tokenizer.eos_token_id
        known = tokenizer.get_vocab()
        never_sampled = [token for token in NEVER_SAMPLED if token in known]
        self.banned_token_ids = tuple(sorted(known[token] for token in never_sampled))
        self._special = sorted({*tokenizer.all_special_tokens, *never_sampled}, key=len, reverse=True)
        self.merge: int = image_processor.merge_size
        self._patches: dict[str, tuple[torch.Tensor, torch.Tensor]] = {}

    @classmethod
    def load(cls, path: str | Path, *, dtype: str = "float32", device: str = "cpu") -> Policy:
        """From a folder or a hub name. Weights must be safetensors; no code of the model is run. Raises `FileNotFoundError` for a folder that does
        not exist, `ValueError` when the model's positions are not M-RoPE, `NotFiniteError`."""
        if not Path(path).is_dir() and (str(path).startswith((".", "/")) or str(path).count("/") != 1):
            raise FileNotFoundError(f"policy {path}: no such folder, and not a hub name like Qwen/Qwen2.5-VL-3B-Instruct")
        options = {"dtype": getattr(torch, dtype), "use_safetensors": True, "attn_implementation": "sdpa"}
        model = AutoModelForImageTextToText.from_pretrained(path, trust_remote_code=False, **options)
        if not hasattr(model.model, "get_rope_index"):
            raise ValueError(f"policy {path}: {type(model).__name__} has no M-RoPE positions; expected a model of the Qwen2-VL family")
        processor = Qwen2VLImageProcessorPil.from_pretrained(path)
        refuse_weights(model.eval().to(device).named_parameters(), f"policy {path}", "choose another policy")
        return cls(model, AutoTokenizer.from_pretrained(path, trust_remote_code=False), processor)

    @property
    def device(self) -> torch.device:
        return self.model.device

    def save(self, folder: str | Path) -> None:
        """In Hugging Face format. Raises `NotFiniteError`, and writes nothing, for weights that are NaN or infinite."""
        refuse_weights(self.model.named_parameters(), f"the policy for {folder}", "it is not saved; continue from an earlier one")
        for part in (self.model, self.tokenizer, self.image_processor):
            part.save_pretrained(folder)

    def patches(self, image: Image) -> tuple[torch.Tensor, torch.Tensor]:
        """Pixel patches (patches, channels * frames * patch * patch) float32, and their grid (frames, rows, columns) int64."""
        if image.key not in self._patches:
            features = self.image_processor(images=[decode(image.data, "image")], return_tensors="pt")
            if len(self._patches) >= IMAGE_CACHE:
                self._patches.clear()
            self._patches[image.key] = features["pixel_values"], features["image_grid_thw"][0]
        return self._patches[image.key]

    def pixels(self, images: Sequence[Image]) -> tuple[torch.Tensor, torch.Tensor]:
        """Inputs of the model's forward: patches (sum of patches, d) and grids (images, 3)."""
        patches, grids = zip(*(self.patches(image) for image in images), strict=True)
        return torch.cat(patches).to(self.device, self.model.dtype), torch.stack(grids).to(self.device)

    def encode(self, message: Message, image: Image | None) -> np.ndarray:
        """Prompt token ids (tokens,) int32, up to where the response begins; a picture is a run of placeholder tokens."""
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
        """Breaks up special tokens that are spelled out in a text: they would open a turn, or stand for a picture."""
        for token in self._special:
            if token in text:
                text = text.replace(token, f"{token[0]} {token[1:]}")
        return text

    def decode(self, response_ids: Sequence[int] | np.ndarray) -> str:
        return self.tokenizer.decode(response_ids, skip_special_tokens=True)

    def positions(self, prompt_ids: np.ndarray, image: Image | None) -> np.ndarray:
        """M-RoPE positions (3, tokens) int64 of a prompt with at most one picture. A response continues at `.max() + 1` in all three rows."""
        if image is None:
            return np.tile(np.arange(len(prompt_ids)), (3, 1))
        ids = torch.from_numpy(prompt_ids.astype(np.int64))[None]
        return self.model.model.get_rope_index(ids, (ids == self.image_token_id).int(), self.patches(image)[1][None])[0][:, 0].numpy()

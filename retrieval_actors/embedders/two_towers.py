"""Text and pictures by a model with a tower for each: CLIP, SigLIP, SigLIP 2."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from retrieval_actors.embedders.embedder import unit_rows, written
from retrieval_actors.embedders.loading import device, dtype_of, load
from retrieval_actors.pictures import decoded
from retrieval_actors.records import Passage, Query

BATCH_SIZE = 32


class TwoTowerEmbedder:
    """The vector of a passage is `picture_share` of its picture's unit vector and the rest of its caption's, with unit norm again.

    Half and half is "score fusion" (UniIR, arXiv 2311.17136, section 3): by linearity, the score of a pair is then the mean of its
    picture-picture, picture-text, text-picture and text-text similarities. UniIR adds the towers' outputs as they come; here each has unit
    norm first, so that the share is what it says whatever the towers' scales. A query with text and picture is half and half.
    """

    def __init__(self, name: str, kind: str, name_or_path: str, precision: str, picture_share: float):
        """`kind`: the model type in its config.json. Raises ValueError for a model that can not be had."""
        from transformers import AutoImageProcessor, AutoModel, AutoTokenizer

        whose = f"embedder {name!r}"
        self.name, self._picture_share = name, picture_share
        self._model = load(whose, name_or_path, AutoModel.from_pretrained, dtype=dtype_of(precision), use_safetensors=True)
        self._model.eval().to(device())
        self._tokenizer = load(whose, name_or_path, AutoTokenizer.from_pretrained)
        # One way to resize on every machine: pixels that differ are vectors that differ.
        self._image_processor = load(whose, name_or_path, AutoImageProcessor.from_pretrained, backend="pil")
        self._longest = int(self._model.config.text_config.max_position_embeddings)
        self.dimension = self._embed_texts(["a"]).shape[1]

    def embed_passages(self, passages: Sequence[Passage]) -> np.ndarray:
        whose = [f"passage {passage.id!r}" for passage in passages]
        return self._joined([passage.image for passage in passages], [written(passage) for passage in passages], whose, self._picture_share)

    def embed_queries(self, queries: Sequence[Query]) -> np.ndarray:
        whose = [f"query {query.text[:60]!r}" for query in queries]
        return self._joined([query.image for query in queries], [query.text for query in queries], whose, 0.5)

    def _joined(self, pictures: list[bytes | None], texts: list[str], whose: list[str], share: float) -> np.ndarray:
        with_picture = [row for row, picture in enumerate(pictures) if picture]
        with_text = [row for row, text in enumerate(texts) if text]
        seen = np.zeros((len(texts), self.dimension), np.float32)
        read = np.zeros_like(seen)
        seen[with_picture] = self._embed_pictures([pictures[row] or b"" for row in with_picture], [whose[row] for row in with_picture])
        read[with_text] = self._embed_texts([texts[row] for row in with_text])
        # What has only one of the two is that one.
        shares = np.full((len(texts), 1), share, np.float32)
        shares[list(set(with_picture) - set(with_text))] = 1
        shares[list(set(with_text) - set(with_picture))] = 0
        return unit_rows(shares * seen + (1 - shares) * read)

    def _embed_texts(self, texts: list[str]) -> np.ndarray:
        import torch

        # SigLIP learned from texts padded to full length and pools their last position, padding or not; CLIP pools the end token. Padded
        # in full, on the side that the tokenizer says, both are right, and a text has one vector whatever stands beside it.
        parts = [np.zeros((0, getattr(self, "dimension", 0)), np.float32)] * (not texts)
        for start in range(0, len(texts), BATCH_SIZE):
            features = self._tokenizer(
                texts[start : start + BATCH_SIZE], padding="max_length", truncation=True, max_length=self._longest, return_tensors="pt"
            )
            with torch.inference_mode():
                found = self._model.get_text_features(**features.to(self._model.device)).pooler_output
            parts.append(unit_rows(found.float().cpu().numpy()))
        return np.concatenate(parts)

    def _embed_pictures(self, pictures: list[bytes], whose: list[str]) -> np.ndarray:
        import torch

        parts = [np.zeros((0, self.dimension), np.float32)] * (not pictures)
        for start in range(0, len(pictures), BATCH_SIZE):
            batch = zip(pictures[start : start + BATCH_SIZE], whose[start : start + BATCH_SIZE], strict=True)
            features = self._image_processor(images=[decoded(*pair) for pair in batch], return_tensors="pt")
            with torch.inference_mode():
                on_device = features.to(self._model.device, self._model.dtype)
                found = self._model.get_image_features(**on_device).pooler_output
            parts.append(unit_rows(found.float().cpu().numpy()))
        return np.concatenate(parts)

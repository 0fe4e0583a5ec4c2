"""Text by any sentence-transformers model."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np

from retrieval_actors.embedders.embedder import unit_rows, written
from retrieval_actors.embedders.instructions import prefixes
from retrieval_actors.embedders.loading import device, dtype_of, load
from retrieval_actors.records import Passage, Query

TOKEN_BUCKET = 8
"""Texts are padded to the next multiple of this length and batched only with texts of the same padded length. The vector of a text then
does not depend on which other texts were embedded beside it: rewards and searches are the same bits after a restart with an empty cache."""
BATCH_SIZE = 32
TOKENS_AT_ONCE = 1 << 14
"""Bound on the tokens of a batch: texts of 8,192 tokens go two at a time."""


class TextEmbedder:
    """Reads the title and text of a passage and the text of a query; pictures are ignored."""

    def __init__(self, name: str, name_or_path: str, precision: str = "fp32"):
        """Raises ValueError for a model that can not be had."""
        from sentence_transformers import SentenceTransformer

        self.name = name
        options = {"device": str(device()), "model_kwargs": {"dtype": dtype_of(precision)}}
        self._model = load(f"embedder {name!r}", name_or_path, SentenceTransformer, **options)
        # Only the transformer is loaded in `dtype`; layers behind it are told here.
        self._model.to(dtype_of(precision)).eval()
        self._before_query, self._before_passage = prefixes(name_or_path, self._model.prompts)
        self._longest = self._model.max_seq_length or 512
        self.dimension = int(self._model.get_embedding_dimension() or 0)

    def embed_passages(self, passages: Sequence[Passage]) -> np.ndarray:
        return self._embed([self._before_passage + written(passage) for passage in passages])

    def embed_queries(self, queries: Sequence[Query]) -> np.ndarray:
        return self._embed([self._before_query + query.text for query in queries])

    def _embed(self, texts: list[str]) -> np.ndarray:
        """(texts, dimension) float32 unit rows. A text beyond the model's length counts up to there."""
        import torch

        vectors = np.zeros((len(texts), self.dimension), np.float32)
        for rows, features in self._batches(texts):
            on_device = {key: value.to(self._model.device) for key, value in features.items()}
            with torch.inference_mode():
                vectors[rows] = self._model(on_device)["sentence_embedding"].float().cpu().numpy()
        return unit_rows(vectors)

    def _batches(self, texts: list[str]) -> Iterator[tuple[list[int], dict[str, Any]]]:
        """Row numbers and padded features of texts of one padded length, the longest first: memory runs out early or never."""
        if texts:
            encoded = self._model.tokenizer(texts, truncation=True, max_length=self._longest)["input_ids"]
            yield from padded_batches(encoded, self._longest, self._model.tokenizer.pad_token_id or 0)


def padded_batches(encoded: Sequence[Sequence[int]], longest: int, pad_id: int) -> Iterator[tuple[list[int], dict[str, Any]]]:
    """(row numbers, {input_ids, attention_mask}, both (rows, length) int64), padded on the right, of token sequences of any length."""
    import torch

    buckets: dict[int, list[int]] = defaultdict(list)
    for row, ids in enumerate(encoded):
        buckets[min(-(-len(ids) // TOKEN_BUCKET) * TOKEN_BUCKET, max(longest, len(ids)))].append(row)
    for length, members in sorted(buckets.items(), reverse=True):
        at_once = min(BATCH_SIZE, max(1, TOKENS_AT_ONCE // max(1, length)))
        for start in range(0, len(members), at_once):
            rows = members[start : start + at_once]
            input_ids = torch.full((len(rows), length), pad_id)
            attention_mask = torch.zeros_like(input_ids)
            for place, row in enumerate(rows):
                input_ids[place, : len(encoded[row])] = torch.tensor(encoded[row])
                attention_mask[place, : len(encoded[row])] = 1
            yield rows, {"input_ids": input_ids, "attention_mask": attention_mask}

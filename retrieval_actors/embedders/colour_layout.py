"""Pictures by where which colours are, captions by a text model."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from retrieval_actors.embedders.embedder import unit_rows, written
from retrieval_actors.embedders.text import TextEmbedder
from retrieval_actors.pictures import LAYOUT_DIMENSION, colour_layout
from retrieval_actors.records import Passage, Query

PICTURE_WEIGHT = 2.0
"""How much more the picture counts than the caption, where both are there."""


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
        return self._join([(passage.image, written(passage), f"passage {passage.id!r}") for passage in passages], captions)

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

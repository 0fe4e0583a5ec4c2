"""What every embedder is, and what it reads in a passage."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Protocol

import numpy as np

from retrieval_actors.records import Passage, Query


class Embedder(Protocol):
    """Equal names mean equal vectors: a knowledge base is searched only by the embedder whose name it carries.

    Model, precision and every setting that changes a vector therefore stand in the name. What is left to the machine is the order in which
    its library adds: with and without AVX-512 the components of a float32 vector differ by 1.5e-7, those of a bfloat16 one by 2.5e-3 (a
    cosine of 0.99996). Within one process on a CPU the vector of a text is the same bits, whatever stands beside it in a batch; a GPU's
    library may choose its kernels by the size of the batch.
    """

    name: str
    dimension: int

    def embed_passages(self, passages: Sequence[Passage]) -> np.ndarray:
        """(passages, dimension) float32, unit rows. Raises ValueError naming the passage whose picture does not decode."""
        ...

    def embed_queries(self, queries: Sequence[Query]) -> np.ndarray:
        """(queries, dimension) float32, unit rows; the zero row for a query that has nothing this embedder looks at."""
        ...


def written(passage: Passage) -> str:
    """What stands in a passage, its title first."""
    return ". ".join(part for part in (passage.title, passage.text) if part)


def unit_rows(vectors: np.ndarray) -> np.ndarray:
    """Each row divided by its norm; zero rows stay zero."""
    norms = np.linalg.norm(vectors, axis=1, keepdims=True)
    return (vectors / np.where(norms > 0, norms, 1)).astype(np.float32)

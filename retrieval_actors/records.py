"""Queries and results of a search. What imports only these imports neither indexes nor models."""

from dataclasses import dataclass

import numpy as np

LEXICAL_SHARD = -1  # number of the BM25 index over all shards


@dataclass(frozen=True)
class Query:
    text: str
    image: bytes | None = None  # PNG or JPEG that the text is about; text-only knowledge bases ignore it


@dataclass(frozen=True)
class Passage:
    """One entry of a knowledge base, as stored (score 0) or as a search returned it."""

    id: str  # unique within its knowledge base
    text: str  # a sentence, a caption, a linearised table row
    title: str = ""  # of its page; shown and searched in front of the text
    image: bytes | None = None  # PNG or JPEG of a text-image entry; searched with, not shown to the policy
    kb: str = ""  # name of the knowledge base that returned it
    score: float = 0.0  # higher is nearer: inner product, fused rank or reranker score
    error: str = ""  # not empty when the search failed: the passage then holds no knowledge, is counted, and is masked from learning

    @property
    def full_text(self) -> str:
        """Title and text, as embedders, BM25 and rerankers read them."""
        return ". ".join(part for part in (self.title, self.text) if part)


@dataclass(frozen=True)
class ShardHits:
    """What one index found for a batch of queries."""

    scores: np.ndarray  # (queries, at most k) float32, descending; padded with -inf (BM25: 0)
    positions: np.ndarray  # (queries, at most k) int64, in the knowledge base; padded with -1
    passages: dict[int, tuple[str, str, str, bytes | None]]  # position -> (id, text, title, picture or None)


@dataclass(frozen=True)
class KnowledgeBaseCard:
    """What prompts, records and checks need to know about a knowledge base."""

    name: str  # in configuration, records and metrics (`text`, `text_image`, `table`)
    retriever_name: str  # in a plan turn of the policy ("Text Retriever")
    description: str  # one sentence for the prompt: what can be found here
    modality: str  # `text`, `text_image` or `table`
    passages: int
    fingerprint: str  # hash over the manifest with the checksums of all files
    embedder: str  # name of the embedder whose vectors are stored; queries must come from the same
    dimension: int
    shards: int

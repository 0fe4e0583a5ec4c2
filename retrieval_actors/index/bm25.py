"""Lexical search (BM25) over a whole knowledge base, and its fusion with the ranking by vectors.

Not one index for each shard: BM25 counts the passages with a word, so scores of shards do not compare. bm25s computes all weights at build time
(arXiv 2407.03618); the index is memory-mapped and takes 8 bytes for each distinct word of a passage.
"""

import json
import math
from collections import defaultdict
from collections.abc import Sequence
from pathlib import Path
from typing import Any, Self

import numpy as np

K1, B = 0.9, 0.4  # as in Anserini for passages
METHOD = "lucene"  # its weights are never negative: exactly the passages without a query word have score 0
TOKENS: dict[str, Any] = {"token_pattern": r"(?u)\b\w+\b", "stopwords": "english", "show_progress": False}
"""Words of one letter are indexed, too. In scripts without spaces a run of letters is one word: use vectors there."""
SETTINGS_FILE = "lexical.json"
RANK_CONSTANT = 60  # of reciprocal rank fusion, as in its paper


class BM25Index:
    """Made by `build` or `load`."""

    def __init__(self, engine: Any, passages: int):
        self._engine, self.passages = engine, passages  # `engine`: bm25s' index, None if no passage has a word

    @classmethod
    def build(cls, texts: Sequence[str], folder: Path) -> Self:
        """Writes the index of the texts, in order, into a folder; equal texts give equal bytes."""
        import bm25s

        folder.mkdir(parents=True, exist_ok=True)
        tokens = bm25s.tokenize(list(texts), **TOKENS)
        if tokens.vocab:
            engine = bm25s.BM25(k1=K1, b=B, method=METHOD)
            engine.index(tokens, create_empty_token=False, show_progress=False)
            engine.save(folder, show_progress=False)
        settings = {"passages": len(texts), "words": len(tokens.vocab), "k1": K1, "b": B, "method": METHOD}
        (folder / SETTINGS_FILE).write_text(json.dumps(settings, indent=2) + "\n", encoding="utf-8")
        return cls.load(folder)

    @classmethod
    def load(cls, folder: Path) -> Self:
        import bm25s

        settings = json.loads((folder / SETTINGS_FILE).read_text(encoding="utf-8"))
        return cls(bm25s.BM25.load(folder, mmap=True) if settings["words"] else None, settings["passages"])

    def search(self, queries: Sequence[str], k: int) -> tuple[np.ndarray, np.ndarray]:
        """(queries, min(k, passages)) float32 scores, descending, and int64 positions, ties to the earlier; (0, -1) where no word is shared."""
        import bm25s

        k = max(0, min(k, self.passages))
        scores, positions = np.zeros((len(queries), k), np.float32), np.full((len(queries), k), -1, np.int64)
        if self._engine is None or not k or not len(queries):
            return scores, positions
        for row, words in enumerate(bm25s.tokenize(list(queries), return_ids=False, **TOKENS)):
            if known := self._engine.get_tokens_ids(words):
                # bm25s adds up in this order, and rounds: sorted, the same words give the same score in any order.
                found = self._engine.get_scores_from_ids(sorted(known))
                best = _top(found, k)
                scores[row, : len(best)], positions[row, : len(best)] = found[best], best
        return scores, positions


def _top(scores: np.ndarray, k: int) -> np.ndarray:
    """Positions of the k highest scores above 0, descending, ties to the earlier position."""
    least = np.partition(scores, len(scores) - k)[len(scores) - k]
    candidates = np.flatnonzero((scores >= least) & (scores > 0))
    return candidates[np.lexsort((candidates, -scores[candidates]))][:k]


def reciprocal_rank_fusion(rankings: Sequence[Sequence[int]], k: int, constant: int = RANK_CONSTANT) -> list[tuple[int, float]]:
    """The k best (position, sum over the rankings of 1 / (constant + rank)), ranks from 1, ties to the earlier position (Cormack, Clarke and
    Buettcher, SIGIR 2009). Negative positions are padding; of a repeated position, the first rank counts."""
    terms: defaultdict[int, list[float]] = defaultdict(list)
    for ranking in rankings:
        for rank, position in enumerate(dict.fromkeys(ranking), 1):
            if position >= 0:
                terms[int(position)].append(1 / (constant + rank))
    # fsum rounds once: the same score in any order of the rankings.
    fused = [(position, math.fsum(parts)) for position, parts in terms.items()]
    return sorted(fused, key=lambda entry: (-entry[1], entry[0]))[: max(0, k)]

"""Search by words: BM25 over a whole knowledge base.

There is one index for each knowledge base, not one for each shard. BM25 weighs a word by how few passages hold it and a passage by its
length against the mean, so scores of shards that count by themselves do not compare, and a merged answer would depend on where the shards
were cut. The index is small beside the vectors (8 bytes for a distinct word of a passage: about 0.5 kB for 100 words, a third of 384
float32), memory-mapped, and searched in one process; it needs no cutting. bm25s computes all weights when it builds and adds them up when
it searches (arXiv 2407.03618).
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

K1, B = 0.9, 0.4
"""What Anserini uses for passages: short texts differ little in length, and a word that occurs twice says little more than once."""
METHOD = "lucene"
"""The variant whose weights are never negative: a passage that holds none of the words has score 0, and only such a one."""
TOKEN_PATTERN = r"(?u)\b\w+\b"
"""Words of one letter or digit count. Scripts without spaces are searched by whole runs of letters: there, trust the vectors."""
STOPWORDS = "english"
SETTINGS_FILE = "lexical.json"
MATRIX_FILES = ("data.csc.index.npy", "indices.csc.index.npy", "indptr.csc.index.npy", "vocab.index.json", "params.index.json")
"""What bm25s saves: float32 weights and int32 positions word by word, where each word begins, the words, the parameters."""


class LexicalIndexError(ValueError):
    """Files that are no whole index; the message names the file and says what to do."""


class BM25Index:
    """Safe to share between processes: its arrays are mapped, not read. `files` are those it consists of, for a manifest."""

    files = (SETTINGS_FILE, *MATRIX_FILES)

    def __init__(self, engine: Any, passages: int):
        """`engine`: bm25s' index, None where no passage has a word. Use `build` or `load`."""
        self._engine = engine
        self.passages = passages

    @classmethod
    def build(cls, texts: Sequence[str], folder: str | Path) -> BM25Index:
        """Writes the index of all texts of a knowledge base, in its order, into an existing or new folder; equal texts, equal bytes.

        Holds the words of all texts in memory while it builds. Empty texts are legal, and none at all.
        """
        import bm25s

        folder = Path(folder)
        folder.mkdir(parents=True, exist_ok=True)
        for file in cls.files:
            (folder / file).unlink(missing_ok=True)
        tokens = bm25s.tokenize(list(texts), token_pattern=TOKEN_PATTERN, stopwords=STOPWORDS, show_progress=False)
        if tokens.vocab:  # without a word there is nothing that bm25s could count
            engine = bm25s.BM25(k1=K1, b=B, method=METHOD)
            engine.index(tokens, create_empty_token=False, show_progress=False)
            engine.save(folder, show_progress=False)
        settings = {"passages": len(texts), "words": len(tokens.vocab), "k1": K1, "b": B, "method": METHOD}
        (folder / SETTINGS_FILE).write_text(json.dumps(settings, indent=2) + "\n", encoding="utf-8")
        return cls.load(folder)

    @classmethod
    def load(cls, folder: str | Path) -> BM25Index:
        """Raises LexicalIndexError for a folder in which a file is missing or is not what it should be."""
        import bm25s

        folder = Path(folder)
        mend = "build the knowledge base again"
        try:
            settings = json.loads((folder / SETTINGS_FILE).read_text(encoding="utf-8"))
            passages, words = int(settings["passages"]), int(settings["words"])
        except (OSError, ValueError, KeyError, TypeError) as error:
            raise LexicalIndexError(f"{folder / SETTINGS_FILE} is missing or no lexical index ({type(error).__name__}): {mend}") from error
        if not words:
            return cls(None, passages)
        if missing := [file for file in MATRIX_FILES if not (folder / file).is_file()]:
            raise LexicalIndexError(f"{folder / missing[0]} is missing: {mend}")
        try:
            engine = bm25s.BM25.load(folder, mmap=True)
        except (OSError, ValueError, KeyError, TypeError) as error:
            raise LexicalIndexError(f"{folder}: bm25s can not load it ({error}): {mend}") from error
        if engine.scores["num_docs"] != passages or len(engine.scores["indptr"]) != words + 1:
            raise LexicalIndexError(f"{folder / MATRIX_FILES[4]}: {engine.scores['num_docs']} passages, expected {passages}: {mend}")
        return cls(engine, passages)

    def search(self, queries: Sequence[str], k: int) -> tuple[np.ndarray, np.ndarray]:
        """(queries, k) float32 scores, descending, and (queries, k) int64 positions, ties to the earlier position.

        Only passages that hold a word of the query are found: where there are fewer than k, the rest has position -1 and score 0. A `k`
        beyond the number of passages returns that many columns.
        """
        import bm25s

        k = max(0, min(k, self.passages))
        scores, positions = np.zeros((len(queries), k), np.float32), np.full((len(queries), k), -1, np.int64)
        if self._engine is None or not k or not len(queries):
            return scores, positions
        asked = bm25s.tokenize(list(queries), token_pattern=TOKEN_PATTERN, stopwords=STOPWORDS, return_ids=False, show_progress=False)
        for row, words in enumerate(asked):
            if known := self._engine.get_tokens_ids(words):
                # bm25s adds word by word in this order, and rounds: sorted, the same words are the same score in any order.
                found = self._engine.get_scores_from_ids(sorted(known))
                best = _top(found, k)
                scores[row, : len(best)], positions[row, : len(best)] = found[best], best
        return scores, positions


def _top(scores: np.ndarray, k: int) -> np.ndarray:
    """Positions of the k highest scores above 0, descending, ties to the earlier position."""
    least = np.partition(scores, len(scores) - k)[len(scores) - k]
    candidates = np.flatnonzero((scores >= least) & (scores > 0))
    return candidates[np.lexsort((candidates, -scores[candidates]))][:k]

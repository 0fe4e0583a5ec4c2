"""Text models of sentence-transformers: embedders, with the prefixes that they were trained with, and rerankers."""

import re
from collections import defaultdict
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import numpy as np

from retrieval_actors.embedders.embedder import Embedder, Entry, device, dtype_of, load, set_threads, split_precision, unit_rows
from retrieval_actors.records import Passage

TOKEN_BUCKET = 8
"""Texts are padded to a multiple of this and batched only with texts of that length: a vector is the same bits in any batch."""
FEWEST_TOKENS = 16
"""Texts are padded to this at least: for fewer rows MKL multiplies matrices by another kernel, whose sums differ in the last bit."""
BATCH_SIZE = 32
TOKENS_AT_ONCE = 1 << 14  # bound on the tokens of a batch
PREFIXES = (
    (r"(multilingual-)?e5-(small|base|large)(-v2|-unsupervised)?", "query: ", "passage: "),
    (r"e5-mistral-7b-instruct|multilingual-e5-large-instruct", "Instruct: {task}\nQuery: ", ""),
    (r"bge-(small|base|large)-en(-v1\.5)?", "Represent this sentence for searching relevant passages: ", ""),
    (r"qwen3-embedding-.*", "Instruct: {task}\nQuery:", ""),
)
"""Pattern of the last part of hub name or path, query prefix, passage prefix, from the model cards. Prompts in a model's
config_sentence_transformers.json win; write them there for other models: {"prompts": {"query": "...", "document": "..."}}."""
TASK = "Given a web search query, retrieve relevant passages that answer the query"
PASSAGE_KEYS = ("document", "passage", "corpus")  # names of the passage prompt, in sentence-transformers' order
RERANKER = "cross-encoder:"


def prefixes(model: str, prompts: Mapping[str, str | None]) -> tuple[str, str]:
    """(query prefix, passage prefix) of the model at that hub name or path; `prompts` are those of its configuration."""
    query = prompts.get("query") or ""
    passage = next((prompt for key in PASSAGE_KEYS if (prompt := prompts.get(key))), "")
    if query or passage:
        return query, passage
    own_name = model.rstrip("/").rpartition("/")[2].lower()
    for pattern, before_query, before_passage in PREFIXES:
        if re.fullmatch(pattern, own_name):
            return before_query.format(task=TASK), before_passage
    return "", ""


class TextEmbedder(Embedder):
    """Reads the title and text of a passage and the text of a query; ignores pictures."""

    def __init__(self, name: str, name_or_path: str, precision: str = "fp32"):
        """Raises ValueError for a model that is not available."""
        from sentence_transformers import SentenceTransformer

        self.name = name
        options = {"device": str(device()), "model_kwargs": {"dtype": dtype_of(precision)}}
        self._model = load(f"embedder {name!r}", name_or_path, SentenceTransformer, **options)
        self._model.to(dtype_of(precision)).eval()  # `dtype` above reaches the transformer only, not the layers behind it
        self._before_query, self._before_passage = prefixes(name_or_path, self._model.prompts)
        self._longest = self._model.max_seq_length or 512
        self.dimension = int(self._model.get_embedding_dimension() or 0)

    def embed(self, entries: list[Entry], of_queries: bool) -> np.ndarray:
        """Texts beyond the model's length are cut."""
        import torch

        vectors = np.zeros((len(entries), self.dimension), np.float32)
        if not entries:
            return vectors
        before = self._before_query if of_queries else self._before_passage
        encoded = self._model.tokenizer([before + text for _, text, _ in entries], truncation=True, max_length=self._longest)["input_ids"]
        for rows, features in padded_batches(encoded, self._longest, self._model.tokenizer.pad_token_id or 0):
            on_device = {key: value.to(self._model.device) for key, value in features.items()}
            with torch.inference_mode():
                vectors[rows] = self._model(on_device)["sentence_embedding"].float().cpu().numpy()
        return unit_rows(vectors)


def padded_batches(encoded: Sequence[Sequence[int]], longest: int, pad_id: int) -> Iterator[tuple[list[int], dict[str, Any]]]:
    """(row numbers, {input_ids, attention_mask}, both (rows, length) int64), padded on the right; the longest first."""
    import torch

    buckets: dict[int, list[int]] = defaultdict(list)
    for row, ids in enumerate(encoded):
        buckets[min(max(FEWEST_TOKENS, -(-len(ids) // TOKEN_BUCKET) * TOKEN_BUCKET), max(longest, len(ids)))].append(row)
    for length, members in sorted(buckets.items(), reverse=True):
        at_once = min(BATCH_SIZE, max(1, TOKENS_AT_ONCE // max(1, length)))
        for start in range(0, len(members), at_once):
            rows = members[start : start + at_once]
            padding = [length - len(encoded[row]) for row in rows]
            padded = [[*encoded[row], *[pad_id] * more] for row, more in zip(rows, padding, strict=True)]
            mask = [[1] * (length - more) + [0] * more for more in padding]
            yield rows, {"input_ids": torch.tensor(padded), "attention_mask": torch.tensor(mask)}


def check_reranker_name(name: str) -> tuple[str, str]:
    """(model, precision) of `cross-encoder:NAME_OR_PATH`, with or without `@bf16`. Raises ValueError for an unknown name; loads nothing."""
    model, precision = split_precision(f"reranker {name!r}", name.removeprefix(RERANKER))
    if not name.startswith(RERANKER) or not model:
        raise ValueError(f"unknown reranker {name!r}: use {RERANKER}NAME_OR_PATH")
    return model, precision


class Reranker:
    """Scores a query and a passage together by a cross-encoder. Far slower than an index, so only for the best few passages of a search."""

    def __init__(self, name: str, threads: int = 0):
        """`threads` > 0 sets the CPU threads of this process. Raises ValueError for an unknown or unavailable model, and for several outputs."""
        from sentence_transformers import CrossEncoder

        model, precision = check_reranker_name(name)
        set_threads(threads)
        options = {"device": str(device()), "model_kwargs": {"dtype": dtype_of(precision)}}
        self._model = load(f"reranker {name!r}", model, CrossEncoder, **options)
        if self._model.num_labels != 1:
            raise ValueError(f"reranker {name!r}: {model} has {self._model.num_labels} outputs, a reranker has one")

    def scores(self, pairs: Sequence[tuple[str, Sequence[Passage]]]) -> list[np.ndarray]:
        """For each query and its passages: (passages,) float32, higher is better. Compare scores of one query only."""
        found = []
        for query, passages in pairs:
            texts = [(query, passage.full_text) for passage in passages]
            scores = self._model.predict(texts, batch_size=BATCH_SIZE, show_progress_bar=False, convert_to_numpy=True) if texts else []
            found.append(np.asarray(scores, np.float32).reshape(-1))
        return found

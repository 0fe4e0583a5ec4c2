"""Reads query and passage together and says how well they fit: slower than an index by far, for the best few of a search.

    cross-encoder:NAME_OR_PATH     any sentence-transformers CrossEncoder
    qwen3-reranker:NAME_OR_PATH    Qwen3-Reranker, by the odds of its answering "yes"

Both may be followed by `@bf16` (default `@fp32`). Off unless a configuration names one.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Protocol

import numpy as np

from retrieval_actors.embedders.embedder import written
from retrieval_actors.embedders.loading import device, dtype_of, load
from retrieval_actors.embedders.names import PRECISIONS
from retrieval_actors.embedders.text import padded_batches
from retrieval_actors.records import Passage

SHORT_NAMES = {"qwen3-reranker-0.6b": "qwen3-reranker:Qwen/Qwen3-Reranker-0.6B@bf16"}
BATCH_SIZE = 32
INSTRUCTION = "Given a web search query, retrieve relevant passages that answer the query"
HEAD = (
    "<|im_start|>system\nJudge whether the Document meets the requirements based on the Query and the Instruct provided. "
    'Note that the answer can only be "yes" or "no".<|im_end|>\n<|im_start|>user\n'
)
FOOT = "<|im_end|>\n<|im_start|>assistant\n<think>\n\n</think>\n\n"
LONGEST = 8192
"""Tokens of a pair; a longer one loses the end of its passage."""


class Reranker(Protocol):
    name: str

    def scores(self, query: str, passages: Sequence[Passage]) -> np.ndarray:
        """(passages,) float32 in [0, 1] or unbounded, by model; higher fits better. Compare scores of one query only."""
        ...


def build_reranker(name: str, threads: int = 0) -> Reranker:
    """The reranker of that name, on a GPU if this process sees one; `threads` > 0 sets the CPU threads of this process.

    Raises ValueError for an unknown name, and for a model that is neither a folder, nor in the local cache, nor within reach.
    """
    check_reranker_name(name)
    if threads > 0:
        import torch

        torch.set_num_threads(threads)
    full, _, precision = SHORT_NAMES.get(name, name).partition("@")
    kind, _, model = full.partition(":")
    if kind == "cross-encoder":
        return CrossEncoderReranker(name, model, precision or "fp32")
    return Qwen3Reranker(name, model, precision or "fp32")


def check_reranker_name(name: str) -> None:
    """Raises ValueError for a name that `build_reranker` does not know; loads nothing."""
    full, _, precision = SHORT_NAMES.get(name, name).partition("@")
    kind, _, model = full.partition(":")
    if kind not in ("cross-encoder", "qwen3-reranker") or not model:
        raise ValueError(
            f"unknown reranker {name!r}: use cross-encoder:NAME_OR_PATH, qwen3-reranker:NAME_OR_PATH, {', '.join(SHORT_NAMES)}"
        )
    if precision and precision not in PRECISIONS:
        raise ValueError(f"reranker {name!r}: unknown precision {precision!r}, use {' or '.join(PRECISIONS)}")


class CrossEncoderReranker:
    """A model with one output for a pair; what its configuration makes of that output (usually a sigmoid) is the score."""

    def __init__(self, name: str, name_or_path: str, precision: str):
        """Raises ValueError for a model that can not be had, or that has more outputs than one."""
        from sentence_transformers import CrossEncoder

        self.name = name
        options = {"device": str(device()), "model_kwargs": {"dtype": dtype_of(precision)}}
        self._model = load(f"reranker {name!r}", name_or_path, CrossEncoder, **options)
        if self._model.num_labels != 1:
            raise ValueError(f"reranker {name!r}: {name_or_path} has {self._model.num_labels} outputs, a reranker has one")

    def scores(self, query: str, passages: Sequence[Passage]) -> np.ndarray:
        if not passages:
            return np.zeros(0, np.float32)
        pairs = [(query, written(passage)) for passage in passages]
        found = self._model.predict(pairs, batch_size=BATCH_SIZE, show_progress_bar=False, convert_to_numpy=True)
        return np.asarray(found, np.float32).reshape(-1)


class Qwen3Reranker:
    """P("yes") against "no" as the next token, after the usage published with Qwen/Qwen3-Reranker-0.6B.

    Tested on small models of the same class; the published weights were not run here.
    """

    def __init__(self, name: str, name_or_path: str, precision: str):
        """Raises ValueError for a model that can not be had, or whose tokenizer has no single token for "yes" and "no"."""
        from transformers import AutoModelForCausalLM, AutoTokenizer

        whose = f"reranker {name!r}"
        self.name = name
        self._model = load(whose, name_or_path, AutoModelForCausalLM.from_pretrained, dtype=dtype_of(precision), use_safetensors=True)
        self._model.eval().to(device())
        self._tokenizer = load(whose, name_or_path, AutoTokenizer.from_pretrained)
        answers = [self._encode(answer) for answer in ("no", "yes")]
        if any(len(ids) != 1 for ids in answers):
            raise ValueError(f"{whose}: its tokenizer has no single token for yes and no; a Qwen3 tokenizer has")
        self._no, self._yes = (ids[0] for ids in answers)

    def scores(self, query: str, passages: Sequence[Passage]) -> np.ndarray:
        import torch

        found = np.zeros(len(passages), np.float32)
        encoded = [self._token_ids(query, written(passage)) for passage in passages]
        for rows, features in padded_batches(encoded, LONGEST, self._tokenizer.pad_token_id or 0):
            last = features["attention_mask"].sum(1) - 1
            with torch.inference_mode():
                on_device = {key: value.to(self._model.device) for key, value in features.items()}
                states = self._model.model(**on_device, use_cache=False).last_hidden_state[torch.arange(len(rows)), last]
                logits = self._model.lm_head(states)[:, [self._no, self._yes]].float()
                found[rows] = logits.softmax(-1)[:, 1].cpu().numpy()
        return found

    def _token_ids(self, query: str, passage: str) -> list[int]:
        head, foot = self._encode(HEAD), self._encode(FOOT)
        pair = self._encode(f"<Instruct>: {INSTRUCTION}\n<Query>: {query}\n<Document>: {passage}", split_special_tokens=True)
        return [*head, *pair[: LONGEST - len(head) - len(foot)], *foot]

    def _encode(self, text: str, **options: bool) -> list[int]:
        return self._tokenizer(text, add_special_tokens=False, **options)["input_ids"]

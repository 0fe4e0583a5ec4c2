"""The base class of embedders, and loading a model from a folder, the local cache or the hub."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

import numpy as np

from retrieval_actors.records import Passage, Query

if TYPE_CHECKING:
    import torch

Loaded = TypeVar("Loaded")
HUB_SECONDS = 10
PRECISIONS = {"fp32": "float32", "bf16": "bfloat16"}  # in a model's name -> torch dtype of weights and activations; vectors are float32
Entry = tuple[bytes | None, str, str]  # (picture, text, the passage or query that it belongs to, for messages)


class Embedder(ABC):
    """Turns passages and queries into unit vectors. Equal names mean equal vectors; on a CPU, the same bits in any batch."""

    name: str
    dimension: int

    def embed_passages(self, passages: Sequence[Passage]) -> np.ndarray:
        """(passages, dimension) float32 unit rows. Raises ValueError naming the passage whose picture does not decode."""
        return self.embed([(passage.image, passage.full_text, f"passage {passage.id!r}") for passage in passages], of_queries=False)

    def embed_queries(self, queries: Sequence[Query]) -> np.ndarray:
        """(queries, dimension) float32 unit rows; zeros for a query without anything that this embedder reads."""
        return self.embed([(query.image, query.text, f"query {query.text[:60]!r}") for query in queries], of_queries=True)

    @abstractmethod
    def embed(self, entries: list[Entry], of_queries: bool) -> np.ndarray:
        """(entries, dimension) float32 unit rows."""


def device() -> torch.device:
    """The GPU, if this process sees one: Ray shows an actor only those that it reserved."""
    import torch

    return torch.device("cuda" if torch.cuda.is_available() else "cpu")


def split_precision(owner: str, name: str) -> tuple[str, str]:
    """Splits "a/b@bf16" into ("a/b", "bf16"); fp32 if none is named. Raises ValueError for an unknown precision."""
    model, _, precision = name.partition("@")
    if precision not in ("", *PRECISIONS):
        raise ValueError(f"{owner}: unknown precision {precision!r}, use {' or '.join(PRECISIONS)}")
    return model, precision or "fp32"


def dtype_of(precision: str) -> torch.dtype:
    import torch

    return getattr(torch, PRECISIONS[precision])


def set_threads(threads: int) -> None:
    """CPU threads of this process; 0: unchanged."""
    if threads > 0:
        import torch

        torch.set_num_threads(threads)


def load(owner: str, name_or_path: str, loader: Callable[..., Loaded], **options: Any) -> Loaded:
    """`loader(name_or_path, ...)`: from a folder, else from the local cache, else from the hub; runs no code that comes with a model. Raises
    ValueError, one line that begins with `owner`, for a model that is not available."""
    from huggingface_hub import HfApi, try_to_load_from_cache
    from transformers.utils import logging

    logging.disable_progress_bar()
    local = Path(name_or_path).is_dir()
    if local or isinstance(try_to_load_from_cache(name_or_path, "config.json"), str):
        try:
            return loader(name_or_path, local_files_only=True, trust_remote_code=False, **options)
        except OSError as error:
            if local:
                raise ValueError(f"{owner}: folder {name_or_path} holds no complete model ({str(error).splitlines()[0]})") from error
    try:
        # The loaders retry for most of a minute; one request shows whether the hub can be reached.
        HfApi().model_info(name_or_path, timeout=HUB_SECONDS)
    except Exception as error:  # the class for "no network" and "no such model" depends on the client's version
        advice = f"run `hf download {name_or_path}` once where there is a network, or name a folder with the model"
        found = f"{name_or_path} is not in the local cache and can not be downloaded from here ({type(error).__name__})"
        raise ValueError(f"{owner}: {found}: {advice}") from error
    return loader(name_or_path, trust_remote_code=False, **options)


def unit_rows(vectors: np.ndarray) -> np.ndarray:
    """Each row divided by its norm; zero rows stay zero."""
    norms = np.linalg.norm(vectors, axis=1, keepdims=True)
    return (vectors / np.where(norms > 0, norms, 1)).astype(np.float32)

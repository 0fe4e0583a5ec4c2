"""From passages to a knowledge base folder."""

from __future__ import annotations

import itertools
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path

import numpy as np

from retrieval_actors.approximate_index import check_index_name
from retrieval_actors.embedders import build_embedder
from retrieval_actors.knowledge_base import KnowledgeBase
from retrieval_actors.records import Passage
from retrieval_actors.shard_files import new_folder, passage_table, write_manifest, write_shard

Progress = Callable[[str, int, int], None]
"""Is told what is being done, how many are done, and of how many."""
RETRIEVER_NAMES = {"text": "Text Retriever", "text_image": "Text Image Retriever", "table": "Table Retriever"}
"""How the policy writes a knowledge base of each modality, unless its folder says another name."""
EMBEDDERS = {"text": "minilm", "text_image": "colour-layout+minilm", "table": "minilm"}
"""What embeds each modality, unless another is asked for."""
MODALITIES = tuple(RETRIEVER_NAMES)
PASSAGES_AT_ONCE = 512


def build_knowledge_base(
    passages: Iterable[Passage],
    folder: str | Path,
    *,
    name: str,
    retriever_name: str,
    description: str,
    modality: str,
    embedder_name: str,
    shards: int = 2,
    index: str = "auto",
    lexical: bool = False,
    progress: Progress | None = None,
) -> KnowledgeBase:
    """Embeds the passages and writes the folder. Raises ValueError for an unknown embedder, for equal ids, or for a broken picture."""
    passages = list(passages)
    _check(passages, modality, shards)
    embedder = build_embedder(embedder_name)
    vectors = np.zeros((len(passages), embedder.dimension), np.float32)
    # Passages of like length share a batch; the vectors do not depend on it.
    by_length = sorted(range(len(passages)), key=lambda row: len(passages[row].text))
    for start in range(0, len(passages), PASSAGES_AT_ONCE):
        rows = by_length[start : start + PASSAGES_AT_ONCE]
        vectors[rows] = embedder.embed_passages([passages[row] for row in rows])
        if progress:
            progress(f"embedding {name}", start + len(rows), len(passages))
    return write_knowledge_base(
        folder,
        name=name,
        retriever_name=retriever_name,
        description=description,
        modality=modality,
        embedder=embedder_name,
        passages=passages,
        vectors=vectors,
        shards=shards,
        index=index,
        lexical=lexical,
    )


def write_knowledge_base(
    folder: str | Path,
    *,
    name: str,
    retriever_name: str,
    description: str,
    modality: str,
    embedder: str,
    passages: Sequence[Passage],
    vectors: np.ndarray,
    shards: int = 2,
    index: str = "auto",
    lexical: bool = False,
) -> KnowledgeBase:
    """Writes passages and their (passages, dimension) float32 unit vectors beside `folder` and renames: a kill leaves no half folder.

    `index`: `exact`, a FAISS factory string, or `auto`, which chooses by the size of a shard. `lexical`: searchable by words as well.
    An older knowledge base at `folder` is replaced; a folder that is something else is refused (ValueError).
    """
    _check(passages, modality, shards)
    if vectors.ndim != 2 or len(vectors) != len(passages):
        raise ValueError(f"knowledge base {name!r}: vectors of shape {vectors.shape} for {len(passages)} passages")
    check_index_name(index, vectors.shape[1])
    bounds = [len(passages) * number // shards for number in range(shards + 1)]
    with new_folder(folder) as aside:
        entries = [
            write_shard(aside, number, first, [(passage_table(passages[first:last]), vectors[first:last])], vectors.shape[1], index)
            for number, (first, last) in enumerate(itertools.pairwise(bounds))
        ]
        write_manifest(
            aside,
            name=name,
            retriever_name=retriever_name,
            description=description,
            modality=modality,
            embedder=embedder,
            dimension=vectors.shape[1],
            index=index,
            entries=entries,
            lexical=lexical,
        )
    return KnowledgeBase.open(folder, verify=False)


def _check(passages: Sequence[Passage], modality: str, shards: int) -> None:
    if modality not in MODALITIES:
        raise ValueError(f"modality {modality!r}: use one of {', '.join(MODALITIES)}")
    if shards < 1:
        raise ValueError(f"shards = {shards}: at least 1")
    seen: set[str] = set()
    for passage in passages:
        if passage.id in seen:
            raise ValueError(f"passage id {passage.id!r} occurs twice: ids must be unique within a knowledge base")
        seen.add(passage.id)

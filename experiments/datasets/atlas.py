"""`atlas`: fictional worlds, made on the spot (experiments/atlas.py)."""

from __future__ import annotations

import functools
import zlib
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

from experiments.atlas import KNOWLEDGE_BASES, Atlas
from experiments.config import DataConfig, EvaluationConfig
from experiments.datasets.dataset import Dataset, KnowledgeBaseSource
from retrieval_actors.knowledge_base import FORMAT
from retrieval_actors.records import Passage


def load_atlas(data: DataConfig, evaluation: EvaluationConfig) -> Dataset:
    """Validation and held-out worlds share their knowledge bases with each other, and nothing with the training worlds."""
    train, heldout = (Atlas(split, data.seed, data.worlds, data.countries) for split in ("train", "heldout"))
    validation = Atlas("validation", data.seed, data.worlds, data.countries, beside=heldout)
    return Dataset(
        train=train.questions(data.train_questions, data.seed),
        validation=validation.questions(evaluation.validation_questions, data.seed),
        heldout=heldout.questions(evaluation.questions, data.seed),
        training_kbs=_sources("train", (train,), data),
        evaluation_kbs=_sources("evaluation", (validation, heldout), data),
        counts={"worlds": 3 * data.worlds},
    )


def _sources(purpose: str, atlases: Sequence[Atlas], data: DataConfig) -> tuple[KnowledgeBaseSource, ...]:
    """The folder's name holds a checksum of its content and format: another world, or one that an older program wrote, is never taken for it."""

    def passages(kb: str) -> list[Passage]:
        return [replace(passage, id=f"{atlas.split}-{passage.id}") for atlas in atlases for passage in atlas.passages(kb)]

    checksum = FORMAT
    for kb in KNOWLEDGE_BASES:
        for passage in passages(kb):
            checksum = zlib.crc32(f"{passage.id}\n{passage.text}\n".encode() + (passage.image or b""), checksum)
    folder = Path(data.kb_folder) / f"atlas-{purpose}-{checksum:08x}"
    return tuple(
        KnowledgeBaseSource(kb, folder / kb, retriever_name, description, functools.partial(passages, kb))
        for kb, (retriever_name, description) in KNOWLEDGE_BASES.items()
    )

"""What a data set is: questions for training, validation and the held-out comparison, and the knowledge bases of each."""

from __future__ import annotations

import functools
import random
import zlib
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from experiments.config import DataConfig, EvaluationConfig, RunConfigError
from retrieval_actors.build import EMBEDDERS, Progress, build_knowledge_base
from retrieval_actors.knowledge_base import FORMAT, MANIFEST, KnowledgeBase
from retrieval_actors.records import Passage
from rollout.episode import RecordedTurn
from rollout.records import Question


@dataclass(frozen=True)
class KnowledgeBaseSource:
    """A knowledge base that a data set needs; built into `folder` where it is not there yet."""

    name: str
    folder: Path
    retriever_name: str = ""
    description: str = ""
    passages: Callable[[], Iterable[Passage]] | None = None
    """None: the folder has to be there."""

    def ensure(self, progress: Progress | None = None) -> str:
        """The folder, built now if need be. Raises KnowledgeBaseError for a folder that is there and not whole."""
        if self.passages is not None and not self.folder.exists():
            build_knowledge_base(
                self.passages(),
                self.folder,
                name=self.name,
                retriever_name=self.retriever_name,
                description=self.description,
                modality=self.name,
                embedder_name=EMBEDDERS[self.name],
                progress=progress,
            )
        return str(self.folder)

    def check(self) -> None:
        """Raises KnowledgeBaseError, naming the file, for a folder that is there and not whole, or that nothing can build."""
        if self.passages is None or (self.folder / MANIFEST).exists() or self.folder.exists():
            KnowledgeBase.open(self.folder)


@dataclass(frozen=True)
class Dataset:
    train: Sequence[Question] | Sequence[RecordedTurn]
    validation: Sequence[Question] | Sequence[RecordedTurn]
    """What the best policy is chosen by."""
    heldout: Sequence[Question] | Sequence[RecordedTurn]
    """What before and after are measured on; nothing is chosen by it."""
    training_kbs: tuple[KnowledgeBaseSource, ...] = ()
    evaluation_kbs: tuple[KnowledgeBaseSource, ...] = ()
    gold_passages: dict[str, tuple[str, ...]] = field(default_factory=dict)
    """Question id -> ids of the passages that hold its answer, where the data set says so."""
    counts: dict[str, int] = field(default_factory=dict)
    """What was found and what was missing, by name."""
    notes: tuple[str, ...] = ()
    """What the user should know before anything starts: pictures that are missing, for instance. One line each."""


def ensure_knowledge_bases(sources: Sequence[KnowledgeBaseSource], progress: Progress | None = None) -> dict[str, str]:
    """Knowledge base name -> folder, each built if it is not there."""
    return {source.name: source.ensure(progress) for source in sources}


def place_of(data: DataConfig, default: str) -> Path:
    """`data.path`, or where the data set lies in `data.folder`. Raises RunConfigError where there is nothing."""
    path = Path(data.path or Path(data.folder) / default)
    if not path.exists():
        raise RunConfigError(f"data.path is {data.path!r} and {path} is not there; set data.path to where data.name={data.name} lies")
    return path


def built_from(
    name: str, data: DataConfig, card: tuple[str, str], passages: Callable[[], list[Passage]], needed: Iterable[str] = ()
) -> KnowledgeBaseSource:
    """A knowledge base `name` (`text`, `text_image` or `table`) of a published data set; `card`: retriever name and description.

    With `data.kb_passages` it holds at most so many passages: those whose id, or whose id before `#`, is among `needed` first. The folder's name
    holds a checksum of the ids, so that other questions or another bound never meet it.
    """
    needed = frozenset(needed)
    kept = functools.partial(_kept, passages, needed, data.kb_passages) if data.kb_passages else passages
    folder = data.name.replace(":", ".")
    if data.kb_passages:
        folder += f"-{zlib.crc32(chr(10).join(sorted(needed)).encode(), data.kb_passages + FORMAT):08x}"
    return KnowledgeBaseSource(name, Path(data.kb_folder) / folder / name, *card, kept)


def _kept(passages: Callable[[], list[Passage]], needed: frozenset[str], most: int) -> list[Passage]:
    """In the order of the knowledge base."""
    found = list(passages())
    first = [i for i, passage in enumerate(found) if passage.id in needed or passage.id.rpartition("#")[0] in needed]
    rest = [i for i in range(len(found)) if i not in set(first)]
    return [found[i] for i in sorted([*first, *rest][: max(most, len(first))])]


def split(
    questions: Sequence[Question], data: DataConfig, evaluation: EvaluationConfig
) -> tuple[list[Question], list[Question], list[Question]]:
    """(train, validation, held-out), drawn by `data.seed`; training gets what is left, at most `data.train_questions`."""
    shuffled = list(questions)
    random.Random(data.seed).shuffle(shuffled)
    held, kept = evaluation.questions, evaluation.questions + evaluation.validation_questions
    if kept >= len(shuffled):
        raise RunConfigError(
            f"evaluation.questions + evaluation.validation_questions is {kept}; {data.path} has {len(shuffled)} questions, training needs some"
        )
    return shuffled[kept : kept + data.train_questions], shuffled[held:kept], shuffled[:held]

"""What a data set is: questions for training, validation and the held-out comparison, and the knowledge bases of each."""

import random
import zlib
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any, TypeVar

from experiments.config import DataConfig, EvaluationConfig, RunConfigError
from retrieval_actors.build.from_passages import EMBEDDERS, Progress, build_knowledge_base
from retrieval_actors.folder_lock import hold
from retrieval_actors.knowledge_base import FORMAT, KnowledgeBase
from retrieval_actors.records import Passage
from retrieval_actors.sources.data_files import DataError, Located, read_records
from rollout.records import Question, RecordedTurn

Made = TypeVar("Made")


@dataclass(frozen=True)
class KnowledgeBaseSource:
    """A knowledge base that a data set needs; built into `folder` where it does not exist yet."""

    name: str
    folder: Path
    retriever_name: str = ""
    description: str = ""
    passages: Callable[[], Iterable[Passage]] | None = None  # None: the folder has to exist
    modality: str = ""  # `text`, `text_image` or `table`; empty: the name says it

    def ensure(self, progress: Progress | None = None) -> str:
        """The folder, built now if missing. Raises KnowledgeBaseError for an incomplete folder, FolderHeldError while another process builds it."""
        if self.passages is not None and not self.folder.exists():
            with hold(self.folder):
                card: dict[str, Any] = {"retriever_name": self.retriever_name, "description": self.description}
                card |= {"name": self.name, "modality": (modality := self.modality or self.name), "embedder_name": EMBEDDERS[modality]}
                build_knowledge_base(self.passages(), self.folder, **card, progress=progress)
        return str(self.folder)

    def check(self) -> None:
        """Raises KnowledgeBaseError, naming the file, for an incomplete folder, or a missing one that cannot be built."""
        if self.passages is None or self.folder.exists():
            KnowledgeBase.open(self.folder)


@dataclass(frozen=True)
class Dataset:
    train: Sequence[Question] | Sequence[RecordedTurn]
    validation: Sequence[Question] | Sequence[RecordedTurn]  # The best policy is chosen by these
    heldout: Sequence[Question] | Sequence[RecordedTurn]  # Measured before and after; nothing is chosen by them
    training_kbs: tuple[KnowledgeBaseSource, ...] = ()
    evaluation_kbs: tuple[KnowledgeBaseSource, ...] = ()
    gold_passages: dict[str, tuple[str, ...]] = field(default_factory=dict)  # Question id -> ids of passages that hold its answer
    gold_tokens: int = 0  # Sampled to find the gold steps (`data.gold=found`)
    notes: tuple[str, ...] = ()  # One line each: what the user should know before anything starts, such as missing pictures


def ensure_knowledge_bases(sources: Sequence[KnowledgeBaseSource], progress: Progress | None = None) -> dict[str, str]:
    return {source.name: source.ensure(progress) for source in sources}


def made_of_records(
    path: Path, what: str, make: Callable[[str, dict[str, Any]], Made], read: Callable[[Path], Iterable[Located]] = read_records
) -> Iterator[Made]:
    """`make(FILE:LINE, record)` of each record. Its errors about values, keys and types become a DataError with FILE:LINE and `what`."""
    for where, record in read(path):
        try:
            yield make(where, record)
        except (KeyError, TypeError, IndexError, AttributeError) as error:
            raise DataError(f"{where}: not {what} ({type(error).__name__}: {error})") from None
        except ValueError as error:
            raise DataError(f"{where}: {error}") from None


def place_of(data: DataConfig, default: str) -> Path:
    """`data.path`, or `default` in `data.folder`. Raises RunConfigError where nothing is there."""
    path = Path(data.path or Path(data.folder) / default)
    if not path.exists():
        fix = f"set data.path to where data.name={data.name} lies (r1-router fetch lists the sets that it downloads)"
        raise RunConfigError(f"data.path is {data.path!r} and {path} is not there; {fix}")
    return path


def built_from(name: str, data: DataConfig, card: tuple[str, str], passages: Callable[[], list[Passage]]) -> KnowledgeBaseSource:
    """A knowledge base `name` (`text`, `text_image` or `table`) of a published data set; `card`: retriever name and description."""
    return KnowledgeBaseSource(name, Path(data.kb_folder) / data.name.replace(":", ".") / name, *card, passages)


def generated(
    world: str, data: DataConfig, cards: Mapping[str, tuple[str, str]], passages: Callable[[str], list[Passage]], modality: str = ""
) -> tuple[KnowledgeBaseSource, ...]:
    """The knowledge bases of a generated world; `cards`: by name, `passages`: those of a knowledge base. The folder name has a checksum of content
    and format, so another world or format is built into another folder."""
    checksum = FORMAT
    for kb in cards:
        for passage in passages(kb):
            checksum = zlib.crc32(f"{passage.id}\n{passage.text}\n".encode() + (passage.image or b""), checksum)
    folder = Path(data.kb_folder) / f"{world}-{checksum:08x}"
    return tuple(KnowledgeBaseSource(kb, folder / kb, *card, partial(passages, kb), modality) for kb, card in cards.items())


def split(
    questions: Sequence[Question], data: DataConfig, evaluation: EvaluationConfig
) -> tuple[list[Question], list[Question], list[Question]]:
    """(train, validation, held-out), drawn by `data.seed`: held-out first, then validation; the rest, if any, up to `data.train_questions`."""
    shuffled = list(questions)
    random.Random(data.seed).shuffle(shuffled)
    held, kept = evaluation.questions, evaluation.questions + evaluation.validation_questions
    return shuffled[kept : kept + data.train_questions], shuffled[held:kept], shuffled[:held]


def no_training_questions(dataset: Dataset, data: DataConfig) -> str:
    """Why nothing can be trained with this data set, in one line; empty where something can."""
    held = f"its {len(dataset.heldout)} held-out and {len(dataset.validation)} validation questions are all there are"
    use = "lower evaluation.questions or evaluation.validation_questions, or choose another data set (some are for evaluation only)"
    return "" if dataset.train else f"data.name={data.name} has no training questions: {held}; {use}"

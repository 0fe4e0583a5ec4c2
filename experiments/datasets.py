"""What a run trains and is measured on: questions for training, validation and the held-out comparison, and the knowledge bases of each."""

from __future__ import annotations

import functools
import random
import zlib
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path

from experiments.atlas import KNOWLEDGE_BASES, Atlas
from experiments.config import DataConfig, EvaluationConfig, RunConfigError
from experiments.question_file import read_questions
from experiments.recorded_steps import read_recorded_steps
from experiments.two_wiki import DESCRIPTION, RETRIEVER_NAME, read_two_wiki
from retrieval_actors.build import EMBEDDERS, Progress, build_knowledge_base
from retrieval_actors.knowledge_base import FORMAT, MANIFEST, KnowledgeBase
from retrieval_actors.records import Passage
from retrieval_actors.sources.reading import read_source
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
    """What was found and what was missing, for the start of the run."""


def load_dataset(data: DataConfig, evaluation: EvaluationConfig, folders: dict[str, str]) -> Dataset:
    """The data set that `data.name` says. `folders` (`retrieval.folders`) are searched beside its own knowledge bases, and in the place of one
    that has the same name.

    Raises DataError or RunConfigError, one line each. Nothing is built or embedded here.
    """
    loaders = {"atlas": _atlas, "2wiki": _two_wiki, "recorded_steps": _recorded_steps, "questions": _questions}
    if data.name not in loaders:
        raise RunConfigError(f"data.name is {data.name!r}; expected one of {', '.join(loaders)}")
    if data.name != "atlas" and not data.path:
        raise RunConfigError(f"data.path is empty; data.name={data.name} needs it (see docs/data.md)")
    dataset = loaders[data.name](data, evaluation, folders)
    if data.name == "recorded_steps":  # nothing is searched
        return dataset
    given = {name: KnowledgeBaseSource(name, Path(folder)) for name, folder in folders.items()}
    training, held_out = (
        tuple(({source.name: source for source in sources} | given).values()) for sources in (dataset.training_kbs, dataset.evaluation_kbs)
    )
    return replace(dataset, training_kbs=training, evaluation_kbs=held_out)


def ensure_knowledge_bases(sources: Sequence[KnowledgeBaseSource], progress: Progress | None = None) -> dict[str, str]:
    """Knowledge base name -> folder, each built if it is not there."""
    return {source.name: source.ensure(progress) for source in sources}


def _atlas(data: DataConfig, evaluation: EvaluationConfig, folders: dict[str, str]) -> Dataset:
    """Validation and held-out worlds share their knowledge bases with each other, and nothing with the training worlds."""
    train, heldout = (Atlas(split, data.seed, data.worlds, data.countries) for split in ("train", "heldout"))
    validation = Atlas("validation", data.seed, data.worlds, data.countries, beside=heldout)
    return Dataset(
        train=train.questions(data.train_questions, data.seed),
        validation=validation.questions(evaluation.validation_questions, data.seed),
        heldout=heldout.questions(evaluation.questions, data.seed),
        training_kbs=_atlas_sources("train", (train,), data),
        evaluation_kbs=_atlas_sources("evaluation", (validation, heldout), data),
        counts={"worlds": 3 * data.worlds},
    )


def _atlas_sources(purpose: str, atlases: Sequence[Atlas], data: DataConfig) -> tuple[KnowledgeBaseSource, ...]:
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


def _two_wiki(data: DataConfig, evaluation: EvaluationConfig, folders: dict[str, str]) -> Dataset:
    questions, gold_passages = read_two_wiki(data.path)
    corpus = Path(data.path) / "corpus.jsonl"
    source = KnowledgeBaseSource("text", Path(data.kb_folder) / "2wiki" / "text", RETRIEVER_NAME, DESCRIPTION, lambda: read_source(corpus))
    train, validation, heldout = _split(questions, data, evaluation)
    counts = {"questions": len(questions)}
    return Dataset(train, validation, heldout, (source,), (source,), gold_passages, counts)


def _recorded_steps(data: DataConfig, evaluation: EvaluationConfig, folders: dict[str, str]) -> Dataset:
    """Whole trajectories are held out: turns of one trajectory know each other's answers."""
    read = read_recorded_steps(data.path, data.image_folder or None)
    trajectories = list(read.trajectories)
    random.Random(data.seed).shuffle(trajectories)
    parts: list[list[RecordedTurn]] = [[], []]
    for part, wanted in zip(parts, (evaluation.questions, evaluation.validation_questions), strict=True):
        while trajectories and len(part) < wanted:
            part += trajectories.pop()
    train = [turn for trajectory in trajectories for turn in trajectory]
    if not train:
        raise RunConfigError(f"evaluation.questions={evaluation.questions} leaves nothing of {data.path} to train on; ask for fewer")
    return Dataset(train, parts[1], parts[0], counts=dict(read.counts))


def _questions(data: DataConfig, evaluation: EvaluationConfig, folders: dict[str, str]) -> Dataset:
    if not folders:
        raise RunConfigError("retrieval.folders is empty; data.name=questions needs a folder for each knowledge base (see docs/data.md)")
    questions = read_questions(data.path, data.image_folder or None)
    if data.heldout_path:
        heldout = read_questions(data.heldout_path, data.image_folder or None)[: evaluation.questions]
        train, validation, _ = _split(questions, data, replace(evaluation, questions=0))
    else:
        train, validation, heldout = _split(questions, data, evaluation)
    return Dataset(train, validation, heldout, counts={"questions": len(questions)})


def _split(
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

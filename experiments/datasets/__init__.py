"""The data sets of training and evaluation, by `data.name`: each is one small file here and a line in `DATASETS`."""

import importlib
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from pathlib import Path

from experiments.config import DataConfig, EvaluationConfig, RunConfigError, TrainConfig
from experiments.datasets.dataset import Dataset, KnowledgeBaseSource, ensure_knowledge_bases, generated, no_training_questions
from experiments.datasets.multi_hop import MULTI_HOP
from experiments.datasets.open_domain import OPEN_DOMAIN
from experiments.datasets.paper_sets import PAPER_SETS, load_recorded_steps
from experiments.datasets.question_file import load_questions
from experiments.datasets.real_atlas import load_atlas_2wiki, load_real_atlas
from experiments.datasets.relay import load_relay
from experiments.datasets.table_sets import load_ottqa, load_wikitables
from experiments.datasets.two_wiki import load_two_wiki
from experiments.worlds.atlas import KNOWLEDGE_BASES, Atlas, questions_outside
from retrieval_actors.build.from_passages import EMBEDDERS
from retrieval_actors.records import Passage

__all__ = ["EMBEDDERS", "Dataset", "KnowledgeBaseSource", "ensure_knowledge_bases", "load_dataset", "training_dataset"]


def load_atlas(data: DataConfig, evaluation: EvaluationConfig) -> Dataset:
    """Validation and held-out worlds share knowledge bases; training worlds have their own, and no name in common with them. One in ten questions
    of an evaluation is `OUTSIDE`, behind the others."""
    train, heldout = (Atlas(split, data.seed, data.worlds, data.countries) for split in ("train", "heldout"))
    validation = Atlas("validation", data.seed, data.worlds, data.countries, beside=heldout)
    counts = {train: data.train_questions, validation: evaluation.validation_questions, heldout: evaluation.questions}
    first, second, third = (atlas.questions(count, data.seed) for atlas, count in counts.items())
    second, third = (
        questions + questions_outside(split, validation, round(len(questions) / 9), data.seed)
        for split, questions in (("validation", second), ("heldout", third))
    )
    return Dataset(first, second, third, _atlas_sources("train", (train,), data), _atlas_sources("evaluation", (validation, heldout), data))


def _atlas_sources(purpose: str, atlases: Sequence[Atlas], data: DataConfig) -> tuple[KnowledgeBaseSource, ...]:
    def passages(kb: str) -> list[Passage]:
        return [replace(passage, id=f"{atlas.split}-{passage.id}") for atlas in atlases for passage in atlas.passages(kb)]

    return generated(f"atlas-{purpose}", data, KNOWLEDGE_BASES, passages)


DATASETS: dict[str, Callable[[DataConfig, EvaluationConfig], Dataset]] = {
    "atlas": load_atlas,
    "relay": load_relay,
    "real_atlas": load_real_atlas,
    "2wiki": load_two_wiki,
    "atlas_2wiki": load_atlas_2wiki,
    "ottqa": load_ottqa,
    "wikitables": load_wikitables,
    **MULTI_HOP,
    **OPEN_DOMAIN,
    **PAPER_SETS,
    "recorded_steps": load_recorded_steps,
    "questions": load_questions,
}
"""Each reads the questions and names the knowledge bases that they need; it builds nothing. Raises RunConfigError or DataError, one line."""


def training_dataset(config: TrainConfig) -> Dataset:
    """The data set of a run. Raises RunConfigError if it has no training questions, KnowledgeBaseError, and what `load_dataset` raises."""
    dataset = load_dataset(config.data, config.evaluation, config.retrieval.folders)
    if why := no_training_questions(dataset, config.data):
        raise RunConfigError(why)
    if not dataset.training_kbs and config.rollout.mode != "offline":
        raise RunConfigError(f"retrieval.folders is empty; data.name={config.data.name} brings no knowledge base: name a folder for each")
    for source in (*dataset.training_kbs, *dataset.evaluation_kbs):
        source.check()
    names = [source.name for source in dataset.training_kbs]
    if unknown := [kb for kb in config.rollout.values.prices if kb not in names]:
        raise RunConfigError(f"rollout.values.prices.{unknown[0]}: no such knowledge base; expected some of {', '.join(names)}")
    return dataset


def load_dataset(data: DataConfig, evaluation: EvaluationConfig, folders: Mapping[str, str]) -> Dataset:
    """The data set named `data.name`. `folders` (`retrieval.folders`) are added to its knowledge bases, and replace those of the same name.
    Raises DataError or RunConfigError, one line each. Nothing is built or embedded here."""
    if data.name in DATASETS:
        loader = DATASETS[data.name]
    elif ":" not in data.name:
        raise RunConfigError(f"data.name is {data.name!r}; expected one of {', '.join(DATASETS)}, or MODULE:FUNCTION")
    else:
        module, _, function = data.name.partition(":")
        try:
            loader = getattr(importlib.import_module(module), function)
        except (ImportError, AttributeError) as error:
            raise RunConfigError(f"data.name is {data.name!r}: {error}; expected MODULE:FUNCTION, importable from here") from None
    dataset = loader(data, evaluation)
    if data.name == "recorded_steps":  # nothing is searched
        return dataset
    if data.name in MULTI_HOP and folders:  # they are searched instead of the paragraphs that come with the questions
        dataset = replace(dataset, training_kbs=(), evaluation_kbs=(), gold_passages={})
    if data.name == "questions" and not folders:
        raise RunConfigError("retrieval.folders is empty; data.name=questions needs a folder for each knowledge base (see docs/04_data.md)")
    given = tuple(KnowledgeBaseSource(name, Path(folder)) for name, folder in folders.items())

    def with_given(sources: tuple[KnowledgeBaseSource, ...]) -> tuple[KnowledgeBaseSource, ...]:
        return tuple({source.name: source for source in (*sources, *given)}.values())

    return replace(dataset, training_kbs=with_given(dataset.training_kbs), evaluation_kbs=with_given(dataset.evaluation_kbs))

"""Which data sets there are, by the name in `data.name`."""

from __future__ import annotations

import importlib
from collections.abc import Callable, Mapping
from dataclasses import replace
from pathlib import Path

from experiments.config import DataConfig, EvaluationConfig, RunConfigError
from experiments.datasets.atlas import load_atlas
from experiments.datasets.dataset import Dataset, KnowledgeBaseSource
from experiments.datasets.ottqa import load_ottqa
from experiments.datasets.paper_sets import PAPER_SETS
from experiments.datasets.questions import load_questions
from experiments.datasets.real_atlas import load_real_atlas
from experiments.datasets.recorded_steps import load_recorded_steps
from experiments.datasets.two_wiki import load_two_wiki
from experiments.datasets.wikitables import load_wikitables

Loader = Callable[[DataConfig, EvaluationConfig], Dataset]
"""Reads what there is to ask and says which knowledge bases it needs. Builds and embeds nothing. Raises RunConfigError or DataError, one line."""

DATASETS: dict[str, Loader] = {
    "atlas": load_atlas,
    "real_atlas": load_real_atlas,
    "2wiki": load_two_wiki,
    "ottqa": load_ottqa,
    "wikitables": load_wikitables,
    **PAPER_SETS,
    "recorded_steps": load_recorded_steps,
    "questions": load_questions,
}


def load_dataset(data: DataConfig, evaluation: EvaluationConfig, folders: Mapping[str, str]) -> Dataset:
    """The data set that `data.name` says. `folders` (`retrieval.folders`) are searched beside its own knowledge bases, and in the place of one
    that has the same name.

    Raises DataError or RunConfigError, one line each. Nothing is built or embedded here.
    """
    dataset = _loader(data.name)(data, evaluation)
    if data.name == "recorded_steps":  # nothing is searched
        return dataset
    if data.name == "questions" and not folders:
        raise RunConfigError("retrieval.folders is empty; data.name=questions needs a folder for each knowledge base (see docs/data.md)")
    given = {name: KnowledgeBaseSource(name, Path(folder)) for name, folder in folders.items()}
    training, held_out = (
        tuple(({source.name: source for source in sources} | given).values()) for sources in (dataset.training_kbs, dataset.evaluation_kbs)
    )
    return replace(dataset, training_kbs=training, evaluation_kbs=held_out)


def _loader(name: str) -> Loader:
    if name in DATASETS:
        return DATASETS[name]
    module, colon, function = name.partition(":")
    if not colon:
        raise RunConfigError(f"data.name is {name!r}; expected one of {', '.join(DATASETS)}, or MODULE:FUNCTION")
    try:
        return getattr(importlib.import_module(module), function)
    except (ImportError, AttributeError) as error:
        raise RunConfigError(f"data.name is {name!r}: {error}; expected MODULE:FUNCTION, importable from here") from None

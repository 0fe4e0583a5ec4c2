"""`questions`: a file of the user's own, JSON Lines or Parquet (experiments/question_file.py)."""

from __future__ import annotations

from dataclasses import replace

from experiments.config import DataConfig, EvaluationConfig, RunConfigError
from experiments.datasets.dataset import Dataset, split
from experiments.question_file import read_questions


def load_questions(data: DataConfig, evaluation: EvaluationConfig) -> Dataset:
    if not data.path:
        raise RunConfigError("data.path is empty; data.name=questions needs it (see docs/data.md)")
    questions = read_questions(data.path, data.image_folder or None)
    if data.heldout_path:
        heldout = read_questions(data.heldout_path, data.image_folder or None)[: evaluation.questions]
        train, validation, _ = split(questions, data, replace(evaluation, questions=0))
    else:
        train, validation, heldout = split(questions, data, evaluation)
    return Dataset(train, validation, heldout, counts={"questions": len(questions)})

"""`direct`: no retrieval, the final turn at once."""

from __future__ import annotations

import random

from rollout.episode import Episode, Log, Surroundings, conclude
from rollout.records import Question


def direct(question: Question, around: Surroundings, rng: random.Random, log: Log) -> Episode:
    return (yield from conclude(question, around, rng, log))

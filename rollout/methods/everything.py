"""`all` and `single:KB`: static retrieval, the baselines without decisions. One search with the question itself, one answer turn."""

from __future__ import annotations

import random

from rollout.episode import Episode, Log, Surroundings, read_at_once
from rollout.records import Question


def everything(question: Question, around: Surroundings, rng: random.Random, log: Log) -> Episode:
    return (yield from read_at_once(list(around.cards), question, around, rng, log))


def single(kb: str, question: Question, around: Surroundings, rng: random.Random, log: Log) -> Episode:
    return (yield from read_at_once([kb], question, around, rng, log))

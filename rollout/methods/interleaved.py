"""`ircot`: reasoning and retrieval interleaved over all knowledge bases, in the manner of IRCoT (Trivedi et al. 2023, arXiv 2212.10509).

There each sentence of a chain of thought is the next query to the one corpus; here each plan turn's sub-question goes to every knowledge base,
whichever it names, and the answer turn reads what all of them bring. The policy still says when to stop.
"""

from __future__ import annotations

import random

from retrieval_actors.records import Passage, Query
from rollout.episode import Episode, Log, Surroundings, answer, conclude, plan
from rollout.records import Action, Exchange, Question, Step
from rollout.searches import Look


def interleaved(question: Question, around: Surroundings, rng: random.Random, log: Log) -> Episode:
    while len(log.history) < around.config.max_steps:
        action = yield from plan(question, around, rng, log)
        if action is None or action.kb is None:
            log.steps.append(Step(log.plan, action))
            break
        found: list[Passage] = []
        for kb in around.cards:
            passages = yield Look(kb, Query(action.query, question.image.data if question.image else None))
            found += passages
            if kb != action.kb:  # a search more, without a turn that decided it
                log.steps.append(Step(None, Action(action.query, kb), tuple(passages), None, Exchange(action.query, kb, "")))
        yield from answer(action, found, question, around, rng, log, kbs=list(around.cards))
    return (yield from conclude(question, around, rng, log))

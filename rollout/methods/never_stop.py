"""`never_stop`: the router, but every episode makes all of its searches.

Where the policy stops, the question itself goes to the knowledge base that has been asked least (of equals, the first). A malformed plan turn
ends the retrieval, as it does for the router.
"""

from __future__ import annotations

import random
from collections import Counter

from retrieval_actors.records import Query
from rollout.episode import Episode, Log, Surroundings, answer, conclude, plan
from rollout.records import Action, Question, Step
from rollout.searches import Look


def never_stop(question: Question, around: Surroundings, rng: random.Random, log: Log) -> Episode:
    while len(log.history) < around.config.max_steps:
        action = yield from plan(question, around, rng, log)
        if action is None:
            log.steps.append(Step(log.plan, None))
            break
        if action.kb is None:
            asked = Counter(exchange.kb for exchange in log.history)
            log.action = action = Action(question.text, min(around.cards, key=lambda kb: asked[kb]))
        found = yield Look(action.kb or "", Query(action.query, question.image.data if question.image else None))
        yield from answer(action, found, question, around, rng, log)
    return (yield from conclude(question, around, rng, log))

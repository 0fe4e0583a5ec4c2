"""The teacher of the cold start over natural text: for a policy that can read already, and any data set whose questions have gold steps. It asks
for the needs in their order, names a knowledge base at random, reads what a run would find, goes on, and stops when all needs are met."""

import itertools
import random
import re
from collections.abc import Iterator, Mapping, Sequence
from functools import partial

from experiments.worlds.teacher import Demonstration, Manner, Search, answer_response, demonstrate
from retrieval_actors.records import KnowledgeBaseCard, Passage
from rollout.config import RolloutConfig
from rollout.needs import holds_answer
from rollout.prompts import find_prompts, shown
from rollout.records import UNKNOWN, GoldStep, Question
from rollout.turn_parser import normalise, parse_answer

FOLLOWS_GOLD = 0.8  # Fewer answers are `unknown` than in the atlas, so that more chains of three get to their end
AT_ONCE_EVERY, BY_HEART_EVERY = 11, 7  # Episodes between two answers of the kind that the methods `all` and `direct` ask for
PART = re.compile(r" \| |(?<=[.;]) ")  # Between the cells of a row, and between sentences
WORDS_BEFORE = 4  # The answer, in a quote


def natural_manner(rollout: RolloutConfig, cards: Mapping[str, KnowledgeBaseCard]) -> Manner:
    """`cards`: of the knowledge bases, by name."""
    return Manner(
        {kb: card.retriever_name for kb, card in cards.items()},
        "\n".join(f"- {card.retriever_name}: {card.description}" for card in cards.values()),
        [kb for kb, card in cards.items() if "image" in card.modality],
        rollout,
        FOLLOWS_GOLD,
        shows_unread=False,
        goes_on=0.0,
        stops_early=0.0,
        think=lambda need: "I need one more fact.",
        read=partial(quoting, most_characters=rollout.max_passage_chars),
    )


def natural_demonstrations(
    questions: Sequence[Question], search: Search, manner: Manner, seed: int, blind: bool = True
) -> Iterator[Demonstration]:
    """An endless stream: the families take turns, each with its questions in random order, so that chains are not rarer than single facts. A few
    turns are those of other methods, which would not know their prompts else: what they are compared with has to be fair."""
    rng = random.Random(seed)
    families: dict[str, list[Question]] = {}
    for question in questions:
        families.setdefault(question.family, []).append(question)
    left: dict[str, list[Question]] = {family: [] for family in families}
    for episode, family in enumerate(itertools.cycle(families)):
        left[family] = left[family] or rng.sample(families[family], len(families[family]))
        question = left[family].pop()
        yield from demonstrate(question, search, rng, blind, manner)
        if episode % AT_ONCE_EVERY == 0:
            yield at_once(question, search, rng, manner)
        if episode % BY_HEART_EVERY == 0:
            message = find_prompts(manner.rollout.prompts).final(question.text, question.image is not None, ())
            yield Demonstration("final", message, question.image, answer_response("I have the answer.", question.answers[0]))


def at_once(question: Question, search: Search, rng: random.Random, manner: Manner) -> Demonstration:
    """One answer turn over all knowledge bases, searched with the question itself: its answer if all facts stand there, else `unknown`."""
    rollout, needs = manner.rollout, question.gold_steps or ()
    found = [passage for kb in manner.retrievers for passage in search(kb, question.text, question, rollout.passages)]
    if rollout.shuffle_passages:
        rng.shuffle(found)
    readings = [manner.read(need, found) for need in needs]
    unread = next((response for response in readings if parse_answer(response) == UNKNOWN), None)
    known = readings[0] if len(readings) == 1 else answer_response("I have the answer.", question.answers[0])
    message = find_prompts(rollout.prompts).answer(question.text, found, question.image is not None, rollout.max_passage_chars)
    return Demonstration("answer", message, question.image, unread or known)


def quoting(need: GoldStep, passages: Sequence[Passage], most_characters: int) -> str:
    """The answer turn: the few words before the answer, then the answer; `unknown` if it does not stand in what is shown of the passages."""
    texts = [shown(passage, most_characters) for passage in passages if passage.kb in need.kbs]
    holding = [text for text in texts if holds_answer(Passage("", text), need)]
    if not holding:
        return answer_response("Not here.", UNKNOWN)
    return answer_response(quote(need, holding) or "Found.", need.answer)


def quote(need: GoldStep, texts: Sequence[str]) -> str:
    """The answer with the words before it, from the sentence or cell that has most words of the query; empty: no text has it letter by letter."""
    answer = re.compile(rf"(?<![\w-]){re.escape(need.answer)}(?![\w-])", re.IGNORECASE)
    asked = set(normalise(need.query).split())
    parts = [part[: found.end()] for text in texts for part in PART.split(text) if (found := answer.search(part))]
    best = max(parts, key=lambda part: len(asked.intersection(normalise(part).split())), default="")
    return " ".join(best.split()[-WORDS_BEFORE - len(need.answer.split()) :])

"""The teacher of the cold start: it asks well and reads well, but routes blindly.

It names a knowledge base at random, says `unknown` when the passages do not hold the answer, and asks again until its steps are used up;
sometimes it goes on or stops without need. What a policy learns from it are the skills without the judgement: that is left to reinforcement
learning.
"""

from __future__ import annotations

import itertools
import random
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path

import numpy as np

from experiments.atlas import FAMILIES, KNOWLEDGE_BASES, Atlas, World
from experiments.demonstration import Demonstration
from experiments.renaming import renamed
from experiments.teacher_search import EmbeddedAtlas, WordOverlap
from retrieval_actors.records import Passage
from rollout.needs import askable_needs, holds_answer, mentions
from rollout.prompts import SHORT, STOP
from rollout.records import UNKNOWN, Exchange, GoldStep, Question

FOLLOWS_GOLD = 0.6
"""How often the episode goes on from the gold knowledge base, whatever the plan turn wrote: half of the readings would be `unknown` otherwise.
The prompt of a later turn does not show which knowledge base was asked, so nothing is given away."""
GOES_ON, STOPS_EARLY = 0.15, 0.06
"""How often the teacher asks again for what it has, or stops without having it."""
DRILLS = 3
"""Readings on their own for each question: reading is learned last, so it is shown most."""
TABLE_DRILLS_KEPT, DRILLED_ELSEWHERE = 0.3, 0.1
"""Rows are read well early, so most of their drills are left out; and how often a drill searches any knowledge base."""
STATIC_EVERY = 6
"""One question in so many is also answered from all knowledge bases at once."""
FIRST_ATLAS = 10_000
"""Seed of the first atlas that is searched by embeddings; those of runs have smaller ones."""
VECTORS = Path("kbs/teacher")
"""Where the vectors of those atlases are kept."""
Search = Callable[[str, str, Question, int], Sequence[Passage]]
"""(knowledge base, query, question, k) -> passages."""


def plan_response(thought: str, query: str, retriever: str) -> str:
    return f"<think> {thought}</think><sub-question> {query}</sub-question><ret> {retriever}</ret>"


def answer_response(thought: str, answer: str) -> str:
    return f"<think> {thought}</think><answer> {answer}</answer>"


def thought_of(need: GoldStep) -> str:
    """What is looked for, in three words: it says nothing about where."""
    if need.kb == "text_image":
        return "I need the country."
    relation = next((entity for entity in need.entities if entity in need.query and entity.islower()), "country")
    return "I need the country." if need.query.startswith("Which is the country") else f"I need the {relation}."


def reading(need: GoldStep, passages: Sequence[Passage]) -> str:
    """The answer turn: quote the passage that holds the answer, then copy it; or say that none does.

    A fact stands in the knowledge base in both directions. The quoted one has its answer last, where it can: what has to be found is then all
    read before the answer is due.
    """
    holding = [passage.text.rstrip(".") for passage in passages if holds_answer(passage, need)]
    if not holding:
        return answer_response("Not here.", UNKNOWN)
    return answer_response(next((text for text in holding if text.endswith(f" {need.answer}")), holding[0]), need.answer)


def conclusion(question: Question, history: Sequence[Exchange]) -> str:
    """The final turn: the last sub-answer, the larger of two values, or what the picture shows."""
    if question.family == "picture":
        return answer_response("I see the flag.", question.answers[0])
    if askable_needs(question.gold_steps or (), history):
        return answer_response("I do not know.", UNKNOWN)
    if question.family == "compare":
        known = [exchange for exchange in history if exchange.answer != UNKNOWN]
        winner = question.answers[0]
        first = next(e for e in known if mentions(e.query, (winner,)) == 1.0)
        second = next(e for e in known if mentions(e.query, (winner,)) < 1.0)
        return answer_response(f"{first.answer} is more than {second.answer}.", winner)
    return answer_response("I have the answer.", question.answers[0])


def demonstrate(
    question: Question, search: Search, rng: random.Random, max_steps: int = 3, passages: int = 3, blind: bool = True
) -> list[Demonstration]:
    """The turns of one episode of the teacher; with `blind=False` it names the right knowledge base."""
    turns: list[Demonstration] = []
    history: tuple[Exchange, ...] = ()
    gold = question.gold_steps or ()
    pictured = question.image is not None
    while len(history) < max_steps:
        needs = askable_needs(gold, history)
        prompt = SHORT.plan(question.text, pictured, history, "")
        guess = rng.choice(list(KNOWLEDGE_BASES))
        if not gold and rng.random() < GOES_ON:  # a needless look-up, shown as a plan but not followed
            query = f"Which country has the flag with {question.answers[0]}?"
            response = plan_response("I need the country.", query, KNOWLEDGE_BASES[guess if blind else "text_image"][0])
            turns.append(Demonstration("plan", prompt, question.image, response))
        if (not needs and (not gold or rng.random() >= GOES_ON)) or rng.random() < STOPS_EARLY:
            turns.append(Demonstration("plan", prompt, question.image, plan_response("I know enough.", STOP, STOP)))
            if not needs or rng.random() < 0.5:
                break
        need = (needs or gold[-1:])[0]  # of two that are compared the one that is named first: which one is left can then be seen
        named = KNOWLEDGE_BASES[guess if blind else need.kb][0]
        turns.append(Demonstration("plan", prompt, question.image, plan_response(thought_of(need), need.query, named)))
        kb = need.kb if rng.random() < FOLLOWS_GOLD else guess
        found = list(search(kb, need.query, question, passages))
        rng.shuffle(found)
        response = reading(need, found)
        looks = kb == "text_image" and pictured
        turns.append(Demonstration("answer", SHORT.answer(need.query, found, looks, 400), question.image if looks else None, response))
        answer = need.answer if UNKNOWN not in response else UNKNOWN
        history += (Exchange(need.query, kb, answer),)
    turns.append(Demonstration("final", SHORT.final(question.text, pictured, history), question.image, conclusion(question, history)))
    return turns


def drill(question: Question, search: Search, rng: random.Random, passages: int = 3) -> Demonstration | None:
    """One reading on its own. None for questions that need nothing, and for most of those that need a table."""
    if not question.gold_steps:
        return None
    need = rng.choice(question.gold_steps)
    if need.kb == "table" and rng.random() >= TABLE_DRILLS_KEPT:
        return None
    kb = rng.choice(list(KNOWLEDGE_BASES)) if rng.random() < DRILLED_ELSEWHERE else need.kb
    found = list(search(kb, need.query, question, passages))
    rng.shuffle(found)
    image = question.image if kb == "text_image" else None
    return Demonstration("answer", SHORT.answer(need.query, found, image is not None, 400), image, reading(need, found))


def static(question: Question, search: Search, rng: random.Random, passages: int = 3) -> Demonstration:
    """One answer from all knowledge bases at once, searched with the question itself: the skill that the baseline without decisions needs."""
    found = [passage for kb in KNOWLEDGE_BASES for passage in search(kb, question.text, question, passages)]
    rng.shuffle(found)
    steps = question.gold_steps or ()
    if question.family == "picture":
        response = conclusion(question, ())
    else:
        response = reading(steps[0], found) if len(steps) == 1 else answer_response("Not here.", UNKNOWN)
    return Demonstration("answer", SHORT.answer(question.text, found, question.image is not None, 400), question.image, response)


def demonstrations(seed: int, per_world: int = 60, blind: bool = True) -> Iterator[Demonstration]:
    """An endless stream of demonstrations, a fresh training world for every `per_world` questions; found by shared words."""
    rng, pixels = random.Random(seed), np.random.default_rng(seed)
    while True:
        world = World("train", rng.randrange(10**6, 10**9))
        questions = [world.question(FAMILIES[i % len(FAMILIES)], rng, pixels) for i in range(per_world)]
        yield from lessons(questions, WordOverlap(world).search, rng, blind)


def lifelike_demonstrations(
    seed: int, per_atlas: int = 12000, worlds: int = 8, countries: int = 24, blind: bool = True
) -> Iterator[Demonstration]:
    """The same with the retrieval of a run: a fresh atlas for every `per_atlas` questions, with as many worlds as evaluations search.

    Every turn is told about other countries than were searched: see `renamed`. So the atlases may be the same for every seed, and their vectors
    are kept.
    """
    rng = random.Random(seed)
    for number in itertools.count(FIRST_ATLAS):
        atlas = Atlas("train", number, worlds, countries)
        questions = atlas.questions(per_atlas)
        queries = [step.query for question in questions for step in question.gold_steps or ()]
        found = EmbeddedAtlas(atlas, queries + [question.text for question in questions[::STATIC_EVERY]], VECTORS)
        yield from (renamed(turn, rng) for turn in lessons(questions, found.search, rng, blind))


def lessons(questions: Sequence[Question], search: Search, rng: random.Random, blind: bool) -> Iterator[Demonstration]:
    """Each question demonstrated, with drills; rarely what the baseline needs."""
    for i, question in enumerate(questions):
        yield from demonstrate(question, search, rng, blind=blind)
        yield from filter(None, (drill(question, search, rng) for _ in range(DRILLS)))
        if i % STATIC_EVERY == 0:
            yield static(question, search, rng)

"""The teacher of the cold start: it asks and reads well, but names a knowledge base at random. It answers `unknown` when the passages do not
hold the answer, and asks again until its steps are used up; sometimes it searches without need, or stops early. A policy learns from it to
ask and to read; where to search, and when to stop, is left to reinforcement learning."""

import itertools
import random
import re
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace

import numpy as np

from experiments.worlds.atlas import FAMILIES, KNOWLEDGE_BASES, SYLLABLES, Atlas, World, belongs
from experiments.worlds.teacher_search import EmbeddedAtlas, WordOverlap
from retrieval_actors.records import Passage
from rollout.config import RolloutConfig
from rollout.need_matcher import mentions
from rollout.needs import askable_needs, holds_answer
from rollout.prompts import SHORT, find_prompts
from rollout.records import UNKNOWN, Exchange, GoldStep, Image, Message, Question, TurnKind
from rollout.turn_parser import STOP

DRILLS = 3  # Extra answer turns for each question, as reading is learned last
TABLE_DRILLS_KEPT, DRILLED_ELSEWHERE = 0.3, 0.1  # Few: rows are learned early; share of drills in a random knowledge base
STATIC_EVERY = 6  # Every n-th question is also answered from all knowledge bases at once
FIRST_ATLAS = 10_000  # Seed of the first atlas that is searched by embeddings; those of runs have smaller ones
Search = Callable[[str, str, Question, int], Sequence[Passage]]  # (knowledge base, query, question, k) -> passages
NAME = re.compile(r"\b([A-Z][a-z]*)-([a-z]+)\b")
VALUE = re.compile(r"\b[1-9]\d\b")  # Of a statistic: two digits. Years have four.


@dataclass(frozen=True)
class Demonstration:
    kind: TurnKind
    message: Message
    image: Image | None
    response: str


def plan_response(thought: str, query: str, retriever: str) -> str:
    return f"<think> {thought}</think><sub-question> {query}</sub-question><ret> {retriever}</ret>"


def answer_response(thought: str, answer: str) -> str:
    return f"<think> {thought}</think><answer> {answer}</answer>"


def thought_of(need: GoldStep) -> str:
    """The thought names the fact that is needed, but not the knowledge base."""
    if "text_image" in need.kbs:
        return "I need the country."
    relation = next((entity for entity in need.entities if entity in need.query and entity.islower()), "country")
    return "I need the country." if need.query.startswith("Which is the country") else f"I need the {relation}."


def reading(need: GoldStep, passages: Sequence[Passage]) -> str:
    """The answer turn: quotes the passage that holds the answer, if possible one that ends with it, and copies it; `unknown` if none does."""
    holding = [passage.text.rstrip(".") for passage in passages if holds_answer(passage, need)]
    if not holding:
        return answer_response("Not here.", UNKNOWN)
    return answer_response(next((text for text in holding if text.endswith(f" {need.answer}")), holding[0]), need.answer)


def conclusion(question: Question, history: Sequence[Exchange]) -> str:
    """The final turn: the last sub-answer, the larger of two values, or what the picture shows."""
    if question.family == "picture":
        return answer_response("I see the flag.", question.answers[0])
    if askable_needs(question, history):
        return answer_response("I do not know.", UNKNOWN)
    if question.family == "compare":
        known = [exchange for exchange in history if exchange.answer != UNKNOWN]
        winner = question.answers[0]
        first = next(e for e in known if mentions(e.query, (winner,)) == 1.0)
        second = next(e for e in known if mentions(e.query, (winner,)) < 1.0)
        return answer_response(f"{first.answer} is more than {second.answer}.", winner)
    return answer_response("I have the answer.", question.answers[0])


@dataclass(frozen=True)
class Manner:
    """How the teacher asks and reads; by default in the fictional atlases."""

    retrievers: Mapping[str, str] = field(default_factory=lambda: {kb: name for kb, (name, _) in KNOWLEDGE_BASES.items()})
    descriptions: str = ""  # Of the retrievers, for prompts that list them
    picture_kbs: Collection[str] = ("text_image",)  # Their answer turns see the picture of the question
    rollout: RolloutConfig = field(default_factory=RolloutConfig)  # Prompts, steps and passages
    follows_gold: float = 0.6  # How often the episode continues with the gold knowledge base: else half of the answers were `unknown`
    shows_unread: bool = True  # An `unknown` about the gold knowledge base is shown; false where passages may answer in other words
    goes_on: float = 0.15  # How often it asks again for a known answer
    stops_early: float = 0.06  # How often it stops without one
    think: Callable[[GoldStep], str] = thought_of
    read: Callable[[GoldStep, Sequence[Passage]], str] = reading


ATLAS = Manner()


def search_and_read(
    kb: str, need: GoldStep, question: Question, search: Search, rng: random.Random, manner: Manner = ATLAS
) -> Demonstration:
    """The answer turn for a need that this knowledge base was asked for."""
    rollout, image = manner.rollout, question.image if kb in manner.picture_kbs else None
    found = list(search(kb, need.query, question, rollout.passages))
    if rollout.shuffle_passages:
        rng.shuffle(found)
    message = find_prompts(rollout.prompts).answer(need.query, found, image is not None, rollout.max_passage_chars)
    return Demonstration("answer", message, image, manner.read(need, found))


def demonstrate(question: Question, search: Search, rng: random.Random, blind: bool = True, manner: Manner = ATLAS) -> list[Demonstration]:
    """The turns of one episode of the teacher; with `blind=False` it names the right knowledge base."""
    turns: list[Demonstration] = []
    history: tuple[Exchange, ...] = ()
    gold, pictured, prompts = question.gold_steps or (), question.image is not None, find_prompts(manner.rollout.prompts)

    def plan(response: str) -> Demonstration:
        message = prompts.plan(question.text, pictured, history, manner.descriptions)
        return Demonstration("plan", message, question.image, response)

    while len(history) < manner.rollout.max_steps:
        needs = askable_needs(question, history)
        guess = rng.choice(list(manner.retrievers))
        if not gold and rng.random() < manner.goes_on:  # a needless look-up, shown as a plan but not followed
            query = f"Which country has the flag with {question.answers[0]}?"
            turns.append(plan(plan_response("I need the country.", query, manner.retrievers[guess if blind else "text_image"])))
        if (not needs and (not gold or rng.random() >= manner.goes_on)) or rng.random() < manner.stops_early:
            turns.append(plan(plan_response("I know enough.", STOP, STOP)))
            if not needs or rng.random() < 0.5:
                break
        need = (needs or gold[-1:])[0]  # the first one named: of two compared values it is clear which is left
        turns.append(plan(plan_response(manner.think(need), need.query, manner.retrievers[guess if blind else need.kbs[0]])))
        kb = need.kbs[0] if rng.random() < manner.follows_gold else guess
        read = search_and_read(kb, need, question, search, rng, manner)
        if manner.shows_unread or kb not in need.kbs or UNKNOWN not in read.response:
            turns.append(read)
        history += (Exchange(need.query, kb, UNKNOWN if UNKNOWN in read.response else need.answer),)
    turns.append(Demonstration("final", prompts.final(question.text, pictured, history), question.image, conclusion(question, history)))
    return turns


def drill(question: Question, search: Search, rng: random.Random) -> Demonstration | None:
    """One answer turn, outside an episode. None for questions without gold steps, and for most that need a table."""
    if not question.gold_steps:
        return None
    need = rng.choice(question.gold_steps)
    if "table" in need.kbs and rng.random() >= TABLE_DRILLS_KEPT:
        return None
    kb = rng.choice(list(KNOWLEDGE_BASES)) if rng.random() < DRILLED_ELSEWHERE else need.kbs[0]
    return search_and_read(kb, need, question, search, rng)


def static(question: Question, search: Search, rng: random.Random) -> Demonstration:
    """One answer turn over all knowledge bases, searched with the question itself, as the method `all` asks it."""
    rollout = ATLAS.rollout
    found = [passage for kb in KNOWLEDGE_BASES for passage in search(kb, question.text, question, rollout.passages)]
    rng.shuffle(found)
    steps = question.gold_steps or ()
    if question.family == "picture":
        response = conclusion(question, ())
    else:
        response = reading(steps[0], found) if len(steps) == 1 else answer_response("Not here.", UNKNOWN)
    message = SHORT.answer(question.text, found, question.image is not None, rollout.max_passage_chars)
    return Demonstration("answer", message, question.image, response)


def demonstrations(seed: int, per_world: int = 60, blind: bool = True) -> Iterator[Demonstration]:
    """An endless stream of demonstrations: a new training world for every `per_world` questions, searched by shared words."""
    rng, pixels = random.Random(seed), np.random.default_rng(seed)
    while True:
        world = World("train", rng.randrange(10**6, 10**9))
        questions = [world.question(FAMILIES[i % len(FAMILIES)], rng, pixels) for i in range(per_world)]
        yield from lessons(questions, WordOverlap(world).search, rng, blind)


def teacher_texts(seed: int) -> Iterator[str]:
    """What the tokenizer of a fresh policy is trained on."""
    return (turn.message.user + turn.response for turn in itertools.islice(demonstrations(seed), 6000))


def lifelike_demonstrations(
    seed: int, per_atlas: int = 12000, worlds: int = 8, countries: int = 24, blind: bool = True
) -> Iterator[Demonstration]:
    """As `demonstrations`, searched with the embedders of a run: a new atlas for every `per_atlas` questions, with as many worlds as evaluations
    search. Turns are `renamed`, so the atlases can be the same for every seed."""
    rng = random.Random(seed)
    for number in itertools.count(FIRST_ATLAS):
        atlas = Atlas("train", number, worlds, countries)
        questions = atlas.questions(per_atlas)
        queries = [step.query for question in questions for step in question.gold_steps or ()]
        found = EmbeddedAtlas(atlas, queries + [question.text for question in questions[::STATIC_EVERY]])
        yield from (renamed(turn, rng) for turn in lessons(questions, found.search, rng, blind))


def lessons(questions: Sequence[Question], search: Search, rng: random.Random, blind: bool) -> Iterator[Demonstration]:
    """An episode of the teacher for each question, with drills and, for every n-th, a `static` answer."""
    for i, question in enumerate(questions):
        yield from demonstrate(question, search, rng, blind=blind)
        yield from filter(None, (drill(question, search, rng) for _ in range(DRILLS)))
        if i % STATIC_EVERY == 0:
            yield static(question, search, rng)


def renamed(turn: Demonstration, rng: random.Random, split: str = "train") -> Demonstration:
    """The same turn about other countries of the split, so that the policy cannot memorise them: every syllable of a name is replaced, and every
    table value of an answer turn. Values of final turns stay, as their order matters. Names that share a syllable still do."""
    text = f"{turn.message.user}\n{turn.response}"
    names = sorted({match[0] for match in NAME.finditer(text) if match[1].lower() in SYLLABLES and match[2] in SYLLABLES})
    old = sorted({syllable.lower() for name in names for syllable in name.split("-")})
    while True:
        new = dict(zip(old, rng.sample(SYLLABLES, len(old)), strict=True))
        others = {name: "-".join(new[syllable] for syllable in name.lower().split("-")).capitalize() for name in names}
        if all(belongs(name, split) for name in others.values()):
            break
    seen = sorted(set(VALUE.findall(text))) if turn.kind == "answer" else []
    values = dict(zip(seen, map(str, rng.sample(range(10, 100), len(seen))), strict=True))

    def rewrite(text: str) -> str:
        text = NAME.sub(lambda match: others.get(match[0], match[0]), text)
        return VALUE.sub(lambda match: values.get(match[0], match[0]), text)

    return replace(turn, message=replace(turn.message, user=rewrite(turn.message.user)), response=rewrite(turn.response))

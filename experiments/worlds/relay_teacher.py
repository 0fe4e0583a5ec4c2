"""The teacher of the cold start of a relay: it asks, reads, names the right knowledge base and stops.

In every episode the knowledge bases have other retriever names, so that no name is tied to a relation. Most prompts list which retriever holds
which relation, and the policy learns to look it up by what it asks for. The others list nothing, as in reinforcement learning: there the right
name cannot be known, and what is learned from them is to guess evenly. Nothing is blinded, as there is nothing to unlearn.
"""

from __future__ import annotations

import random
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import partial

from experiments.worlds.relay import Relay, fresh_names, sentence
from experiments.worlds.teacher import NAME, Demonstration, Manner, Search, answer_response, plan_response, search_and_read
from retrieval_actors.records import KnowledgeBaseCard, Passage
from rollout.config import RolloutConfig
from rollout.prompts import LISTED, SHORT
from rollout.records import UNKNOWN, Exchange, GoldStep, Message, Question
from rollout.turn_parser import STOP

SHARE_LISTED = 0.7  # Share of episodes whose plan prompts list what each retriever holds
GOLD, EVERYWHERE = 0.6, 0.2  # Share of answer turns that read the gold knowledge base, and all at once; the others read any
SPARE_STEPS = 2  # More than an episode of a run has, so that the teacher is seen asking again and stopping


def reading(need: GoldStep, passages: Sequence[Passage]) -> str:
    """The answer turn: begins the sentence that was asked for, and ends it with what a passage says, or with `not here`."""
    relation, name = need.entities
    fact = sentence(relation, name, need.answer)
    if any(passage.text == fact for passage in passages):
        return answer_response(fact.rstrip("."), need.answer)
    return answer_response(sentence(relation, name, "not here").rstrip("."), UNKNOWN)


def thought(needs: Sequence[GoldStep], met: int, again: bool) -> str:
    """What has to be found next, in the words of the question: they can be copied from there."""
    relations = [need.entities[0] for need in needs]
    if again:
        return f"again {relations[met]}"
    if met == len(needs):
        return f"{relations[-1]}? I know."
    return f"{relations[met - 1]}, then {relations[met]}" if met else f"by {relations[0]}"


@dataclass(frozen=True)
class RelayTeacher:
    world: Relay
    questions: Sequence[Question]
    search: Search
    cards: Mapping[str, KnowledgeBaseCard]  # Of the world's knowledge bases
    rollout: RolloutConfig

    def demonstrations(self, seed: int) -> Iterator[Demonstration]:
        """An endless stream: every question once, then again in another order; every episode with fresh names in place of the world's."""
        rng = random.Random(seed)
        names = [name for ring in self.world.rings for name in ring]
        while True:
            for question in rng.sample(self.questions, len(self.questions)):
                others = dict(zip(names, fresh_names(len(names), "train", rng, set()), strict=True))
                yield from (renamed(turn, others) for turn in self.episode(question, rng))

    def episode(self, question: Question, rng: random.Random) -> list[Demonstration]:
        labels = sorted(card.retriever_name for card in self.cards.values())
        retrievers = dict(zip(self.cards, rng.sample(labels, len(labels)), strict=True))
        listed = sorted(f"- {retrievers[kb]}: {card.description}" for kb, card in self.cards.items())
        prompts = LISTED if rng.random() < SHARE_LISTED else SHORT
        manner = Manner(retrievers, "\n".join(listed), (), self.rollout, read=reading)
        turns: list[Demonstration] = []
        history: tuple[Exchange, ...] = ()
        needs, met, again = question.gold_steps or (), 0, False

        def plan(query: str, retriever: str) -> Demonstration:
            message = prompts.plan(question.text, False, history, manner.descriptions)
            return Demonstration("plan", message, None, plan_response(thought(needs, met, again), query, retriever))

        while met < len(needs) and len(history) < self.rollout.max_steps + SPARE_STEPS:
            need, share = needs[met], rng.random()
            home = self.world.home[need.entities[0]]
            turns.append(plan(need.query, retrievers[home]))
            kb = home if share < GOLD else rng.choice(list(self.cards))
            search = self._everywhere if GOLD <= share < GOLD + EVERYWHERE else self.search
            turns.append(search_and_read(kb, need, question, search, rng, manner))
            again = UNKNOWN in turns[-1].response
            history += (Exchange(need.query, kb, UNKNOWN if again else need.answer),)
            met += not again
        if met == len(needs):
            turns.append(plan(STOP, STOP))
        answer = question.answers[0] if met == len(needs) else UNKNOWN
        message: Message = prompts.final(question.text, False, history)
        return [*turns, Demonstration("final", message, None, answer_response(thought(needs, met, again), answer))]

    def _everywhere(self, kb: str, query: str, question: Question, k: int) -> list[Passage]:
        """As the methods find that send every query to every knowledge base."""
        return [passage for each in self.cards for passage in self.search(each, query, question, k)]


def renamed(turn: Demonstration, others: Mapping[str, str]) -> Demonstration:
    rewrite = partial(NAME.sub, lambda match: others.get(match[0], match[0]))
    return replace(turn, message=replace(turn.message, user=rewrite(turn.message.user)), response=rewrite(turn.response))

"""Route regret: what every knowledge base would have brought for the query of a plan turn (docs/17_route_regret.md). With h the exchanges so far,
u a query, a_k its greedy reading from the passages of knowledge base k, and M `rollout.values.samples`:

    S(h)   = mean over M final turns of whether they are right; or, `leaf=belief`, the policy's probability of the gold answer
    V(h')  = max(S(h'), mean over M continuations of S where they end, less the price of their searches)
    Q(u,k) = V(h + (u, a_k)) - price,   Q(stop) = S(h)

A continuation is an episode of `methods.interleaved`: the policy plans, and every query reads all knowledge bases, but pays for one, as the router
would. Prompts show query and sub-answer, never the knowledge base, so every distinct (query, sub-answer) is valued once. All states of a plan turn
are valued with the same random numbers. VinePPO (arXiv 2410.01679) continues with the policy itself, which today's routing would dilute."""

from __future__ import annotations

import random
from collections import Counter
from collections.abc import Generator, Sequence
from dataclasses import replace
from functools import partial
from typing import Any

from retrieval_actors.records import Passage
from rollout.config import ValueConfig
from rollout.episode import Branch, Branches, EpisodeState, Requests, answer, conclude, derive_seed
from rollout.information_gain import gold_probabilities
from rollout.methods import interleaved
from rollout.records import UNKNOWN, Action, Exchange, PlanValues, QueryValues
from rollout.turn_parser import is_unknown, normalise, parse_answer, parse_plan

SHORT = 8  # most words of a sub-answer: a longer one may hold the answer among others
History = tuple[Exchange, ...]


def look_at_routes(ep: EpisodeState, action: Action | None) -> Generator[Branches, Any, Action | None]:
    """Values all routes of the last plan turn, unless no sibling asks or no answer could be judged. Returns the action to continue with: in
    `best_trunk` of the cases the best one, which may be another sibling's, or its query to another knowledge base."""
    group = ep.groups[-1]
    actions = [parse_plan(turn.text, ep.retrievers) for turn in group.turns]
    queries = list(dict.fromkeys(each.query for each in actions if each is not None and each.kb is not None))
    if not queries or not ep.question.answers or group.state.after_failure:
        return action
    seed, drawn = ep.rng.getrandbits(62), ep.rng.random()
    values = yield from _values(ep, queries, seed)
    sibling = group.trunk
    if values.queries and drawn < ep.config.values.best_trunk:
        action = ep.rng.choice(_best(values, stops=any(each is not None and each.kb is None for each in actions)))
        alike = [each is not None and (each.query, each.kb is None) == (action.query, action.kb is None) for each in actions]
        sibling = actions.index(action) if action in actions else alike.index(True)
    ep.groups[-1] = replace(group, trunk=sibling, values=values)
    ep.plan, ep.action = ep.groups[-1].chosen, action
    return action


def _best(values: PlanValues, stops: bool) -> list[Action]:
    found = [(value, Action(each.query, kb)) for each in values.queries for kb, value in zip(values.kbs, each.values, strict=True)]
    if stops and values.stop is not None:
        found.append((values.stop, Action("", None)))
    best = max(value for value, _ in found)
    return [action for value, action in found if value == best]


def _values(ep: EpisodeState, queries: Sequence[str], seed: int) -> Generator[Branches, Any, PlanValues]:
    kbs, config = tuple(ep.cards), ep.config.values
    # A reading depends on query and passages alone. The same seed shows equal passages in the same order, whichever knowledge base they come from.
    unread = [(query, kb) for query in queries for kb in kbs if (query, kb) not in ep.read]
    seeds = {query: derive_seed(seed, query) for query in queries}
    branches = [
        Branch(_copy(ep, ep.history, 1, seeds[query], 0.0), seeds[query], partial(_read, query=query, kb=kb)) for query, kb in unread
    ]
    ep.read |= zip(unread, (yield Branches(branches)) if branches else (), strict=True)
    answers = {query: [found for kb in kbs if (found := ep.read[query, kb]) is not None] for query in queries}
    known = {query: found for query, found in answers.items() if len(found) == len(kbs)}

    def after(query: str, sub_answer: str) -> History:
        return (*ep.history, Exchange(query, "", sub_answer))

    histories = [ep.history, *(after(query, found) for query in known for found in (UNKNOWN, *known[query]))]
    sampled, finals = yield from _measure(ep, "final", histories, seed)
    # A continuation that asks is worth at most 1 less its first search.
    enough = 1.0 - min(map(config.price_of, kbs))
    open_ends = [
        history for history in histories[1:] if len(history) < ep.config.max_steps and (ep.valued[_shown(history), "final"] or 0.0) < enough
    ]
    _, continuations = yield from _measure(ep, "on", open_ends, seed)
    stop, values = ep.valued[_shown(ep.history), "final"], []
    for query, sub_answers in known.items():
        reached = [value for found in (UNKNOWN, *sub_answers) if (value := _value(ep, after(query, found))) is not None]
        if stop is not None and len(reached) == 1 + len(kbs):
            routes = tuple(value - config.price_of(kb) for kb, value in zip(kbs, reached[1:], strict=True))
            values.append(QueryValues(query, tuple(sub_answers), routes, reached[0]))
    total, failed = 1 + len(queries) * (1 + len(kbs)), (len(queries) - len(known)) * (1 + len(kbs))
    run = [*branches, *finals, *continuations]
    tokens = sum(len(turn.response_ids) for branch in run for group in branch.state.groups for turn in group.turns)
    return PlanValues(kbs, tuple(values), stop, total, total - failed - sampled, sampled, failed, tokens)


def _copy(ep: EpisodeState, history: History, siblings: int, seed: int, temperature: float | None = None) -> EpisodeState:
    """An episode that has come as far as `history`, to go on from there alone."""
    config = replace(
        ep.config, mode="branch", group_size=siblings, plan_siblings=0, gold_gains=False, record_routes=False, unjudged_without_gold=[]
    )
    config = replace(config, values=ValueConfig(), temperature=config.temperature if temperature is None else temperature)
    return EpisodeState(ep.question, ep.policy, ep.cards, config, random.Random(seed), history=history)


def _read(ep: EpisodeState, query: str, kb: str) -> Requests:
    """The sub-answer; None if the search failed."""
    found = yield ep.search(kb, query)
    yield from answer(ep, Action(query, kb), found)
    return None if ep.search_errors else taken(ep.history[-1].answer, ep.steps[-1].passages)


def taken(sub_answer: str, passages: Sequence[Passage]) -> str:
    """The sub-answer if it stands in the passages and is short, else `unknown`: a guess must not be paid for."""
    words = normalise(sub_answer)
    stands = any(f" {words} " in f" {normalise(f'{passage.title} {passage.text}')} " for passage in passages)
    return sub_answer if words and stands and len(words.split()) <= SHORT and not is_unknown(sub_answer) else UNKNOWN


def _shown(history: History) -> tuple[tuple[str, str], ...]:
    """What later prompts show: states in which it is equal are the same state."""
    return tuple((exchange.query, exchange.answer) for exchange in history)


def _measure(ep: EpisodeState, what: str, histories: Sequence[History], seed: int) -> Generator[Branches, Any, tuple[int, list[Branch]]]:
    """Fills `ep.valued` by `final` turns, or by continuations (`on`); returns how many states were not known yet, and all branches."""
    config, seeds = ep.config.values, [derive_seed(seed, what, copy) for copy in range(ep.config.values.samples)]
    missing = {_shown(history): history for history in histories if (_shown(history), what) not in ep.valued}
    if what == "final" and config.leaf == "belief":
        ep.valued |= {(shown, what): belief for shown, belief in zip(missing, _beliefs(ep, [*missing.values()]), strict=True)}
        return len(missing), []
    run = partial(interleaved, asks_again=config.asks_again, concludes=config.leaf == "sampled")

    def branches_of(history: History) -> list[Branch]:
        if what == "final":  # siblings of one turn
            return [Branch(_copy(ep, history, config.samples, seeds[0]), seeds[0], conclude)]
        return [Branch(_copy(ep, history, 1, each), each, run) for each in seeds]

    branches = {shown: branches_of(history) for shown, history in missing.items()}
    everything = [branch for some in branches.values() for branch in some]
    ends = iter((yield Branches(everything)) if everything else ())
    for shown, some in branches.items():
        ep.valued[shown, what] = _score(ep, config, missing[shown], some, [next(ends) for _ in some])
    return len(missing), everything


def _score(ep: EpisodeState, config: ValueConfig, history: History, branches: Sequence[Branch], ends: Sequence[Any]) -> float | None:
    """The mean over all final turns; None if a branch or one of its searches failed."""
    if any(end is None or end.search_errors for end in ends):
        return None
    answers = ep.question.answers
    if config.leaf == "belief":
        leaves = [[belief] for belief in _beliefs(ep, [branch.state.history for branch in branches])]
    else:
        said = [[parse_answer(turn.text) or "" for turn in end.groups[-1].turns] for end in ends]
        leaves = [[float(is_right(given, answers, config.spare_answer_tokens)) for given in of_branch] for of_branch in said]
    paid = [sum(config.price_of(exchange.kb) for exchange in branch.state.history[len(history) :]) for branch in branches]
    scores = [leaf - price for of_branch, price in zip(leaves, paid, strict=True) for leaf in of_branch]
    return sum(scores) / len(scores)


def _beliefs(ep: EpisodeState, histories: Sequence[History]) -> list[float]:
    messages, image = [ep.final_message(history) for history in histories], ep.question.image
    return gold_probabilities(ep.policy, messages, image, ep.question.answers, per_token=False) if messages else []


def _value(ep: EpisodeState, history: History) -> float | None:
    """V; None if one of its parts failed. With the last search made, only the final turn is left."""
    wanted = [(_shown(history), what) for what in ("final", "on")]
    found = [ep.valued[key] for key in wanted if key in ep.valued]
    known = [value for value in found if value is not None]
    return max(known) if len(known) == len(found) else None


def is_right(given: str, answers: Sequence[str], spare: int) -> bool:
    """Whether all words of an answer are in the given one, and at most `spare` others (-1: any): the reward of a short final answer."""
    words = Counter(normalise(given).split())
    wanted = [Counter(normalise(each).split()) for each in answers]
    return any(each <= words and (spare < 0 or words.total() - each.total() <= spare) for each in wanted if each)

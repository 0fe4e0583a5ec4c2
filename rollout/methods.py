"""The router and its baselines: coroutines like `rollout.episode.episode`, with the same engine, knowledge bases and prompts."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Collection, Sequence
from dataclasses import dataclass, replace
from functools import partial

from retrieval_actors.records import Passage
from rollout.episode import Episode, EpisodeState, answer, conclude, episode, plan
from rollout.need_matcher import need_matcher
from rollout.needs import asked_need, open_needs
from rollout.records import Action, Exchange, Step
from rollout.turn_parser import normalise


def random_kb(ep: EpisodeState, action: Action) -> Action:
    return action if action.kb is None else replace(action, kb=ep.rng.choice(sorted(ep.cards)))


def gold_kb(ep: EpisodeState, action: Action) -> Action:
    """Search a gold knowledge base; stop when all needs are met, or when the policy stops. Without gold steps the policy decides everything."""
    if ep.question.gold_steps is None:
        return action
    matcher = need_matcher(ep.config.need_calibration)
    needs = open_needs(ep.question, ep.history, matcher).askable(ep.question.text)
    if not needs:
        return Action("", None)
    need = asked_need(action.query, needs, matcher) or needs[0]
    if action.kb is None or action.kb in need.kbs:
        return action
    return replace(action, kb=next((kb for kb in need.kbs if kb in ep.cards), need.kbs[0]))


def never_stop(ep: EpisodeState, action: Action) -> Action:
    """Where the policy stops, the question itself goes to the knowledge base that was searched least (of equals, the first)."""
    if action.kb is not None:
        return action
    searched = Counter(exchange.kb for exchange in ep.history)
    return Action(ep.question.text, min(ep.cards, key=lambda kb: searched[kb]))


def interleaved(ep: EpisodeState, asks_again: bool = True, concludes: bool = True) -> Episode:
    """In the manner of IRCoT (Trivedi et al. 2023, arXiv 2212.10509): every query goes to every knowledge base, the policy says when to stop.
    Without `asks_again` a query that was asked before is a stop, too; without `concludes` there is no final turn."""
    while len(ep.history) < ep.config.max_steps:
        action = yield from plan(ep)
        asked = () if asks_again else {normalise(exchange.query) for exchange in ep.history}
        if action is None or action.kb is None or normalise(action.query) in asked:
            ep.steps.append(Step(ep.plan, action))
            break
        found: list[Passage] = []
        for kb in ep.cards:
            passages = yield ep.search(kb, action.query)
            found += passages
            if kb != action.kb:  # a search that no plan turn asked for
                ep.steps.append(Step(None, Action(action.query, kb), tuple(passages), None, Exchange(action.query, kb, "")))
        yield from answer(ep, action, found, kbs=list(ep.cards))
    return (yield from conclude(ep)) if concludes else ep.trajectory()


def read_at_once(ep: EpisodeState, kbs: Sequence[str] = ()) -> Episode:
    """Static retrieval: search these knowledge bases (default: all) with the question itself, answer once from all passages."""
    everything: list[Passage] = []
    for kb in kbs or ep.cards:
        ep.action = Action(ep.question.text, kb)
        found = yield ep.search(kb, ep.question.text)
        everything += found
        ep.steps.append(Step(None, ep.action, tuple(found), None, Exchange(ep.question.text, kb, "")))
    ep.search_errors = sum(bool(passage.error) for passage in everything)
    passages = ep.in_prompt_order(everything)
    message = ep.prompts.answer(ep.question.text, passages, ep.pictured, ep.config.max_passage_chars)
    return (yield from conclude(ep, ep.turn_state("answer", message, passages=passages)))


@dataclass(frozen=True)
class Method:
    """`label`: in tables. `isolates`: what the difference to the router shows. `per_kb`: one method for each knowledge base, NAME:KB."""

    label: str
    isolates: str
    run: Callable[..., Episode] = episode
    route: Callable[[EpisodeState, Action], Action] | None = None
    per_kb: bool = False


METHODS = {
    "policy": Method("the router", "the policy decides what to ask, where, and when to stop"),
    "random": Method("random routing", "what naming the knowledge base is worth: chance routes", route=random_kb),
    "oracle": Method(
        "oracle routing", "what better routes, and stops in time, could still win: both come from the gold steps", route=gold_kb
    ),
    "never_stop": Method("router without stopping", "what stopping is worth: every episode makes all of its searches", route=never_stop),
    "ircot": Method("interleaved, all knowledge bases", "what routing saves: every query goes to every knowledge base", interleaved),
    "all": Method("all knowledge bases, one answer turn", "what asking step by step is worth: one search of everything", read_at_once),
    "single": Method("one knowledge base, one answer turn", "what one knowledge base can answer: plain RAG", read_at_once, per_kb=True),
    "direct": Method("no retrieval", "what the policy knows by itself", conclude),
}  # name in `rollout.routing` and `evaluation.methods` -> method.


def is_method(name: str) -> bool:
    method, colon, kb = name.partition(":")
    return method in METHODS and METHODS[method].per_kb == bool(colon) and bool(colon) == bool(kb)


def label_of(name: str) -> str:
    method, _, kb = name.partition(":")
    return f"{METHODS[method].label}: {kb}" if kb else METHODS[method].label


def expected_names() -> str:
    return ", ".join(f"{name}:KB" if method.per_kb else name for name, method in METHODS.items())


def find_method(name: str, kbs: Collection[str]) -> Callable[[EpisodeState], Episode]:
    """The coroutine of a method. Raises ValueError for an unknown method or knowledge base."""
    if not is_method(name):
        raise ValueError(f"rollout.routing is {name!r}; expected one of {expected_names()}")
    method, _, kb = name.partition(":")
    if kb and kb not in kbs:
        raise ValueError(f"rollout.routing is {name!r}; known knowledge bases are {', '.join(kbs)}")
    run, route = METHODS[method].run, METHODS[method].route
    return partial(run, kbs=[kb]) if kb else partial(run, route=route) if route else run

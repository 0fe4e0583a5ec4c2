"""`routing`, `entity_match` and `guarded_query`: a plan turn's parts, each on its own, and none that similar words alone can earn.

By cosine alone (the paper's `query` part) the right question about the wrong country earns about .9, and a copy of the whole question nearly as
much: the tests of this file hold what each way of gaming earns.
"""

from __future__ import annotations

from collections import Counter

from rewards.judged_turn import JudgedTurn
from rewards.terms.term import Term
from rollout.needs import NAMES, SAME_QUESTION, WORD, asks_for, entities, mentions, same_words
from rollout.records import GoldStep


def routing(turn: JudgedTurn) -> float | None:
    """1 for the knowledge base of a need that can be asked for, or for stopping when nothing is left."""
    if turn.needs is None:
        return None
    right: set[str | None] = {need.kb for need in turn.needs} or {None}
    return float(turn.action is not None and turn.action.kb in right)


def entity_match(turn: JudgedTurn) -> float | None:
    """How well the names of the query are those of a need: F1 of the names, so that naming everything does not help either."""
    if not turn.needs:
        return None
    if turn.action is None or turn.action.kb is None:
        return 0.0
    return max(names_agree(turn.action.query, need) for need in turn.needs)


def guarded_query(turn: JudgedTurn) -> float | None:
    """Cosine with the gold query × agreement of the names × share of words that are not repeated; nothing for a query that is nearer to the whole
    question than to the need, or that shares hardly a word with it."""
    if not turn.needs:
        return None
    if turn.action is None or turn.action.kb is None:
        return 0.0
    query = turn.action.query
    return max(_guarded(query, need, turn) for need in turn.needs)


def names_agree(query: str, need: GoldStep) -> float:
    """F1 between the names in the query and those that the need asks about; 1 when neither has any."""
    wanted = entities(need)
    found = sum(mentions(query, (name,)) == 1.0 for name in wanted)
    foreign = sum(mentions(" ".join([*wanted, need.query]), (name,)) == 0.0 for name in NAMES.findall(query))
    return 1.0 if not wanted and not foreign else 2 * found / (len(wanted) + found + foreign)


def _guarded(query: str, need: GoldStep, turn: JudgedTurn) -> float:
    question = turn.state.question.text
    if not asks_for(question, need) and same_words(query, question) > same_words(query, need.query):
        return 0.0
    if same_words(query, need.query) < SAME_QUESTION / 2:
        return 0.0
    return max(0.0, turn.similarity(query, need.query)) * names_agree(query, need) * _not_repeated(query, need.query)


def _not_repeated(query: str, gold: str) -> float:
    """Share of the words of `query` that do not repeat one, beyond what `gold` repeats."""
    said, wanted = (Counter(WORD.findall(text.lower())) for text in (query, gold))
    repeats = sum(max(0, times - max(1, wanted[word])) for word, times in said.items())
    return 1 - repeats / max(1, said.total())


PLAN = frozenset({"plan"})
ROUTING = Term("routing", routing, PLAN, "R1-Router (arXiv 2505.22095): the retriever's part of the plan reward")
ENTITY_MATCH = Term("entity_match", entity_match, PLAN, "this project: cosines hardly see names")
GUARDED_QUERY = Term("guarded_query", guarded_query, PLAN, "R1-Router (arXiv 2505.22095): the query's part, guarded against gaming")

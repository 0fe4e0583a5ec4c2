"""`bench rewards`: how well needs are recognised in natural language, on relations that the calibration was not fitted on."""

from __future__ import annotations

import random
from collections.abc import Iterator
from dataclasses import replace

from experiments.benchmarks.bench_results import BenchResult
from rewards.answer_metrics import overlap
from rollout.fit_needs import NAME, YEAR, need_of, pairs, paraphrases, recognised, relations_listed, without_paraphrases
from rollout.need_matcher import NeedMatcher, kind_asked_for, read_calibration
from rollout.needs import DONE, open_needs
from rollout.records import Exchange, GoldStep, Question

WORD_F1 = 0.75
"""The baseline: queries are the same from this word F1 with the gold query."""
EPISODES, QUICK_EPISODES = 1500, 200
READ_RIGHT = 0.7
"""Share of simulated answers that are right; the others are of the same kind."""
SECTION = "measured"


def rewards_rows(quick: bool) -> Iterator[BenchResult]:
    shipped = without_paraphrases(read_calibration())
    matcher = NeedMatcher(shipped)
    right, wrong = recognised(matcher, SECTION)
    by_words = [(overlap(query, need.query)[2] >= WORD_F1, same) for query, need, same in pairs(SECTION)]
    words_right, words_wrong = (sum(t for t, s in by_words if s is same) / sum(s is same for _, s in by_words) for same in (True, False))
    yield BenchResult("paraphrases recognised, unfitted relations", right, "", words_right, right / words_right, 0.9, right >= 0.9)
    yield BenchResult("hard negatives recognised (at most)", wrong, "", words_wrong, wrong / words_wrong, 0.02, wrong <= 0.02)
    judged = [(met, open_needs(question, history, matcher)) for question, history, met in cases(QUICK_EPISODES if quick else EPISODES)]
    paid = [needs.done >= DONE for met, needs in judged if not met]
    unpaid = [needs.judged and needs.done < DONE for met, needs in judged if met]
    yield BenchResult.of("stop paid while a need is open", sum(paid) / len(paid), "", bar=0.02, at_most=True)
    yield BenchResult.of("stop unpaid while all are met", sum(unpaid) / len(unpaid), "", bar=0.05, at_most=True)
    yield BenchResult("plan turns left unjudged", sum(not needs.judged for _, needs in judged) / len(judged), "")
    unlisted = replace(shipped, relations={relation: [] for relation in relations_listed("fit")})
    right, wrong = recognised(NeedMatcher(unlisted), SECTION)
    yield BenchResult("the same paraphrases, if their relations were not in the list", right, "")
    yield BenchResult("the same hard negatives, if their relations were not in the list", wrong, "")


def cases(count: int, seed: int = 0) -> Iterator[tuple[Question, list[Exchange], bool]]:
    """(question, exchanges so far, whether all needs are met): random questions with one to three needs about one name. Every second one
    has an open need: not asked for, asked with another relation or another name, or answered `unknown`."""
    rng = random.Random(seed)
    kinds = [relations for relations in paraphrases(SECTION).values() if len(relations) > 3]
    for number in range(count):
        relations = rng.choice(kinds)
        drawn = rng.sample(sorted(relations), rng.randint(2, 4))
        other, needed = relations[drawn[0]], [relations[name] for name in drawn[1:]]
        needs = tuple(need_of(queries[0], _answer(queries[0], rng)) for queries in needed)
        question = Question(f"drawn-{number}", " ".join(need.query for need in needs), ("?",), gold_steps=needs)
        asked = [(need, rng.choice(queries[1:])) for need, queries in zip(needs, needed, strict=True)]
        rng.shuffle(asked)
        if all_met := number % 2 == 0:
            history = [_exchange(query, need, rng) for need, query in asked]
        else:
            (left, query), *rest = asked
            history = [_exchange(query, need, rng) for need, query in rest]
            instead = rng.randrange(4)
            if instead == 1:
                history.append(Exchange(rng.choice(other[1:]), "text", _answer(other[0], rng)))
            elif instead == 2:
                history.append(Exchange(query.replace(NAME, "Kor-Fel").replace(YEAR, "1931"), "text", _answer(left.query, rng)))
            elif instead == 3:
                history.append(Exchange(query, "text", "Unknown."))
        yield question, history, all_met


def _exchange(query: str, need: GoldStep, rng: random.Random) -> Exchange:
    return Exchange(query, need.kbs[0], need.answer if rng.random() < READ_RIGHT else _answer(need.query, rng))


def _answer(query: str, rng: random.Random) -> str:
    """A random year, number or name, whichever the query asks for."""
    kind = kind_asked_for(query)
    if kind in ("time", "number"):
        return str(rng.randint(1800, 1999) if kind == "time" else rng.randint(2, 10**6))
    return " ".join("".join(rng.choice("bdfgklmnprst") + rng.choice("aeiou") for _ in range(2)).capitalize() for _ in range(2))

"""Routes that collapse onto one knowledge base are a sign; routes that become right, or have nowhere else to go, are none."""

from __future__ import annotations

import math
from collections import Counter

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from learner.collapse import CollapseConfig, kb_entropies, signs
from rewards.scored_summary import Route, ScoredSummary

CONFIG = CollapseConfig()
KBS = ("text", "text_image", "table")
RATIO, SINCE_START = "kb_entropy_ratio", "kb_entropy_since_start"


def iteration(rng: np.random.Generator, kinds: np.ndarray, policy: np.ndarray, gold: bool = True, turns: int = 96) -> dict[str, float]:
    """Metrics of an iteration; `kinds`: (k,) share of the turns that need each knowledge base; `policy`: (k, k) probabilities of its routes."""
    of_kind = rng.multinomial(turns, kinds)
    named = [rng.multinomial(count, shares) for count, shares in zip(of_kind, policy, strict=True)]
    needed = [(kb,) if gold else () for kb in KBS]
    routes = {Route(needed[i], KBS[i], KBS[j]): int(named[i][j]) for i in range(len(kinds)) for j in range(len(kinds)) if named[i][j]}
    return kb_entropies(routes) | {"iteration": 0.0}


def training(seed: int, kinds: np.ndarray, end: np.ndarray, gold: bool, n: int = 20) -> list[dict[str, float]]:
    """Between the iterations 5 and 12 a policy that names any knowledge base turns into `end`; its reward rises all the time."""
    rng, start = np.random.default_rng(seed), np.full((len(kinds),) * 2, 1 / len(kinds))
    moved = np.clip((np.arange(n) - 5) / 7, 0, 1)
    return [iteration(rng, kinds, (1 - t) * start + t * end, gold) | {"reward": 0.3 + 0.02 * i} for i, t in enumerate(moved)]


def first_sign(rows: list[dict[str, float]]) -> tuple[int, str] | None:
    return next(((n, found[0].name) for n in range(1, len(rows) + 1) if (found := signs(rows[:n], CONFIG))), None)


diverse = st.lists(st.floats(0.15, 1.0), min_size=2, max_size=3).map(lambda weights: np.array(weights) / sum(weights))


@settings(max_examples=40, deadline=None)
@given(st.integers(0, 2**32 - 1), diverse, st.booleans(), st.data())
def test_a_collapse_onto_one_knowledge_base_is_seen_within_five_iterations_and_not_before_it(seed, kinds, gold, data):
    onto = data.draw(st.integers(0, len(kinds) - 1))
    end = np.tile(np.eye(len(kinds))[onto], (len(kinds), 1))
    number, name = first_sign(training(seed, kinds, end, gold))
    assert 10 <= number <= 17
    assert name == (RATIO if gold else SINCE_START)


@settings(max_examples=40, deadline=None)
@given(st.integers(0, 2**32 - 1), diverse, st.booleans())
def test_a_policy_that_learns_to_route_by_kind_is_no_sign(seed, kinds, gold):
    rows = training(seed, kinds, np.eye(len(kinds)), gold)
    assert first_sign(rows) is None
    assert rows[-1]["kb_information"] == pytest.approx(rows[-1]["kb_entropy"])
    assert all(rows[-1][f"kb_entropy_{kb}"] == 0.0 for kb in KBS[: len(kinds)])


@settings(max_examples=20, deadline=None)
@given(st.integers(0, 2**32 - 1), st.integers(0, 2), diverse, st.booleans())
def test_where_one_knowledge_base_is_needed_or_there_is_only_one_there_is_no_sign(seed, needed, kinds, gold):
    only = np.eye(3)[needed]
    assert first_sign(training(seed, only, np.tile(only, (3, 1)), gold=True)) is None
    routes = {Route(("text",) if gold else (), f"family {i}", "text"): int(100 * share) for i, share in enumerate(kinds)}
    assert first_sign([kb_entropies(routes)] * 20) is None


def test_entropies_are_those_worked_out_by_hand():
    """Pictures: half right. Text: always right. A turn whose need is not known does not count beside those where it is."""
    routes = {
        Route(("text_image",), "a", "text_image"): 2,
        Route(("text_image",), "a", "text"): 2,
        Route(("text",), "b", "text"): 4,
        Route((), "c", "table"): 9,
    }
    named = -(0.75 * math.log(0.75) + 0.25 * math.log(0.25))
    overall = {"kb_entropy": named, "kb_information": named - 0.5 * math.log(2), "right_kb_entropy": math.log(2)}
    assert kb_entropies(routes) == pytest.approx(overall | {"kb_entropy_text": 0.0, "kb_entropy_text_image": math.log(2)})
    assert kb_entropies({}) == {}


def test_a_knowledge_base_that_is_right_for_all_may_be_the_only_one_that_is_named():
    routes = {Route(("table", "text"), "", "text"): 40, Route(("text",), "", "text"): 40}
    assert kb_entropies(routes)["right_kb_entropy"] == 0.0
    assert signs([kb_entropies(routes)] * 9, CONFIG) == []


def test_the_collapse_of_smollm2_on_the_atlas_is_a_sign_and_its_start_was_none():
    """Sampled first routes, as a probe counted them: at the start for the questions that need a table, after ten iterations for all (179 of 192 to
    `text_image`, the others split evenly here). A third of the questions needs each knowledge base."""
    start, end = {"text": 49, "text_image": 9, "table": 6}, {"text": 7, "text_image": 179, "table": 6}
    before, after = (
        kb_entropies({Route((needed,), "", kb): number for needed in KBS for kb, number in found.items()}) for found in (start, end)
    )
    assert signs([before] * 9, CONFIG) == []
    (sign,) = signs([before] * 4 + [after] * 5, CONFIG)
    assert (sign.name, sign.found) == (RATIO, pytest.approx(0.27, abs=0.01))
    assert "learner.routes=all" in sign.advice


@given(st.lists(st.dictionaries(st.sampled_from([Route((), "a", "text"), Route(("text",), "", "table")]), st.integers(1, 9)), min_size=1))
def test_joined_summaries_have_all_routes(parts):
    joined = ScoredSummary.joined([ScoredSummary(**{**vars(ScoredSummary.of([])), "routes": part}) for part in parts])
    assert joined.routes == sum(map(Counter, parts), Counter())

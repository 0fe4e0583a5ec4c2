"""Which rank learns what, planned from summaries alone: mini-batches of rows (`sibling_packing.py`), split over ranks, in micro-batches."""

from __future__ import annotations

import heapq
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple, TypeVar

import numpy as np

from learner.config import LearnerConfig
from learner.objective.advantages import TurnAdvantages
from rewards.scored_summary import KINDS, ScoredSummary, smallest_integers

R = TypeVar("R", bound=Any)  # a row, with its `length` and `image_key`


@dataclass(frozen=True)
class PlannedRow:
    turns: list[int]  # numbers, in the iteration, of turns from one state
    length: int  # tokens in the row: the prompt, all but the last token of each response, and other names that are packed behind it
    image_key: bytes
    weight: float  # its share of the denominator of the loss


class PlannedMiniBatch(NamedTuple):
    """One rank's part of one optimizer step, before its turns are fetched."""

    rows: list[list[list[int]]]  # micro-batch -> row -> numbers of its turns
    advantages: np.ndarray  # (turns of this rank,) float32, in the order of `rows`; so the next four
    weights: np.ndarray  # float32: of each token
    episode: np.ndarray
    names: np.ndarray  # float32: advantage of the tokens from the name of the knowledge base on
    routes: np.ndarray  # float32: weight of the expected reward over routes; NaN: the name's tokens have the credit of the others
    denominator: float
    lr: float
    episodes: int

    @classmethod
    def of(
        cls, batches: Sequence[Sequence[PlannedRow]], advantages: Any, credit: Credit, scored: ScoredSummary, denominator: float, lr: float
    ) -> PlannedMiniBatch:
        rows = [[row.turns for row in batch] for batch in batches]
        turns = np.array([turn for batch in rows for row in batch for turn in row], np.int64)
        advantage, weight, name, route = (c[turns].astype(np.float32) for c in (advantages, credit.weights, credit.names, credit.routes))
        return cls(rows, advantage, weight, smallest_integers(scored.episode[turns]), name, route, denominator, lr, len(scored.episodes))


def token_weights(scored: ScoredSummary, chosen: np.ndarray, aggregation: str, constant_tokens: int) -> tuple[np.ndarray, np.ndarray]:
    """For the `chosen` turns: the weight of each token, and the share of each turn, in the loss sum(weights * token loss) / sum(shares).
    `token_mean`: every token (DAPO, arXiv 2503.14476, section 3.3). `turn_mean`: every turn (GRPO, arXiv 2402.03300, equation 3: 1 / |o|).
    `step_mean`: the turns of an episode from one state together. `sequence_mean`: every episode. `constant`: every token, over the number of turns
    * `constant_tokens` (Dr. GRPO, Liu et al. 2025, arXiv 2503.20783, section 3)."""
    lengths, ones = scored.tokens[chosen].astype(np.float64), np.ones(len(chosen))
    if aggregation == "token_mean":
        return ones, lengths
    if aggregation == "constant":
        return ones / constant_tokens, ones
    unit = {
        "turn_mean": np.arange(len(scored)),
        "step_mean": scored.episode.astype(np.int64) * (1 + len(scored.state_keys)) + scored.states,
        "sequence_mean": scored.episode,
    }[aggregation]
    unit = np.unique(unit[chosen], return_inverse=True)[1]
    weights = ones / np.bincount(unit, lengths)[unit]
    return weights, weights * lengths


class Credit(NamedTuple):
    """Of each turn (turns,): whether it is packed, bool; float64: the weight of its tokens, its share of the denominator, the weight of its
    expected reward over all routes (NaN: sampled credit), and the advantage of its name's tokens."""

    packed: np.ndarray
    weights: np.ndarray
    shares: np.ndarray
    routes: np.ndarray
    names: np.ndarray


def credit_of(scored: ScoredSummary, advantages: TurnAdvantages, config: LearnerConfig) -> Credit:
    """Turns whose groups have no variance, and turns without a token, are left out. With `routes=all`, names have a gradient there, too: of turns
    that are equal up to the name one is packed, with the weights of all. What is not learned of a turn is not in the denominator either."""
    learned = advantages.kept & (scored.tokens > 0)
    by_routes = (scored.name_tokens > 0) & (config.routes == "all")
    routed = by_routes & (scored.prefixes > 0) & ~advantages.masked
    counted, weights, shares = np.flatnonzero(learned | routed), *np.zeros((2, len(scored)))
    weights[counted], shares[counted] = token_weights(scored, counted, config.aggregation, config.constant_tokens)
    only_names = routed & ~learned
    shares[only_names] *= scored.name_tokens[only_names] / scored.tokens[only_names]
    routes = np.where(by_routes, 0.0, np.nan)
    _, first, prefix = np.unique(scored.prefixes[routed], return_index=True, return_inverse=True)
    packed = np.flatnonzero(routed)[first]
    routes[packed] = config.routes_weight * np.bincount(prefix, weights[routed], len(first))
    if config.routes_balanced:
        routes[packed] *= balance(scored.best_routes[packed], routes[packed])
    added = np.bincount(prefix, np.where(only_names, shares, 0.0)[routed], len(first))
    shares[only_names] = weights[only_names] = 0.0
    shares[packed] += added
    learned[packed] = True
    return Credit(learned, weights, shares, routes, np.where(by_routes, 0.0, advantages.names))


def balance(best: np.ndarray, weights: np.ndarray) -> np.ndarray:
    """Factors for the weights (turns,): every knowledge base gets the same sum over the turns where it is `best`, and the sum of all stays. Without
    them the name that is right most often is learned first, for all turns, and probabilities that are near 0 hardly change any more."""
    _, kb, turns = np.unique(best, return_inverse=True, return_counts=True)
    of_kb = np.bincount(kb, weights, len(turns))
    return (weights.sum() / len(turns) / of_kb)[kb] if len(turns) else weights


def deal(
    scored: ScoredSummary, advantages: TurnAdvantages, config: LearnerConfig, policy_version: int
) -> tuple[list[list[PlannedRow]], Credit]:
    """The rows of all turns that are learned from, in mini-batches with the same mixture of kinds, in an order seeded by the policy version."""
    credit = credit_of(scored, advantages, config)
    learned = np.flatnonzero(credit.packed)
    order = np.random.default_rng((config.seed, policy_version))
    dealt: list[list[PlannedRow]] = [[] for _ in range(config.updates_per_iteration)]
    place = 0
    for kind in sorted({KINDS[number] for number in scored.kind[learned].tolist()}):
        rows = planned_rows(scored, learned[scored.kind[learned] == KINDS.index(kind)], credit, config.tokens_per_micro_batch)
        for i in order.permutation(len(rows)) if len(dealt) > 1 else range(len(rows)):
            dealt[place % len(dealt)].append(rows[i])
            place += 1
    return [rows for rows in dealt if rows], credit


def planned_rows(scored: ScoredSummary, chosen: np.ndarray, credit: Credit, longest: int) -> list[PlannedRow]:
    """`chosen` turns with equal state become one row, cut between responses above `longest` tokens."""
    states: dict[int, list[int]] = {}
    for turn, state in zip(chosen.tolist(), scored.states[chosen].tolist(), strict=True):
        states.setdefault(state, []).append(turn)
    tokens = (scored.tokens.astype(int) - 1 + np.where(credit.routes > 0, scored.route_tokens, 0)).tolist()
    added, place = credit.shares.tolist(), scored.state.tolist()
    prompts, images = scored.prompt_tokens.tolist(), scored.image_keys.tolist()
    rows = []
    for members in states.values():
        state = place[members[0]]
        cuts: list[tuple[list[int], int]] = []
        for turn in members:
            if not cuts or cuts[-1][1] + tokens[turn] > longest:
                cuts.append(([], prompts[state]))
            row, length = cuts[-1]
            cuts[-1] = ([*row, turn], length + tokens[turn])
        rows += [PlannedRow(row, length, images[state], sum(added[i] for i in row)) for row, length in cuts]
    return rows


def plan(rows: Sequence[R], ranks: int, tokens: int) -> list[list[list[R]]]:
    """Micro-batches of every rank, as many on each (at least 1; some are empty): all ranks take part in every backward pass."""
    shares = [cut(share, tokens) for share in share_out(rows, ranks)]
    count = max(1, *(len(share) for share in shares))
    return [share + [[] for _ in range(count - len(share))] for share in shares]


def share_out(rows: Sequence[R], ranks: int) -> list[list[R]]:
    """Split rows over ranks: the longest row that is left goes to the rank with the fewest tokens."""
    shares: list[list[R]] = [[] for _ in range(ranks)]
    loads = [(0, rank) for rank in range(ranks)]
    for row in sorted(rows, key=lambda row: -row.length):
        load, rank = heapq.heappop(loads)
        shares[rank].append(row)
        heapq.heappush(loads, (load + row.length, rank))
    return shares


def cut(rows: Sequence[R], tokens: int) -> list[list[R]]:
    """Micro-batches of at most `tokens` tokens (or one longer row): first fit, longest first (Johnson 1973). Rows with the same picture stay
    together where they fit, as it is encoded once for each micro-batch."""
    pictured: dict[str | bytes, list[R]] = {}
    for row in rows:
        if row.image_key:
            pictured.setdefault(row.image_key, []).append(row)
    together = [block for block in pictured.values() if sum(row.length for row in block) <= tokens]
    kept = {id(row) for block in together for row in block}
    found = together + [[row] for row in rows if id(row) not in kept]
    blocks = sorted(((sum(row.length for row in block), block) for block in found), key=lambda entry: -entry[0])
    batches: list[list[R]] = []
    room = np.zeros(len(blocks), np.int64)
    for length, block in blocks:
        place = int(np.argmax(room[: len(batches)] >= length)) if batches else 0
        if not batches or room[place] < length:
            place = len(batches)
            batches.append([])
            room[place] = tokens
        batches[place] += block
        room[place] -= length
    return batches

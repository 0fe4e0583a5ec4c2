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
    length: int  # tokens in the row: the prompt, and all but the last token of each response
    image_key: bytes
    weight: float  # its share of the denominator of the loss


class PlannedMiniBatch(NamedTuple):
    """One rank's part of one optimizer step, before its turns are fetched."""

    rows: list[list[list[int]]]  # micro-batch -> row -> numbers of its turns
    advantages: np.ndarray  # (turns of this rank,) float32, in the order of `rows`; so the next two
    weights: np.ndarray  # float32: of each token
    episode: np.ndarray
    denominator: float
    lr: float
    episodes: int

    @classmethod
    def of(
        cls, batches: Sequence[Sequence[PlannedRow]], advantages: Any, weights: Any, scored: ScoredSummary, denominator: float, lr: float
    ) -> PlannedMiniBatch:
        rows = [[row.turns for row in batch] for batch in batches]
        turns = np.array([turn for batch in rows for row in batch for turn in row], np.int64)
        columns = advantages[turns].astype(np.float32), weights[turns].astype(np.float32), smallest_integers(scored.episode[turns])
        return cls(rows, *columns, denominator, lr, len(scored.episodes))


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


def deal(
    scored: ScoredSummary, advantages: TurnAdvantages, config: LearnerConfig, policy_version: int
) -> tuple[list[list[PlannedRow]], np.ndarray]:
    """The rows of all turns that are learned from, in mini-batches with the same mixture of turn kinds, in an order seeded by the policy version;
    and (turns,) float64 weights of their tokens. Turns whose groups have no variance, and turns without a token, are left out."""
    learned = np.flatnonzero(advantages.kept & (scored.tokens > 0))
    weights, shares = np.zeros((2, len(scored)))
    weights[learned], shares[learned] = token_weights(scored, learned, config.aggregation, config.constant_tokens)
    order = np.random.default_rng((config.seed, policy_version))
    dealt: list[list[PlannedRow]] = [[] for _ in range(config.updates_per_iteration)]
    place = 0
    for kind in sorted({KINDS[number] for number in scored.kind[learned].tolist()}):
        rows = planned_rows(scored, learned[scored.kind[learned] == KINDS.index(kind)], shares, config.tokens_per_micro_batch)
        for i in order.permutation(len(rows)) if len(dealt) > 1 else range(len(rows)):
            dealt[place % len(dealt)].append(rows[i])
            place += 1
    return [rows for rows in dealt if rows], weights


def planned_rows(scored: ScoredSummary, chosen: np.ndarray, shares: np.ndarray, longest: int) -> list[PlannedRow]:
    """`chosen` turns with equal state become one row, cut between responses above `longest` tokens. shares: (turns,), of the denominator."""
    states: dict[int, list[int]] = {}
    for turn, state in zip(chosen.tolist(), scored.states[chosen].tolist(), strict=True):
        states.setdefault(state, []).append(turn)
    tokens, added, place = scored.tokens.tolist(), shares.tolist(), scored.state.tolist()
    prompts, images = scored.prompt_tokens.tolist(), scored.image_keys.tolist()
    rows = []
    for members in states.values():
        state = place[members[0]]
        cuts: list[tuple[list[int], int]] = []
        for turn in members:
            if not cuts or cuts[-1][1] + tokens[turn] - 1 > longest:
                cuts.append(([], prompts[state]))
            row, length = cuts[-1]
            cuts[-1] = ([*row, turn], length + tokens[turn] - 1)
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

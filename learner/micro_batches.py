"""Packing: the siblings of one state share one copy of their prompt, and micro-batches are filled to a number of tokens.

A row is `prompt | response 0 | response 1 | ...`, and a micro-batch is rows one after the other, without padding. Every response sees the
prompt and itself, never a sibling or another row, and its positions continue from the prompt, so its log-probs are those of a row of its own;
the prompt and its picture are paid for once. The last token of a response is predicted but predicts nothing, so it is not in the row.
"""

from __future__ import annotations

import heapq
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from learner.first_fit import FirstFit
from rollout.records import Image, ScoredTurn

PROMPT = 0
"""Segment of prompt tokens; responses are 1, 2, ..."""


@dataclass(frozen=True)
class Response:
    """One sampled turn, as the loss needs it."""

    ids: np.ndarray
    """(tokens,) int32."""
    logprobs: np.ndarray
    """(tokens,) float32, nats, under the version that sampled it."""
    advantage: float
    weight: float
    """Of each of its tokens in the loss."""
    share: float | None = None
    """What it adds to the denominator of the loss; None: weight * tokens."""
    episode: int = 0
    """Number of its episode within the mini-batch."""
    place: int = 0
    """Its place among the turns that were handed in."""


@dataclass(frozen=True)
class Row:
    """One prompt and responses to it."""

    prompt_ids: np.ndarray
    """(tokens,) int32."""
    image: Image | None
    responses: tuple[Response, ...]

    @property
    def length(self) -> int:
        """Tokens that are read: all but the last one of each response."""
        return len(self.prompt_ids) + sum(len(response.ids) - 1 for response in self.responses)

    @property
    def weight(self) -> float:
        """Its share of the denominator of the loss."""
        return sum(r.weight * len(r.ids) if r.share is None else r.share for r in self.responses)


@dataclass(frozen=True)
class MicroBatch:
    """Rows one after the other, and where in them the tokens of the responses are predicted."""

    input_ids: np.ndarray
    """(length,) int64."""
    positions: np.ndarray
    """(3, length) int64: M-RoPE."""
    rows: np.ndarray
    """(length,) int64: number of the row."""
    segments: np.ndarray
    """(length,) int64: `PROMPT`, or 1, 2, ... for the responses of the row."""
    images: tuple[Image, ...]
    """Distinct pictures."""
    image_of_row: np.ndarray
    """(rows with a picture,) int64, in the order of the rows: index into `images`."""
    sources: np.ndarray
    """(tokens,) int64: place whose hidden state predicts the token."""
    targets: np.ndarray
    """(tokens,) int64: the token."""
    old_logprobs: np.ndarray
    """(tokens,) float32."""
    advantages: np.ndarray
    """(tokens,) float32."""
    weights: np.ndarray
    """(tokens,) float32."""
    turns: np.ndarray
    """(tokens,) int64: number of the response, counted over the rows."""
    episodes: np.ndarray
    """(tokens,) int64: number of its episode within the mini-batch."""


def rows_of(
    turns: Sequence[ScoredTurn],
    advantages: Sequence[float],
    weights: Sequence[float],
    longest: int,
    *,
    shares: Sequence[float] | None = None,
    episodes: Sequence[int] | None = None,
    places: Sequence[int] | None = None,
) -> list[Row]:
    """Turns with equal state become the responses of one row; a row that would be longer than `longest` is cut between responses.

    One entry for each turn: `advantages`, `weights`, and where they matter `shares`, `episodes` and `places`, as in `Response`.
    """
    states: dict[str, list[int]] = {}
    for i, turn in enumerate(turns):
        states.setdefault(turn.state_key, []).append(i)
    rows = []
    for members in states.values():
        state, length = turns[members[0]], 0
        begun: list[Response] = []
        for i in members:
            tokens = len(turns[i].turn.response_ids)
            if begun and length + tokens - 1 > longest:
                rows.append(Row(state.prompt_ids, state.image, tuple(begun)))
                begun = []
            if not begun:
                length = len(state.prompt_ids)
            begun.append(
                Response(
                    turns[i].turn.response_ids,
                    turns[i].turn.logprobs,
                    float(advantages[i]),
                    float(weights[i]),
                    None if shares is None else float(shares[i]),
                    0 if episodes is None else episodes[i],
                    i if places is None else places[i],
                )
            )
            length += tokens - 1
        rows.append(Row(state.prompt_ids, state.image, tuple(begun)))
    return rows


def share_out(rows: Sequence[Row], ranks: int) -> list[list[Row]]:
    """Whole rows to ranks, balanced by tokens: the longest row that is left goes to the rank with the fewest tokens so far."""
    shares: list[list[Row]] = [[] for _ in range(ranks)]
    loads = [(0, rank) for rank in range(ranks)]
    for row in sorted(rows, key=lambda row: -row.length):
        load, rank = heapq.heappop(loads)
        shares[rank].append(row)
        heapq.heappush(loads, (load + row.length, rank))
    return shares


def cut(rows: Sequence[Row], tokens: int) -> list[list[Row]]:
    """Rows into micro-batches of at most `tokens` tokens (or one row that is longer by itself): longest first, into the first one that has room.

    Rows with the same picture stay together where they fit: it is encoded once for each micro-batch that shows it.
    """
    batches: list[list[Row]] = []
    bins = FirstFit(tokens)
    for length, block in sorted(((_length(block), block) for block in _blocks(rows, tokens)), key=lambda entry: -entry[0]):
        place = bins.put(length)
        if place == len(batches):
            batches.append([])
        batches[place] += block
    return batches


def _blocks(rows: Sequence[Row], tokens: int) -> list[list[Row]]:
    pictured: dict[str, list[Row]] = {}
    for row in rows:
        if row.image is not None:
            pictured.setdefault(row.image.key, []).append(row)
    whole = [block for block in pictured.values() if _length(block) <= tokens]
    kept = {id(row) for block in whole for row in block}
    return whole + [[row] for row in rows if id(row) not in kept]


def _length(rows: Sequence[Row]) -> int:
    return sum(row.length for row in rows)


def plan(rows: Sequence[Row], ranks: int, tokens: int) -> list[list[list[Row]]]:
    """Micro-batches of every rank, the same number on each (at least 1): all ranks have to take part in every backward pass.

    Where a rank has fewer, it gets empty ones.
    """
    shares = [cut(share, tokens) for share in share_out(rows, ranks)]
    count = max(1, *(len(share) for share in shares))
    return [share + [[] for _ in range(count - len(share))] for share in shares]


def pack(rows: Sequence[Row], positions: Sequence[np.ndarray], pad_id: int) -> MicroBatch:
    """Lay rows side by side. `positions`: M-RoPE positions (3, tokens) of each row's prompt. No rows: one padding token and nothing to learn."""
    if not rows:
        rows, positions = [Row(np.array([pad_id], np.int32), None, ())], [np.zeros((3, 1), np.int64)]
    ids, places, segments, sources, image_of_row = [], [], [], [], []
    images: dict[str, tuple[int, Image]] = {}
    begin = 0
    for row, prompt in zip(rows, positions, strict=True):
        read = [len(response.ids) - 1 for response in row.responses]
        ids += [row.prompt_ids, *(response.ids[:-1] for response in row.responses)]
        after = np.concatenate([np.arange(0), *(np.arange(tokens) for tokens in read)])
        places += [prompt, np.tile(prompt.max() + 1 + after, (3, 1))]
        segments.append(np.repeat(np.arange(len(read) + 1), [len(row.prompt_ids), *read]))
        end = last = begin + len(row.prompt_ids) - 1
        for tokens in read:
            sources += [[last], np.arange(end + 1, end + 1 + tokens)]
            end += tokens
        begin = end + 1
        if row.image is not None:
            image_of_row.append(images.setdefault(row.image.key, (len(images), row.image))[0])
    responses = [response for row in rows for response in row.responses]
    lengths = [len(response.ids) for response in responses]
    return MicroBatch(
        input_ids=_joined(ids, np.int64),
        positions=np.concatenate(places, 1).astype(np.int64),
        rows=np.repeat(np.arange(len(rows)), [row.length for row in rows]),
        segments=_joined(segments, np.int64),
        images=tuple(image for _, image in images.values()),
        image_of_row=np.array(image_of_row, np.int64),
        sources=_joined(sources, np.int64),
        targets=_joined([response.ids for response in responses], np.int64),
        old_logprobs=_joined([response.logprobs for response in responses], np.float32),
        advantages=np.repeat(np.array([response.advantage for response in responses], np.float32), lengths),
        weights=np.repeat(np.array([response.weight for response in responses], np.float32), lengths),
        turns=np.repeat(np.arange(len(responses)), lengths),
        episodes=np.repeat(np.array([response.episode for response in responses], np.int64), lengths),
    )


def _joined(parts: Sequence[Any], dtype: type) -> np.ndarray:
    return np.concatenate([np.zeros(0, dtype), *parts]).astype(dtype)

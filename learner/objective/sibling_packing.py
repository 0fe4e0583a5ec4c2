"""Packing: a row is `prompt | response 0 | response 1 | ...`, and rows fill a micro-batch without padding. A response sees the prompt and itself;
its positions continue from the prompt. The last token of a response predicts nothing, so it is not in the row."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

import numpy as np

from rollout.records import AllowedTokens, Image, ScoredTurn

PROMPT = 0  # segment of prompt tokens; responses are 1, 2, ...


class Response(NamedTuple):
    ids: np.ndarray  # (tokens,) int32
    logprobs: np.ndarray  # (tokens,) float32, nats, under the version that sampled it
    advantage: float
    weight: float  # of each of its tokens in the loss
    episode: int = 0
    temperature: float = 1.0
    support: AllowedTokens | None = None


@dataclass(frozen=True)
class Row:
    prompt_ids: np.ndarray
    image: Image | None
    responses: tuple[Response, ...]

    @property
    def length(self) -> int:
        """Tokens in the row: the prompt, and all but the last token of each response."""
        return len(self.prompt_ids) + sum(len(response.ids) - 1 for response in self.responses)

    @property
    def weight(self) -> float:
        return sum(response.weight * len(response.ids) for response in self.responses)

    @property
    def image_key(self) -> str:
        return self.image.key if self.image else ""


@dataclass(frozen=True)
class MicroBatch:
    """Rows one after the other: `length` input tokens, and the `tokens` of the responses, which are predicted.
    int64: input_ids, rows and segments (length,): a segment is `PROMPT` or the number of a response of its row; positions (axes, length);
    image_of_row (rows with a picture,), which are distinct in `images`; sources (tokens,): the place whose hidden state predicts the token;
    targets, turns and episodes (tokens,): the token, the number of its response and of its episode; support_sizes (tokens,): how many tokens
    it was drawn from, 0 for all; support_ids: those tokens. float32, (tokens,): old_logprobs, advantages, weights, temperatures."""

    input_ids: np.ndarray
    positions: np.ndarray
    rows: np.ndarray
    segments: np.ndarray
    images: tuple[Image, ...]
    image_of_row: np.ndarray
    sources: np.ndarray
    targets: np.ndarray
    old_logprobs: np.ndarray
    advantages: np.ndarray
    weights: np.ndarray
    turns: np.ndarray
    episodes: np.ndarray
    temperatures: np.ndarray
    support_sizes: np.ndarray
    support_ids: np.ndarray


def row_of(turns: Sequence[ScoredTurn], advantages: Iterable[float], weights: Iterable[float], episodes: Iterable[int]) -> Row:
    """The row of these turns of one state; the other arguments have one entry per turn."""
    responses = tuple(
        Response(t.turn.response_ids, t.turn.logprobs, float(advantage), float(weight), int(episode), t.turn.temperature, t.turn.allowed)
        for t, advantage, weight, episode in zip(turns, advantages, weights, episodes, strict=True)
    )
    return Row(turns[0].prompt_ids, turns[0].image, responses)


def pack(rows: Sequence[Row], positions: Sequence[np.ndarray], pad_id: int, axes: int = 3) -> MicroBatch:
    """Lay rows side by side. `positions`: (axes, tokens) of each row's prompt. No rows: one padding token, nothing to learn."""
    if not rows:
        rows, positions = [Row(np.array([pad_id], np.int32), None, ())], [np.zeros((axes, 1), np.int64)]
    ids, places, segments, sources, image_of_row = [], [], [], [], []
    images: dict[str, tuple[int, Image]] = {}
    begin = 0
    for row, prompt in zip(rows, positions, strict=True):
        read = [len(response.ids) - 1 for response in row.responses]
        ids += [row.prompt_ids, *(response.ids[:-1] for response in row.responses)]
        after = np.concatenate([np.arange(0), *(np.arange(tokens) for tokens in read)])
        places += [prompt, np.tile(prompt.max() + 1 + after, (len(prompt), 1))]
        segments.append(np.repeat(np.arange(len(read) + 1), [len(row.prompt_ids), *read]))
        end = last = begin + len(row.prompt_ids) - 1
        for tokens in read:
            sources += [[last], np.arange(end + 1, end + 1 + tokens)]
            end += tokens
        begin = end + 1
        if row.image is not None:
            image_of_row.append(images.setdefault(row.image.key, (len(images), row.image))[0])
    responses = [response for row in rows for response in row.responses]
    sampled, logprobs, advantages, weights, episodes, temperatures, supports = zip(*responses, strict=True) if responses else [()] * 7
    lengths = [len(response) for response in sampled]

    def per_token(values: Sequence[float], dtype: type) -> np.ndarray:
        return np.repeat(np.array(values, dtype), lengths)

    return MicroBatch(
        input_ids=_joined(ids, np.int64),
        positions=np.concatenate(places, 1).astype(np.int64),
        rows=np.repeat(np.arange(len(rows)), [row.length for row in rows]),
        segments=_joined(segments, np.int64),
        images=tuple(image for _, image in images.values()),
        image_of_row=np.array(image_of_row, np.int64),
        sources=_joined(sources, np.int64),
        targets=_joined(sampled, np.int64),
        old_logprobs=_joined(logprobs, np.float32),
        advantages=per_token(advantages, np.float32),
        weights=per_token(weights, np.float32),
        turns=per_token(range(len(responses)), np.int64),
        episodes=per_token(episodes, np.int64),
        temperatures=per_token(temperatures, np.float32),
        support_sizes=_joined([r.sizes if r else np.zeros(len(s)) for r, s in zip(supports, sampled, strict=True)], np.int64),
        support_ids=_joined([support.ids for support in supports if support], np.int64),
    )


def _joined(parts: Sequence[Any], dtype: type) -> np.ndarray:
    return np.concatenate([np.zeros(0, dtype), *parts]).astype(dtype)

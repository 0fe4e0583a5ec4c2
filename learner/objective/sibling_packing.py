"""Packing: a row is `prompt | response 0 | response 1 | ...`, and rows fill a micro-batch without padding. A response sees the prompt and itself;
its positions continue from the prompt. The last token of a response predicts nothing, so it is not in the row.
Where a name is credited by all routes, a response is split before it, and the other names are laid behind it:
`prompt | response 0 up to <ret> | its name | another name | ...`; each name sees the prompt, what is before it, and itself."""

import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from typing import Any, NamedTuple

import numpy as np

from rollout.records import AllowedTokens, Image, RouteNames, ScoredTurn

PROMPT = 0  # segment of prompt tokens; responses, or parts of them, are 1, 2, ...


class RouteCredit(NamedTuple):
    names: RouteNames
    rewards: tuple[float, ...]  # of the turn with each name
    weight: float  # of their expectation in the loss; 0: nothing to learn, the names are not packed


class Response(NamedTuple):
    ids: np.ndarray  # (tokens,) int32
    logprobs: np.ndarray  # (tokens,) float32, nats, under the version that sampled it
    advantage: float
    weight: float  # of each of its tokens in the loss
    episode: int = 0
    temperature: float = 1.0
    support: AllowedTokens | None = None
    routes: RouteCredit | None = None  # None: the name of the knowledge base, if there is one, has sampled credit
    name: tuple[int, float] | None = None  # place of its first token, and the advantage of those from there on; None: as the others

    @property
    def packed_routes(self) -> RouteCredit | None:
        return self.routes if self.routes and self.routes.weight else None

    @property
    def advantages(self) -> np.ndarray:
        """(tokens,) float32."""
        found = np.full(len(self.ids), self.advantage, np.float32)
        if self.name:
            found[self.name[0] :] = self.name[1]
        return found

    @property
    def length(self) -> int:
        """Tokens in the row: all but the last of the response, and of other names."""
        others = self.packed_routes.names.others if self.packed_routes else []
        return sum(len(ids) - 1 for ids in (self.ids, *others))


@dataclass(frozen=True)
class Row:
    prompt_ids: np.ndarray
    image: Image | None
    responses: tuple[Response, ...]

    @property
    def length(self) -> int:
        return len(self.prompt_ids) + sum(response.length for response in self.responses)

    @property
    def weight(self) -> float:
        return sum(response.weight * len(response.ids) for response in self.responses)

    @property
    def image_key(self) -> str:
        return self.image.key if self.image else ""


@dataclass(frozen=True)
class MicroBatch:
    """Rows one after the other: `length` input tokens, and the `tokens` of the responses, which are predicted; then the `route tokens` of all
    names of packed routes. int64: input_ids, rows, segments and parents (length,): a segment is `PROMPT` or a part of the row, and sees the prompt,
    its parent and itself; positions (axes, length); image_of_row (rows with a picture,), which are distinct in `images`. Of all that is
    predicted (tokens + route tokens,): sources, the place whose hidden state predicts it; targets; support_sizes, how many tokens it was drawn
    from, 0 for all; float32: temperatures. support_ids: what they were drawn from. (tokens,): turns and episodes, the number of its response and of
    its episode; float32: old_logprobs, advantages, weights. route_of (route tokens,): number of its route; route_turns (routes,): number of its
    turn, among those with routes; float32: route_rewards (routes,), route_weights (turns with routes,)."""

    input_ids: np.ndarray
    positions: np.ndarray
    rows: np.ndarray
    segments: np.ndarray
    parents: np.ndarray
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
    route_of: np.ndarray
    route_turns: np.ndarray
    route_rewards: np.ndarray
    route_weights: np.ndarray


def row_of(
    turns: Sequence[ScoredTurn],
    advantages: Iterable[float],
    weights: Iterable[float],
    episodes: Iterable[int],
    names: Iterable[float],
    routes: Iterable[float],
) -> Row:
    """The row of these turns of one state; the other arguments have one entry per turn, as in `PlannedMiniBatch`."""
    responses = []
    for t, advantage, weight, episode, name, route in zip(turns, advantages, weights, episodes, names, routes, strict=True):
        turn, numbers = t.turn, (float(advantage), float(weight), int(episode))
        credit = RouteCredit(turn.routes, t.route_rewards, float(route)) if turn.routes and not math.isnan(route) else None
        named = (turn.routes.start, float(name)) if turn.routes and turn.routes.ids else None  # 0 where `credit` is by all routes
        responses.append(Response(turn.response_ids, turn.logprobs, *numbers, turn.temperature, turn.allowed, credit, named))
    return Row(turns[0].prompt_ids, turns[0].image, tuple(responses))


@dataclass
class _Layout:
    """Input tokens of a micro-batch, laid out segment by segment."""

    length: int = 0
    row: int = -1
    segment: int = PROMPT  # the next one
    prompt: np.ndarray = field(default_factory=lambda: np.zeros((3, 0), np.int64))  # positions of the row's prompt
    columns: list[tuple[np.ndarray, np.ndarray, np.ndarray]] = field(default_factory=list)

    def add_prompt(self, ids: np.ndarray, positions: np.ndarray) -> int:
        """Begins a row; returns the place of the last token."""
        self.row, self.segment, self.prompt = self.row + 1, PROMPT, positions
        return self._add(ids, positions, PROMPT) + len(ids) - 1

    def add(self, ids: np.ndarray, offset: int, parent: int | None = None) -> int:
        """A segment that begins `offset` tokens behind the prompt, and sees its parent; returns the place of its first token."""
        positions = np.tile(self.prompt.max() + 1 + offset + np.arange(len(ids)), (len(self.prompt), 1))
        return self._add(ids, positions, self.segment if parent is None else parent)

    def _add(self, ids: np.ndarray, positions: np.ndarray, parent: int) -> int:
        self.columns.append((ids, positions, np.tile([[self.row], [self.segment], [parent]], len(ids))))
        self.segment, self.length = self.segment + 1, self.length + len(ids)
        return self.length - len(ids)


def pack(rows: Sequence[Row], positions: Sequence[np.ndarray], pad_id: int, axes: int = 3) -> MicroBatch:
    """Lay rows side by side. `positions`: (axes, tokens) of each row's prompt. No rows: one padding token, nothing to learn."""
    if not rows:
        rows, positions = [Row(np.array([pad_id], np.int32), None, ())], [np.zeros((axes, 1), np.int64)]
    layout, image_of_row = _Layout(), []
    sources: list[list[int]] = []
    route_sources: list[list[int]] = []
    images: dict[str, tuple[int, Image]] = {}
    for row, prompt in zip(rows, positions, strict=True):
        last = layout.add_prompt(row.prompt_ids, prompt)
        for response in row.responses:
            read, routes, segment = response.ids[:-1], response.packed_routes, layout.segment
            start = routes.names.start if routes else len(read)
            first = layout.add(read[:start], 0)
            sources.append([last, *range(first, first + len(read))])
            if routes:
                rest = layout.add(read[start:], start, segment)
                for i, ids in enumerate(routes.names.ids):
                    begin = rest if i == routes.names.sampled else layout.add(ids[:-1], start, segment)
                    route_sources.append([first + start - 1, *range(begin, begin + len(ids) - 1)])
        if row.image is not None:
            image_of_row.append(images.setdefault(row.image.key, (len(images), row.image))[0])
    responses = [response for row in rows for response in row.responses]
    lengths = [len(response.ids) for response in responses]
    credits = [found for response in responses if (found := response.packed_routes)]
    names = [ids for credit in credits for ids in credit.names.ids]
    inputs, places, numbers = (np.concatenate(column, -1).astype(np.int64) for column in zip(*layout.columns, strict=True))

    def per_token(values: Sequence[float], dtype: type) -> np.ndarray:
        return np.repeat(np.array(values, dtype), lengths)

    supports = [response.support.sizes if response.support else np.zeros(len(response.ids)) for response in responses]
    temperatures = per_token([response.temperature for response in responses], np.float32)
    return MicroBatch(
        input_ids=inputs,
        positions=places,
        rows=numbers[0],
        segments=numbers[1],
        parents=numbers[2],
        images=tuple(image for _, image in images.values()),
        image_of_row=np.array(image_of_row, np.int64),
        sources=_joined([*sources, *route_sources], np.int64),
        targets=_joined([*(response.ids for response in responses), *names], np.int64),
        old_logprobs=_joined([response.logprobs for response in responses], np.float32),
        advantages=_joined([response.advantages for response in responses], np.float32),
        weights=per_token([response.weight for response in responses], np.float32),
        turns=per_token(range(len(responses)), np.int64),
        episodes=per_token([response.episode for response in responses], np.int64),
        temperatures=_joined([temperatures, *(np.ones(len(ids)) for ids in names)], np.float32),
        support_sizes=_joined([*supports, *(np.zeros(len(ids)) for ids in names)], np.int64),
        support_ids=_joined([response.support.ids for response in responses if response.support], np.int64),
        route_of=np.repeat(np.arange(len(names)), [len(ids) for ids in names]),
        route_turns=np.repeat(np.arange(len(credits)), [len(credit.rewards) for credit in credits]),
        route_rewards=_joined([credit.rewards for credit in credits], np.float32),
        route_weights=np.array([credit.weight for credit in credits], np.float32),
    )


def _joined(parts: Sequence[Any], dtype: type) -> np.ndarray:
    return np.concatenate([np.zeros(0, dtype), *parts]).astype(dtype)

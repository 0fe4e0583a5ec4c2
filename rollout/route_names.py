"""The tokens of a plan turn with the name of every knowledge base in its place: what `learner.routes=all` compares."""

from __future__ import annotations

import bisect
import functools
from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import TYPE_CHECKING

import numpy as np

from rollout.records import RouteNames, Turn
from rollout.turn_parser import parse_plan, with_retriever

if TYPE_CHECKING:
    from rollout.policies import Policy  # see rollout/nan_check.py

TAG = "<ret>"


def with_routes(turns: Sequence[Turn], policy: Policy, retrievers: Mapping[str, str]) -> tuple[Turn, ...]:
    """The plan turns, with `routes` for those that ask. `retrievers`: retriever name, as the policy writes it -> knowledge base."""

    @functools.cache
    def encode(text: str, *end: int) -> np.ndarray:
        """The text as it is encoded after the tag: at the beginning of a text, tokenizers of the SentencePiece kind add a space."""
        tag, whole, alone = (policy.tokenizer(each, add_special_tokens=False)["input_ids"] for each in (TAG, TAG + text, text))
        return np.array([*(whole[len(tag) :] if whole[: len(tag)] == tag else alone), *end], np.int32)

    def routes(turn: Turn) -> RouteNames | None:
        action = parse_plan(turn.text, retrievers)
        if action is None or action.kb is None or len(retrievers) < 2:
            return None
        ids = turn.response_ids
        start = bisect.bisect_left(range(len(ids)), True, key=lambda end: TAG in policy.decode(ids[:end]))
        before, kbs = policy.decode(ids[:start]), list(retrievers.values())
        if not before.endswith(TAG):  # a token holds the end of the tag and the beginning of the name
            return RouteNames()
        end = ids[-1:].tolist() if turn.finish_reason == "stop" else []
        found = [encode(with_retriever(turn.text, name).removeprefix(before), *end) for name in retrievers]
        sampled = kbs.index(action.kb)
        if not np.array_equal(found[sampled], ids[start:]):  # the policy wrote it in other tokens, or with other capitals
            found[sampled] = ids[start:]
        actions = [parse_plan(policy.decode(np.concatenate([ids[:start], each])), retrievers) for each in found]
        if actions != [replace(action, kb=kb) for kb in kbs]:
            return RouteNames()
        return RouteNames(start, tuple(retrievers), tuple(found), sampled)

    return tuple(replace(turn, routes=routes(turn)) for turn in turns)

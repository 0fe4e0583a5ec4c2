"""Information gain of sub-answers, after IGPO (arXiv 2510.14967): how much each raises the policy's own probability of the gold answer: the
geometric mean over the tokens of the answer, teacher-forced after the prompt of the final turn."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import TYPE_CHECKING

import numpy as np

from rollout.nan_check import largest
from rollout.records import Image, Message, Turn

if TYPE_CHECKING:
    from rollout.policies import Policy  # see rollout/nan_check.py

TOKENS = 16384  # of one forward pass: a question may have hundreds of right answers
Row = tuple[np.ndarray, Image | None, np.ndarray, int, int]  # prompt, picture, response, and which of its tokens count: first, last + 1
OPENING, CLOSING = "<think></think><answer>", "</answer>"


def information_gains(
    policy: Policy, before: Message, after: Sequence[tuple[str, Message]], image: Image | None, answers: Sequence[str]
) -> tuple[float, ...]:
    """p(gold | after) - p(gold | before), in [-1, 1], for each (sub-answer, final prompt with it). Equal sub-answers are scored once."""
    distinct = dict(after)
    known, *with_answer = gold_probabilities(policy, [before, *distinct.values()], image, answers)
    probability = dict(zip(distinct, with_answer, strict=True))
    return tuple(probability[sub_answer] - known for sub_answer, _ in after)


def passage_support(policy: Policy, turn: Turn, prompt: Message, left_out: Sequence[Message], image: Image | None) -> tuple[float, ...]:
    """By how much the policy's probability of its answer turn, the geometric mean over the tokens, falls from `prompt` to each of `left_out`, which
    lacks one passage: in [-1, 1]. That after `prompt` is known from sampling, unless the turn was sampled from another distribution."""
    sampled_otherwise = turn.temperature != 1.0 or turn.allowed is not None
    messages = [*left_out, *([prompt] if sampled_otherwise else [])]
    ids = turn.response_ids
    rows = [(policy.encode(each, image), image if each.image else None, ids, 0, len(ids)) for each in messages]
    found = _probabilities(policy, rows) if rows else []
    whole = found.pop() if sampled_otherwise else math.exp(float(turn.logprobs.mean()))
    return tuple(whole - each for each in found)


def gold_probabilities(
    policy: Policy, messages: Sequence[Message], image: Image | None, answers: Sequence[str], per_token: bool = True
) -> list[float]:
    """For each message, the highest probability of an answer after it, in [0, 1]: the product over the tokens of the answer, or, `per_token`, their
    geometric mean."""
    tokenized = [_tokenized(policy, answer) for answer in answers]
    prompts = [(policy.encode(message, image), image if message.image else None) for message in messages]
    probabilities = _probabilities(policy, [(*prompt, *answer) for prompt in prompts for answer in tokenized], per_token)
    return [largest(probabilities[start : start + len(tokenized)]) for start in range(0, len(probabilities), len(tokenized))]


def _tokenized(policy: Policy, answer: str) -> tuple[np.ndarray, int, int]:
    """(tokens of a final turn with this answer, first and last + 1 of the answer's own tokens)."""
    opening, whole = (policy.tokenizer(text, add_special_tokens=False)["input_ids"] for text in (OPENING, f"{OPENING} {answer}{CLOSING}"))
    closing = policy.tokenizer(CLOSING, add_special_tokens=False)["input_ids"]
    return np.array(whole, np.int32), len(opening), max(len(opening) + 1, len(whole) - len(closing))


def _probabilities(policy: Policy, rows: Sequence[Row], per_token: bool = True) -> list[float]:
    """The product over the tokens of each row, or, `per_token`, their geometric mean."""
    at_once = max(1, TOKENS // max(len(prompt) + len(tokens) for prompt, _, tokens, _, _ in rows))
    parts = [rows[start : start + at_once] for start in range(0, len(rows), at_once)]
    means = [mean for part in parts for mean in _mean_logprobs(policy, part)]
    return [math.exp(mean * (1 if per_token else last - first)) for mean, (*_, first, last) in zip(means, rows, strict=True)]


def _mean_logprobs(policy: Policy, rows: Sequence[Row]) -> list[float]:
    """Mean log-prob, in nats, of the tokens of each row, all rows in one batch."""
    import torch

    means = []
    with torch.no_grad():
        hidden = policy.padded_hidden([(np.concatenate([prompt, tokens]), image) for prompt, image, tokens, _, _ in rows])
        for i, (prompt, _, tokens, first, last) in enumerate(rows):
            start = len(prompt) - 1
            logprobs = policy.lm_head(hidden[i, start + first : start + last]).float().log_softmax(-1)
            wanted = torch.from_numpy(tokens[first:last].astype(np.int64)).to(policy.device)
            means.append(float(logprobs.gather(1, wanted[:, None]).mean()))
    return means

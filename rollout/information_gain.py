"""Information gain of sub-answers, after IGPO (arXiv 2510.14967): how much each raises the policy's own probability of the gold answer: the
geometric mean over the tokens of the answer, teacher-forced after the prompt of the final turn."""

from __future__ import annotations

import math
from collections.abc import Hashable, Sequence
from typing import TYPE_CHECKING

import numpy as np

from rollout.nan_check import largest
from rollout.records import Image, Message

if TYPE_CHECKING:
    from rollout.policies import Policy  # see rollout/nan_check.py

TOKENS = 16384  # of one forward pass: a question may have hundreds of right answers
OPENING, CLOSING = "<think></think><answer>", "</answer>"


def information_gains(
    policy: Policy, before: Message, after: Sequence[tuple[Hashable, Message]], image: Image | None, answers: Sequence[str]
) -> tuple[float, ...]:
    """p(gold | after) - p(gold | before), in [-1, 1], for each (key, prompt): such as the sub-answer, and the final prompt with it. Prompts with
    equal keys are scored once."""
    distinct = dict(after)
    known, *with_answer = gold_probabilities(policy, [before, *distinct.values()], image, answers)
    probability = dict(zip(distinct, with_answer, strict=True))
    return tuple(probability[key] - known for key, _ in after)


def gold_probabilities(policy: Policy, messages: Sequence[Message], image: Image | None, answers: Sequence[str]) -> list[float]:
    """For each message, the highest probability of an answer after it, in [0, 1]: the geometric mean over the tokens of the answer."""
    tokenized = [_tokenized(policy, answer) for answer in answers]
    prompts = [(policy.encode(message, image), image if message.image else None) for message in messages]
    rows = [(*prompt, *answer) for prompt in prompts for answer in tokenized]
    at_once = max(1, TOKENS // max(len(prompt) + len(tokens) for prompt, _, tokens, _, _ in rows))
    parts = [rows[start : start + at_once] for start in range(0, len(rows), at_once)]
    probabilities = [math.exp(mean) for part in parts for mean in _mean_logprobs(policy, part)]
    return [largest(probabilities[start : start + len(tokenized)]) for start in range(0, len(probabilities), len(tokenized))]


def _tokenized(policy: Policy, answer: str) -> tuple[np.ndarray, int, int]:
    """(tokens of a final turn with this answer, first and last + 1 of the answer's own tokens)."""
    opening, whole = (policy.tokenizer(text, add_special_tokens=False)["input_ids"] for text in (OPENING, f"{OPENING} {answer}{CLOSING}"))
    closing = policy.tokenizer(CLOSING, add_special_tokens=False)["input_ids"]
    return np.array(whole, np.int32), len(opening), max(len(opening) + 1, len(whole) - len(closing))


def _mean_logprobs(policy: Policy, rows: Sequence[tuple[np.ndarray, Image | None, np.ndarray, int, int]]) -> list[float]:
    """Mean log-prob, in nats, of the tokens [first, last) after each (prompt, picture), all rows in one batch."""
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

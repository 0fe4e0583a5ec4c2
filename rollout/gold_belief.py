"""How probable the policy finds the gold answer, given what an episode knows: what the information gain of a sub-answer is measured by.

IGPO (arXiv 2510.14967): p(gold) is the geometric mean of the probabilities of the gold answer's tokens, teacher-forced behind the state, and what a
turn earns is how much it raised that. There a turn is thought, call and what came back; here the state changes with the sub-answer, so the siblings
of an answer turn are told apart by it, each with its own sub-answer in the prompt of the final turn.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np
import torch

from rollout.message import Message
from rollout.policy import Policy
from rollout.records import Image

TOKENS = 16384
"""Of one forward pass: a question may have hundreds of right answers."""
OPENING, CLOSING = "<think></think><answer>", "</answer>"
"""Around the gold answer: the thought is left empty, so that only the answer is asked about."""


@torch.no_grad()
def gold_probabilities(policy: Policy, messages: Sequence[Message], image: Image | None, answers: Sequence[str]) -> list[float]:
    """For each message, the highest probability in [0, 1] that an answer has behind it: the geometric mean over the tokens of the answer."""
    spelled = [_spelled(policy, answer) for answer in answers]
    prompts = [policy.encode(message, image) for message in messages]
    rows = [(prompt, tokens, first, last) for prompt in prompts for tokens, first, last in spelled]
    pictured = [image if message.image and image is not None else None for message in messages for _ in spelled]
    longest = max(len(prompt) + len(tokens) for prompt, tokens, _, _ in rows)
    at_once = max(1, TOKENS // longest)
    parts = [slice(start, start + at_once) for start in range(0, len(rows), at_once)]
    chances = [math.exp(mean) for part in parts for mean in _mean_logprobs(policy, rows[part], pictured[part])]
    return [max(chances[start : start + len(spelled)]) for start in range(0, len(chances), len(spelled))]


def _spelled(policy: Policy, answer: str) -> tuple[np.ndarray, int, int]:
    """(tokens of the final turn, first and last + 1 of those that are the answer)."""
    opening, whole = (policy.tokenizer(text, add_special_tokens=False)["input_ids"] for text in (OPENING, f"{OPENING} {answer}{CLOSING}"))
    closing = policy.tokenizer(CLOSING, add_special_tokens=False)["input_ids"]
    return np.array(whole, np.int32), len(opening), max(len(opening) + 1, len(whole) - len(closing))


def _mean_logprobs(
    policy: Policy, rows: Sequence[tuple[np.ndarray, np.ndarray, int, int]], pictured: Sequence[Image | None]
) -> list[float]:
    """Mean log-probability, in nats, of the tokens [first, last) of each response, all rows in one batch."""
    lengths = [len(prompt) + len(tokens) for prompt, tokens, _, _ in rows]
    ids = np.full((len(rows), max(lengths)), policy.pad_token_id, np.int64)
    positions = np.zeros((3, *ids.shape), np.int64)
    for i, ((prompt, tokens, _, _), image) in enumerate(zip(rows, pictured, strict=True)):
        ids[i, : lengths[i]] = np.concatenate([prompt, tokens])
        before = policy.positions(prompt, policy.patches(image)[1] if image else None)
        after = before.max() + 1 + np.tile(np.arange(len(tokens)), (3, 1))
        positions[:, i, : lengths[i]] = np.concatenate([before, after], 1)
    pixels, grids = policy.pixels([image for image in pictured if image]) if any(pictured) else (None, None)
    causal = torch.ones(ids.shape[1], ids.shape[1], dtype=torch.bool, device=policy.device).tril()
    hidden = policy.model.model(
        input_ids=torch.from_numpy(ids).to(policy.device),
        pixel_values=pixels,
        image_grid_thw=grids,
        position_ids=torch.from_numpy(positions).to(policy.device),
        attention_mask=causal.expand(len(rows), 1, -1, -1),  # padding stands behind, where nothing looks
        use_cache=False,
    ).last_hidden_state
    means = []
    for i, (prompt, tokens, first, last) in enumerate(rows):
        start = len(prompt) - 1
        logprobs = policy.model.lm_head(hidden[i, start + first : start + last]).float().log_softmax(-1)
        wanted = torch.from_numpy(tokens[first:last].astype(np.int64)).to(policy.device)
        means.append(float(logprobs.gather(1, wanted[:, None]).mean()))
    return means

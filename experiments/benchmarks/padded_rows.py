"""What shared prefixes are measured against: one row for each sample, padded, through the library's own forward pass."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch
from torch.nn import functional as F

from learner.micro_batches import Row
from rollout.policy import Policy


def one_sample_rows(rows: Sequence[Row]) -> list[Row]:
    return [Row(row.prompt_ids, row.image, (response,)) for row in rows for response in row.responses]


def padded_batches(rows: Sequence[Row], tokens: int) -> list[list[Row]]:
    """Rows of one sample in their order, as many side by side as fit into so many tokens with their padding."""
    batches: list[list[Row]] = []
    longest = 0
    for row in rows:
        longest = max(longest, _length(row))
        if batches and longest * (len(batches[-1]) + 1) <= tokens:
            batches[-1].append(row)
        else:
            batches.append([row])
            longest = _length(row)
    return batches


def padded_logprobs(policy: Policy, rows: Sequence[Row]) -> tuple[torch.Tensor, torch.Tensor]:
    """Log-probs and entropies (tokens,) of the responses, in the order of the rows. Logits are computed for response tokens only, as the packed
    path does; every row brings its own copy of its picture, as the library has it."""
    lengths = [_length(row) for row in rows]
    ids = np.full((len(rows), max(lengths)), policy.pad_token_id, np.int64)
    predicts = np.zeros(ids.shape, bool)
    for i, row in enumerate(rows):
        ids[i, : lengths[i]] = np.concatenate([row.prompt_ids, row.responses[0].ids])
        predicts[i, len(row.prompt_ids) - 1 : lengths[i] - 1] = True
    tokens, where = torch.from_numpy(ids), torch.from_numpy(predicts)
    pictured = {}
    images = [row.image for row in rows if row.image is not None]
    if images:
        pixels, grids = policy.pixels(images)
        pictured = {"pixel_values": pixels, "image_grid_thw": grids, "mm_token_type_ids": (tokens == policy.image_token_id).int()}
    real = torch.arange(ids.shape[1])[None] < torch.tensor(lengths)[:, None]
    hidden = policy.model.model(input_ids=tokens, attention_mask=real.long(), use_cache=False, **pictured).last_hidden_state
    logprobs = F.log_softmax(policy.model.lm_head(hidden[where]).float(), -1)
    with torch.no_grad():
        entropy = -(logprobs.exp() * logprobs).sum(-1)
    return logprobs.gather(1, tokens.roll(-1, 1)[where][:, None])[:, 0], entropy


def _length(row: Row) -> int:
    return len(row.prompt_ids) + len(row.responses[0].ids)

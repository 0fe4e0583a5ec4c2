"""A policy that is a table: logits = table[first token of the prompt], the same for every token of the response."""

from __future__ import annotations

import numpy as np
import torch

from learner.objective.sibling_packing import MicroBatch


def logprobs_of(table: torch.Tensor, batch: MicroBatch) -> tuple[torch.Tensor, torch.Tensor]:
    """Log-probs and entropies of the sampled tokens, both (tokens,)."""
    first = np.flatnonzero(np.diff(batch.rows, prepend=-1))
    state = torch.from_numpy(batch.input_ids[first][batch.rows[batch.sources]])
    logprobs = torch.log_softmax(table[state], -1)
    return logprobs.gather(1, torch.from_numpy(batch.targets)[:, None])[:, 0], -(logprobs.exp() * logprobs).sum(-1)

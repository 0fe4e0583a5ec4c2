"""The weights in a checkpoint of any number of learners and any ZeRO stage, put together again."""

from __future__ import annotations

import contextlib
import io
from pathlib import Path

import torch

SCORER = "model."
"""What the scorer puts before the names of the policy's parameters."""


def consolidated_weights(folder: Path, tag: str) -> dict[str, torch.Tensor]:
    """Name in the policy's model -> value; in float32 where the optimizer is partitioned, as it keeps them so.

    Every learner reads all of it: the memory of the whole model is needed once for each on a node.
    """
    from deepspeed.utils.zero_to_fp32 import get_fp32_state_dict_from_zero_checkpoint

    if list((folder / tag).glob("zero_pp_rank_*_optim_states.pt")):
        with contextlib.redirect_stdout(io.StringIO()):
            found = dict(get_fp32_state_dict_from_zero_checkpoint(str(folder), tag))
    else:
        found = torch.load(folder / tag / "mp_rank_00_model_states.pt", map_location="cpu", weights_only=False)["module"]
    return {name.removeprefix(SCORER): tensor for name, tensor in found.items()}

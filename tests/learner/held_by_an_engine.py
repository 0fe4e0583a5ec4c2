"""Run by test_memory_plan.py: prints as JSON what a learner's engine of each kind holds, in bytes, counted tensor by tensor."""

from __future__ import annotations

import json
import socket
import sys

import numpy as np
import torch

from learner.config import LearnerConfig
from learner.micro_batches import Response, Row
from learner.scorer import packed
from learner.worker import LearnerRank


def held(tensors) -> int:
    return sum({tensor.untyped_storage().data_ptr(): tensor.untyped_storage().nbytes() for tensor in tensors}.values())


def row() -> Row:
    draw = np.random.default_rng(0)
    ids = draw.integers(20, 300, 8).astype(np.int32)
    return Row(ids, None, (Response(ids, np.full(8, -5, np.float32), 1.0, 1.0),))


def measure(rank: LearnerRank, how: dict) -> dict[str, int]:
    rank.build(LearnerConfig(**how))
    engine = rank.engine
    parameters = list(engine.module.parameters())
    whole = [getattr(parameter, "ds_tensor", parameter) for parameter in parameters]  # ZeRO 3: the part that is held
    batch = packed([row()], rank.policy)
    engine.set_gradient_accumulation_boundary(True)
    logprobs, entropy = engine(**rank._inputs(batch))
    engine.backward(logprobs.sum())
    del logprobs, entropy
    optimizer = engine.optimizer
    if how.get("zero_stage", 0) == 3:
        gradients = held([optimizer.grad_partitions_flat_buffer])
        masters = optimizer.fp32_partitioned_groups_flat
    elif how.get("zero_stage", 0):
        kept = [gradient for group in optimizer.averaged_gradients.values() if group for gradient in group]
        gradients = held(kept or [parameter.grad for parameter in parameters if parameter.grad is not None])
        masters = optimizer.single_partition_of_fp32_groups
    else:
        gradients, masters = held([parameter.grad for parameter in parameters if parameter.grad is not None]), []
    engine.step()
    moments = [value for state in optimizer.state.values() for value in state.values() if isinstance(value, torch.Tensor) and value.dim()]
    return {"parameters": held(whole), "gradients": gradients, "optimizer": held([*masters, *moments])}


def main(policy: str, engines: list[dict]) -> None:
    rank = LearnerRank(0, 1, LearnerConfig(), policy)
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    rank.connect("127.0.0.1", port)
    print(json.dumps({json.dumps(how): measure(rank, how) for how in engines}))


if __name__ == "__main__":
    main(sys.argv[1], json.loads(sys.argv[2]))

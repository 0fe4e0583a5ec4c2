"""One learner process: a DeepSpeed engine around the scorer, in a Ray actor.

DeepSpeed is imported only after the environment of the rank is set, inside the actor. Nothing is compiled, so the first update on a fresh
machine starts at once: its shared-memory extension is switched off (gloo does its work), and see `engine.py`.
"""

from __future__ import annotations

import os
import socket
import time
from collections import defaultdict
from collections.abc import Iterator
from dataclasses import dataclass
from datetime import timedelta
from pathlib import Path
from typing import Any

import numpy as np
import ray
import torch

from learner.adapters import published_parameters, without_adapters
from learner.checkpoint_files import FileFacts, refuse_without_room
from learner.config import LearnerConfig
from learner.consolidated import consolidated_weights
from learner.engine import build_engine, build_reference
from learner.losses import MAXIMA, kl_estimate, sums_by
from learner.micro_batches import MicroBatch, Row
from learner.objective import Tokens, loss_of
from learner.scorer import inputs_of, packed
from learner.weight_sender import WeightSender
from rollout.policy import Policy
from rollout.weights import copy_into

TAG = "engine"
"""DeepSpeed's name for the folder of its files within a checkpoint."""


@dataclass(frozen=True)
class MiniBatch:
    """One rank's part of one optimizer step."""

    micro_batches: list[list[Row]]
    """As many on every rank; an empty list of rows is a pass with nothing to learn."""
    denominator: float
    """Sum of the token weights of the mini-batch over all ranks."""
    lr: float
    episodes: int = 0
    """Episodes of the mini-batch over all ranks; `Response.episode` counts to it."""


class LearnerRank(WeightSender):
    """Rank `rank` of `ranks`. Call `connect`, then `build`, on all ranks at once; so too every other method that is not `address`."""

    def __init__(self, rank: int, ranks: int, config: LearnerConfig, policy_path: str):
        self.rank, self.ranks, self.config, self.policy_path = rank, ranks, config, policy_path
        self.device = torch.device("cuda" if config.gpus_per_learner else "cpu")
        self.engine: Any = None
        self.reference: Any = None
        self.prepare_sending(config.bucket_bytes, "cuda" if self.device.type == "cuda" and config.transport == "collective" else "cpu")
        torch.set_num_threads(config.threads)

    def address(self) -> tuple[str, int]:
        """Of this process, with a free port, for the ranks to meet at."""
        with socket.socket() as free:
            free.bind(("", 0))
            return ray.util.get_node_ip_address(), free.getsockname()[1]

    def connect(self, host: str, port: int) -> None:
        os.environ.update(
            MASTER_ADDR=host,
            MASTER_PORT=str(port),
            RANK=str(self.rank),
            WORLD_SIZE=str(self.ranks),
            LOCAL_RANK="0",
            DS_ACCELERATOR=self.device.type,
            DS_LOG_LEVEL="error",
        )
        import deepspeed
        import deepspeed.ops

        deepspeed.ops.__compatible_ops__["deepspeed_shm_comm"] = False
        deepspeed.init_distributed(
            dist_backend="nccl" if self.device.type == "cuda" else "gloo",
            auto_mpi_discovery=False,
            verbose=False,
            timeout=timedelta(seconds=self.config.deadline_s),
        )

    def build(self, config: LearnerConfig, weights_of: str = "") -> None:
        """Load the policy and a fresh optimizer; an engine that was built before is dropped. `weights_of`: a checkpoint whose weights (and nothing
        else) are taken over, whatever number of learners wrote it."""
        from learner.snapshot import Snapshot

        for built in (self.engine, self.reference):
            if hasattr(built, "destroy"):
                built.destroy()
        self.config, self.packer.bucket_bytes = config, config.bucket_bytes
        torch.manual_seed(config.seed)
        self.policy = Policy.load(self.policy_path, dtype=config.dtype, device=str(self.device))
        if weights_of:
            found = consolidated_weights(Path(weights_of), TAG)
            held = dict(self.policy.model.named_parameters())  # tied weights have two names in a checkpoint, and one in the model
            copy_into(self.policy.model, {name: tensor for name, tensor in found.items() if name in held})
        self.engine = build_engine(self.policy, config)
        self.reference = build_reference(self.policy_path, self.policy, config) if config.kl_weight and not config.lora_rank else None
        self.kept = self.engine.checkpoint_engine = Snapshot()
        self.engine._copy_recovery_script = lambda folder: None  # DeepSpeed would add a script to every checkpoint

    def update(self, mini_batches: list[MiniBatch]) -> list[dict[str, float]]:
        """One optimizer step for each mini-batch. Returns its metrics on this rank: sums over tokens, and maxima as in `losses.MAXIMA`."""
        before: list[Any] = [None] * len(mini_batches)
        if self.config.sampler_cap and len(mini_batches) > 1:  # the log-probs that the learner begins with, while it still has them
            before = [[self._logprobs(packed(rows, self.policy))[0] for rows in mini_batch.micro_batches] for mini_batch in mini_batches]
        return [self._step(mini_batch, learner) for mini_batch, learner in zip(mini_batches, before, strict=True)]

    def kl_to_reference(self, micro_batches: list[list[Row]]) -> list[np.ndarray]:
        """For each micro-batch (responses,) float64: the KL estimate of each response, summed over its tokens, from the sampler's log-probs."""
        found = []
        for rows in micro_batches:
            batch = packed(rows, self.policy)
            reference = self._reference_logprobs(self._inputs(batch))
            estimate = kl_estimate(torch.from_numpy(batch.old_logprobs), reference.cpu(), self.config.kl_estimator)
            found.append(np.bincount(batch.turns, estimate.double().numpy(), sum(len(row.responses) for row in rows)))
        return found

    def save_policy(self, folder: str) -> None:
        """Write the policy in Hugging Face format, from rank 0; all ranks gather. Raises `NoRoomError` when the disk has too little room."""
        policy = None if self.rank else Policy.load(self.policy_path, dtype=self.config.dtype)
        written = dict(policy.model.named_parameters()) if policy else {}
        with torch.no_grad():
            for name, tensor in self.gathered():
                if policy:
                    written[name].copy_(tensor)
        if policy:  # only now: the other ranks have gathered, and do not wait for this one
            refuse_without_room(Path(folder), sum(p.numel() * p.element_size() for p in written.values()))
            policy.save(folder)

    def snapshot(self) -> int:
        """Copy weights, optimizer and random state into this process; every rank its part. Waits until the last copy is written.

        Returns the bytes of the copy.
        """
        self.kept.begin()
        self.engine.save_checkpoint(".", tag=TAG, save_latest=False)
        random = {"cpu": torch.get_rng_state()} | ({"cuda": torch.cuda.get_rng_state()} if self.device.type == "cuda" else {})
        self.kept.save(random, f"random_{self.rank}.pt")
        return self.kept.bytes

    def write(self, folder: str) -> None:
        """Begin to write the copy; the learner goes on meanwhile."""
        self.kept.write(Path(folder))

    def written(self) -> FileFacts | None:
        """The files of this rank, with size and checksum; None while they are being written. Raises OSError when that went wrong."""
        return self.kept.written()

    def load(self, folder: str) -> None:
        self.engine.load_checkpoint(folder, tag=TAG)
        random = torch.load(Path(folder) / f"random_{self.rank}.pt", weights_only=True)
        torch.set_rng_state(random["cpu"])
        if "cuda" in random:
            torch.cuda.set_rng_state(random["cuda"])

    def _step(self, mini_batch: MiniBatch, learner_logprobs: list[torch.Tensor] | None) -> dict[str, float]:
        """One optimizer step. `learner_logprobs`: of each micro-batch, before the update; None: those of the first forward pass."""
        begin = time.perf_counter()
        totals: dict[str, float] = defaultdict(float)
        for group in self.engine.optimizer.param_groups:
            group["lr"] = mini_batch.lr
        log_ratios = self._sequence_log_ratios(mini_batch, learner_logprobs) if self.config.ratio == "sequence" else None
        norm = None
        for i, rows in enumerate(mini_batch.micro_batches):
            last = i + 1 == len(mini_batch.micro_batches)
            self.engine.set_gradient_accumulation_boundary(last)
            batch = packed(rows, self.policy)
            before = None if learner_logprobs is None else learner_logprobs[i]
            loss, metrics = self._loss(batch, mini_batch.denominator, before, log_ratios)
            self.engine.backward(loss * self.ranks)  # the engine averages over ranks, and the denominator is already the one of all ranks
            if last and not self.config.zero_stage:
                norm = self._gradient_norm()
            self.engine.step()
            metrics |= {"loss": loss.detach(), "row_tokens": torch.tensor(float(batch.input_ids.size))}
            for name, value in metrics.items():
                totals[name] = max(totals[name], value.item()) if name in MAXIMA else totals[name] + value.item()
        if norm is None:
            norm = float(self.engine.get_global_grad_norm())
        return dict(totals) | {"grad_norm": norm, "seconds": time.perf_counter() - begin, "ended": time.time()}

    def _loss(
        self, batch: MicroBatch, denominator: float, learner_logprobs: torch.Tensor | None, log_ratios: torch.Tensor | None
    ) -> tuple[torch.Tensor, dict[str, torch.Tensor]]:
        inputs = self._inputs(batch)
        logprobs, entropy = self.engine(**inputs)
        sampler, advantages, weights, turns, episodes = (
            torch.from_numpy(a).to(self.device) for a in (batch.old_logprobs, batch.advantages, batch.weights, batch.turns, batch.episodes)
        )
        reference = self._reference_logprobs(inputs) if self.config.kl_weight and self.config.kl_in == "loss" else None
        tokens = Tokens(
            logprobs=logprobs,
            entropy=entropy,
            sampler_logprobs=sampler,
            advantages=advantages,
            weights=weights,
            turn=turns,
            learner_logprobs=learner_logprobs,
            reference_logprobs=reference,
            sequence_log_ratio=None if log_ratios is None else log_ratios[episodes],
        )
        return loss_of(tokens, self.config, denominator)

    def _logprobs(self, batch: MicroBatch) -> tuple[torch.Tensor, torch.Tensor]:
        with torch.no_grad():
            return self.engine(**self._inputs(batch))

    def _reference_logprobs(self, inputs: dict[str, Any]) -> torch.Tensor:
        with torch.no_grad():
            if self.reference is not None:
                return self.reference(**inputs)[0]
            with without_adapters(self.policy.model):
                return self.engine(**inputs)[0]

    def _inputs(self, batch: MicroBatch) -> dict[str, Any]:
        return inputs_of(batch, self.policy, self.device, self.config.attention)

    def _sequence_log_ratios(self, mini_batch: MiniBatch, learner_logprobs: list[torch.Tensor] | None) -> torch.Tensor:
        """(episodes,): mean log-ratio over the tokens of each episode. They may lie in several micro-batches and on several ranks, so a pass
        without gradient comes first."""
        sums = torch.zeros(2, mini_batch.episodes, device=self.device)
        for i, rows in enumerate(mini_batch.micro_batches):
            batch = packed(rows, self.policy)
            logprobs, _ = self._logprobs(batch)
            old = torch.from_numpy(batch.old_logprobs).to(self.device)
            if self.config.sampler_cap:
                old = logprobs if learner_logprobs is None else learner_logprobs[i]
            sums += sums_by(logprobs - old, torch.from_numpy(batch.episodes).to(self.device), mini_batch.episodes)
        if self.ranks > 1:
            torch.distributed.all_reduce(sums)
        return sums[0] / sums[1].clamp(min=1)

    def _gradient_norm(self) -> float:
        """Without ZeRO the engine clips but does not tell the norm."""
        gradients = [p.grad for p in self.engine.module.parameters() if p.grad is not None]
        return float(torch.nn.utils.get_total_norm(gradients))

    @property
    def gathers(self) -> bool:
        return self.config.zero_stage == 3

    def gathered(self) -> Iterator[tuple[str, torch.Tensor]]:
        """Names and values, one at a time, as the policy's model names them."""
        return published_parameters(self.policy.model, partitioned=self.config.zero_stage == 3)

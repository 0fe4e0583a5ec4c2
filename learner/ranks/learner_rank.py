"""One learner process: a Ray actor with the `Scorer` in a DeepSpeed engine. DeepSpeed is imported only after its environment is set."""

import math
import os
import socket
import time
from collections import defaultdict
from collections.abc import Iterator, Sequence
from datetime import timedelta
from itertools import islice
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import ray
import torch

from learner.config import LearnerConfig
from learner.objective.batch_plan import PlannedMiniBatch
from learner.objective.losses import MAXIMA, RouteTokens, Tokens, loss_of, route_loss, sums_by
from learner.objective.sibling_packing import MicroBatch, Row, row_of
from learner.objective.token_logprobs import inputs_of, packed
from learner.ranks.checkpoint_files import FileFacts, allow_checkpoint_types, consolidated_weights, refuse_without_room
from learner.ranks.deepspeed_engine import build_engine, build_reference, published_parameters, without_adapters
from learner.ranks.weight_sender import WeightSender
from rollout.nan_check import largest, magnitude, refuse_weights
from rollout.policies import load_policy
from rollout.records import ScoredTurn
from rollout.weight_buckets import copy_into

CHOOSE_ANOTHER = "choose an earlier checkpoint"
TAG = "engine"  # DeepSpeed's name for the folder of its files within a checkpoint


class MiniBatch(NamedTuple):
    """One rank's part of one optimizer step. All ranks have the same number of micro-batches; some may be empty."""

    micro_batches: list[list[Row]]
    denominator: float  # sum of the token weights over all ranks
    lr: float
    episodes: int = 0


class LearnerRank(WeightSender):
    """Rank `rank` of `ranks`. Call `connect`, then `build`, and every other method but `address`, on all ranks at once."""

    def __init__(self, rank: int, ranks: int, config: LearnerConfig, policy_path: str):
        self.rank, self.ranks, self.config, self.policy_path = rank, ranks, config, policy_path
        self.device = torch.device("cuda" if config.gpus_per_learner else "cpu")
        self.engine: Any = None
        self.reference: Any = None
        self._fetched: list[MiniBatch] = []
        self.prepare_sending(config.bucket_bytes, "cuda" if self.device.type == "cuda" and config.transport == "collective" else "cpu")
        torch.set_num_threads(config.threads)

    def address(self) -> tuple[str, int]:
        """Address of this node and a free port, where the ranks connect to each other."""
        with socket.socket() as free:
            free.bind(("", 0))
            return ray.util.get_node_ip_address(), free.getsockname()[1]

    def connect(self, host: str, port: int) -> None:
        os.environ.update(MASTER_ADDR=host, MASTER_PORT=str(port), RANK=str(self.rank), WORLD_SIZE=str(self.ranks), LOCAL_RANK="0")
        os.environ.update(DS_ACCELERATOR=self.device.type, DS_LOG_LEVEL="error")
        os.environ["TORCH_FORCE_WEIGHTS_ONLY_LOAD"] = "1"  # else DeepSpeed would run any code in the files of a checkpoint
        import deepspeed
        import deepspeed.ops

        allow_checkpoint_types()
        deepspeed.ops.__compatible_ops__["deepspeed_shm_comm"] = False  # it would be compiled
        backend, timeout = "nccl" if self.device.type == "cuda" else "gloo", timedelta(seconds=self.config.deadline_s)
        deepspeed.init_distributed(dist_backend=backend, auto_mpi_discovery=False, verbose=False, timeout=timeout)

    def build(self, config: LearnerConfig, weights_of: str = "") -> None:
        """Load the policy and a fresh optimizer. `weights_of`: a checkpoint of which only the weights are loaded."""
        from learner.ranks.snapshot import Snapshot

        for built in (self.engine, self.reference):
            if hasattr(built, "destroy"):
                built.destroy()
        self.config, self.packer.bucket_bytes = config, config.bucket_bytes
        torch.manual_seed(config.seed)
        self.policy = load_policy(self.policy_path, dtype=config.dtype, device=str(self.device))
        if weights_of:
            found = consolidated_weights(Path(weights_of), TAG)
            refuse_weights(found.items(), weights_of, CHOOSE_ANOTHER)
            held = dict(self.policy.model.named_parameters())  # tied weights have two names in a checkpoint, and one in the model
            copy_into(self.policy.model, {name: tensor for name, tensor in found.items() if name in held})
        self.engine = build_engine(self.policy, config)
        self.reference = build_reference(self.policy_path, self.policy, config) if config.kl_weight and not config.lora_rank else None
        self.kept = self.engine.checkpoint_engine = Snapshot()
        self.engine._copy_recovery_script = lambda folder: None  # DeepSpeed would add a script to every checkpoint

    def fetch(self, planned: Sequence[PlannedMiniBatch], chunks: Sequence[tuple[ray.ObjectRef, int]]) -> None:
        """Fetch the planned turns. `chunks`: (reference to a list of scored turns, its length); turns are numbered across all. Raises RayError."""
        ends = np.cumsum([length for _, length in chunks])
        lists: dict[int, list[ScoredTurn]] = {}

        def turn(number: int) -> ScoredTurn:
            chunk = int(np.searchsorted(ends, number, side="right"))
            if chunk not in lists:
                lists[chunk] = ray.get(chunks[chunk][0], timeout=self.config.deadline_s)
            return lists[chunk][number - (int(ends[chunk - 1]) if chunk else 0)]

        self._fetched = []
        for part in planned:
            columns = zip(
                *(column.tolist() for column in (part.advantages, part.weights, part.episode, part.names, part.routes)), strict=True
            )
            rows = [[row_of([turn(i) for i in row], *zip(*islice(columns, len(row)), strict=True)) for row in batch] for batch in part.rows]
            self._fetched.append(MiniBatch(rows, part.denominator, part.lr, part.episodes))

    def update(self, mini_batches: list[MiniBatch] | None = None) -> list[dict[str, float]]:
        """One optimizer step for each mini-batch (None: those that were fetched). Returns the sums and maxima (`losses.MAXIMA`) of each."""
        mini_batches, self._fetched = self._fetched if mini_batches is None else mini_batches, []
        before: list[list[Any]] = [[None] * len(mini_batch.micro_batches) for mini_batch in mini_batches]
        if self.config.sampler_correction != "none" and len(mini_batches) > 1:  # log-probs before the first step changes the weights
            before = [[self._logprobs(packed(rows, self.policy)) for rows in mini_batch.micro_batches] for mini_batch in mini_batches]
        steps = [self._step(mini_batch, learner) for mini_batch, learner in zip(mini_batches, before, strict=True)]
        if steps:
            steps[-1]["largest_weight"] = largest(magnitude(part) for _, part in self._held())
        return steps

    def save_policy(self, folder: str) -> None:
        """Write the policy in Hugging Face format, from rank 0. Raises `NoRoomError`."""
        policy = None if self.rank else load_policy(self.policy_path, dtype=self.config.dtype)
        written = dict(policy.model.named_parameters()) if policy else {}
        with torch.no_grad():
            for name, tensor in self.gathered():
                if policy:
                    written[name].copy_(tensor)
        if policy:  # only after all have gathered: else an error would leave the other ranks waiting
            refuse_without_room(Path(folder), sum(p.numel() * p.element_size() for p in written.values()))
            policy.save(folder)

    def snapshot(self) -> int:
        """Copy this rank's part of weights and optimizer, and its random state. Returns the bytes. Raises `NotFiniteError`."""
        self.kept.begin()
        self.engine.save_checkpoint(".", tag=TAG, save_latest=False)
        random = {"cpu": torch.get_rng_state()} | ({"cuda": torch.cuda.get_rng_state()} if self.device.type == "cuda" else {})
        self.kept.save(random, f"random_{self.rank}.pt")
        refuse_weights(self._held(), "the learner's weights", "no checkpoint is written; continue from the last one (train.resume=auto)")
        return self.kept.bytes

    def write(self, folder: str) -> None:
        self.kept.write(Path(folder))

    def written(self) -> FileFacts | None:
        return self.kept.written()

    def load(self, folder: str) -> None:
        self.engine.load_checkpoint(folder, tag=TAG)
        refuse_weights(self._held(), folder, CHOOSE_ANOTHER)
        random = torch.load(Path(folder) / f"random_{self.rank}.pt", weights_only=True)
        torch.set_rng_state(random["cpu"])
        if "cuda" in random:
            torch.cuda.set_rng_state(random["cuda"])

    def _step(self, mini_batch: MiniBatch, learner_logprobs: list[torch.Tensor | None]) -> dict[str, float]:
        """One optimizer step. `learner_logprobs`: of each micro-batch, before the first step; None: use those of the forward pass."""
        begin = time.perf_counter()
        totals: dict[str, float] = defaultdict(float)
        for group in self.engine.optimizer.param_groups:
            group["lr"] = mini_batch.lr
        log_ratios = self._sequence_log_ratios(mini_batch, learner_logprobs) if self.config.ratio == "sequence" else None
        norm = math.nan
        for i, (rows, learner) in enumerate(zip(mini_batch.micro_batches, learner_logprobs, strict=True), start=1):
            last = i == len(mini_batch.micro_batches)
            self.engine.set_gradient_accumulation_boundary(last)
            batch = packed(rows, self.policy)
            loss, metrics = self._loss(batch, mini_batch.denominator, learner, log_ratios)
            self.engine.backward(loss * self.ranks)  # the engine averages over ranks, but the denominator already counts all ranks
            if last and not self.config.zero_stage:  # without ZeRO the engine clips but does not report the norm
                norm = float(torch.nn.utils.get_total_norm([p.grad for p in self.engine.module.parameters() if p.grad is not None]))
            self.engine.step()
            metrics |= {"loss": loss.detach(), "row_tokens": torch.tensor(float(batch.input_ids.size))}
            for name, value in metrics.items():
                totals[name] = largest((totals[name], value.item())) if name in MAXIMA else totals[name] + value.item()
        if self.config.zero_stage:
            found = float(self.engine.get_global_grad_norm())
            norm = found if found >= 0 else math.nan  # DeepSpeed returns -1 for NaN and infinity
        return dict(totals) | {"grad_norm": norm, "seconds": time.perf_counter() - begin, "ended": time.time()}

    def _loss(
        self, batch: MicroBatch, denominator: float, learner_logprobs: torch.Tensor | None, log_ratios: torch.Tensor | None
    ) -> tuple[torch.Tensor, dict[str, torch.Tensor]]:
        inputs = self._inputs(batch)
        count = len(batch.turns)
        (logprobs, routes), (entropy, _) = (scores.split([count, len(scores) - count]) for scores in self.engine(**inputs))
        sampler, advantages, weights, turns = map(self._tensor, (batch.old_logprobs, batch.advantages, batch.weights, batch.turns))
        reference = self._reference_logprobs(inputs)[:count] if self.config.kl_weight else None
        mean = None if log_ratios is None else log_ratios[self._tensor(batch.episodes)]
        tokens = Tokens(logprobs, entropy, sampler, advantages, weights, turns, learner_logprobs, reference, mean)
        loss, metrics = loss_of(tokens, self.config, denominator)
        if self.config.routes == "all":
            columns = map(self._tensor, (batch.route_of, batch.route_turns, batch.route_rewards, batch.route_weights))
            of_routes, found = route_loss(RouteTokens(routes, *columns), denominator, self.config.routes_temperature)
            loss, metrics = loss + of_routes, metrics | found
        return loss, metrics

    def _tensor(self, array: np.ndarray) -> torch.Tensor:
        return torch.from_numpy(array).to(self.device)

    @torch.no_grad()
    def _logprobs(self, batch: MicroBatch) -> torch.Tensor:
        return self.engine(**self._inputs(batch))[0][: len(batch.turns)]

    @torch.no_grad()
    def _reference_logprobs(self, inputs: dict[str, Any]) -> torch.Tensor:
        if self.reference is not None:
            return self.reference(**inputs)[0]
        with without_adapters(self.policy.model):
            return self.engine(**inputs)[0]

    def _inputs(self, batch: MicroBatch) -> dict[str, Any]:
        return inputs_of(batch, self.policy, self.device, self.config.attention)

    def _sequence_log_ratios(self, mini_batch: MiniBatch, learner_logprobs: list[torch.Tensor | None]) -> torch.Tensor:
        """(episodes,): mean log-ratio over all tokens of each episode, on all ranks, from an extra pass without gradient."""
        sums = torch.zeros(2, mini_batch.episodes, device=self.device)
        for rows, learner in zip(mini_batch.micro_batches, learner_logprobs, strict=True):
            batch = packed(rows, self.policy)
            logprobs, old = self._logprobs(batch), self._tensor(batch.old_logprobs)
            if self.config.sampler_correction != "none":
                old = logprobs if learner is None else learner
            sums += sums_by(logprobs - old, self._tensor(batch.episodes), mini_batch.episodes)
        if self.ranks > 1:
            torch.distributed.all_reduce(sums)
        return sums[0] / sums[1].clamp(min=1)

    def _held(self) -> Iterator[tuple[str, torch.Tensor]]:
        """All parameters, with ZeRO-3 this rank's part of them; with ZeRO-1 and 2 also its part of the optimizer's float32 weights."""
        for name, parameter in self.policy.model.named_parameters():
            part = getattr(parameter, "ds_tensor", None)
            yield name, parameter if part is None else part[: max(0, parameter.ds_numel - self.rank * part.numel())]
        for i, part in enumerate(getattr(self.engine.optimizer, "single_partition_of_fp32_groups", ())):
            yield f"float32 weights {i} of the optimizer", part

    def gathered(self) -> Iterator[tuple[str, torch.Tensor]]:
        return published_parameters(self.policy.model, partitioned=self.config.zero_stage == 3)

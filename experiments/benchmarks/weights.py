"""What it costs to bring weights to rollout workers, and to save them: against one process's memory copy, and against the iteration around it."""

from __future__ import annotations

import json
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import torch

from experiments.benchmarks.row import Row
from experiments.config import REPOSITORY, ClusterConfig, TrainConfig, find_policy
from learner.config import LearnerConfig
from learner.weight_sender import WeightSender
from rollout.weights import Inbox, views

RECEIVERS = 4
TENSOR_BYTES = 2**24
"""Of one tensor of the model that is broadcast."""
REPEATS = 5


def weight_rows(quick: bool) -> Iterator[Row]:
    yield from broadcast_rows(64 * 2**20 if quick else 10**9)
    yield from checkpoint_rows(hidden=128 if quick else 512, layers=4 if quick else 12)
    yield share_of_an_iteration(3 if quick else 12)


def broadcast_rows(size: int) -> Iterator[Row]:
    """One sender and four receivers on this machine, all buckets different from the last version, memory warm on both sides."""
    import ray

    from experiments.cluster import start_ray
    from learner.group import LearnerGroup
    from learner.rollout_workers import RolloutWorkers

    copied = memcpy_bytes_per_second(size)
    with start_ray(TrainConfig(ray=ClusterConfig(num_cpus=RECEIVERS + 1, object_store_mb=4 * size // 2**20 + 200))):
        tensors = max(1, size // TENSOR_BYTES)
        sender: Any = ray.remote(Sender).remote(tensors)
        receivers: list[Any] = [ray.remote(Receiver).remote(tensors) for _ in range(RECEIVERS)]
        workers = RolloutWorkers(Register(receivers), chunk=1, deadline_s=300)
        learner = object.__new__(LearnerGroup)  # only what `publish` needs: there is no engine to start
        learner.config, learner._ranks = LearnerConfig(), [sender]
        seconds = []
        for version in range(2 + REPEATS):  # two versions lie in the object store at a time: the third one finds warm memory
            ray.get(sender.learn.remote())
            began = time.perf_counter()
            learner.policy_version = version
            workers.push(version, learner.publish())
            seconds.append(time.perf_counter() - began)
        sums = ray.get([actor.first.remote() for actor in (sender, *receivers)])
        assert len(set(sums)) == 1, f"the receivers hold other weights than the sender: {sums}"
    took, total = statistics.median(seconds[2:]), tensors * TENSOR_BYTES
    name = f"weights: {total / 1e6:,.0f} MB to {RECEIVERS} workers, warm"
    landed = RECEIVERS * total / took
    yield Row.of(f"{name}: bytes landed in all their parameters, against one process's memcpy", landed / 1e9, "GB/s", copied / 1e9, 0.5)
    yield Row.of(f"{name}: until the last one holds them", took, "s")
    yield Row.of(f"{name}: the first time, memory cold", seconds[0], "s")


def memcpy_bytes_per_second(size: int) -> float:
    source, target = np.ones(size, np.uint8), np.ones(size, np.uint8)
    seconds = []
    for _ in range(REPEATS):
        began = time.perf_counter()
        np.copyto(target, source)
        seconds.append(time.perf_counter() - began)
    return size / statistics.median(seconds)


class Sender(WeightSender):
    """A learner's side, without an engine."""

    def __init__(self, tensors: int):
        torch.set_num_threads(1)
        self.rank, self.device = 0, torch.device("cpu")
        self.tensors = {f"layer {i}": torch.ones(TENSOR_BYTES // 4) * i for i in range(tensors)}
        self.prepare_sending(LearnerConfig().bucket_bytes, "cpu")

    def learn(self) -> None:
        for tensor in self.tensors.values():
            tensor[0] += 1

    def gathered(self) -> Iterator[tuple[str, torch.Tensor]]:
        yield from self.tensors.items()

    def first(self) -> float:
        return sum(float(tensor[0]) for tensor in self.tensors.values())


class Receiver:
    """A rollout worker's side: its inbox, and a copy into parameters that stay where they are."""

    def __init__(self, tensors: int):
        torch.set_num_threads(1)
        self.parameters = {f"layer {i}": torch.ones(TENSOR_BYTES // 4) for i in range(tensors)}
        self.inbox = Inbox()

    def receive(self, number: int, bucket: Any) -> str:
        self.inbox.take(number, bucket)
        return ""

    def use_weights(self, version: int, checksums: list[int]) -> tuple[int, int]:
        weights = self.inbox.weights(version, checksums)
        for bucket in weights.buckets:
            for name, tensor in views(bucket).items():
                self.parameters[name].copy_(tensor)
        return version, weights.checksum

    def first(self) -> float:
        return sum(float(tensor[0]) for tensor in self.parameters.values())


class Register:
    """RLlib's register of workers, as far as `RolloutWorkers` asks it: all of them are well."""

    def __init__(self, actors: list[Any]):
        self._worker_manager = self
        self._actors = dict(enumerate(actors, 1))

    def actors(self) -> dict[int, Any]:
        return self._actors

    def is_actor_healthy(self, worker: int) -> bool:
        return True

    def set_actor_state(self, worker: int, healthy: bool) -> None:
        assert healthy, f"receiver {worker} was lost"


def checkpoint_rows(hidden: int, layers: int) -> Iterator[Row]:
    """How long the loop stands still for a checkpoint that is written behind it, against one that is waited for."""
    from experiments.atlas import Atlas
    from experiments.cluster import start_ray
    from experiments.tiny_policy import tiny_policy
    from learner.group import LearnerGroup
    from rollout.policy import Policy

    with tempfile.TemporaryDirectory() as scratch, start_ray(TrainConfig()):
        shipped = Policy.load(find_policy(TrainConfig().train.policy))
        tiny_policy(shipped.tokenizer, hidden=hidden, layers=layers, heads=hidden // 32).save(f"{scratch}/policy")
        learner = LearnerGroup(LearnerConfig(), f"{scratch}/policy")
        learner.update(some_turns(shipped, Atlas("validation", worlds=1).questions(1)[0]))  # the optimizer has moments from now on
        still, whole = [], []
        for i in range(1 + REPEATS):
            began = time.perf_counter()
            learner.snapshot()
            folder = Path(scratch) / f"checkpoint-{i}"
            learner.write(folder)
            still.append(time.perf_counter() - began)
            while not learner.written():
                time.sleep(0.001)
            whole.append(time.perf_counter() - began)
        size = sum(file.stat().st_size for file in folder.rglob("*") if file.is_file())
        learner.shutdown()
    name = f"checkpoint of {size / 1e6:,.0f} MB: the loop stands still"
    yield Row.of(f"{name}, against waiting until it is written", statistics.median(still[1:]), "s", statistics.median(whole[1:]))
    yield Row.of(f"{name} the first time, memory cold", still[0], "s")


def some_turns(policy: Any, question: Any) -> list[Any]:
    """Siblings of one prompt with random responses and rewards: enough for an update of every weight of the language model."""
    from rollout.prompts import SHORT
    from rollout.records import ScoredTurn, State, Turn, TurnReward

    random = np.random.default_rng(0)
    prompt = policy.encode(SHORT.plan(question.text, False, (), ""), None)
    state = State("plan", prompt, None, question)
    responses = random.integers(20, 200, (4, 8)).astype(np.int32)
    turns = [Turn("plan", ids, np.zeros(8, np.float32), "stop", 0, "") for ids in responses]
    rewards = [TurnReward(float(reward)) for reward in random.random(4)]
    return [ScoredTurn(state.key, prompt, None, t, r, "e", r.total, question.id) for t, r in zip(turns, rewards, strict=True)]


def share_of_an_iteration(iterations: int) -> Row:
    """The default run's own figures: seconds that pushing took, of all seconds of its iterations but the first."""
    few = ["evaluation.questions=8", "evaluation.validation_questions=4", "train.evaluate_every=0", "evaluation.start_baselines=[]"]
    few += [
        "evaluation.baselines=[]",
        "train.minutes=0",
        f"train.iterations={iterations}",
        "tracking.mlflow=false",
        "train.checkpoint_every=0",
    ]
    with tempfile.TemporaryDirectory() as scratch:
        command = [sys.executable, "-m", "experiments.train", "laptop.yaml", f"runs_folder={scratch}", *few]
        run = subprocess.run(command, cwd=REPOSITORY, capture_output=True, text=True)
        if run.returncode:
            raise RuntimeError(f"{' '.join(command)} ended with {run.returncode}: {run.stderr[-500:]}")
        rows = [json.loads(line) for line in (Path(scratch) / "laptop/metrics.jsonl").read_text().splitlines()][1:]
    pushed = sum(row["seconds_push"] for row in rows)
    total = sum(value for row in rows for name, value in row.items() if name.startswith("seconds_"))
    return Row.of("weights: share of an iteration of laptop.yaml that pushing them takes", pushed / total, "of 1", bar=0.02, at_most=True)

"""`bench peers`: one contender in a process of its own: `python -m experiments.benchmarks.peer_process NAME WORK.json`.

It loads what it needs, and does its work once for every line that it reads. Every answer is a line of JSON; the first says that it is ready."""

from __future__ import annotations

import ctypes
import importlib
import json
import os
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import psutil
import torch

from experiments.benchmarks.fresh_process import forget_peak, peak

Result = dict[str, Any]
Once = Callable[[], Result]
ALONE = ", nothing shared"
CONTENDERS: dict[str, tuple[str, ...]] = {  # name -> module of this folder, function, and what it is called with besides the work
    "limits": ("peer_rollouts", "limits"),
    "rollout, ours": ("peer_rollouts", "ours", "shared"),
    f"rollout, ours{ALONE}": ("peer_rollouts", "ours", ""),
    "rollout, generate": ("peer_rollouts", "library_generate"),
    "rollout, generate_batch": ("peer_rollouts", "library_batching", "shared"),
    f"rollout, generate_batch{ALONE}": ("peer_rollouts", "library_batching", ""),
    "rollout, vLLM": ("peer_rollouts", "vllm_rollout", "shared"),
    f"rollout, vLLM{ALONE}": ("peer_rollouts", "vllm_rollout", ""),
    "update, ours": ("peer_updates", "our_update"),
    "update, TRL": ("peer_trl", "trl_step", ""),
    "update, bare torch": ("peer_updates", "bare_update"),
    "iteration, ours": ("peer_updates", "our_iteration"),
    "iteration, TRL": ("peer_trl", "trl_step", "whole"),
}


@dataclass
class Work:
    """What all contenders are given."""

    policy: str
    prompts: list[str]  # with the chat template
    ids: list[list[int]]  # the same, as tokens
    siblings: int
    new_tokens: int  # of every response in rollouts and iterations
    threads: int = 1
    lr: float = 1e-6
    tokens_per_micro_batch: int = 2048
    responses: list[list[list[int]]] = field(default_factory=list)  # of every prompt: tokens that the update learns from
    logprobs: list[list[list[float]]] = field(default_factory=list)  # of these, in nats


def reward_of(text: str) -> float:
    """Of a response: the share of its letters that are distinct."""
    letters = "".join(text.split())
    return len(set(letters)) / max(1, len(letters))


def contender(name: str, work: Work) -> Once:
    module, function, *arguments = CONTENDERS[name]
    return getattr(importlib.import_module(f"experiments.benchmarks.{module}"), function)(work, *map(bool, arguments))


def measured(once: Once) -> Result:
    """What `once` found, its seconds, those of CPU time, and the peak of memory in bytes: with the processes that it has started."""
    processes = [psutil.Process(), *psutil.Process().children(recursive=True)]
    for process in processes:
        forget_peak(process.pid)

    def cpu_s() -> float:
        return sum(sum(process.cpu_times()[:2]) for process in processes)

    began, cpu = time.perf_counter(), cpu_s()
    found = once()
    seconds = time.perf_counter() - began
    return {"seconds": seconds} | found | {"cores": (cpu_s() - cpu) / seconds, "peak": sum(peak(process.pid) for process in processes)}


def main(name: str, file: str) -> None:
    work = Work(**json.loads(Path(file).read_text(encoding="utf-8")))
    answers = os.fdopen(os.dup(1), "w")
    os.dup2(2, 1)  # what libraries print is no answer
    torch.set_num_threads(work.threads)
    release = ctypes.CDLL(None).malloc_trim
    once = contender(name, work)
    print("{}", file=answers, flush=True)
    for _ in sys.stdin:
        print(json.dumps(measured(once)), file=answers, flush=True)
        release(0)  # memory that is free again goes to the others
    for child in psutil.Process().children(recursive=True):
        child.kill()
    os._exit(0)  # some libraries would wait for their threads


if __name__ == "__main__":
    main(*sys.argv[1:])

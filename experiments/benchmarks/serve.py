"""The service against its own engine: what HTTP costs, how many clients it bears, how soon it is there; then what it survives (`serve_chaos`)."""

from __future__ import annotations

import asyncio
import random
import socket
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import httpx

from experiments.benchmarks.row import Row
from experiments.benchmarks.serve_chaos import chaos_rows

CLIENTS = 32


def serve_rows(quick: bool) -> Iterator[Row]:
    questions = _questions(24 if quick else 60)
    with _service(replicas=1) as (url, served, seconds):
        yield Row.of("time to ready, Ray running", seconds, "s")
        yield from _speed(url, served, questions, quick)
    with _service(replicas=2) as (url, _, _):
        yield from chaos_rows(url, questions, 300 if quick else 10_000)
        yield _schemathesis(url, 5 if quick else 100)


@contextmanager
def _service(replicas: int) -> Iterator[tuple[str, Any, float]]:
    """Its URL, what it serves, and the seconds after which it was ready."""
    from experiments.cluster import start_ray
    from experiments.serve import prepare, serving

    with tempfile.TemporaryDirectory(prefix="bench-serve-") as folder, socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        port = listener.getsockname()[1]
        listener.close()
        arguments = ["experiments/cold_start_policy", f"serve.port={port}", f"serve.request_log={folder}/requests.jsonl"]
        arguments += [
            f"data.kb_folder={folder}/kbs",
            "data.worlds=1",
            "data.train_questions=8",
            f"serve.replicas={replicas}",
            "ray.num_cpus=8",
        ]
        served, config = prepare(arguments)
        with start_ray(config):
            began = time.perf_counter()
            with serving(served) as url:
                yield url, served, time.perf_counter() - began


def _questions(count: int) -> list[dict[str, Any]]:
    """Bodies for `/v1/route`: questions of all families, a third of them about a picture."""
    from experiments.atlas import Atlas
    from experiments.serving.pictures import data_url

    found = Atlas("heldout", seed=0, worlds=1).questions(count, 0)
    return [{"question": q.text} | ({"image": data_url(q.image.data)} if q.image else {}) for q in found]


def _speed(url: str, served: Any, questions: list[dict[str, Any]], quick: bool) -> Iterator[Row]:
    """Both in turns, so that a slower machine is slower for both."""
    alone = InProcess(served)
    alone.answer(questions[:4], at_once=4)
    asyncio.run(_ask_all(url, questions[:32], CLIENTS))  # warm
    single, http, first = [], [], []
    for body in questions[: 8 if quick else 60]:
        single.append(alone.answer([body], at_once=1))
        http.append(asyncio.run(_ask_all(url, [body], 1)))
    for body in questions[: 8 if quick else 20]:
        first.append(_first_event(url, body))
    median, base = statistics.median(http), statistics.median(single)
    yield Row.of("a single question, median", 1000 * median, "ms", 1000 * base)
    yield Row.of("overhead of the endpoint on it, median", 1000 * (median - base), "ms")
    yield Row.of("time to the first event of a stream, median", 1000 * statistics.median(first), "ms")
    rounds, rates = 2 if quick else 5, []
    for number in range(rounds):
        batch = _shuffled(questions, 64 if quick else 256, number)
        engine = len(batch) / alone.answer(batch, CLIENTS)
        rates.append((len(batch) / asyncio.run(_ask_all(url, batch, CLIENTS)), engine))
    service, engine = (statistics.median(column) for column in zip(*rates, strict=True))
    yield Row.of(f"{CLIENTS} clients, one replica, against its engine in-process", service, "questions/s", engine, bar=0.8)


def _shuffled(questions: Sequence[dict[str, Any]], count: int, seed: int) -> list[dict[str, Any]]:
    return random.Random(seed).choices(questions, k=count)


class InProcess:
    """The same engine, policy and knowledge bases, without HTTP and Serve in between."""

    def __init__(self, served: Any):
        import torch
        from ray import serve

        from experiments.serving.app import NAME
        from experiments.serving.router import CurrentKnowledgeBases, load_engine
        from rollout.config import RolloutConfig

        self._config = RolloutConfig(**{**served.rollout, "mode": "chain", "group_size": 1})
        torch.set_num_threads(self._config.threads)
        retriever = serve.get_deployment_handle("KnowledgeBases", NAME).retriever.remote().result()
        self._searcher = CurrentKnowledgeBases(retriever)
        self._engine = load_engine(served.policy, self._config, "cpu")

    def answer(self, bodies: Sequence[dict[str, Any]], at_once: int) -> float:
        """Seconds for all of them, `at_once` of them under way."""
        from experiments.serving.pictures import read_picture
        from rollout.episode_pool import EpisodePool
        from rollout.records import Question

        waiting = [
            Question(str(n), body["question"], (), read_picture(body["image"], 1e8, "image") if "image" in body else None)
            for n, body in enumerate(bodies)
        ]
        pool = EpisodePool(self._engine, self._searcher, join="as_they_come")
        began = time.perf_counter()
        while waiting or pool.unfinished:
            while waiting and pool.unfinished < at_once:
                pool.add(waiting.pop(), self._config, 0)
            pool.advance(0.005)
        return time.perf_counter() - began


async def _ask_all(url: str, bodies: Sequence[dict[str, Any]], clients: int) -> float:
    """Seconds for all of them, by so many clients, each of which asks again when it has its answer."""
    waiting = list(bodies)
    async with httpx.AsyncClient(base_url=url, timeout=120, limits=httpx.Limits(max_connections=clients)) as client:

        async def ask() -> None:
            while waiting:
                (await client.post("/v1/route", json=waiting.pop())).raise_for_status()

        await client.get("/health")  # the connection is there
        began = time.perf_counter()
        await asyncio.gather(*(ask() for _ in range(clients)))
        return time.perf_counter() - began


def _first_event(url: str, body: dict[str, Any]) -> float:
    began = time.perf_counter()
    with httpx.stream("POST", f"{url}/v1/route", json=body | {"stream": True}, timeout=60) as response:
        next(response.iter_lines())
        return time.perf_counter() - began


def _schemathesis(url: str, examples: int) -> Row:
    """Made-up requests from the OpenAPI description: does the service do what it says? Needs the extra `dev`."""
    command = Path(sys.executable).with_name("schemathesis")
    name = f"schemathesis, {examples} examples a route: findings (at most)"
    if not command.exists():
        return Row(name, float("nan"), "")
    checks = "not_a_server_error,status_code_conformance,content_type_conformance,response_schema_conformance"
    asked = [
        str(command),
        "run",
        f"{url}/openapi.json",
        "--checks",
        checks,
        "--max-examples",
        str(examples),
        "--no-color",
        "--phases",
        "fuzzing",
    ]
    with tempfile.TemporaryDirectory() as folder:  # it leaves its notes where it runs
        run = subprocess.run(asked, capture_output=True, text=True, timeout=600, cwd=folder)
    return Row.of(name.removesuffix(" (at most)"), float(run.returncode != 0), "", bar=0, at_most=True)

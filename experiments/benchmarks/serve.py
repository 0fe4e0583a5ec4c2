"""The service against its own engine: what HTTP costs, and how many clients it serves."""

from __future__ import annotations

import asyncio
import random
import statistics
import tempfile
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import replace
from typing import Any

import httpx
import torch
from ray import serve

from experiments.benchmarks.bench_results import BenchResult
from experiments.benchmarks.fresh_process import free_port
from experiments.cluster.ray_session import start_ray
from experiments.serving.application import NAME, prepare, serving
from experiments.serving.endpoint import read_picture
from experiments.serving.replica import CurrentKnowledgeBases, load_engine
from experiments.worlds.atlas import Atlas
from retrieval_actors.pictures import data_url
from rollout.episode_pool import EpisodePool
from rollout.records import Question

CLIENTS = 32


def serve_rows(quick: bool) -> Iterator[BenchResult]:
    found = Atlas("heldout", seed=0, worlds=1).questions(24 if quick else 60, 0)  # of all families, a third of them about a picture
    questions = [{"question": q.text} | ({"image": data_url(q.image.data)} if q.image else {}) for q in found]
    with _service() as (url, served, seconds):
        yield BenchResult.of("time to ready, Ray running", seconds, "s")
        yield from _speed(url, served, questions, quick)


@contextmanager
def _service() -> Iterator[tuple[str, Any, float]]:
    """(URL, `ServiceSpec`, seconds until it was ready)."""
    with tempfile.TemporaryDirectory(prefix="bench-serve-") as folder:
        places = [f"serve.port={free_port()}", f"serve.request_log={folder}/requests.jsonl", f"data.kb_folder={folder}/kbs"]
        sizes = ["data.worlds=1", "data.train_questions=8", "ray.num_cpus=8"]
        served, config = prepare(["experiments/worlds/cold_start_policy", *places, *sizes])
        with start_ray(config):
            began = time.perf_counter()
            with serving(served) as url:
                yield url, served, time.perf_counter() - began


def _speed(url: str, served: Any, questions: list[dict[str, Any]], quick: bool) -> Iterator[BenchResult]:
    """Service and engine alternate, so that a slower machine slows both."""
    engine = InProcess(served)
    engine.seconds(questions[:4], at_once=4)
    asyncio.run(_ask_all(url, questions[:32], CLIENTS))  # warm-up
    repeats = questions[: 8 if quick else 60]
    alone, http = zip(*((engine.seconds([body], 1), asyncio.run(_ask_all(url, [body], 1))) for body in repeats), strict=True)
    first = [_first_event(url, body) for body in repeats[:20]]
    median, base = statistics.median(http), statistics.median(alone)
    yield BenchResult.of("a single question, median", 1000 * median, "ms", 1000 * base)
    yield BenchResult.of("overhead of the endpoint on it, median", 1000 * (median - base), "ms")
    yield BenchResult.of("time to the first event of a stream, median", 1000 * statistics.median(first), "ms")
    rates = []
    for number in range(2 if quick else 5):
        batch = random.Random(number).choices(questions, k=64 if quick else 256)
        baseline = len(batch) / engine.seconds(batch, CLIENTS)
        rates.append((len(batch) / asyncio.run(_ask_all(url, batch, CLIENTS)), baseline))
    service, base = (statistics.median(column) for column in zip(*rates, strict=True))
    yield BenchResult.of(f"{CLIENTS} clients, one replica, against its engine in-process", service, "questions/s", base, bar=0.8)


class InProcess:
    """The same engine, policy and knowledge bases, without HTTP and Serve."""

    def __init__(self, served: Any):
        self._config = replace(served.rollout, mode="chain", group_size=1)
        torch.set_num_threads(self._config.threads)
        self._searcher = CurrentKnowledgeBases(serve.get_deployment_handle("KnowledgeBases", NAME).retriever.remote().result())
        self._engine = load_engine(served.policy, self._config, False, served.dtype)

    def seconds(self, bodies: Sequence[dict[str, Any]], at_once: int) -> float:
        """For answering all of them, `at_once` at the same time."""
        pictures = [read_picture(body["image"], 1e8) if "image" in body else None for body in bodies]
        waiting = [Question(str(n), body["question"], (), picture) for n, (body, picture) in enumerate(zip(bodies, pictures, strict=True))]
        pool = EpisodePool(self._engine, self._searcher, join="as_they_come")
        began = time.perf_counter()
        while waiting or pool.unfinished:
            while waiting and pool.unfinished < at_once:
                pool.add(waiting.pop(), self._config, 0)
            pool.advance(0.005)
        return time.perf_counter() - began


async def _ask_all(url: str, bodies: Sequence[dict[str, Any]], clients: int) -> float:
    """Seconds until all are answered; each of the `clients` sends its next question when it has its answer."""
    waiting = list(bodies)
    async with httpx.AsyncClient(base_url=url, timeout=120, limits=httpx.Limits(max_connections=clients)) as client:

        async def ask() -> None:
            while waiting:
                (await client.post("/v1/route", json=waiting.pop())).raise_for_status()

        await client.get("/health")  # opens the connection
        began = time.perf_counter()
        await asyncio.gather(*(ask() for _ in range(clients)))
        return time.perf_counter() - began


def _first_event(url: str, body: dict[str, Any]) -> float:
    began = time.perf_counter()
    with httpx.stream("POST", f"{url}/v1/route", json=body | {"stream": True}, timeout=60) as response:
        next(response.iter_lines())
        return time.perf_counter() - began

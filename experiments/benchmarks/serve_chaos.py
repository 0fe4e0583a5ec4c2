"""Thousands of questions while clients send nonsense, go away, and parts of the service are killed: nothing may hang, nothing may be wrong."""

from __future__ import annotations

import asyncio
import json
import random
import time
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Any

import httpx
import numpy as np

from experiments.benchmarks.row import Row

CLIENTS = 32
MALFORMED, DISCONNECTS = 0.10, 0.05
"""Of the requests."""
HANGS_AFTER_S = 150
"""The service gives up after 120."""
NONSENSE: tuple[bytes, ...] = (
    b"{",
    b"\xff",
    b"[]",
    b"{}",
    b'{"question": 7}',
    b'{"question": ""}',
    b'{"question": "Q", "kbs": ["nowhere"]}',
    b'{"question": "Q", "max_steps": -1}',
    b'{"question": "Q", "image": "http://127.0.0.1/a.png"}',
    b'{"question": "Q", "image": "data:image/png;base64,AAAA"}',
    b'{"question": "' + b"x" * 5000 + b'"}',
)


@dataclass
class Tally:
    statuses: dict[str, dict[int, int]] = field(default_factory=lambda: {"good": {}, "malformed": {}})
    seconds: list[float] = field(default_factory=list)
    """Of the questions that were answered."""
    wrong: int = 0
    hangs: int = 0
    broken: int = 0
    """Connections that ended without an answer."""
    disconnects: int = 0


def chaos_rows(url: str, questions: list[dict[str, Any]], count: int) -> Iterator[Row]:
    """Needs the Ray on which the service at `url` runs."""
    tally, memory = asyncio.run(_ask_all(url, questions, count))
    good, malformed = tally.statuses["good"], tally.statuses["malformed"]
    answered, refused = good.get(200, 0), sum(n for status, n in malformed.items() if 400 <= status < 500)
    name = f"{count} requests, a router replica and a shard killed"
    yield Row.of(f"{name}: hangs", tally.hangs, "", bar=0, at_most=True)
    yield Row.of(f"{name}: wrong answers", tally.wrong, "", bar=0, at_most=True)
    yield Row.of(f"{name}: malformed requests that got a 4xx", refused, "", baseline=sum(malformed.values()), bar=1)
    yield Row.of(f"{name}: good questions that were answered", answered, "", baseline=sum(good.values()))
    for status in sorted(set(good) - {200}):
        yield Row.of(f"{name}: good questions that got a {status}", good[status], "")
    yield Row.of(f"{name}: connections that ended without an answer", tally.broken, "")
    yield Row.of(f"{name}: clients that went away", tally.disconnects, "")
    for percent in (50, 95, 99):
        yield Row.of(f"latency with {CLIENTS} clients, percentile {percent}", 1000 * float(np.percentile(tally.seconds, percent)), "ms")
    yield Row.of("memory of the replicas at the end, against halfway", memory[-1], "MB", baseline=memory[0], bar=1.1, at_most=True)


async def _ask_all(url: str, questions: list[dict[str, Any]], count: int) -> tuple[Tally, list[float]]:
    """The tally, and the memory of the replicas halfway and at the end (MB)."""
    tally, rng, memory = Tally(), random.Random(0), []
    limits = httpx.Limits(max_connections=CLIENTS)
    async with httpx.AsyncClient(base_url=url, timeout=HANGS_AFTER_S, limits=limits) as client:
        right = {}
        for body in questions:  # one by one: what an unloaded service says
            right[body["question"], body.get("image")] = _gist((await client.post("/v1/route", json=body)).json())
        kinds = rng.choices(("malformed", "leaving", "good"), (MALFORMED, DISCONNECTS, 1 - MALFORMED - DISCONNECTS), k=count)
        waiting = list(enumerate(kinds))[::-1]

        async def ask() -> None:
            while waiting:
                number, kind = waiting.pop()
                if number in (count // 5, count * 3 // 10):
                    await asyncio.to_thread(_kill_router if number == count // 5 else _kill_shard)
                if number == count // 2:
                    memory.append(await asyncio.to_thread(_memory_mb))
                await _ask_one(client, kind, rng.choice(questions), rng.choice(NONSENSE), right, tally)

        await asyncio.gather(*(ask() for _ in range(CLIENTS)))
    return tally, [*memory, _memory_mb()]


async def _ask_one(client: httpx.AsyncClient, kind: str, body: dict[str, Any], nonsense: bytes, right: dict, tally: Tally) -> None:
    began = time.perf_counter()
    try:
        if kind == "leaving":
            async with client.stream("POST", "/v1/route", json=body | {"stream": True}) as response:
                await anext(response.aiter_lines())
            tally.disconnects += 1
            return
        content = nonsense if kind == "malformed" else json.dumps(body).encode()
        answer = await client.post("/v1/route", content=content, headers={"content-type": "application/json"})
    except httpx.TimeoutException:
        tally.hangs += 1
        return
    except httpx.TransportError:
        tally.broken += 1
        return
    counts = tally.statuses[kind]
    counts[answer.status_code] = counts.get(answer.status_code, 0) + 1
    if kind == "good" and answer.status_code == 200:
        tally.seconds.append(time.perf_counter() - began)
        tally.wrong += _gist(answer.json()) != right[body["question"], body.get("image")]


def _gist(answer: dict[str, Any]) -> tuple:
    """The answer and the path, without what may differ: times and ids."""
    steps = tuple((step["sub_question"], step["kb"], step["sub_answer"], *(p["id"] for p in step["passages"])) for step in answer["steps"])
    return answer["answer"], steps


def _kill_router() -> None:
    import ray

    named = [found["name"] for found in ray.util.list_named_actors(all_namespaces=True) if "#Router#" in found["name"]]
    ray.kill(ray.get_actor(named[0], namespace="serve"), no_restart=True)


def _kill_shard() -> None:
    import ray
    from ray import serve

    from experiments.serving.app import NAME

    retriever = serve.get_deployment_handle("KnowledgeBases", NAME).retriever.remote().result()
    ray.kill(retriever.shards["text"][0][0], no_restart=False)


def _memory_mb() -> float:
    """Resident memory of the Serve replicas on this machine that belong to this process."""
    import psutil

    found = 0
    for child in psutil.Process().children(recursive=True):
        try:
            if "ServeReplica" in " ".join(child.cmdline()):
                found += child.memory_info().rss
        except (psutil.NoSuchProcess, psutil.ZombieProcess):
            continue
    return found / 2**20

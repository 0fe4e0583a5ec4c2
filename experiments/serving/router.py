"""The router deployment: a replica holds the policy, in the engine of the rollout workers, and answers questions by episodes."""

from __future__ import annotations

import asyncio
import sys
import time
from collections.abc import AsyncGenerator, Sequence
from contextlib import aclosing
from dataclasses import replace
from typing import Any

import torch
from ray.exceptions import RayError

from experiments.serving.episode_thread import EngineFailedError, EpisodeThread
from experiments.serving.jobs import PolicyReference, RouteJob
from experiments.serving.path_data import PathData
from experiments.serving.refusals import Refusal, unavailable
from retrieval_actors.records import Passage, Query
from retrieval_actors.retriever import Retriever
from rollout.config import RolloutConfig
from rollout.engines.choose import make_engine
from rollout.policy import Policy

LOOK_AGAIN_S = 2.0
"""Seconds between two looks whether the knowledge bases were started anew."""
SWITCH_S = 0.0005
"""Threads of this process take turns that often: the engine must not keep the loop that hands out its results waiting (Python's is 0.005)."""


class CurrentKnowledgeBases:
    """Searches the retrieval actors that run now, with pictures: when their deployment is started anew, its new actors take over."""

    def __init__(self, retriever: Retriever):
        self.retriever = retriever
        self._pictures = any("image" in card.modality for card in retriever.catalog)

    @property
    def catalog(self) -> Sequence[Any]:
        return self.retriever.catalog

    def search_routed(self, asked: Sequence[tuple[str, Query]], k: int) -> list[list[Passage]]:
        return self.retriever.search_routed(asked, k, pictures=self._pictures)


class Router:
    async def __init__(self, kbs: Any, rollout: dict[str, Any], policy: PolicyReference, on_gpu: bool):  # type: ignore[misc]
        """`kbs`: handle of the `KnowledgeBases` deployment."""
        sys.setswitchinterval(SWITCH_S)
        config = RolloutConfig(**rollout)
        torch.set_num_threads(config.threads)
        self._kbs, self._config = kbs, config
        self._device = "cuda" if on_gpu else "cpu"
        loading = asyncio.create_task(asyncio.to_thread(self._load, policy))  # beside the knowledge bases
        self._searcher = CurrentKnowledgeBases(await kbs.retriever.remote())
        first = {policy: await loading}
        served = replace(config, mode="chain", group_size=1, routing="policy", shuffle_passages=config.shuffle_passages)
        self._episodes = EpisodeThread(served, lambda policy: first.pop(policy, None) or self._load(policy), self._searcher)
        await asyncio.to_thread(self._episodes.hold, policy)
        self._following = asyncio.create_task(self._follow_knowledge_bases())

    def _load(self, policy: PolicyReference) -> Any:
        engine = load_engine(policy.folder, self._config, self._device)
        engine.policy_version = policy.version
        return engine

    async def ready(self) -> bool:
        """Answered once the replica has loaded."""
        return True

    async def hold(self, policy: PolicyReference) -> None:
        """Load that policy beside the one that answers now. Raises what loading raises."""
        await asyncio.to_thread(self._episodes.hold, policy)

    async def answer(self, job: RouteJob) -> AsyncGenerator[dict[str, Any]]:
        """Events of the question, each as data; the last is `finished` or `error`."""
        began, path = time.perf_counter(), PathData(job)
        try:
            async with aclosing(self._episodes.run(job)) as events:  # whoever stops listening frees the place at once
                async for event in events:
                    told = path.told(event, time.perf_counter() - began)
                    if job.events or told["event"] == "finished":
                        yield told
        except Refusal as refusal:
            yield _error(refusal)
        except EngineFailedError as failure:
            yield _error(unavailable("engine_failed", f"the engine failed, and was started anew: {failure}"))

    async def _follow_knowledge_bases(self) -> None:
        while True:
            await asyncio.sleep(LOOK_AGAIN_S)
            try:
                current = await self._kbs.retriever.remote()
            except RayError:  # their replica has died, and Serve starts another one: asked again
                continue
            if current.log._actor_id != self._searcher.retriever.log._actor_id:
                self._searcher.retriever = current

    def check_health(self) -> None:
        """Asked by Serve, which starts the replica anew when it raises."""
        if not self._episodes.alive:
            raise RuntimeError("the engine's thread has ended")

    def __del__(self) -> None:
        if hasattr(self, "_episodes"):
            self._episodes.close()


def load_engine(policy: str, config: RolloutConfig, device: str) -> Any:
    """As a rollout worker loads it."""
    return make_engine(Policy.load(policy, device=device), config)


def _error(refusal: Refusal) -> dict[str, Any]:
    return {"event": "error", "status": refusal.status, "retry_after_s": refusal.retry_after_s, **refusal.body()}

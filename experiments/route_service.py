"""The Ray Serve deployment: a policy and its knowledge bases behind HTTP, by the code that rollouts use."""

# No `from __future__ import annotations` here: FastAPI has to see the class `Request`, and Serve moves the methods away from this module.
import asyncio
import time
from dataclasses import replace
from typing import Any

import torch
from fastapi import FastAPI, Request
from fastapi.responses import JSONResponse
from ray import serve

from experiments.route_api import MAX_BODY_BYTES, RouteRequest, RouteRequestError, as_data, read_request
from retrieval_actors.config import RetrievalConfig
from retrieval_actors.start import start_retrieval
from rollout.config import RolloutConfig
from rollout.engines.choose import make_engine
from rollout.episode_pool import roll_out
from rollout.policy import Policy
from rollout.records import Question

app = FastAPI(title="R1-Router", description="Answers a question by routing over knowledge bases, and shows how.")


@app.exception_handler(RouteRequestError)
async def refuse(_: Request, error: RouteRequestError) -> JSONResponse:
    return JSONResponse({"error": str(error)}, status_code=error.status)


@serve.deployment
@serve.ingress(app)
class RouteService:
    """One policy, greedy, one question at a time; its retrieval actors end with it."""

    def __init__(self, policy: str, policy_version: int, retrieval: RetrievalConfig, rollout: RolloutConfig):
        torch.set_num_threads(rollout.threads)
        self._retriever = start_retrieval(retrieval)
        self._engine = make_engine(Policy.load(policy), rollout)
        self._engine.policy_version = policy_version
        self._config = replace(rollout, mode="chain", group_size=1, temperature=0.0, routing="policy")
        self._policy = policy
        self._one_at_a_time = asyncio.Lock()

    @app.get("/health")
    async def health(self) -> dict[str, Any]:
        """Answers only once everything is loaded."""
        cards = [{"name": card.name, "passages": card.passages, "fingerprint": card.fingerprint} for card in self._retriever.catalog]
        return {"status": "ok", "policy": self._policy, "policy_version": self._engine.policy_version, "kbs": cards}

    @app.post("/v1/route")
    async def route(self, request: Request) -> JSONResponse:
        """JSON in: question, and optionally image (data URL), kbs, max_steps. JSON out: the trajectory, step by step, and the answer."""
        body = b""
        async for chunk in request.stream():
            body += chunk
            if len(body) > MAX_BODY_BYTES:
                break  # refused by its length, without waiting for the rest
        asked = read_request(body, [card.name for card in self._retriever.catalog], self._config.max_steps)
        async with self._one_at_a_time:
            return JSONResponse(await asyncio.to_thread(self._answer, asked))

    def _answer(self, asked: RouteRequest) -> dict[str, Any]:
        started = time.perf_counter()
        allowed = replace(self._retriever, catalog=tuple(card for card in self._retriever.catalog if card.name in asked.kbs))
        question = Question("request", asked.question, answers=(), image=asked.image)
        config = replace(self._config, max_steps=asked.max_steps)
        trajectory = roll_out([question], self._engine, allowed, config, seed=0)[0]
        return as_data(trajectory, time.perf_counter() - started)

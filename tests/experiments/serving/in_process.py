"""The service without Ray: the real endpoint, router and episodes in this process, behind HTTP. Engine and knowledge bases are scripted."""

from __future__ import annotations

import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from types import SimpleNamespace

import uvicorn
from scripted import Library, Script
from serving_process import POLICY, free_port

from experiments.serving.endpoint import Endpoint
from experiments.serving.replica import EpisodeThread, KnowledgeBases, Router
from experiments.serving.schemas import PolicyReference
from experiments.serving.settings import ServeSettings, key_digest
from experiments.worlds.teacher import answer_response, plan_response
from retrieval_actors.records import KnowledgeBaseCard
from rollout.config import RolloutConfig
from rollout.policies import load_policy

CARDS = (
    KnowledgeBaseCard("text", "Text Retriever", "Facts about countries.", "text", 2, "f", "e", 3, 1),
    KnowledgeBaseCard("wiki", "Wiki Retriever", "Articles about everything.", "text", 9, "g", "e", 3, 1),
)
REFERENCE = PolicyReference("p", 3)
EXAMPLES = [{"question": "What is the capital of Kormu?"}]


def asks_once(kind: str, prompt: str, sibling: int) -> str:
    """One search, then the answer; a follow-up is about Kormu."""
    if kind == "rewrite":
        return "<think>its is Kormu</think><question>What is the currency of Kormu?</question>"
    if kind == "plan":
        return plan_response("t", *(("None", "None") if "Sub-question 1" in prompt else ("currency of Kormu", "Text Retriever")))
    return answer_response("t", "Rell")


class KnownLibrary(Library):
    catalog = CARDS


class LocalKnowledgeBases(KnowledgeBases):
    def __init__(self, library: Library):
        self.library = library

    async def retriever(self) -> Library:
        return self.library


class Stream:
    """A stream of Serve's handle."""

    def __init__(self, events):
        self._events, self.cancelled = events, False

    def __aiter__(self):
        return self

    async def __anext__(self):
        return await anext(self._events)

    def cancel(self) -> None:
        self.cancelled = True


class Handles:
    """What the endpoint calls of Serve's handles."""

    def __init__(self, router: Router, kbs: KnowledgeBases):
        self.streams: list[Stream] = []
        self.answer = SimpleNamespace(remote=lambda job: self._remember(Stream(router.answer(job))))
        self.search = SimpleNamespace(remote=kbs.search)

    def options(self, stream: bool) -> Handles:
        return self

    def _remember(self, stream: Stream) -> Stream:
        self.streams.append(stream)
        return stream


@contextmanager
def served(say=asks_once, library: Library | None = None, key: str = "", **settings) -> Iterator[SimpleNamespace]:
    """`url`, `endpoint`, `engine` and the `handles` of a service that is ready; it has two knowledge bases, `text` and `wiki`."""
    library, config = library or KnownLibrary(), RolloutConfig(mode="chain", group_size=1, passages=2, temperature=0.0)
    engine = Script(load_policy(POLICY), say)
    router = object.__new__(Router)  # without Ray, which its constructor asks for the retriever
    router._traces, router._threads = None, {REFERENCE: EpisodeThread(engine, library, config)}
    handles = Handles(router, LocalKnowledgeBases(library))
    endpoint = Endpoint(handles, handles, ServeSettings(model="m", **settings), key_digest(key), EXAMPLES)
    endpoint.status, endpoint.catalog, endpoint._policy = "ready", CARDS, REFERENCE
    port = free_port()
    server = uvicorn.Server(uvicorn.Config(endpoint.__serve_build_asgi_app__(), port=port, log_level="error", lifespan="on"))
    thread = threading.Thread(target=server.run, daemon=True)
    thread.start()
    end = time.monotonic() + 60
    while not server.started:
        assert thread.is_alive()
        assert time.monotonic() < end
        time.sleep(0.01)
    yield SimpleNamespace(url=f"http://127.0.0.1:{port}", endpoint=endpoint, engine=engine, handles=handles)
    server.should_exit = True
    thread.join(timeout=30)
    router._threads[REFERENCE].close()

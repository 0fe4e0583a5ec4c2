"""Engines and knowledge bases that do what a test tells them to."""

from __future__ import annotations

import time
from collections import deque
from dataclasses import dataclass

import numpy as np

from retrieval_actors.records import Passage
from rollout.engines.base import EngineStats, Response


class Script:
    """An engine that says what the test tells it to, in the policy's own tokens: (kind of prompt, prompt, sibling) -> text."""

    def __init__(self, policy, say):
        self.policy, self.say = policy, say
        self.policy_version, self.stats, self.prompts = 3, EngineStats(), []
        self.finished: deque[Response] = deque()

    def submit(self, request):
        ticket = len(self.prompts) + 1
        self.finished += [self._response(ticket, request, j) for j in range(request.siblings)]
        return ticket

    @property
    def unfinished(self):
        return len(self.finished)

    def abort(self, tickets):
        self.finished = deque(finished for finished in self.finished if finished.ticket not in tickets)

    def collect(self, wait_s=0.0):
        finished, self.finished = self.finished, deque()
        return list(finished)

    def _response(self, ticket, request, sibling):
        prompt = self.policy.tokenizer.decode(request.prompt_ids)
        self.prompts.append(prompt)
        asks = {"Next step?": "plan", "Final answer?": "final", "question that stands alone": "rewrite"}
        kind = next((kind for words, kind in asks.items() if words in prompt), "answer")
        ids = np.array([*self.policy.tokenizer(self.say(kind, prompt, sibling))["input_ids"], self.policy.end_token_id], np.int32)
        logprobs = np.full(len(ids), -0.5, np.float32)
        return Response(ticket, sibling, ids, logprobs, "stop", self.policy_version)


class OneByOne(Script):
    """Hands out few responses a tick, and writes down what was in work when: a continuous engine, as its holder sees it."""

    def __init__(self, policy, say, at_once=3):
        super().__init__(policy, say)
        self.at_once, self.waited_with = at_once, []

    def collect(self, wait_s=0.0):
        self.waited_with.append([finished.ticket for finished in self.finished])
        return [self.finished.popleft() for _ in range(min(self.at_once, len(self.finished)))]


@dataclass(frozen=True)
class Card:
    name: str = "text"
    retriever_name: str = "Text Retriever"
    description: str = "anything"
    modality: str = "text"


class Library:
    """Knows one passage on everything; `delays` are the seconds that its searches take, one after another."""

    catalog = (Card(),)

    def __init__(self, *delays: float):
        self.delays, self.asked = deque(delays), []

    def search_routed(self, asked, k):
        number = len(self.asked)
        self.asked.append([query.text for _, query in asked])
        time.sleep(self.delays[number % len(self.delays)] if self.delays else 0.0)
        return [[Passage(id=f"p{i}", text=f"{query.text} {i}", kb=kb) for i in range(k)] for kb, query in asked]

"""What the service counts, as Prometheus reads it at `/metrics`."""

from __future__ import annotations

from typing import Any

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram, generate_latest

SECONDS = (0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10, 30, 60, 120)
PHASES = {"planned": "plan", "searched": "search", "answered": "answer"}


class Metrics:
    """Of one endpoint process."""

    def __init__(self) -> None:
        self._registry = CollectorRegistry()
        here: dict[str, Any] = {"registry": self._registry, "namespace": "r1_router"}
        self.requests = Counter("requests", "Requests answered", ["route", "status"], **here)
        self.seconds = Histogram("request_seconds", "From the first byte in to the last byte out", ["route"], buckets=SECONDS, **here)
        self.phase_seconds = Histogram("phase_seconds", "Of one step of a path", ["phase"], buckets=SECONDS, **here)
        self.steps = Histogram("steps", "Retrievals of an answered question", buckets=range(9), **here)
        self.searches = Counter("searches", "Searches of a knowledge base", ["kb"], **here)
        self.errors = Counter("errors", "Requests that were refused or failed", ["code"], **here)
        self.retries = Counter("retries", "Questions asked again because a replica died", **here)
        self.disconnects = Counter("disconnects", "Clients that went away before their answer", **here)
        self.slots = Gauge("slots_in_use", "Questions under way or waiting", **here)
        self.limit = Gauge("slots", "Questions that may be under way or waiting", **here)
        self.policy_version = Gauge("policy_version", "Of new answers", **here)

    def count(self, event: dict[str, Any]) -> None:
        """What an event of a path tells."""
        if event["event"] in PHASES:
            self.phase_seconds.labels(PHASES[event["event"]]).observe(event["seconds"])
        if event["event"] == "finished":
            self.steps.observe(event["retrievals"])
            for step in event["steps"]:
                if step["kb"]:
                    self.searches.labels(step["kb"]).inc()

    def text(self) -> bytes:
        return generate_latest(self._registry)

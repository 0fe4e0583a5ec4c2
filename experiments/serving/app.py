"""The Serve application, from plain data: what `python -m experiments.serve` runs, and what a Serve configuration names as
`experiments.serving.app:build`."""

from __future__ import annotations

from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from ray import serve
from ray.serve import Application
from ray.serve.schema import LoggingConfig

from experiments.serving.endpoint import Endpoint
from experiments.serving.jobs import PolicyReference
from experiments.serving.knowledge_bases import KnowledgeBases
from experiments.serving.router import Router
from experiments.serving.settings import ServeSettings, check, key_digest

NAME = "router"
"""Of the application."""
QUIET = LoggingConfig(log_level="WARNING", enable_access_log=False)


@dataclass(frozen=True)
class Served:
    """What is served, in a form that YAML can hold."""

    policy: str
    policy_version: int
    retrieval: dict[str, Any]
    """`RetrievalConfig`, paths absolute: workers start in other folders."""
    rollout: dict[str, Any]
    """`RolloutConfig`."""
    settings: dict[str, Any]
    """`ServeSettings`."""
    examples: list[dict[str, Any]] = field(default_factory=list)
    """Questions (`question`, and a data URL as `image`) that the page offers."""


def build(args: dict[str, Any]) -> Application:
    """`args`: the fields of `Served`. Raises RunConfigError for settings that would let anybody in."""
    served = Served(**args)
    settings = ServeSettings(**served.settings)
    check(settings)
    policy = PolicyReference(served.policy, served.policy_version)
    plain = asdict(settings) | {"api_key": ""}  # the key itself goes nowhere
    kbs = serve.deployment(
        KnowledgeBases, name="KnowledgeBases", num_replicas=1, max_ongoing_requests=1000, ray_actor_options={"num_cpus": 0.05},
        logging_config=QUIET, graceful_shutdown_timeout_s=2,
    ).bind(served.retrieval)  # fmt: skip
    router = serve.deployment(
        Router, name="Router", max_ongoing_requests=settings.slots, **_size(settings),
        ray_actor_options={"num_cpus": settings.cpus_per_replica, "num_gpus": settings.gpus_per_replica},
        logging_config=QUIET, graceful_shutdown_timeout_s=settings.drain_s, health_check_period_s=5, health_check_timeout_s=60,
    ).bind(kbs, served.rollout, policy, settings.gpus_per_replica > 0)  # fmt: skip
    ingress = serve.ingress()(Endpoint)
    return serve.deployment(
        ingress, name="Endpoint", num_replicas=1, max_ongoing_requests=10_000, ray_actor_options={"num_cpus": 0.1},
        logging_config=QUIET, graceful_shutdown_timeout_s=settings.drain_s,
        user_config={"policy": served.policy, "policy_version": served.policy_version},
    ).bind(router, kbs, plain, key_digest(settings.key()), served.examples)  # fmt: skip


def _size(settings: ServeSettings) -> dict[str, Any]:
    if settings.most_replicas == settings.replicas:
        return {"num_replicas": settings.replicas}
    bounds = {"min_replicas": settings.replicas, "max_replicas": settings.most_replicas}
    return {"autoscaling_config": {**bounds, "target_ongoing_requests": max(1, settings.slots * 2 // 3)}}


def config_schema(served: Served) -> dict[str, Any]:
    """The Serve configuration (`serve deploy`) of this service. The API key is not in it: the builder reads it from the environment."""
    settings = ServeSettings(**served.settings)
    return {
        "proxy_location": "HeadOnly",
        "http_options": {"host": settings.host, "port": settings.port},
        "logging_config": {"log_level": "WARNING", "enable_access_log": False},
        "applications": [
            {
                "name": NAME,
                "route_prefix": "/",
                "import_path": f"{__name__}:build",
                "args": asdict(served),
                "deployments": [
                    {"name": "Endpoint", "user_config": {"policy": served.policy, "policy_version": served.policy_version}},
                    {"name": "Router", **_size(settings), "max_ongoing_requests": settings.slots},
                ],
            }
        ],
    }


def absolute(path: str) -> str:
    """A folder that is there, from anywhere; anything else is a name on the hub."""
    return str(Path(path).resolve()) if Path(path).exists() else path

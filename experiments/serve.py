"""Answers questions over HTTP with a trained policy and its knowledge bases.

    python -m experiments.serve RUN_OR_POLICY [CONFIG.yaml] [serve.port=8000] [key=value ...]

RUN_OR_POLICY is the folder of a run, whose configuration, best policy and knowledge bases are then used, or a policy folder.

    curl -s localhost:8000/v1/route -d '{"question": "Which currency does Meltoria use?"}'
"""

from __future__ import annotations

import logging
import os
import signal
import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path

from rich.console import Console
from rich.markup import escape

from experiments.cluster import start_ray
from experiments.command_settings import read_settings
from experiments.config import RunConfigError, TrainConfig
from experiments.datasets import ensure_knowledge_bases, load_dataset
from experiments.evaluate import read_arguments
from experiments.run_folder import RunFolder
from retrieval_actors.build import Progress
from retrieval_actors.knowledge_base import KnowledgeBase

STOPPED = 130
"""Exit code when Ctrl-C comes before the endpoint is ready."""


@dataclass
class ServeSettings:
    """Section `serve` of the command line."""

    host: str = "127.0.0.1"
    """Address to listen on. Anything but loopback is open to whoever reaches it: there is no authentication."""
    port: int = 8000


@dataclass(frozen=True)
class Service:
    """What is to be served, checked and built."""

    policy: str
    policy_version: int
    """The one that the run found best; 0 for a policy without a run."""
    config: TrainConfig
    folders: dict[str, str]
    """Knowledge base name -> folder."""
    settings: ServeSettings


def prepare(arguments: list[str], progress: Progress | None = None) -> Service:
    """Raises ValueError, one line, for a policy, a setting or a knowledge base that cannot be served."""
    ours = [argument.removeprefix("serve.") for argument in arguments if argument.startswith("serve.")]
    settings = read_settings(ServeSettings, ours)
    rest = [argument for argument in arguments if not argument.startswith("serve.")]
    if not rest or "=" in rest[0]:
        raise RunConfigError("which policy? python -m experiments.serve RUN_OR_POLICY [CONFIG.yaml] [key=value ...]")
    config, policy = read_arguments(rest)
    folders = dict(config.retrieval.folders)
    if not folders:  # a policy without a run: the knowledge bases of its data set
        folders = ensure_knowledge_bases(load_dataset(config.data, config.evaluation, folders).evaluation_kbs, progress)
    if not folders:
        raise RunConfigError("no knowledge base to search: name them, for instance retrieval.folders.text=kbs/text")
    for folder in folders.values():
        KnowledgeBase.open(folder)
    best = RunFolder(Path(rest[0])).summary().get("best") or {}
    return Service(policy, int(best.get("policy_version", 0)), config, folders, settings)


@contextmanager
def serving(service: Service) -> Iterator[str]:
    """The endpoint, ready; yields its address. Needs a Ray that runs; ends Serve with the block."""
    from ray import serve
    from ray.serve.schema import LoggingConfig

    from experiments.route_service import RouteService

    settings, config = service.settings, service.config
    logging.getLogger("ray.serve").setLevel(logging.WARNING)
    http = {"host": settings.host, "port": settings.port, "location": "HeadOnly"}
    serve.start(http_options=http, logging_config=LoggingConfig(log_level="WARNING", enable_access_log=False))
    try:
        deployment = RouteService.options(ray_actor_options={"num_cpus": 0.5}, max_ongoing_requests=32)  # type: ignore[attr-defined]
        # Workers may start in another folder: paths are made absolute here.
        folders = {name: str(Path(folder).resolve()) for name, folder in service.folders.items()}
        policy = str(Path(service.policy).resolve()) if Path(service.policy).exists() else service.policy
        bound = deployment.bind(policy, service.policy_version, replace(config.retrieval, folders=folders), config.rollout)
        serve.run(bound, name="router", route_prefix="/")
        yield f"http://{settings.host}:{settings.port}"
    finally:
        serve.shutdown()


def _wait_for_the_end() -> None:
    """Until Ctrl-C or SIGTERM. To be called when Ray runs: it brings a SIGTERM handler of its own, which ends the process at once."""
    stopped = threading.Event()
    for number in (signal.SIGINT, signal.SIGTERM):
        signal.signal(number, lambda *_: stopped.set())
    while not stopped.wait(timeout=1):
        pass  # a wait without a timeout would not let the signal handler run on every platform


def main(arguments: list[str]) -> int:
    console = Console()
    try:
        with console.status("knowledge bases") as status:
            service = prepare(arguments, lambda what, done, total: status.update(f"{what} {done}/{total}"))
    except (ValueError, OSError) as error:
        console.print(f"[red]{escape(str(error))}", soft_wrap=True, highlight=False)
        return 2
    # Ray starts a process for every CPU that it counts; the endpoint needs few of them.
    ray_settings = replace(service.config.ray, num_cpus=service.config.ray.num_cpus or max(2, os.cpu_count() or 2))
    try:
        with start_ray(replace(service.config, ray=ray_settings)):
            console.print(f"loading {service.policy} and {', '.join(service.folders)} ...", soft_wrap=True)
            with serving(service) as address:
                console.print(f"ready: POST {address}/v1/route, GET {address}/health; Ctrl-C ends it", soft_wrap=True)
                _wait_for_the_end()
    except KeyboardInterrupt:
        return STOPPED
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))

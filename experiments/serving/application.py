"""The Ray Serve application: reads the command line, builds the application (also for `serve deploy`), and runs it."""

from __future__ import annotations

import logging
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, nullcontext
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import ray
from ray import serve
from ray.serve import Application
from ray.serve.schema import LoggingConfig

from experiments.cluster.ray_checks import joined_address
from experiments.cluster.ray_session import check_start
from experiments.command_line.reachable import held_port
from experiments.config import RunConfigError, TrackingConfig, TrainConfig, load_policy_or_run
from experiments.config.policy_files import check_policy_files
from experiments.config.reading import is_setting, read_settings
from experiments.datasets import ensure_knowledge_bases, load_dataset
from experiments.serving.endpoint import Endpoint
from experiments.serving.replica import KnowledgeBases, Router
from experiments.serving.schemas import PolicyReference
from experiments.serving.settings import API_KEY_VARIABLE, ServeSettings, is_loopback, key_digest
from experiments.tracking.mlflow_connection import unreachable
from experiments.tracking.run_folder import RunFolder
from retrieval_actors.build.from_passages import Progress
from retrieval_actors.config import RetrievalConfig
from retrieval_actors.knowledge_base import KnowledgeBase
from retrieval_actors.pictures import data_url
from rollout.config import RolloutConfig, ValueConfig
from rollout.records import Question

NAME = "router"  # of the application
QUIET = LoggingConfig(log_level="WARNING", enable_access_log=False)
EXAMPLES = 6
READY_SECONDS = 900  # bound on loading everything; a 7B policy from a slow disk takes minutes


@dataclass(frozen=True)
class ServiceSpec:
    """What is served; all paths are absolute, as workers start in other folders."""

    policy: PolicyReference
    retrieval: RetrievalConfig
    rollout: RolloutConfig
    settings: ServeSettings
    dtype: str  # of the weights, as in training
    examples: list[dict[str, Any]]  # questions (`question`, and a data URL as `image`) that the page offers
    tracking: TrackingConfig | None = None  # where requests become traces; None: nowhere


def prepare(arguments: list[str], progress: Progress | None = None, starts_ray: bool = True) -> tuple[ServiceSpec, TrainConfig]:
    """What `[RUN_OR_POLICY] [CONFIG.yaml] [key=value ...]` serves, checked; missing knowledge bases are built. Raises ValueError, one line."""
    settings = read_settings(ServeSettings, [argument for argument in arguments if argument.startswith("serve.")], "serve.")
    check(settings)
    rest = [argument for argument in arguments if not argument.startswith("serve.")]
    subject = Path(rest.pop(0) if rest and not is_setting(rest[0]) else newest_subject())
    config, policy = load_policy_or_run(str(subject), rest)
    check_policy_files(policy, config.rollout)
    if starts_ray:
        check_start(config)
        if not joined_address():
            held_port(settings.host, settings.port).close()
    folders, examples = dict(config.retrieval.folders), []
    own = [argument for argument in rest if not argument.startswith("retrieval.folders")]
    trained_on_dataset = (subject / "config.yaml").is_file() and not load_policy_or_run(str(subject), own)[0].retrieval.folders
    if not folders or trained_on_dataset:  # the knowledge bases of the data set and those that are named, and hence its questions
        dataset = load_dataset(config.data, config.evaluation, folders)
        folders = ensure_knowledge_bases(dataset.evaluation_kbs, progress)
        questions = [question for question in dataset.heldout[:EXAMPLES] if isinstance(question, Question)]
        examples = [{"question": each.text} | ({"image": data_url(each.image.data)} if each.image else {}) for each in questions]
    if not folders:
        raise RunConfigError("no knowledge base to search; expected folders, such as retrieval.folders.text=kbs/text")
    for folder in folders.values():
        KnowledgeBase.open(folder)
    deadline_s = min(config.retrieval.deadline_s, settings.deadline_s / 4)  # so that the error names the knowledge base
    best = RunFolder(subject).summary().get("best") or {}
    measures = config.rollout.engine == "transformers"  # vLLM's weights are in another process
    spec = ServiceSpec(
        PolicyReference(_absolute(policy), int(best.get("policy_version", 0))),  # 0 for a policy without a run
        replace(config.retrieval, folders={name: _absolute(folder) for name, folder in folders.items()}, deadline_s=deadline_s),
        replace(config.rollout, temperature=0.0, record_routes=False, values=ValueConfig(), support=measures),
        replace(settings, model=settings.model or subject.name, api_key=settings.key()),
        config.learner.dtype,
        examples,
        traced_in(config.tracking) if settings.trace else None,
    )
    return spec, config


def check(settings: ServeSettings) -> None:
    """Raises RunConfigError for an open address without an API key, and for a key that HTTP cannot carry."""
    if not is_loopback(settings.host) and not settings.key():
        found, fix = f"serve.host is {settings.host!r}", f"{API_KEY_VARIABLE}, or listen on 127.0.0.1"
        raise RunConfigError(f"{found}, which others can reach; expected an API key: set serve.api_key or {fix}")
    if not settings.key().isascii():
        raise RunConfigError(f"serve.api_key or {API_KEY_VARIABLE} has letters that HTTP headers cannot carry; expected ASCII")


def traced_in(tracking: TrackingConfig) -> TrackingConfig:
    """With an absolute path. Raises RunConfigError for a store that cannot be reached."""
    if reason := unreachable(tracking.uri):
        raise RunConfigError(f"serve.trace=true, but MLflow (tracking.uri) {reason}; start it, name another one, or leave serve.trace out")
    file = tracking.uri.removeprefix("sqlite:///")
    return tracking if file == tracking.uri else replace(tracking, uri=f"sqlite:///{Path(file).resolve()}")


def newest_subject(runs: str = "runs") -> str:
    """The run folder with the newest policy; the shipped policy if there is none."""
    policies = sorted(Path(runs).glob("*/policy/config.json"), key=lambda path: path.stat().st_mtime)
    whole = [path.parents[1] for path in policies if (path.parents[1] / "config.yaml").is_file()]
    return str(whole[-1]) if whole else TrainConfig().train.policy


def _absolute(path: str) -> str:
    return str(Path(path).resolve()) if Path(path).exists() else path  # a name on the hub


def build(args: dict[str, list[str]]) -> Application:
    """Builder for `serve deploy`. Its file sets the address, so an API key is needed unless `arguments` have `serve.host=127.0.0.1`."""
    return application(prepare(["serve.host=0.0.0.0", *args["arguments"]], starts_ray=False)[0])


def application(spec: ServiceSpec) -> Application:
    settings = spec.settings
    kbs = serve.deployment(
        KnowledgeBases,
        name="KnowledgeBases",
        num_replicas=1,
        max_ongoing_requests=1000,
        ray_actor_options={"num_cpus": 0.05},
        logging_config=QUIET,
        graceful_shutdown_timeout_s=2,
    ).bind(spec.retrieval)
    size: dict[str, Any] = {"num_replicas": settings.replicas}
    if settings.most_replicas > settings.replicas:
        bounds = {"min_replicas": settings.replicas, "max_replicas": settings.most_replicas}
        size = {"autoscaling_config": {**bounds, "target_ongoing_requests": max(1, settings.slots * 2 // 3)}}
    router = serve.deployment(
        Router,
        name="Router",
        max_ongoing_requests=settings.slots,
        **size,
        ray_actor_options={"num_cpus": 0.5, "num_gpus": settings.gpus_per_replica},
        logging_config=QUIET,
        graceful_shutdown_timeout_s=settings.drain_s,
        health_check_period_s=5,
        health_check_timeout_s=60,
    ).bind(kbs, spec.rollout, spec.policy, settings.gpus_per_replica > 0, spec.dtype, spec.tracking, settings.model)
    public, digest = replace(settings, api_key=""), key_digest(settings.key())  # the key itself is not passed on
    return serve.deployment(
        serve.ingress()(Endpoint),
        name="Endpoint",
        num_replicas=1,
        max_ongoing_requests=10_000,
        ray_actor_options={"num_cpus": 0.1},
        logging_config=QUIET,
        graceful_shutdown_timeout_s=settings.drain_s,
        user_config=asdict(spec.policy),
    ).bind(router, kbs, public, digest, spec.examples)


@contextmanager
def serving(spec: ServiceSpec, progress: Callable[[str], None] = lambda line: None) -> Iterator[str]:
    """Starts the service on the running Ray and yields its address once it is ready. The end of the block waits for running questions, then stops
    Serve. Raises RunConfigError if the service does not become ready, or another one runs on this cluster."""
    settings = spec.settings
    logging.getLogger("ray.serve").setLevel(logging.WARNING)
    running = serve.status()
    if running.proxies or running.applications:
        names = ", ".join(running.applications) or "no application"
        fix = "and a second service would replace it: end that one, or unset RAY_ADDRESS for a Ray of its own"
        raise RunConfigError(f"Ray Serve runs on this cluster already ({names}), {fix}")
    # Serve listens on the head's node; the port is held there until the end.
    on_head = ray.get_runtime_context().gcs_address.rpartition(":")[0] == ray.util.get_node_ip_address()
    with held_port(settings.host, settings.port) if on_head else nullcontext():
        try:
            serve.start(http_options={"host": settings.host, "port": settings.port, "location": "HeadOnly"}, logging_config=QUIET)
            target = serve.RunTarget(application(spec), name=NAME, route_prefix="/")
            (endpoint,) = serve.run_many([target], wait_for_applications_running=False)
            _wait_until_ready(endpoint, progress)
            yield f"http://{settings.host}:{settings.port}"
            endpoint.drain.remote().result(timeout_s=settings.drain_s + 10)
            serve.shutdown()
        except BaseException:
            if joined_address():  # a Ray of our own ends everything at once
                serve.shutdown()
            raise


def _wait_until_ready(endpoint: Any, progress: Callable[[str], None]) -> None:
    end = time.monotonic() + READY_SECONDS
    while time.monotonic() < end:
        status, now = endpoint.health.remote().result(timeout_s=READY_SECONDS)
        if status == "ready":
            return
        if "failed:" in now:
            raise RunConfigError(now)
        application = serve.status().applications[NAME]
        if application.status == "DEPLOY_FAILED":
            raise RunConfigError(f"Serve could not start: {application.message.strip().splitlines()[-1]}")
        progress(now)
        time.sleep(0.1)
    raise RunConfigError(f"not ready within {READY_SECONDS} s")

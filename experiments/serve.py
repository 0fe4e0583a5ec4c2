"""Answers questions over HTTP with a trained policy and its knowledge bases: an API that OpenAI's clients speak, and a page that shows the path.

    python -m experiments.serve [RUN_OR_POLICY] [CONFIG.yaml] [serve.port=8000] [key=value ...]

RUN_OR_POLICY is the folder of a run, whose configuration, best policy and knowledge bases are then used, or a policy folder; without it, the
newest run, or the policy that comes with the repository. `serve.write_config=FILE` writes it as a Serve configuration instead. See docs/serving.md.
"""

from __future__ import annotations

import logging
import os
import signal
import sys
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import yaml
from rich.console import Console
from rich.markup import escape

from experiments.cluster import start_ray
from experiments.command_settings import read_settings
from experiments.config import RunConfigError, TrainConfig
from experiments.datasets import Dataset, ensure_knowledge_bases, load_dataset
from experiments.evaluate import read_arguments
from experiments.run_folder import RunFolder
from experiments.serving.app import NAME, QUIET, Served, absolute, build, config_schema
from experiments.serving.pictures import data_url
from experiments.serving.settings import ServeSettings, check, public
from retrieval_actors.build import Progress
from retrieval_actors.knowledge_base import KnowledgeBase
from rollout.records import Question

STOPPED = 130
"""Exit code when Ctrl-C comes before the endpoint is ready."""
EXAMPLES = 6
READY_SECONDS = 900
"""Bound on loading everything; a 7B policy from a slow disk takes minutes."""


def prepare(arguments: list[str], progress: Progress | None = None) -> tuple[Served, TrainConfig]:
    """What is to be served, checked and built. Raises ValueError, one line, for a policy, a setting or a knowledge base that cannot be."""
    settings = read_settings(ServeSettings, [argument.removeprefix("serve.") for argument in arguments if argument.startswith("serve.")])
    rest = [argument for argument in arguments if not argument.startswith("serve.")]
    if not rest or "=" in rest[0]:
        rest = [newest_subject(), *rest]
    if not settings.write_config:
        check(settings)
    config, policy = read_arguments(rest)
    folders, questions = dict(config.retrieval.folders), []
    if not folders:  # the knowledge bases of the data set, and hence its questions
        dataset = load_dataset(config.data, config.evaluation, folders)
        folders = ensure_knowledge_bases(dataset.evaluation_kbs, progress)
        questions = examples(dataset)
    if not folders:
        raise RunConfigError("no knowledge base to search: name them, for instance retrieval.folders.text=kbs/text")
    for folder in folders.values():
        KnowledgeBase.open(folder)
    best = RunFolder(Path(rest[0])).summary().get("best") or {}
    subject = Path(rest[0])
    retrieval = replace(
        config.retrieval,
        folders={name: absolute(folder) for name, folder in folders.items()},
        deadline_s=min(config.retrieval.deadline_s, settings.deadline_s / 4),  # the caller hears that it is away, not that time is over
    )
    served = Served(
        policy=absolute(policy),
        policy_version=int(best.get("policy_version", 0)),  # the one that the run found best; 0 for a policy without a run
        retrieval=asdict(retrieval),
        rollout=asdict(replace(config.rollout, temperature=0.0)),
        settings=asdict(replace(settings, model=settings.model or subject.name, api_key=settings.key())),
        examples=questions,
    )
    return served, config


def newest_subject(runs: str = "runs") -> str:
    """The folder of the run that wrote a policy last; the shipped policy when there is none."""
    policies = sorted(Path(runs).glob("*/policy/config.json"), key=lambda path: path.stat().st_mtime)
    whole = [path.parents[1] for path in policies if (path.parents[1] / "config.yaml").is_file()]
    return str(whole[-1]) if whole else TrainConfig().train.policy


def examples(dataset: Dataset) -> list[dict[str, Any]]:
    """A question of every family, for the page."""
    of_family = {item.family: item for item in reversed(dataset.heldout) if isinstance(item, Question)}
    return [
        {"question": question.text} | ({"image": data_url(question.image.data)} if question.image else {})
        for _, question in sorted(of_family.items(), key=lambda entry: (entry[1].image is not None, entry[0]))
    ][-EXAMPLES:]


@contextmanager
def serving(served: Served, progress: Callable[[str], None] | None = None) -> Iterator[str]:
    """The service, ready; yields its address. Needs a Ray that runs. At the end of the block questions under way are answered, then Serve ends.

    Raises RunConfigError when it does not get ready.
    """
    from ray import serve

    settings = ServeSettings(**served.settings)
    logging.getLogger("ray.serve").setLevel(logging.WARNING)
    serve.start(http_options={"host": settings.host, "port": settings.port, "location": "HeadOnly"}, logging_config=QUIET)
    try:
        target = serve.RunTarget(build(asdict(served)), name=NAME, route_prefix="/")
        (endpoint,) = serve.run_many([target], wait_for_applications_running=False)
        _wait_until_ready(endpoint, progress)
        yield f"http://{settings.host}:{settings.port}"
        endpoint.drain.remote().result(timeout_s=settings.drain_s + 10)
    finally:
        serve.shutdown()


def _wait_until_ready(endpoint: Any, progress: Callable[[str], None] | None) -> None:
    from ray import serve

    end = time.monotonic() + READY_SECONDS
    while time.monotonic() < end:
        health = endpoint.health.remote().result(timeout_s=READY_SECONDS)
        if health["status"] == "ready":
            return
        if "failed:" in health["progress"]:
            raise RunConfigError(health["progress"])
        application = serve.status().applications[NAME]
        if application.status == "DEPLOY_FAILED":
            raise RunConfigError(f"Serve could not start: {application.message.strip().splitlines()[-1]}")
        if progress:
            progress(health["progress"])
        time.sleep(0.1)
    raise RunConfigError(f"not ready within {READY_SECONDS} s")


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
            served, config = prepare(arguments, lambda what, done, total: status.update(f"{what} {done}/{total}"))
        file = served.settings["write_config"]
        if file:
            written = replace(served, settings=public(served.settings), examples=[e for e in served.examples if "image" not in e])
            Path(file).write_text(yaml.safe_dump(config_schema(written), sort_keys=False, allow_unicode=True), encoding="utf-8")
            console.print(f"{file}: start it with serve deploy {file}", soft_wrap=True)
            return 0
        # Ray starts a process for every CPU that it counts; the service needs few of them.
        ray_settings = replace(config.ray, num_cpus=config.ray.num_cpus or max(2, os.cpu_count() or 2))
        with start_ray(replace(config, ray=ray_settings)), console.status("starting") as now, serving(served, now.update) as address:
            now.stop()
            console.print(f"ready: {address}/ in a browser, {address}/v1 for OpenAI's clients; Ctrl-C ends it", soft_wrap=True)
            _wait_for_the_end()
    except (ValueError, OSError) as error:
        console.print(f"[red]{escape(str(error))}", soft_wrap=True, highlight=False)
        return 2
    except KeyboardInterrupt:
        return STOPPED
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))

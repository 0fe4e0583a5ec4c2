"""Ray for one command: started here and ended with it, or, in a submitted job, the cluster that is already there."""

from __future__ import annotations

import logging
import os
from collections.abc import Iterator
from contextlib import contextmanager

from experiments.config import TrainConfig
from experiments.run_asks import RoleResources, asks_of, cpus_of

QUIET = {
    "RAY_USAGE_STATS_ENABLED": "0",
    "RAY_worker_maximum_startup_concurrency": "32",  # else the raylet warns that a run has more actors than cores
    "RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO": "0",
    "TOKENIZERS_PARALLELISM": "false",
    "TQDM_DISABLE": "1",
    "PYTHONWARNINGS": "ignore",
}
"""Environment of this process and, through it, of every actor."""

UPLOADED = "_ray_pkg_"
"""In the path of a working directory that `ray job submit --working-dir` has uploaded."""


def cpus_asked_for(config: TrainConfig) -> int:
    """CPUs that the actors of a run reserve. On a machine with fewer they share: Ray counts them, it does not pin them."""
    return int(cpus_of(asks_of(config, RoleResources(), []))) + 4


def note_on_folders(config: TrainConfig) -> str:
    """For a submitted job, which runs in a copy of its working directory: which paths a later job would not find; empty: none."""
    if UPLOADED not in os.getcwd():
        return ""
    tracked = config.tracking.uri.removeprefix("sqlite:///") if config.tracking.mlflow else ""
    kept = {"runs_folder": config.runs_folder, "data.kb_folder": config.data.kb_folder, "tracking.uri": tracked}
    lost = ", ".join(f"{key}={path}" for key, path in kept.items() if path and "://" not in path and not os.path.isabs(path))
    return f"note: {lost}: relative to this job's copy of the repository, which no later job sees; give absolute paths" if lost else ""


@contextmanager
def start_ray(config: TrainConfig) -> Iterator[None]:
    """Quiet, without a dashboard, bound to this process. With RAY_ADDRESS set (`ray job submit` does), joins that cluster instead."""
    for key, value in QUIET.items():
        os.environ.setdefault(key, value)
    logging.getLogger("ray.rllib").setLevel(logging.ERROR)
    import ray

    if ray.is_initialized():  # whoever started it ends it
        yield
        return
    if os.environ.get("RAY_ADDRESS"):
        ray.init(logging_level="error", log_to_driver=False)
    else:
        cpus = config.ray.num_cpus or max(os.cpu_count() or 1, cpus_asked_for(config))
        ray.init(
            address="local",
            num_cpus=cpus,
            object_store_memory=config.ray.object_store_mb * 2**20,
            include_dashboard=False,
            logging_level="error",
            log_to_driver=False,
        )
    try:
        yield
    finally:
        ray.shutdown()

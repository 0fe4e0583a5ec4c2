"""One Ray for the whole test session: starting it takes seconds."""

from __future__ import annotations

import os
import subprocess

import pytest
from hypothesis import settings

os.environ.setdefault("OMP_NUM_THREADS", "1")
os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")
os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")
settings.register_profile("busy machine", deadline=None)
settings.load_profile("busy machine")


SHARING = {
    "the service": ("tests/browser/", "tests/end_to_end/"),
    "an embedder": ("tests/retrieval_actors/actors/", "tests/rollout/", "tests/rewards/", "tests/faults/test_failed_searches.py"),
    "learners": ("tests/learner/", "tests/faults/"),
}
"""What takes long to start, and whose tests share it."""


@pytest.hookimpl(optionalhook=True)
def pytest_xdist_make_scheduler(config, log):
    """A file's tests stay in one process, and so do all tests that share something."""
    from xdist.scheduler import LoadFileScheduling

    class Scheduling(LoadFileScheduling):
        def _split_scope(self, nodeid):
            return next((what for what, tests in SHARING.items() if nodeid.startswith(tests)), super()._split_scope(nodeid))

    return Scheduling(config, log)


@pytest.fixture(scope="session")
def ray_cluster():
    import ray

    ray.init(address="local", num_cpus=4, include_dashboard=False, logging_level="error", log_to_driver=False)
    yield
    ray.shutdown()


@pytest.fixture(scope="session")
def models(ray_cluster):
    """A retrieval without any knowledge base: its embedder serves those of several modules, as it takes seconds to load."""
    from retrieval_actors.actors.start_actors import start_retrieval
    from retrieval_actors.config import RetrievalConfig

    retriever = start_retrieval(RetrievalConfig())
    yield retriever
    retriever.close()


@pytest.fixture
def mounted(tmp_path):
    """A function that makes a disk of this size ("200k") and returns its folder."""
    places = []

    def mount(size):
        place = tmp_path / f"disk{len(places)}"
        place.mkdir()
        done = subprocess.run(["mount", "-t", "tmpfs", "-o", f"size={size}", "tmpfs", place], capture_output=True, text=True)
        if done.returncode:
            pytest.skip(f"no file system can be mounted here: {done.stderr.strip()}")
        places.append(place)
        return place

    yield mount
    for place in places:
        subprocess.run(["umount", "-l", place], check=True)


@pytest.fixture(scope="session")
def service(tmp_path_factory):
    """The service, with limits that a test can reach. One for all tests: it takes a quarter of a minute to get ready."""
    from serving_process import started

    with started(
        tmp_path_factory.mktemp("served"), "serve.max_body_mb=1", "serve.max_megapixels=1", "serve.slots=6", "serve.queue=6"
    ) as service:
        yield service

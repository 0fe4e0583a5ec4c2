"""Shared by all commands: `python -m experiments.NAME`, one-line errors, exit codes, signals, no proxy for loopback."""

import functools
import os
import runpy
import signal
import sys
import tempfile
import threading
import traceback
from collections.abc import Callable
from pathlib import Path
from urllib.request import getproxies

from experiments.command_line.terminal import Console
from experiments.config.reading import RunConfigError
from retrieval_actors.folder_lock import FolderHeldError
from retrieval_actors.knowledge_base import KnowledgeBaseError
from retrieval_actors.sources.data_files import DataError
from rewards.terms import RewardError
from rollout.nan_check import NotFiniteError

FAILED, WRONG_INPUT, STOPPED = 1, 2, 130  # exit codes
ONE_LINE_ERRORS = (RunConfigError, DataError, KnowledgeBaseError, FolderHeldError, NotFiniteError, RewardError)  # no traceback
QUIET = {  # environment of this process and, through it, of every actor
    "RAY_USAGE_STATS_ENABLED": "0",
    "RAY_worker_maximum_startup_concurrency": "32",  # else the raylet warns that a run has more actors than cores
    "RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO": "0",
    "TOKENIZERS_PARALLELISM": "false",
    "TQDM_DISABLE": "1",
    "PYTHONWARNINGS": "ignore",
}
ROOMS = ("retrieval_actors", "rollout", "rewards", "learner", "experiments")


def command(main: Callable[[list[str]], int]) -> Callable[[list[str]], int]:
    """Decorates the `main` of a command: errors become one line and an exit code."""
    if main.__module__ == "__main__" and sys.modules["__main__"].__spec__:  # python -m experiments.NAME is r1-router NAME
        sys.argv = ["r1-router", Path(sys.argv[0]).stem.replace("_", "-"), *sys.argv[1:]]
        runpy.run_module("experiments.cli", run_name="__main__")

    @functools.wraps(main)
    def run(arguments: list[str]) -> int:
        reach_loopback_directly()
        in_main_thread = threading.current_thread() is threading.main_thread()
        # Ctrl-C and SIGTERM both raise KeyboardInterrupt, so that `with` blocks are left in order.
        before = {number: signal.signal(number, signal.default_int_handler) for number in (signal.SIGINT, signal.SIGTERM) if in_main_thread}
        try:
            return main(arguments)
        except KeyboardInterrupt:
            Console().print("stopped", style="red")
            return STOPPED
        except Exception as error:
            return report(error, main.__module__.rpartition(".")[2])
        finally:
            for number, handler in before.items():
                signal.signal(number, handler)

    return run


def report(error: Exception, name: str) -> int:
    """Print one line; write the traceback of an unexpected error into a file. Returns the exit code."""
    cause = getattr(error, "cause", None) or error  # Ray wraps the error of an actor
    text = " ".join(str(cause).split())
    if is_expected(error):
        Console().print(f"error: {text}", style="red", soft_wrap=True)
        return FAILED if isinstance(error, (NotFiniteError, RewardError)) else WRONG_INPUT
    with tempfile.NamedTemporaryFile("w", prefix=f"r1-router-{name}-", suffix=".traceback", delete=False) as file:
        traceback.print_exception(error, file=file)
    Console().print(f"error: {type(cause).__name__}: {text[:400]} (traceback: {file.name})", style="red", soft_wrap=True)
    return FAILED


def is_expected(error: Exception) -> bool:
    """One of `ONE_LINE_ERRORS`, an OSError that names a file, or a ValueError or FileNotFoundError that our own code raised."""
    if isinstance(error, ONE_LINE_ERRORS) or (isinstance(error, OSError) and error.filename):
        return True
    *_, (frame, _) = traceback.walk_tb(error.__traceback__)
    return isinstance(error, (ValueError, FileNotFoundError)) and frame.f_globals["__name__"].partition(".")[0] in ROOMS


def reach_loopback_directly() -> None:
    """Add this machine to `no_proxy`, for this process and those that it starts."""
    if getproxies():
        given = os.environ.get("no_proxy") or os.environ.get("NO_PROXY") or ""
        names = [name.strip() for name in given.split(",") if name.strip()]
        os.environ["no_proxy"] = os.environ["NO_PROXY"] = ",".join(dict.fromkeys([*names, "localhost", "127.0.0.1", "::1"]))

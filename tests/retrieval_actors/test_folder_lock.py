"""One writer for each folder, whoever it is and however it ends."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from contextlib import contextmanager
from pathlib import Path

import pytest

from retrieval_actors.folder_lock import FolderHeldError, hold

ROOT = Path(__file__).parents[2]


@contextmanager
def writer(folder: Path):
    """Another process that holds the folder."""
    code = f"from retrieval_actors.folder_lock import hold; hold({str(folder)!r}); print('held', flush=True); input()"
    with subprocess.Popen([sys.executable, "-c", code], cwd=ROOT, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout.readline() == "held\n"
        yield process
        process.kill()


def test_a_second_writer_is_refused_and_told_who_the_first_is(tmp_path):
    with (
        writer(tmp_path / "mine") as other,
        pytest.raises(FolderHeldError, match=rf"mine is being written by process {other.pid} on .*-c from"),
    ):
        hold(tmp_path / "mine")
    with hold(tmp_path / "mine"):
        pass


def test_a_writer_that_is_killed_holds_nothing(tmp_path):
    with writer(tmp_path / "mine") as other:
        os.kill(other.pid, signal.SIGKILL)
        other.wait()
        with hold(tmp_path / "mine"):
            pass


def test_a_folder_that_is_renamed_stays_held_under_its_name(tmp_path):
    """As a run does with an earlier one of its name."""
    (tmp_path / "mine").mkdir()
    with writer(tmp_path / "mine"):
        (tmp_path / "mine").rename(tmp_path / "earlier")
        with pytest.raises(FolderHeldError):
            hold(tmp_path / "mine")


def test_the_same_process_may_ask_again_and_the_outer_block_keeps_it(tmp_path):
    code = f"from retrieval_actors.folder_lock import hold; hold({str(tmp_path / 'mine')!r})"

    def refused() -> bool:
        return subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True).returncode != 0

    with hold(tmp_path / "mine"):
        with hold(tmp_path / "mine"):
            assert refused()
        assert refused()
    assert not refused()
    assert not list(tmp_path.iterdir())

"""At every moment, and after a kill at any moment, the folder is there and whole."""

from __future__ import annotations

import shutil
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from retrieval_actors import folder_lock as module
from retrieval_actors.folder_lock import replace_folder

FILES = 5


def written(folder: Path, text: str) -> Path:
    folder.mkdir()
    for number in range(FILES):
        (folder / f"{number}").write_text(text)
    return folder


def whole(folder: Path) -> str:
    """What all of its files say."""
    (text,) = {(folder / f"{number}").read_text() for number in range(FILES)}
    return text


LOOKING = """
import os, sys
print("looking", flush=True)
while True:
    os.stat(sys.argv[1])
"""


def test_a_folder_that_is_replaced_is_never_missing(tmp_path: Path):
    folder = written(tmp_path / "policy", "0")
    if not module._exchange(folder, written(tmp_path / "new", "1")):
        pytest.skip("two folders cannot change places on this disk")
    shutil.rmtree(tmp_path / "new")
    with subprocess.Popen([sys.executable, "-c", LOOKING, folder], stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True) as looking:
        assert looking.stdout
        assert looking.stderr
        assert looking.stdout.readline() == "looking\n"
        for turn in range(1, 500):
            replace_folder(folder, written(tmp_path / "new", f"{turn}"))
        looking.kill()
        assert not looking.stderr.read()
    assert whole(folder) == "499"
    assert [path.name for path in tmp_path.iterdir()] == ["policy"]


REPLACING = """
import sys
from pathlib import Path
sys.path[:0] = sys.argv[2:]
from test_replace_folder import replace_folder, written
folder = Path(sys.argv[1])
turn = 0
while True:
    turn += 1
    replace_folder(folder / "policy", written(folder / f"new{turn}", f"{turn}"))
    print(turn, flush=True)
"""


def test_a_kill_leaves_the_old_folder_or_the_new_one(tmp_path: Path):
    paths = [str(Path(__file__).parent), *sys.path]
    for kill_after in (1, 2, 20, 50, 90):
        place = tmp_path / f"{kill_after}"
        place.mkdir()
        with subprocess.Popen([sys.executable, "-c", REPLACING, place, *paths], stdout=subprocess.PIPE, text=True) as process:
            assert process.stdout
            last = [process.stdout.readline() for _ in range(kill_after)][-1]
            process.send_signal(signal.SIGKILL)
        assert int(whole(place / "policy")) >= int(last)


def test_where_folders_cannot_change_places_the_new_one_is_there_afterwards(tmp_path: Path, monkeypatch):
    monkeypatch.setattr(module, "_exchange", lambda one, other: False)
    folder = written(tmp_path / "policy", "old")
    replace_folder(folder, written(tmp_path / "new", "new"))
    assert whole(folder) == "new"
    assert [path.name for path in tmp_path.iterdir()] == ["policy"]

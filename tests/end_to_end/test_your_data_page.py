"""docs/15_your_data.md, command by command, in a folder with the files that it names."""

from __future__ import annotations

import io
import json
import os
import re
import shlex
import signal
import subprocess
import sys
import time
from pathlib import Path

import openpyxl
import pytest
from made_pdf import pdf
from PIL import Image
from serving_process import free_port, is_ready

from experiments import kb
from experiments.config import load_config
from experiments.datasets import training_dataset

ROOT = Path(__file__).parents[2]
PAGE = (ROOT / "docs/15_your_data.md").read_text(encoding="utf-8")
FILES = next(re.finditer(r"(?:^    \S.*\n)+", PAGE, re.M))[0].split()
COMMANDS = re.findall(r"^    ((?:r1-router|curl) .*)$", PAGE, re.M)
SAMPLE = re.findall(r"```text\n(.*?)```", PAGE, re.S)[0].splitlines()
(SETTINGS,) = re.findall(r"```yaml\n# mine.yaml\n(.*?)```", PAGE, re.S)
CUT_SHORT = [
    *("train.iterations=1", "train.questions_per_iteration=2", "train.num_rollout_workers=1", "rollout.group_size=2"),
    *("evaluation.questions=4", "evaluation.validation_questions=2", "tracking.mlflow=false"),
]
PATIENCE = 600
"""Seconds that one command may take, also where others keep the machine busy."""


def picture(colour: str, form: str) -> bytes:
    data = io.BytesIO()
    Image.new("RGB", (64, 64), colour).save(data, form)
    return data.getvalue()


def questions() -> bytes:
    """The two of the page, and more about the table."""
    book = openpyxl.Workbook()
    for row in [
        ["question", "answer", "image"],
        ["How deep is Lake Thun?", "217 m|217", None],
        ["Which tower is this?", "clock tower", "pictures/clock_tower.jpg"],
        *([f"How deep is Lake {number}?", 100 + number, None] for number in range(38)),
    ]:
        book.active.append(row)
    written = io.BytesIO()
    book.save(written)
    return written.getvalue()


CONTENT = {
    "notes/thun.md": b"# Thun\n\nA town at the lake.\n\n## Castle\n\nThe castle was built around 1190.\nIts four towers can be seen from the lake.",
    "notes/spiez.txt": b"Spiez lies on the south shore of Lake Thun.\nIts castle is a museum.\n",
    "notes/bern.html": b"<html><title>Bern</title><nav>Home</nav><h1>Bern</h1><p>Bern is a capital.</p><h2>Old town</h2><p>It has arcades.</p>",
    "notes/aare.pdf": pdf("The Aare is 288 km long and flows through both lakes.", title="The Aare"),
    "notes/plan.docx": b"PK",
    "lakes.csv": b"lake,depth in m,area in km2\nThun,217,48\nBrienz,260,30\n" + b"".join(b"%d,%d,1\n" % (n, 100 + n) for n in range(38)),
    "pictures/clock_tower.jpg": picture("brown", "JPEG"),
    "pictures/IMG_1021.png": picture("grey", "PNG"),
    "pictures/IMG_1021.txt": b"The minster of Bern.",
    "questions.xlsx": questions(),
}


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    for name in FILES:
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).write_bytes(CONTENT[name])
    (tmp_path / "mine.yaml").write_text(SETTINGS)
    monkeypatch.chdir(tmp_path)
    return tmp_path


def test_the_files_of_the_page_are_what_its_commands_take_them_for(folder: Path):
    assert set(FILES) == set(CONTENT)
    builds = [shlex.split(command) for command in COMMANDS if command.startswith("r1-router kb build")]
    readings = [kb.planned(source, out, settings)[0] for _, _, _, source, out, *settings in builds]
    assert [reading.source.name for reading in readings] == ["documents", "spreadsheets", "pictures"]
    config = load_config(["mine.yaml"])
    assert list(config.retrieval.folders.values()) == [command[4] for command in builds]
    assert sorted(config.retrieval.folders) == sorted(next(part[5:] for part in command if part.startswith("name=")) for command in builds)
    with pytest.raises(ValueError, match=r"kbs.text"):  # nothing else is missing
        training_dataset(config)


@pytest.mark.slow
@pytest.mark.timeout(4 * PATIENCE)
def test_the_page_runs_command_by_command(folder: Path):
    names = [" ".join(shlex.split(command)[1 : 3 if " kb " in command else 2]) for command in COMMANDS]
    assert names == ["kb build", "kb build", "kb build", "kb search", "train", "serve", "-s"]
    *commands, serve, ask = COMMANDS
    said = [run(command, *(CUT_SHORT if command.startswith("r1-router train") else [])) for command in commands]
    assert [line for line in SAMPLE if line not in said[0]] == []
    assert all("a sample of its passages:" in text and "left out: 0 records" in text for text in said[:3])
    assert "lakes.csv#0: lakes | header: lake ; depth in m" in said[1]
    assert "clock_tower.jpg: [picture] clock tower" in said[2]
    assert said[3].count("\n1. thun.md#1 (") == 1
    summary = json.loads((folder / "runs/mine/summary.json").read_text())
    assert summary["iterations"] == 1
    assert set(summary["baselines"]) == {"random", "all"}
    answer = served(serve, ask, folder / "serve.log")
    assert answer["steps"]
    assert "error" not in answer


def line_of(command: str, *more: str) -> tuple[list[str], dict[str, str]]:
    return [sys.executable, "-m", "experiments.cli", *shlex.split(command)[1:], *more], os.environ | {"PYTHONPATH": str(ROOT)}


def run(command: str, *more: str) -> str:
    line, environment = line_of(command, *more)
    done = subprocess.run(line, env=environment, capture_output=True, text=True, timeout=PATIENCE)
    assert done.returncode == 0, f"{command}\n{done.stdout[-3000:]}{done.stderr[-3000:]}"
    return "\n" + done.stdout


def served(command: str, ask: str, log: Path) -> dict:
    """The answer to one question of the service, which is then ended as Ctrl-C ends it."""
    port = free_port()
    line, environment = line_of(command, f"serve.port={port}")
    with log.open("w") as said:
        process = subprocess.Popen(line, env=environment, stdout=said, stderr=said)
    try:
        end = time.monotonic() + PATIENCE
        while not is_ready(f"http://127.0.0.1:{port}"):
            assert process.poll() is None, log.read_text()[-3000:]
            assert time.monotonic() < end, log.read_text()[-3000:]
            time.sleep(0.2)
        asked = ["bash", "-euc", ask.replace("localhost:8000", f"127.0.0.1:{port}")]
        answer = subprocess.run(asked, capture_output=True, text=True, timeout=120, check=True).stdout
        process.send_signal(signal.SIGINT)
        assert process.wait(timeout=90) == 0, log.read_text()[-3000:]
        return json.loads(answer)
    finally:
        process.kill()

"""`make setup`: which Python, which build of torch, pip or uv. A stand-in for Python and for uv writes down what it is asked to install."""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import tomllib
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
STAND_IN = """#!/bin/sh
echo "$(basename "$0") $*" >> "$LOG"
for last; do :; done
case "$*" in
  -c*) exit "$UNFIT" ;;
  "-m venv "* | "venv "*) mkdir -p "$last/bin" && cp "$0" "$last/bin/python" ;;
  *--dry-run*) exit "$OF_DRY_RUN" ;;
esac
"""


@pytest.fixture
def make(tmp_path):
    """A function: (`make setup`'s exit code, what it printed, what pip or uv was to install)."""
    if not shutil.which("make"):
        pytest.skip("there is no make here")
    for name in ("Makefile", "pyproject.toml", "constraints.txt"):
        shutil.copy(ROOT / name, tmp_path)
    commands, log = tmp_path / "commands", tmp_path / "log"
    commands.mkdir()

    def run(*arguments: str, gpu: bool = False, cpu_build: bool = True, fits: bool = True) -> tuple[int, str, list[str]]:
        for name, text in {"python3.12": STAND_IN, "uv": STAND_IN, "nvidia-smi": f"#!/bin/sh\nexit {int(not gpu)}\n"}.items():
            (commands / name).write_text(text)
            (commands / name).chmod(0o755)
        log.write_text("")
        here = {
            "PATH": f"{commands}:{os.environ['PATH']}",
            "LOG": str(log),
            "OF_DRY_RUN": str(int(not cpu_build)),
            "UNFIT": str(int(not fits)),
        }
        command = ["make", "setup", "PYTHON=python3.12", "UV=", "EXTRA=cpu", "PIP_ARGS=", *arguments]
        done = subprocess.run(command, cwd=tmp_path, env=os.environ | here, capture_output=True, text=True, timeout=60)
        asked = [line for line in log.read_text().splitlines() if " install " in line and "--dry-run" not in line]
        return done.returncode, done.stdout, asked

    return run


PIN = next(line for line in (ROOT / "constraints.txt").read_text().splitlines() if line.startswith("torch=="))
PIP = "python -m pip install --quiet --constraint constraints.txt"
UV = "uv pip install --compile-bytecode --index-strategy unsafe-best-match --python .venv/bin/python --quiet --constraint constraints.txt"


def words(lines):
    return [" ".join(line.split()) for line in lines]


@pytest.mark.parametrize(("uv", "install"), [("", PIP), ("1", UV)], ids=["pip", "uv"])
def test_without_a_gpu_the_cpu_build_of_torch_is_asked_for_where_an_index_has_it(make, uv, install):
    code, said, asked = make(f"UV={uv}")
    assert code == 0
    assert words(asked) == [f"{install} {PIN}+cpu", f"{install} --editable .[cpu,dev]"]
    assert said.splitlines() == ["setting up .venv, once (a few minutes)"]
    assert make(f"UV={uv}")[2] == []  # once


@pytest.mark.parametrize(("uv", "install"), [("", PIP), ("1", UV)], ids=["pip", "uv"])
def test_without_a_gpu_and_such_an_index_one_line_says_what_is_downloaded_and_how_to_save_it(make, uv, install):
    code, said, asked = make(f"UV={uv}", cpu_build=False)
    assert code == 0
    assert words(asked)[0] == f"{install} {PIN}"
    _, line = said.splitlines()
    assert "downloading the one with CUDA, several GB" in line
    assert 'PIP_ARGS="--extra-index-url ..."' in line


@pytest.mark.parametrize(("arguments", "gpu"), [((), True), (("EXTRA=gpu",), False)])
def test_with_a_gpu_or_for_one_torch_comes_with_cuda_and_without_a_word(make, arguments, gpu):
    code, said, asked = make(*arguments, gpu=gpu)
    assert code == 0
    assert words(asked)[0] == f"{PIP} {PIN}"
    assert said.splitlines() == ["setting up .venv, once (a few minutes)"]


def test_pip_args_go_to_every_installation_of_pip_and_of_uv(make, tmp_path):
    for uv in ("", "1"):
        shutil.rmtree(tmp_path / ".venv", ignore_errors=True)
        _, _, asked = make(f"UV={uv}", "PIP_ARGS=--extra-index-url file:///wheels")
        assert len(asked) == 2
        assert all("--extra-index-url file:///wheels" in line for line in asked)


def test_a_python_that_does_not_fit_is_refused_and_vllm_needs_an_older_one(make):
    for extra, newest in (("cpu", "3.13"), ("gpu,vllm", "3.12")):
        code, said, asked = make(f"EXTRA={extra}", fits=False)
        assert (code, asked) == (2, [])
        assert said.startswith(f"Python 3.11 to {newest} is needed: ")


def test_every_place_names_the_same_pythons():
    required = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]["requires-python"]
    resolved = re.search(r"PYTHONS.* = (\(.*?\)),", (ROOT / ".ci/resolve.py").read_text())[1]
    first, last = re.fullmatch(r">=3\.(\d+),<3\.(\d+)", required).groups()
    known = range(int(first), int(last))
    assert re.findall(r"3\.(\d+)", resolved) == [str(minor) for minor in known]
    assert f"{known[-1] - 1},{known[-1]})" in re.search(r"NEWEST := (.*)", (ROOT / "Makefile").read_text())[1]
    for page in ("README.md", "docs/01_first_run.md", "CONTRIBUTING.md", ".ci/run"):
        assert f"Python 3.{known[0]} to 3.{known[-1]}" in (ROOT / page).read_text(encoding="utf-8"), page

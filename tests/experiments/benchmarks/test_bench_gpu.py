"""`bench gpu quick=true` runs every step of `bench gpu` with tiny shapes, so that the first minute on a GPU is not spent on a typo."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
import torch

from experiments.benchmarks import gpu
from experiments.benchmarks.bench_results import BenchResult
from experiments.benchmarks.gpu_device import TINY, Bench
from experiments.config import RunConfigError
from learner.objective.sibling_packing import Row

ROOT = Path(__file__).parents[3]
ABSENT = ("ray", "deepspeed", "faiss", "gymnasium", "mlflow", "bm25s", "nltk", "gguf")
WITHOUT = f"""
import sys
from importlib.machinery import PathFinder

class Others(PathFinder):
    @classmethod
    def find_spec(cls, name, path=None, target=None):
        return None if name.partition(".")[0] in {ABSENT} else super().find_spec(name, path, target)

sys.meta_path = [Others if finder is PathFinder else finder for finder in sys.meta_path]
from experiments.cli import app
sys.argv = ["r1-router", "bench", "gpu", "quick=true", "minutes=14"]
app()
"""
BENCH = Bench(torch.device("cpu"), TINY, 1e9, 1e9)


def rehearsed(folder: Path, *command: str) -> list[BenchResult]:
    surroundings = os.environ | {"PYTHONPATH": str(ROOT)}
    done = subprocess.run([sys.executable, *command], cwd=folder, env=surroundings, capture_output=True, text=True, timeout=900)
    assert done.returncode == 0, done.stdout + done.stderr
    assert "failed" not in done.stdout, done.stdout + done.stderr
    return [BenchResult(**row) for row in json.loads((folder / "bench/gpu_quick.json").read_text())["rows"]]


def names(rows: list[BenchResult], value: bool) -> list[str]:
    return [row.name for row in rows if (row.value is not None) == value]


@pytest.mark.timeout(900)
def test_every_step_is_rehearsed_on_a_cpu_without_ray_deepspeed_and_faiss_and_is_not_measured_again(tmp_path, monkeypatch):
    rows = rehearsed(tmp_path, "-c", WITHOUT)
    assert names(rows, False) == [
        f"run: not measured, {package} is not installed" for package in ("ray", "gymnasium", "deepspeed", "faiss")
    ]
    for step in set(gpu.steps(TINY)) - {"run"}:
        assert any(name.startswith(f"{step}: ") for name in names(rows, True)), step
    exact = [row for row in rows if row.name.startswith(("parity, float32: ", "flex attention, float32: "))]
    assert all(row.holds for row in exact)
    compared = [row.name for row in exact if row.name.endswith("pictures, after an update (at most)")]
    assert [name.split("of the ")[1].split()[0] for name in compared] == ["engine", "learner"]
    again = []
    monkeypatch.setattr(gpu, "measured", lambda step, *rest: again.append(step) or [])
    repeated = list(gpu.gpu_rows(quick=True, known=rows))
    assert again == [gpu.run_rows]
    assert repeated[2:] == rows[2 : len(repeated)]


@pytest.mark.slow
@pytest.mark.timeout(900)
def test_a_run_is_rehearsed_too(tmp_path):
    rows = {row.name: row for row in gpu.run_rows(BENCH)}
    assert rows["log-probs of sampler and learner, mean difference (at most)"].holds
    assert rows["sampled"].value > 0


def endless(bench: Bench) -> Iterator[BenchResult]:
    yield BenchResult.of("begun", 1.0, "")
    while True:
        time.sleep(0.01)


def failing(bench: Bench) -> Iterator[BenchResult]:
    yield BenchResult.of("half", 1.0, "")
    raise RuntimeError("CUDA out of memory.\nTried to allocate")


def test_a_step_that_fails_or_takes_too_long_is_named_and_does_not_end_the_others(monkeypatch):
    half, row = gpu.measured(failing, BENCH, time.monotonic() + 60)
    assert half.name == "half"
    assert (row.name, row.holds) == ("failed, RuntimeError: CUDA out of memory. Tried to allocate", False)
    began = time.monotonic()
    *_, row = gpu.measured(endless, BENCH, began + 0.3)
    assert (row.name, row.holds) == ("not finished when the time was up", None)
    assert time.monotonic() - began < 30
    monkeypatch.setattr(gpu, "steps", lambda sizes: {"endless": endless, "failing": failing})
    found = [row.name for row in gpu.gpu_rows(quick=True, minutes=0.005)][2:]
    assert found == ["endless: begun", "endless: not finished when the time was up", "failing: not begun, the time was up"]


@pytest.mark.skipif(torch.cuda.is_available(), reason="there is a GPU")
def test_without_a_gpu_only_the_rehearsal_begins():
    with pytest.raises(RunConfigError, match="quick=true rehearses"):
        next(gpu.gpu_rows(quick=False))


def test_weights_of_another_process_are_its_own():
    sent, held = {"a": torch.ones(3)}, {}
    assert gpu.take_weights(sent, BENCH.device, held) == 3 * (0x3F + 0x80)  # 1.0 is 3F 80 00 00
    sent["a"].add_(1)
    assert held["a"].tolist() == [1, 1, 1]
    assert gpu.take_weights(sent, BENCH.device, held) == 3 * 0x40  # 2.0 is 40 00 00 00
    assert held["a"].tolist() == [2, 2, 2]


@pytest.mark.parametrize(("siblings", "count"), [(8, 2), (1, 3)])
def test_random_rows_fill_a_micro_batch(siblings, count):
    rows = gpu.random_rows(1700, siblings, 512, 32)
    assert [(len(row.prompt_ids), len(row.responses), row.length) for row in rows] == [(512, siblings, 512 + siblings * 31)] * count
    assert isinstance(rows[0], Row)
    assert not np.array_equal(rows[0].prompt_ids, rows[1].prompt_ids)

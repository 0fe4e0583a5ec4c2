"""The house keeps its shape: who may import whom, how long a file may be, what it may be called."""

from __future__ import annotations

import ast
import inspect
import re
import subprocess
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
ROOMS = ("retrieval_actors", "rollout", "rewards", "learner", "experiments")
"""From the ground up: a room imports itself and the rooms below it."""
FILES = sorted(path for room in ROOMS for path in (ROOT / room).rglob("*.py"))
VAGUE_NAMES = {"utils", "util", "helpers", "helper", "common", "manager", "misc", "base_utils", "tools"}
PURE = [
    "rollout/episode.py",
    "rollout/gold_belief.py",
    *sorted(str(path.relative_to(ROOT)) for path in (ROOT / "rollout/methods").glob("*.py")),
    "rollout/needs.py",
    "rollout/prompts.py",
    *(f"rewards/{name}.py" for name in ("metrics", "paper_evaluator", "squad_metrics", "step_rewards", "scoring", "composition", "config")),
    *sorted(str(path.relative_to(ROOT)) for path in (ROOT / "rewards/terms").glob("*.py")),
    "learner/advantages.py",
    "learner/aggregation.py",
    "learner/collapse.py",
    "learner/comparison.py",
    "learner/losses.py",
    "learner/micro_batches.py",
    "learner/mini_batches.py",
    "learner/objective.py",
    "learner/returns.py",
    "experiments/measures.py",
    "experiments/significance.py",
]


def imports(path: Path) -> set[str]:
    """Top-level names of everything that the file imports, wherever in the file."""
    found = set()
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            found |= {alias.name.split(".")[0] for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{path}:{node.lineno}: relative import; write the whole name"
            found.add((node.module or "").split(".")[0])
    return found


def named(path: Path) -> str:
    return str(path.relative_to(ROOT))


@pytest.mark.parametrize("path", FILES, ids=named)
def test_a_room_imports_only_rooms_below_it(path: Path):
    own = ROOMS.index(path.relative_to(ROOT).parts[0])
    against = imports(path) & set(ROOMS[own + 1 :])
    assert not against, f"{named(path)} imports {', '.join(sorted(against))}, which lies above it"


def test_the_knowledge_bases_import_nothing_of_ours():
    for path in (ROOT / "retrieval_actors").rglob("*.py"):
        assert not imports(path) & set(ROOMS[1:]), named(path)


@pytest.mark.parametrize("file", PURE)
def test_what_is_pure_knows_nothing_of_ray(file: str):
    assert not imports(ROOT / file) & {"ray", "deepspeed", "mlflow"}


@pytest.mark.parametrize("path", FILES, ids=named)
def test_a_file_has_one_job_and_a_name_for_it(path: Path):
    assert path.stem not in VAGUE_NAMES
    assert len(path.read_text(encoding="utf-8").splitlines()) <= 300, f"{named(path)}: one room, or two?"


@pytest.mark.parametrize("path", FILES, ids=named)
def test_every_file_says_what_it_is_for(path: Path):
    if path.name != "__init__.py":
        assert ast.get_docstring(ast.parse(path.read_text(encoding="utf-8"))), f"{named(path)} has no docstring"


def test_the_main_loops_fit_a_page():
    from experiments.train import train, whole_run
    from learner.step_grpo import StepGRPO

    for function in (train, whole_run, StepGRPO.training_step):
        lines = inspect.getsource(function).splitlines()
        assert len(lines) <= 60, f"{function.__qualname__} has {len(lines)} lines"
    assert len((ROOT / "experiments/train.py").read_text().splitlines()) <= 180


WAITS = [path for path in FILES if "benchmarks" not in path.parts]


@pytest.mark.parametrize("path", WAITS, ids=named)
def test_nothing_waits_for_ray_without_a_deadline(path: Path):
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Call) and ast.unparse(node.func) in ("ray.get", "ray.wait"):
            assert "timeout" in {keyword.arg for keyword in node.keywords}, f"{named(path)}:{node.lineno}: {ast.unparse(node)}"


def test_nothing_names_a_machine_or_its_folders():
    listed = subprocess.run(["git", "ls-files", "-co", "--exclude-standard"], cwd=ROOT, capture_output=True, text=True, check=True).stdout
    # Written so that this file does not match itself.
    pattern = re.compile(
        "|".join(["/" + "work/", "/" + "root/", "/" + "home/[a-z]", "/" + "Users/[a-z]", "py" + r"pi\.org", "python" + "hosted"])
    )
    for name in listed.splitlines():
        path = ROOT / name
        if path.suffix in {".py", ".md", ".yaml", ".toml", ".txt", ".json", ".cfg", ""} and path.is_file() and path.stat().st_size < 2**20:
            for number, line in enumerate(path.read_text(encoding="utf-8", errors="replace").splitlines(), 1):
                assert not pattern.search(line), f"{name}:{number}: {line.strip()[:100]}"


def test_the_readme_is_at_most_two_screens():
    assert len((ROOT / "README.md").read_text(encoding="utf-8").splitlines()) <= 100


def test_every_package_is_pinned():
    pins = [line for line in (ROOT / "constraints.txt").read_text().splitlines() if line and not line.startswith("#")]
    assert len(pins) > 100
    assert all(re.fullmatch(r"[A-Za-z0-9_.\-]+==[^\s+]+", pin) for pin in pins)
    names = {re.sub(r"[-_.]+", "-", pin.split("==")[0]).lower() for pin in pins}
    assert {"torch", "ray", "transformers", "deepspeed", "faiss-cpu", "mlflow", "omegaconf", "pytest", "ruff", "mypy"} <= names

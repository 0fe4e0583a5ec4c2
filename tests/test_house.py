"""The house keeps its shape: who may import whom, how long a file may be, what it may be called."""

from __future__ import annotations

import ast
import graphlib
import inspect
import re
import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).parents[1]
ROOMS = ("retrieval_actors", "rollout", "rewards", "learner", "experiments")
"""From the bottom up: a room imports itself and the rooms below it."""
FOLDERS = (
    "config",
    "command_line",
    "published",
    "worlds",
    "datasets",
    "tracking",
    "cluster",
    "evaluation",
    "report",
    "serving",
    "run",
    "studies",
    "benchmarks",
)
"""Inside `experiments`, from the bottom up. The files of the commands lie above all of them."""
FILES = sorted(path for room in ROOMS for path in (ROOT / room).rglob("*.py"))
TREES = {path: ast.parse(path.read_text(encoding="utf-8")) for path in FILES}
VAGUE_NAMES = {"utils", "util", "helpers", "helper", "common", "manager", "misc", "base_utils", "tools"}
PURE = (
    "rollout/episode.py",
    "rollout/methods.py",
    "rollout/needs.py",
    "rollout/prompts.py",
    "rollout/turn_parser.py",
    "rewards",
    "learner/objective",
    "learner/collapse.py",
)
"""Files and folders that know nothing of Ray, DeepSpeed and MLflow, but for the reward actor."""


def named(path: Path) -> str:
    return str(path.relative_to(ROOT))


def module(path: Path) -> str:
    return named(path).removesuffix(".py").removesuffix("/__init__").replace("/", ".")


MODULES = {module(path): path for path in FILES}


def imported_names(path: Path) -> set[str]:
    """Every module that the file imports, wherever in the file."""
    found = set()
    for node in ast.walk(TREES[path]):
        if isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{named(path)}:{node.lineno}: relative import; write the whole name"
            inside = {f"{node.module}.{alias.name}" for alias in node.names} & MODULES.keys()
            found |= inside or {node.module or ""}
    return found


IMPORTS = {path: imported_names(path) for path in FILES}


def place(name: str) -> tuple[int, int]:
    """How high a module of ours stands: its room, and inside `experiments` its folder."""
    room, _, rest = name.partition(".")
    folder = rest.partition(".")[0]
    return ROOMS.index(room), FOLDERS.index(folder) if room == "experiments" and folder in FOLDERS else len(FOLDERS)


def test_imports_run_downwards():
    against = [
        f"{named(path)} imports {name}, which lies above it"
        for path in FILES
        for name in sorted(IMPORTS[path] & MODULES.keys())
        if place(name) > place(module(path)) or (module(path).startswith("retrieval_actors") and not name.startswith("retrieval_actors"))
    ]
    assert not against, "\n".join(against)


def test_imports_run_in_no_circle():
    graph = {module(path): IMPORTS[path] & MODULES.keys() - {module(path)} for path in FILES}
    try:
        tuple(graphlib.TopologicalSorter(graph).static_order())
    except graphlib.CycleError as error:
        raise AssertionError(" -> ".join(error.args[1])) from None


def test_what_is_pure_knows_nothing_of_ray():
    for path in FILES:
        if named(path).startswith(PURE) and path.name != "actor.py":
            assert not {name.partition(".")[0] for name in IMPORTS[path]} & {"ray", "deepspeed", "mlflow"}, named(path)


def test_a_file_has_one_job_a_name_for_it_and_says_it():
    for path in FILES:
        assert path.stem not in VAGUE_NAMES, named(path)
        assert len(path.read_text(encoding="utf-8").splitlines()) <= 300, f"{named(path)}: one room, or two?"
        assert path.name == "__init__.py" or ast.get_docstring(TREES[path]), f"{named(path)} has no docstring"


def test_the_main_loops_fit_a_page():
    from experiments.run.training_loop import train
    from experiments.run.whole_run import whole_run
    from learner.step_grpo import StepGRPO

    for function in (train, whole_run, StepGRPO.training_step):
        lines = inspect.getsource(function).splitlines()
        assert len(lines) <= 60, f"{function.__qualname__} has {len(lines)} lines"
    assert len((ROOT / "experiments/train.py").read_text().splitlines()) <= 180


def test_nothing_waits_for_ray_without_a_deadline():
    for path in FILES:
        for node in ast.walk(TREES[path]) if "benchmarks" not in path.parts else ():
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


def test_every_package_is_pinned():
    pins = [line for line in (ROOT / "constraints.txt").read_text().splitlines() if line and not line.startswith("#")]
    assert len(pins) > 100
    assert all(re.fullmatch(r"[A-Za-z0-9_.\-]+==[^\s+]+", pin) for pin in pins)
    names = {re.sub(r"[-_.]+", "-", pin.split("==")[0]).lower() for pin in pins}
    assert {"torch", "ray", "transformers", "deepspeed", "faiss-cpu", "mlflow", "pydantic", "pytest", "ruff", "mypy"} <= names


def test_processes_import_nothing_heavy_that_they_do_not_use():
    """In this order, in one process: what a search log and a caller of searches import, then a reward actor, then a shard actor."""
    heavy = ("torch", "transformers", "faiss", "pyarrow", "ray.rllib", "ray.data", "pandas", "scipy", "mlflow", "deepspeed")
    rooms = (
        "retrieval_actors.actors.search_log",
        "retrieval_actors.sharded_search",
        "rewards.actor",
        "retrieval_actors.actors.search_actors",
    )
    code = f"import importlib, sys\nfor name in {rooms}: importlib.import_module(name); print([it for it in {heavy} if it in sys.modules])"
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=True, timeout=200)
    assert done.stdout.splitlines() == ["[]", "[]", "[]", "['faiss', 'pyarrow']"]

"""The command `r1-router`: help without imports, every setting with its sentence, the nearest command, completion."""

from __future__ import annotations

import ast
import dataclasses
import runpy
import subprocess
import sys
import typing
from collections.abc import Iterator
from pathlib import Path

import pytest
from typer.testing import CliRunner

from experiments.cli import app, completions
from experiments.command_line.commands import COMMANDS, settings_of
from experiments.config import TrainConfig
from experiments.serving.settings import ServeSettings

ROOT = Path(__file__).parents[2]


def shown(*arguments: str) -> str:
    result = CliRunner().invoke(app, list(arguments))
    assert result.exit_code == 0, result.output
    return result.output


def keys_of(schema: type, prefix: str = "") -> Iterator[str]:
    """Dotted keys of all settings in a tree of dataclasses."""
    for name, kind in typing.get_type_hints(schema).items():
        yield from keys_of(kind, f"{prefix}{name}.") if dataclasses.is_dataclass(kind) else [prefix + name]


def test_help_of_every_command_shows_an_example_and_its_settings():
    for name in COMMANDS:
        found = shown(*name.split(), "--help")
        assert found.startswith(f"Usage: r1-router {name}")
        assert all(setting.key in found for setting in settings_of(name)), name


def test_help_lists_every_setting_of_a_run_with_its_default():
    found = {setting.key: setting for setting in settings_of("train")}
    assert found.keys() == set(keys_of(TrainConfig))
    assert (found["rollout.group_size"].type, found["rollout.group_size"].default) == ("int > 0", "8")
    assert (found["learner.zero_stage"].type, found["learner.bucket_bytes"].default) == ("int ≥ 0, ≤ 3", str(256 * 2**20))
    assert found["train.placement"].type == "apart | colocated"
    assert found["evaluation.baselines"].default == "[random, all, oracle]"
    assert found["learner.collapse.window"].sentence


def test_settings_of_a_section_are_the_fields_of_its_dataclass():
    found = [setting.key for setting in settings_of("serve") if setting.key.startswith("serve.")]
    assert found == [f"serve.{field.name}" for field in dataclasses.fields(ServeSettings)]


@pytest.mark.parametrize("arguments", [["--help"], ["train", "--help"], ["kb", "--help"]])
def test_help_imports_no_heavy_library(arguments: list[str]):
    code = f"import sys; sys.argv[1:] = {arguments}\nfrom experiments.cli import app\ntry:\n    app()\nexcept SystemExit:\n    pass\n"
    code += "print({'torch', 'ray', 'transformers', 'mlflow', 'numpy'} & set(sys.modules))"
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, timeout=60, check=True)
    assert done.stdout.endswith("set()\n")


def test_an_unknown_command_offers_the_nearest():
    result = CliRunner().invoke(app, ["trian"])
    assert result.exit_code == 2
    assert "train" in result.output


def test_keys_and_configurations_are_completed():
    assert "train.iterations=" in completions("train")("train.it")
    assert "laptop.yaml" in completions("train")("lap")
    assert "serve.port=" in completions("serve")("serve.p")


@pytest.mark.parametrize("shell", ["bash", "zsh", "fish"])
def test_there_is_a_completion_script_for_each_shell(shell: str):
    code = "from experiments.cli import app; app(prog_name='r1-router')"
    environment = {"_R1_ROUTER_COMPLETE": f"source_{shell}", "PATH": "/usr/bin:/bin"}
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, env=environment, capture_output=True, text=True, timeout=60)
    assert "_R1_ROUTER_COMPLETE" in done.stdout


def test_every_command_has_a_module_with_a_main():
    for name, entry in COMMANDS.items():
        tree = ast.parse((ROOT / Path(*entry.module.split("."))).with_suffix(".py").read_text(encoding="utf-8"))
        assert any(isinstance(node, ast.FunctionDef) and node.name == "main" for node in tree.body), name


@pytest.mark.parametrize("file", sorted(path.stem for path in (ROOT / "experiments").glob("*.py") if "@command" in path.read_text()))
def test_every_command_file_runs_with_python_m(file: str, monkeypatch, capsys):
    monkeypatch.setattr(sys, "argv", [file, "build", "--help"] if file == "kb" else [file, "--help"])
    with pytest.raises(SystemExit) as ended:
        runpy.run_module(f"experiments.{file}", run_name="__main__", alter_sys=True)
    assert ended.value.code == 0
    assert capsys.readouterr().out.startswith(f"Usage: r1-router {file.replace('_', '-')}")


@pytest.mark.parametrize(
    ("library", "modules"),
    {
        "torch": "experiments.config experiments.kb experiments.compare experiments.report.report_page experiments.serve rewards.actor",
        "transformers": "experiments.fetch experiments.train experiments.study experiments.evaluate learner.step_grpo",
    }.items(),
)
def test_what_loads_no_policy_starts_without_the_libraries_that_would(library, modules):
    """They take seconds to import, in every command and in every process of a run."""
    code = f"import sys, {modules.replace(' ', ', ')}; sys.exit({library!r} in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], cwd=ROOT, timeout=120).returncode == 0

"""`r1-router evaluate POLICY_OR_RUN [CONFIG.yaml] [method=...] [dataset=...] [key=value ...]`: measure a policy on held-out questions.

POLICY_OR_RUN is a policy folder, or a run folder, whose configuration and best policy are used. `method=` (short for `evaluation.methods`) takes
methods of rollout/methods, separated by commas, or `every`; `dataset=` is short for `data.name`, and takes several, for a table with their average.
Each method answers every question; answers are stored as they come, so a killed evaluation resumes where it stopped. results.md and results.tex in
its folder hold the tables, to paste into a paper.

    r1-router evaluate runs/laptop method=policy,all,direct dataset=2wiki
"""

import json
import zlib
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

from experiments.command_line.entry_point import command
from experiments.command_line.terminal import Console
from experiments.config import RunConfigError, TrainConfig, load_policy_or_run
from experiments.config.policy_files import check_policy_files
from experiments.config.reading import is_setting
from experiments.datasets import Dataset
from experiments.evaluation.evaluate_methods import MeasuredMethod, evaluate, prepare
from experiments.evaluation.result_tables import method_tables, print_methods
from experiments.report.html_sections import risk_coverage
from experiments.report.paper_tables import averages, data_set_tables, write_tables
from experiments.tracking.run_folder import RunFolder
from rollout.records import Question


def read_arguments(arguments: list[str], command: str = "evaluate") -> tuple[TrainConfig, str]:
    if not arguments or is_setting(arguments[0]):
        raise RunConfigError(f"which policy? r1-router {command} POLICY_OR_RUN [CONFIG.yaml] [key=value ...]")
    return load_policy_or_run(arguments[0], arguments[1:])


def read_test(arguments: list[str], command: str) -> tuple[TrainConfig, str, Dataset, MeasuredMethod]:
    """(configuration, policy, its data set with those held-out questions that have an answer, the router as a method), checked."""
    config, policy = read_arguments(expand_arguments(arguments), command)
    check_policy_files(policy, config.rollout)
    dataset, (method, *_) = prepare(replace(config, evaluation=replace(config.evaluation, methods=["policy"])))
    questions = [item for item in dataset.heldout if isinstance(item, Question) and item.answers]
    if not questions:
        raise RunConfigError(f"data.name={config.data.name} has no held-out question with an answer; r1-router {command} needs some")
    return config, policy, replace(dataset, heldout=questions), method


def each_data_set(arguments: Sequence[str]) -> list[list[str]]:
    """The arguments once for each name in `dataset=a,b`."""
    names = next((argument.removeprefix("dataset=").split(",") for argument in arguments if argument.startswith("dataset=")), [""])
    return [[f"dataset={name}" if argument.startswith("dataset=") else argument for argument in arguments] for name in dict.fromkeys(names)]


def expand_arguments(arguments: Sequence[str]) -> list[str]:
    """`method=a,b` and `dataset=c` as the settings they are short for. Another data set starts without the run's paths and knowledge bases."""
    full: list[str] = []
    for argument in arguments:
        key, _, value = argument.partition("=")
        if key == "method":
            full.append(f"evaluation.methods={json.dumps(value.split(','), ensure_ascii=False)}")
        elif key == "dataset":
            full[1:1] = [f"data.name={value}", "data.path=", "data.image_folder=", "data.heldout_path=", "retrieval.folders={}"]
        else:
            full.append(argument)
    return full


@command
def main(arguments: list[str]) -> int:
    console, asked, found = Console(), [], {}
    for part in each_data_set(arguments):  # all are checked before the first starts
        config, policy = read_arguments(expand_arguments(part))
        check_policy_files(policy, config.rollout)
        asked.append((config, policy, *prepare(config)))
    for config, policy, dataset, methods in asked:
        folder, comparison = found[config.data.name] = evaluate(config, policy, dataset, methods, console)
        title = f"{policy}: {len(dataset.heldout)} held-out questions of {config.data.name}, 95 % intervals"
        print_methods(console, comparison, title)
        files = write_tables(folder, method_tables(comparison, title))
        if "confidence" in comparison:
            (folder / "risk_coverage.svg").write_text(risk_coverage({"the router": comparison["confidence"]}), encoding="utf-8")
        say_written(console, files, f"question by question: {folder}")
    if len(found) > 1:
        comparisons = {name: comparison for name, (_, comparison) in found.items()}
        tables, folders = data_set_tables(comparisons), {name: str(folder) for name, (folder, _) in found.items()}
        together = f"{Path(policy).resolve().name}-{'+'.join(found)}-{zlib.crc32(repr(folders).encode()):08x}"
        folder = Path(config.evaluation.folder) / together
        folder.mkdir(parents=True, exist_ok=True)
        RunFolder(folder).write_summary({"policy": policy, "evaluations": folders, "average": averages(comparisons)})
        console.print(*tables)
        say_written(console, write_tables(folder, tables))
    return 0


def say_written(console: Console, files: Sequence[Path], also: str = "") -> None:
    console.print(f"to paste: {', '.join(map(str, files))}{f'; {also}' if also else ''}", soft_wrap=True, highlight=False)

"""`r1-router evaluate POLICY_OR_RUN [CONFIG.yaml] [method=...] [dataset=...] [key=value ...]`: measure a policy on held-out questions.

POLICY_OR_RUN is a policy folder, or a run folder, whose configuration and best policy are used. `method=` (short for `evaluation.methods`) takes
methods of rollout/methods, separated by commas, or `every`; `dataset=` is short for `data.name`. Each method answers every question; answers are
stored as they come, so a killed evaluation resumes where it stopped.

    r1-router evaluate runs/laptop method=policy,all,direct dataset=2wiki
"""

from __future__ import annotations

import json
from collections.abc import Sequence

from experiments.command_line.entry_point import command
from experiments.command_line.terminal import Console
from experiments.config import RunConfigError, TrainConfig, load_policy_or_run
from experiments.config.policy_files import check_policy_files
from experiments.config.reading import is_setting
from experiments.evaluation.evaluate_methods import evaluate


def read_arguments(arguments: list[str]) -> tuple[TrainConfig, str]:
    if not arguments or is_setting(arguments[0]):
        raise RunConfigError("which policy? r1-router evaluate POLICY_OR_RUN [CONFIG.yaml] [key=value ...]")
    return load_policy_or_run(arguments[0], arguments[1:])


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
    config, policy = read_arguments(expand_arguments(arguments))
    check_policy_files(policy, config.rollout)
    evaluate(config, policy, Console())
    return 0

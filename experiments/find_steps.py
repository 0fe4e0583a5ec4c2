"""`r1-router find-steps RUN_OR_CONFIG.yaml [key=value ...]`: make gold steps from questions and answers.

For each training question the policy (`train.policy`) is sampled `data.gold_samples` times, and searches everywhere; what a right answer
cannot do without becomes the gold steps. They are kept: `r1-router train ... data.gold=found` with the same settings uses them, and makes those
that are missing. A stopped command goes on where it was. RUN is a run folder: its configuration is used.

    r1-router find-steps laptop.yaml data.gold_samples=8
"""

from pathlib import Path

from experiments.cluster.ray_session import check_start
from experiments.command_line.entry_point import command
from experiments.command_line.terminal import Console
from experiments.config import find_policy, load_config
from experiments.config.policy_files import check_policy_files
from experiments.config.reading import is_setting
from experiments.datasets import training_dataset
from experiments.run.found_steps_folder import find_steps


@command
def main(arguments: list[str]) -> int:
    run = [str(Path(a) / "config.yaml") if not is_setting(a) and (Path(a) / "config.yaml").is_file() else a for a in arguments]
    config = load_config([*run, "data.gold=found"])
    check_start(config)
    policy = find_policy(config.train.policy)
    check_policy_files(policy, config.rollout)
    find_steps(config, policy, training_dataset(config), Console())
    return 0

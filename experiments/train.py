"""`r1-router train [CONFIG.yaml] [key=value ...] [--verbose]`: train a policy: one run, from questions to a report.

Measure the start -> (roll out, score, learn, broadcast; now and then validate and save) -> measure the best -> summary, report.
`--verbose` shows all settings, the memory of the knowledge bases, and what every process requests.

    r1-router train laptop.yaml train.iterations=10
"""

from pathlib import Path

from experiments.cluster.ray_session import check_start
from experiments.command_line.entry_point import WRONG_INPUT, command
from experiments.command_line.terminal import Console
from experiments.config import RunConfigError, TrainConfig, find_policy, load_config, resolved_yaml
from experiments.config.policy_files import check_policy_files
from experiments.datasets import Dataset, training_dataset
from experiments.run.dump_and_replay import dumped_iterations, learn_only, roll_out_only
from experiments.run.opening import opening_lines
from experiments.run.stop_signal import Stop
from experiments.run.whole_run import whole_run

VERBOSE = "--verbose"


def check(arguments: list[str]) -> tuple[TrainConfig, Dataset | None, str]:
    """(configuration, data set, policy), checked before Ray starts; no data set with `train.replay_rollouts`. Raises RunConfigError."""
    config = load_config(arguments)
    check_start(config)
    policy = find_policy(config.train.policy)
    check_policy_files(policy, config.rollout)
    if config.train.resume not in ("none", "auto") and not Path(config.train.resume).is_dir():
        raise RunConfigError(f"train.resume is {config.train.resume!r}; expected none, auto, or a checkpoint folder of this run")
    if config.train.replay_rollouts:
        dumped_iterations(config.train.replay_rollouts)
        return config, None, policy
    if config.train.dump_rollouts and config.train.resume == "none" and any(Path(config.train.dump_rollouts).glob("iteration-*")):
        raise RunConfigError(f"train.dump_rollouts is {config.train.dump_rollouts!r}, which holds rollouts already; expected a new folder")
    return config, training_dataset(config), policy


@command
def main(arguments: list[str]) -> int:
    console, verbose = Console(), VERBOSE in arguments
    arguments = [argument for argument in arguments if argument != VERBOSE]
    if (config := load_config(arguments)).train.dry_run:
        from experiments.cluster.dry_run import dry_run  # brings the learner's code, for seconds

        console.print(resolved_yaml(config), style="dim")
        return 0 if dry_run(config, console) else WRONG_INPUT
    config, dataset, policy = check(arguments)
    if verbose or dataset is None:
        console.print(resolved_yaml(config), style="dim")
    if dataset is None:
        return learn_only(config, policy, console)
    for line in opening_lines(config, dataset, policy):
        console.print(line, soft_wrap=True)
    if config.train.rollout_only:
        return roll_out_only(config, dataset, policy, console)
    return whole_run(config, dataset, policy, console, Stop(), verbose=verbose)

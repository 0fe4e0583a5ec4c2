"""Reads the configuration of a run: YAML files that hold only what differs from the defaults (and may name another as their `base:`), and dotted
settings (`laptop.yaml train.iterations=10`). The settings are in `sections.py` and in the `config.py` of each room. Unknown keys fail."""

import dataclasses
from dataclasses import replace
from pathlib import Path
from typing import Any

import yaml

from experiments.config import reading
from experiments.config.reading import RunConfigError, is_setting, wrong_value
from experiments.config.rules import check
from experiments.config.sections import ClusterConfig, DataConfig, EvaluationConfig, LoopConfig, TrackingConfig, TrainConfig
from rewards.terms import unjudged_without_gold

__all__ = ["ClusterConfig", "DataConfig", "EvaluationConfig", "LoopConfig", "RunConfigError", "TrackingConfig", "TrainConfig"]
REPOSITORY = Path(__file__).parents[2]
CONFIGS = REPOSITORY / "experiments/configs"


def load_config(arguments: list[str]) -> TrainConfig:
    """The configuration of `[CONFIG.yaml] [key=value ...]`, checked; `key={}` removes what files put there. Raises RunConfigError."""
    settings = [argument for argument in arguments if is_setting(argument)]
    files = [argument for argument in arguments if argument not in settings]
    if len(files) > 1:
        raise RunConfigError(f"{files[1]!r}: expected one CONFIG.yaml, then key=value")
    tree = dataclasses.asdict(TrainConfig())
    for source, layer in [*(_file_layers(files[0]) if files else []), ("command line", reading.from_arguments(TrainConfig, settings))]:
        try:
            reading.check_keys(layer, TrainConfig)
            reading.typed(TrainConfig, layer, partial=True)
        except RunConfigError as error:
            raise RunConfigError(f"{source}: {error}") from None
        if source == "command line":
            for key in (argument.removesuffix("={}") for argument in settings if argument.endswith("={}")):
                tree = _without(tree, key.split("."))
        tree = reading.merged(tree, layer)
    try:
        config = with_derived(reading.typed(TrainConfig, tree))
        check(config)
    except ValueError as error:
        raise RunConfigError(str(error).splitlines()[0]) from None
    return config


def with_derived(config: TrainConfig) -> TrainConfig:
    """Copies the settings of data and reward that rollout workers need into `rollout`, the only section that they see."""
    beside = Path(config.data.folder) / config.rollout.prompts
    prompts = str(beside) if not Path(config.rollout.prompts).is_file() and beside.is_file() else config.rollout.prompts
    gains = config.rollout.gold_gains or "information_gain" in config.reward.terms
    values = "query_value" in config.reward.terms or "route_regret" in config.reward.terms
    values_config = replace(
        config.rollout.values, measured=values or config.rollout.values.measured, spare_answer_tokens=config.reward.spare_answer_tokens
    )
    routes = config.rollout.record_routes or config.learner.routes == "all" or "route_regret" in config.reward.terms
    rollout = replace(config.rollout, prompts=prompts, need_calibration=config.reward.need_calibration, gold_gains=gains)
    unjudged = unjudged_without_gold(config.reward.terms or {"step": 1.0})
    return replace(config, rollout=replace(rollout, record_routes=routes, values=values_config, unjudged_without_gold=unjudged))


def resolved_yaml(config: TrainConfig) -> str:
    """Every setting with its value, as YAML that `load_config` reads back to the same configuration."""
    return yaml.dump(dataclasses.asdict(config), Dumper=_ExactDumper, allow_unicode=True, sort_keys=False)


class _ExactDumper(yaml.SafeDumper):  # only double quotes keep every line break
    def represent_str(self, data: str) -> yaml.ScalarNode:
        return self.represent_scalar("tag:yaml.org,2002:str", data, style=None if data.isprintable() else '"')


_ExactDumper.add_representer(str, _ExactDumper.represent_str)


def flat(config: TrainConfig) -> dict[str, Any]:
    """Dotted key -> value, for tracking and for comparing runs."""
    return reading.flattened(dataclasses.asdict(config))


def find_policy(path: str, key: str = "train.policy") -> str:
    """A policy folder (from here, or from the repository), or a model's name on the hub. Raises RunConfigError that names `key` for neither."""
    for folder in (Path(path), REPOSITORY / path):
        if (folder / "config.json").is_file():
            return str(folder)
    if path.startswith((".", "/", "runs/", "experiments/")) or path.count("/") != 1:
        raise wrong_value(key, path, "a folder with a config.json (r1-router cold-start trains one), or a model on the hub")
    return path


def load_policy_or_run(subject: str, rest: list[str]) -> tuple[TrainConfig, str]:
    """(configuration, policy folder) of POLICY_OR_RUN [CONFIG.yaml] [key=value ...]; a run has its own configuration. Raises RunConfigError."""
    folder = Path(subject)
    if not (folder / "config.yaml").is_file():
        return load_config(rest), find_policy(subject)
    own = [str(folder / "config.yaml")] if all(is_setting(argument) for argument in rest) else []
    return load_config([*own, *rest]), find_policy(str(folder / "policy"))


def _file_layers(name: str, above: tuple[Path, ...] = ()) -> list[tuple[str, dict[str, Any]]]:
    """The file and, before it, the files it builds on. `above`: the files that build on it."""
    path = next((path for path in (Path(name), CONFIGS / name) if path.is_file()), None)
    if path is None:
        shipped = ", ".join(sorted(file.name for file in CONFIGS.glob("*.yaml")))
        raise RunConfigError(f"{name}: no such configuration file; shipped are {shipped}")
    if path.resolve() in above:
        raise RunConfigError(f"{path}: builds on itself (base: {name}); expected another file, or no base")
    content = reading.from_yaml(path.read_bytes(), str(path)) or {}
    if not isinstance(content, dict):
        raise RunConfigError(f"{path}: found {type(content).__name__}, expected keys and values")
    content = _of_today(content)
    if (base := content.pop("base", None)) is None:
        return [(str(path), content)]
    if not isinstance(base, str):
        raise RunConfigError(f"{path}: base is {base!r}; expected the name of one file")
    beside = path.parent / base
    return [*_file_layers(str(beside) if beside.is_file() else base, (*above, path.resolve())), (str(path), content)]


def _of_today(tree: dict[str, Any]) -> dict[str, Any]:
    """Settings that an older version wrote, under today's names, so that the config.yaml of an older run can still be read."""
    train, learner = ({**part} if isinstance(part := tree.get(name), dict) else None for name in ("train", "learner"))
    if train:
        train.pop("gpus_per_evaluation_worker", None)
        tree = tree | {"train": train}
    if learner and (cap := learner.pop("sampler_cap", None)) is not None:
        tree = tree | {
            "learner": learner | ({"sampler_correction": "truncate", "sampler_high": cap} if str(cap) not in ("0", "0.0") else {})
        }
    return tree


def _without(tree: dict[str, Any], key: list[str]) -> dict[str, Any]:
    first, rest = key[0], key[1:]
    return tree | {first: _without(tree.get(first, {}), rest) if rest else {}}

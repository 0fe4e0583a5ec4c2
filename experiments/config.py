"""The settings of a run: one typed tree, YAML files that say only what differs, and dotted overrides.

    python -m experiments.train laptop.yaml train.iterations=10 rollout.group_size=4

Every room brings its own part. A file may name another one as its `base:`. Unknown keys fail.
"""

from __future__ import annotations

import dataclasses
import difflib
import typing
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import yaml
from omegaconf import DictConfig, OmegaConf
from omegaconf.errors import OmegaConfBaseException

from experiments.config_checks import check
from experiments.data_config import DataConfig, EvaluationConfig, PromptsConfig
from learner.config import LearnerConfig
from retrieval_actors.config import RetrievalConfig
from rewards.config import RewardConfig
from rollout.config import RolloutConfig

CONFIGS = Path(__file__).parent / "configs"
REPOSITORY = Path(__file__).parents[1]


class RunConfigError(ValueError):
    """A setting that cannot be used; the message is one line that names its key and what is expected."""


@dataclass
class LoopConfig:
    """Section `train`: how long, how much at a time, from where."""

    iterations: int = 400
    """Of roll out, score, learn, broadcast."""
    minutes: float = 0.0
    """No iteration begins after so many minutes of training (evaluations not counted); 0: no bound."""
    turns: int = 0
    """No iteration begins after so many sampled turns: runs of different methods can be compared at equal ones; 0: no bound."""
    questions_per_iteration: int = 16
    """Questions (offline: recorded turns) that one iteration rolls out, over all workers."""
    num_rollout_workers: int = 2
    """Processes that sample; each holds a copy of the policy."""
    gpus_per_rollout_worker: float = 0.0
    """GPUs that Ray sets aside for one of them; 0: sample on the CPU."""
    gpus_per_evaluation_worker: float | None = None
    """The same for the evaluation workers, of which there are as many, each with a policy of its own; null: like a rollout worker."""
    placement: str = "apart"
    """`apart`: learners have GPUs of their own. `colocated`: on every GPU one learner and one rollout worker, by the shares
    `learner.gpus_per_learner` and `train.gpus_per_rollout_worker`."""
    dry_run: bool = False
    """Check everything, build every object with its real shapes but without memory, print the plan and what fits on a GPU, and end: no GPU, no
    weights, no Ray."""
    overlap: int = 0
    """0: roll out, then learn. 1: the next batch is rolled out while this one is learned from, one policy version behind; it needs
    `learner.sampler_cap`."""
    trace: bool = False
    """Write `trace-000001.json`, ... into the run folder: what every process did when, for ui.perfetto.dev or chrome://tracing."""
    evaluate_every: int = 25
    """Iterations between two evaluations on the validation questions, by which the best policy is chosen; 0: only at the end."""
    checkpoint_every: int = 20
    """Iterations between two checkpoints; 0: only at the end."""
    keep_last: int = 2
    """The newest checkpoints, so many of them, are kept."""
    keep_best: int = 1
    """And so many of those whose policy did best on the validation questions; whenever one does, a checkpoint is written. The best policy itself
    is in `policy/` in any case."""
    max_restarts: int = 3
    """Times that a run starts its learner group anew, and goes on from the last checkpoint, when the group has lost a rank; 0: never."""
    resume: str = "none"
    """`none`: start anew. `auto`: go on from the newest good checkpoint of this run, or start anew without one. Or a checkpoint folder."""
    dump_rollouts: str = ""
    """Folder into which every iteration's trajectories and scored turns are written; empty: nowhere."""
    replay_rollouts: str = ""
    """Folder that `dump_rollouts` wrote: learn from it, without data, retrieval or rollout; empty: roll out."""
    rollout_only: bool = False
    """Roll out and score, with the policy that training would start from, and learn nothing."""
    policy: str = "experiments/cold_start_policy"
    """Where training starts: a folder in Hugging Face format, or a model's name on the hub."""
    seed: int = 0
    """Of the order of the questions and of every random number in sampling and learning (`learner.seed` follows it)."""


@dataclass
class TrackingConfig:
    """Section `tracking`; see docs/tracking.md."""

    mlflow: bool = True
    """Log to MLflow as well; the run folder holds all of it in any case."""
    uri: str = "sqlite:///mlflow.db"
    """MLflow's store: a local data base, or the address of a server."""
    experiment: str = "r1-router"
    """Name of the experiment that the run belongs to, made if need be."""
    parent: str = ""
    """Name of a sweep: MLflow shows all runs that name it under one parent run."""
    model: str = "r1-router"
    """The policy is registered as MODEL-DATASET, and copied to the store; empty: neither."""
    patience_s: float = 60.0
    """The end of a run waits at most so long for MLflow; iterations never wait."""


@dataclass
class ClusterConfig:
    """Section `ray`."""

    num_cpus: int = 0
    """CPUs that Ray counts with; 0: those of the machine, at least as many as the actors of a run ask for. Unused under RAY_ADDRESS."""
    object_store_mb: int = 512
    """Memory, on each node, for what the processes hand each other. Under RAY_ADDRESS it is what `ray start --object-store-memory` said there,
    and `experiments.doctor` compares the two."""
    gpu_gib: float = 80.0
    """Memory of one GPU, in GiB: what a dry run compares with."""
    join_s: float = 0.0
    """Seconds to wait for nodes before a run that finds no place is refused: for those that are joining, and for those that the cluster's
    autoscaler, which is asked for them, can start."""
    cluster_file: str = "ray_cluster.yaml"
    """The cluster that a dry run lays processes with GPUs onto, as Ray's launcher takes it (only `available_node_types` and `head_node_type` are
    looked at); empty: onto none."""


@dataclass
class TrainConfig:
    name: str = "run"
    """Name of the run and of its folder."""
    runs_folder: str = "runs"
    train: LoopConfig = field(default_factory=LoopConfig)
    data: DataConfig = field(default_factory=DataConfig)
    rollout: RolloutConfig = field(default_factory=RolloutConfig)
    retrieval: RetrievalConfig = field(default_factory=RetrievalConfig)
    reward: RewardConfig = field(default_factory=RewardConfig)
    learner: LearnerConfig = field(default_factory=LearnerConfig)
    evaluation: EvaluationConfig = field(default_factory=EvaluationConfig)
    prompts: PromptsConfig = field(default_factory=PromptsConfig)
    tracking: TrackingConfig = field(default_factory=TrackingConfig)
    ray: ClusterConfig = field(default_factory=ClusterConfig)

    @property
    def evaluation_gpus(self) -> float:
        """GPUs of one evaluation worker."""
        given = self.train.gpus_per_evaluation_worker
        return self.train.gpus_per_rollout_worker if given is None else given


def load_config(arguments: list[str]) -> TrainConfig:
    """The configuration that `[CONFIG.yaml] [key=value ...]` says. A bare file name is also looked for among the shipped ones.

    `key={}` on the command line forgets what files put there, whatever else the command line puts there. Raises RunConfigError, one line, for a
    missing file, an unknown key (with the nearest known one), or a value of another type.
    """
    files = [argument for argument in arguments if "=" not in argument]
    if len(files) > 1:
        raise RunConfigError(f"{files[1]!r}: expected one CONFIG.yaml, then key=value")
    tree = OmegaConf.structured(TrainConfig)
    for source, layer in [*(_file_layers(files[0]) if files else []), ("command line", _overrides(arguments))]:
        _check_keys(layer, TrainConfig, source)
        try:
            for key in [argument.removesuffix("={}") for argument in arguments if argument.endswith("={}") and source == "command line"]:
                OmegaConf.update(tree, key, {}, merge=False)
            tree = OmegaConf.merge(tree, layer)
        except OmegaConfBaseException as error:
            raise RunConfigError(f"{source}: {_of_wrong_type(layer, error)}") from None
    try:
        config = typing.cast(TrainConfig, OmegaConf.to_object(tree))
        check(config)
    except (ValueError, OmegaConfBaseException) as error:
        raise RunConfigError(str(error).splitlines()[0]) from None
    return config


def resolved_yaml(config: TrainConfig) -> str:
    """Every setting with its value, as YAML that `load_config` reads back to the same configuration."""
    return OmegaConf.to_yaml(OmegaConf.structured(config))


def flat(config: TrainConfig) -> dict[str, Any]:
    """Dotted key -> value, for tracking and for comparing runs."""

    def walk(prefix: str, value: Any) -> dict[str, Any]:
        if not isinstance(value, dict) or not value:
            return {prefix: value}
        return {key: leaf for name, child in value.items() for key, leaf in walk(f"{prefix}.{name}" if prefix else name, child).items()}

    return walk("", dataclasses.asdict(config))


def find_policy(path: str) -> str:
    """`path` as a folder where there is one (from here, or from the repository), else as the name of a model on the hub.

    Raises RunConfigError when it is neither.
    """
    for folder in (Path(path), REPOSITORY / path):
        if (folder / "config.json").is_file():
            return str(folder)
    looks_like_a_folder = path.startswith((".", "/", "runs/", "experiments/")) or path.count("/") != 1
    if looks_like_a_folder:
        raise RunConfigError(
            f"train.policy is {path!r}: no folder with a config.json there; train one with python -m experiments.cold_start"
        )
    return path


def _file_layers(name: str) -> list[tuple[str, DictConfig]]:
    """The file and, before it, the files it builds on."""
    path = next((path for path in (Path(name), CONFIGS / name) if path.is_file()), None)
    if path is None:
        shipped = ", ".join(sorted(file.name for file in CONFIGS.glob("*.yaml")))
        raise RunConfigError(f"{name}: no such configuration file; shipped are {shipped}")
    try:
        content = yaml.safe_load(path.read_text(encoding="utf-8")) or {}
    except yaml.YAMLError as error:
        raise RunConfigError(f"{path}: not YAML: {' '.join(str(error).split())}") from None
    if not isinstance(content, dict):
        raise RunConfigError(f"{path}: found {type(content).__name__}, expected keys and values")
    base = content.pop("base", None)
    before = _file_layers(str(path.parent / base) if (path.parent / str(base)).is_file() else str(base)) if base else []
    return [*before, (str(path), OmegaConf.create(content))]


def _overrides(arguments: list[str]) -> DictConfig:
    try:
        return OmegaConf.from_dotlist([argument for argument in arguments if "=" in argument])
    except (OmegaConfBaseException, yaml.YAMLError) as error:
        raise RunConfigError(f"command line: {' '.join(str(error).split())}") from None


def _check_keys(layer: DictConfig, schema: type, source: str, prefix: str = "") -> None:
    types = typing.get_type_hints(schema)
    for key in map(str, layer):
        if key not in types:
            near = difflib.get_close_matches(key, types, n=1, cutoff=0) or [""]
            elsewhere = [f"{name}.{key}" for name, kind in typing.get_type_hints(TrainConfig).items() if key in _fields(kind)]
            meant = elsewhere[0] if elsewhere and not prefix else f"{prefix}{near[0]}"
            raise RunConfigError(f"{source}: unknown key {prefix}{key}; did you mean {meant}?")
        if dataclasses.is_dataclass(types[key]):
            child = layer[key]
            if not isinstance(child, DictConfig):
                raise RunConfigError(
                    f"{source}: {prefix}{key} is {child!r}; expected keys and values, such as {prefix}{key}.{_fields(types[key])[0]}"
                )
            _check_keys(child, typing.cast(type, types[key]), source, f"{prefix}{key}.")


def _of_wrong_type(layer: DictConfig, error: OmegaConfBaseException) -> str:
    """The key, what was found there, and what kind of value belongs there."""
    key = str(getattr(error, "full_key", "") or "")
    kind: Any = TrainConfig
    for name in key.split("."):
        found = typing.get_type_hints(kind).get(name.partition("[")[0]) if dataclasses.is_dataclass(kind) else None
        if found is None:
            break
        kind = found
    said = str(error).splitlines()[0]
    try:
        return f"{key} is {OmegaConf.select(layer, key)!r}; expected {_in_words(kind)}"
    except OmegaConfBaseException:
        return f"{key}: {said}"


def _in_words(kind: Any) -> str:
    """A type as an error message names it."""
    words = {int: "a whole number", float: "a number", bool: "true or false", str: "text"}
    inner = [_in_words(part) for part in typing.get_args(kind) if part is not type(None)]
    if typing.get_origin(kind) is dict:
        return f"{{key: {inner[-1]}, ...}}"
    if typing.get_origin(kind) in (list, tuple):
        return f"[{inner[0]}, ...]"
    return words.get(kind) or (f"{inner[0]}, or null" if inner else "another kind of value")


def _fields(kind: Any) -> list[str]:
    return [f.name for f in dataclasses.fields(kind)] if dataclasses.is_dataclass(kind) else []

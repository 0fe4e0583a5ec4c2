"""The learner group: scored turns in, weights out, whatever the number of learner processes; and its checkpoints."""

import json
import logging
import math
import shutil
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import ray
from ray.exceptions import RayError
from ray.rllib.utils.checkpoints import Checkpointable
from ray.util.placement_group import PlacementGroup, get_current_placement_group, placement_group, remove_placement_group
from ray.util.scheduling_strategies import PlacementGroupSchedulingStrategy

from learner.config import LearnerConfig
from learner.deadline import DeadlineError, RolloutsLostError, objects_are_lost, rank_results
from learner.iteration_data import combined_steps, update_metrics
from learner.objective.advantages import turn_advantages
from learner.objective.batch_plan import PlannedMiniBatch, deal, plan
from learner.ranks.checkpoint_files import refuse_damaged, refuse_without_room
from learner.reward_calls import ScoredTurns
from retrieval_actors.folder_lock import replace_folder
from rewards.scored_summary import KINDS
from rollout.nan_check import refuse_update
from rollout.records import ScoredTurn
from rollout.timeline import Span
from rollout.weight_buckets import PublishedBucket

MANIFEST = "learner.json"
SHAPE = ("num_learners", "zero_stage", "dtype", "freeze_vision", "lora_rank", "lora_alpha", "lora_targets")  # of a checkpoint's tensors
LR_FLOOR = 0.1  # share of the learning rate that is left after it has decayed
logger = logging.getLogger(__name__)


class LearnerGroup(Checkpointable):
    """One to N learner processes with one policy. Methods raise `LearnerLostError` when one is lost or late; then call `restart` and `load`."""

    not_restored = ""  # what the last `load` could not restore
    is_remote = True
    _only_snapshots = False

    def __init__(self, config: LearnerConfig, policy_path: str):
        self.config, self.policy_path = config, str(policy_path)
        self.policy_version = 0
        self.steps: list[Span] = []
        self.ranks: list[Any] = []
        self._places: PlacementGroup | None = None
        self.restart()

    def restart(self) -> None:
        """Replace all processes by new ones, which hold the policy on disk as version 0."""
        from learner.ranks.learner_rank import LearnerRank  # not above: rollout workers import this file, and need no DeepSpeed

        self.shutdown()
        config, count = self.config, self.config.num_learners
        cpus, gpus, resources = config.cpus_per_learner, config.gpus_per_learner, {config.resource: 0.001} if config.resource else {}
        needs = {name: amount for name, amount in {"CPU": cpus, "GPU": gpus, **resources}.items() if amount}
        placed: dict[str, Any] = {"resources": resources, "scheduling_strategy": self._reserve([needs] * count)}
        actor = ray.remote(num_cpus=cpus, num_gpus=gpus, runtime_env={"env_vars": dict(config.environment)}, **placed)(LearnerRank)
        self.ranks = [actor.remote(rank, count, config, self.policy_path) for rank in range(count)]
        (address,) = self._wait([self.ranks[0].address.remote()], "the first learner process to start")
        self._all("connect", *address)
        self.build(config)

    def build(self, config: LearnerConfig) -> None:
        """Start again from the policy on disk, with another configuration and the same processes."""
        self.config, self.policy_version = config, 0
        self._all("build", config)

    @property
    def senders(self) -> list[Any]:
        """The ranks that take part in sending weights: all if the weights are partitioned (ZeRO-3), else rank 0."""
        return self.ranks if self.config.zero_stage == 3 else self.ranks[:1]

    def update(self, turns: ScoredTurns | Sequence[ScoredTurn]) -> dict[str, float]:
        """Learn from the turns of one iteration; the policy version goes up by one, even if there is nothing to learn. Returns the metrics
        of `docs/07_learner.md`: `grad_norm` is before clipping, `tokens_per_second` counts prompts. Raises `NotFiniteError`; `RolloutsLostError`
        when turns were lost before the ranks had them: then the policy is unchanged."""
        begin, version = time.perf_counter(), self.policy_version
        turns = turns if isinstance(turns, ScoredTurns) else ScoredTurns.put(turns)
        scored = turns.summary
        advantages, lr = turn_advantages(scored, self.config, version), learning_rate(self.config, version)
        mini_batches, credit = deal(scored, advantages, self.config, version)
        plans: list[list[PlannedMiniBatch]] = [[] for _ in self.ranks]
        for rows in mini_batches:
            denominator = sum(row.weight for row in rows)
            for mine, micro_batches in zip(plans, plan(rows, len(self.ranks), self.config.tokens_per_micro_batch), strict=True):
                mine.append(PlannedMiniBatch.of(micro_batches, advantages.advantages, credit, scored, denominator, lr))
        self._fetch(turns, plans)
        steps = combined_steps(self._all("update", doing=f"the update from policy version {version}"))
        self.steps = [Span("step", step["ended"] - step["seconds"], step["ended"]) for step in steps]
        refuse_update(steps, version)
        self.policy_version += 1
        groups, episodes = advantages.steps, advantages.episodes
        counts = {"turns": len(scored), "learned_turns": advantages.kept.sum(), "policy_version": self.policy_version}
        counts |= {"groups": groups.groups, "dropped_groups": groups.dropped}
        counts |= {"episode_groups": episodes.groups, "dropped_episode_groups": episodes.dropped}
        found = {name: float(count) for name, count in counts.items()} | {"lr": lr, "seconds": time.perf_counter() - begin}
        if groups.groups:
            found["varied_groups"] = 1 - groups.dropped / groups.groups
        plan_turns = scored.kind == KINDS.index("plan")
        if self.config.routes == "all" and plan_turns.any():
            found["turns_with_routes"] = float(np.isfinite(credit.routes[plan_turns]).mean())
        return found | update_metrics(steps)

    def _fetch(self, turns: ScoredTurns, plans: Sequence[list[PlannedMiniBatch]]) -> None:
        """Every rank fetches the turns of its plan before any begins to learn: a rank that fails would leave the others waiting."""
        chunks = ray.put(list(turns.chunks))  # once for all ranks: a list of references is large
        refs = [rank.fetch.remote(mine, chunks) for rank, mine in zip(self.ranks, plans, strict=True)]
        try:
            self._wait(refs, f"the update from policy version {self.policy_version}")
        except RayError as error:
            if not objects_are_lost(error):
                raise
            raise RolloutsLostError(f"scored turns for policy version {self.policy_version} were lost with a node") from error

    def publish(self) -> Iterator[PublishedBucket]:
        """Puts the weights into Ray's object store, bucket by bucket, except unchanged buckets. While one is sent, the next is gathered."""
        number = 0
        calls = [rank.publish_bucket.remote(number) for rank in self.senders]
        while bucket := self._wait(calls, f"bucket {number + 1} of the weights of policy version {self.policy_version}")[0]:
            number += 1
            calls = [rank.publish_bucket.remote(number) for rank in self.senders]
            yield bucket

    def save(self, folder: str | Path) -> None:
        """Write a checkpoint under another name, and rename it when it is complete. The folder must be visible to all learner nodes.
        Raises OSError when there is no room, `NotFiniteError` for weights that are NaN or infinite; an earlier checkpoint stays as it was."""
        with written_aside(folder) as aside:
            self.snapshot()
            self.write(aside)
            end = time.monotonic() + self.config.deadline_s
            while not self.written():
                if time.monotonic() > end:
                    raise DeadlineError(f"waited {self.config.deadline_s:g} s for the learners to write {aside}")
                time.sleep(0.02)

    def snapshot(self) -> None:
        """Copy all that `load` needs into the memory of the learners; they pause only for this."""
        self._snapshot_bytes = sum(self._all("snapshot"))
        self._snapshot_of = self._shape | {"policy_version": self.policy_version}

    def write(self, folder: Path) -> None:
        """Start to write the last snapshot in the background; `written` says when it is complete. Raises `NoRoomError`."""
        refuse_without_room(folder, self._snapshot_bytes)
        folder.mkdir(parents=True, exist_ok=True)
        self._writing = folder
        self._all("write", str(folder))

    def written(self) -> bool:
        """Whether `write` has finished; then it adds the manifest. Raises OSError when the writing failed."""
        parts = self._all("written")
        if None in parts:
            return False
        files = {name: fact for part in parts for name, fact in part.items()}
        (self._writing / MANIFEST).write_text(json.dumps(self._snapshot_of | {"files": files}, indent=1))
        return True

    def load(self, folder: str | Path) -> str:
        """Restore the state at `save`, exactly; with another `SHAPE` only the weights, and the difference is returned (with LoRA: ValueError).
        Raises FileNotFoundError for an incomplete checkpoint; `CorruptCheckpointError` if a file has another size; `NotFiniteError`."""
        folder = Path(folder).absolute()
        if not (folder / MANIFEST).is_file():
            raise FileNotFoundError(f"{folder / MANIFEST} is missing: no complete learner checkpoint; choose another one")
        manifest = json.loads((folder / MANIFEST).read_text())
        refuse_damaged(folder, manifest["files"], read=False)
        self.not_restored = ""
        was = [f"learner.{key}={manifest[key]} (now {value})" for key, value in self._shape.items() if manifest[key] != value]
        found = f"{folder} was written with {', '.join(was)}"
        if not was:
            self._all("load", str(folder))
        elif manifest["lora_rank"] or self.config.lora_rank:
            fix = "set it back, or begin a new run from the policy of this one (train.policy)"
            raise ValueError(f"{found}: with adapters (learner.lora_rank) training continues only with the same settings; {fix}")
        else:
            self._all("build", self.config, str(folder))
            self.not_restored = f"{found}: its weights are loaded, the moments of the optimizer start at zero"
            logger.warning(self.not_restored)
        self.policy_version = manifest["policy_version"]
        return self.not_restored

    def save_policy(self, folder: str | Path) -> None:
        """Write the policy in Hugging Face format; refused for the same reasons as `save`."""
        with written_aside(folder) as aside:
            self._all("save_policy", str(aside))

    @property
    def _shape(self) -> dict[str, Any]:
        return {key: getattr(self.config, key) for key in SHAPE}

    def shutdown(self) -> None:
        for rank in self.ranks:
            ray.kill(rank)
        self.ranks = []
        if self._places:
            remove_placement_group(self._places)
            self._places = None

    def _reserve(self, bundles: list[dict[str, float]]) -> Any:
        """Reserve resources for all ranks or for none, on as few nodes as possible; under Ray Tune the trial has them. Raises `DeadlineError`."""
        if not bundles[0] or get_current_placement_group():
            return None
        self._places = placement_group(bundles, strategy="PACK")
        if not self._places.wait(self.config.deadline_s):
            self.shutdown()
            what = f"room for {len(bundles)} learner processes (are there enough free CPUs or GPUs?)"
            raise DeadlineError(f"waited {self.config.deadline_s:g} s for {what}")
        return PlacementGroupSchedulingStrategy(self._places)

    def _all(self, method: str, *arguments: Any, doing: str = "") -> list[Any]:
        return self._wait([getattr(rank, method).remote(*arguments) for rank in self.ranks], doing or f"all learners to {method}")

    def _wait(self, refs: Sequence[ray.ObjectRef], what: str) -> list[Any]:
        return rank_results(refs, what, self.config.deadline_s)

    # Methods that RLlib calls

    @contextmanager
    def only_snapshots(self) -> Iterator[None]:
        """In this block `save_to_path` takes a snapshot and writes nothing: `write` it afterwards."""
        self._only_snapshots = True
        try:
            yield
        finally:
            self._only_snapshots = False

    def save_to_path(self, path: Any = None, **kwargs: Any) -> str:
        if self._only_snapshots:
            self.snapshot()
        else:
            self.save(path)
        return str(path)

    def restore_from_path(self, path: Any, **kwargs: Any) -> None:
        self.load(path)

    def get_state(self, *args: Any, **kwargs: Any) -> dict[str, Any]:
        return {"learner": {}}  # RLlib asks for this key when it starts

    def set_state(self, state: dict[str, Any]) -> None:
        pass

    def get_ctor_args_and_kwargs(self) -> tuple[tuple, dict[str, Any]]:
        return (self.config, self.policy_path), {}


@contextmanager
def written_aside(folder: str | Path) -> Iterator[Path]:
    """A temporary path beside the folder, which is renamed to it when the block ends without an exception."""
    folder = Path(folder).absolute()
    aside = folder.with_name(folder.name + ".partial")
    shutil.rmtree(aside, ignore_errors=True)
    try:
        yield aside
        replace_folder(folder, aside)
    finally:
        shutil.rmtree(aside, ignore_errors=True)


def learning_rate(config: LearnerConfig, policy_version: int) -> float:
    """The learning rate of the update from this version to the next: a linear rise to `lr` over `warmup_iterations` updates, then `lr_schedule`
    down to a tenth of it at update `lr_decay_iterations`. It depends on the version alone, so a resumed run has the same."""
    update = policy_version + 1
    if update < config.warmup_iterations:
        return config.lr * update / config.warmup_iterations
    if config.lr_schedule == "constant":
        return config.lr
    begin = max(1, config.warmup_iterations)
    gone = min(1.0, (update - begin) / max(1, config.lr_decay_iterations - begin))
    left = 1 - gone if config.lr_schedule == "linear" else (1 + math.cos(math.pi * gone)) / 2
    return config.lr * (LR_FLOOR + (1 - LR_FLOOR) * left)

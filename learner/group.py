"""The learner as everybody else sees it: scored turns in, weights out, whatever the number of its processes."""

from __future__ import annotations

import json
import logging
import shutil
import time
from collections import defaultdict
from collections.abc import Iterator, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import ray
from ray.exceptions import RayError
from ray.util.placement_group import PlacementGroup, get_current_placement_group, placement_group, remove_placement_group
from ray.util.scheduling_strategies import PlacementGroupSchedulingStrategy

from learner.advantages import TurnAdvantages, turn_advantages
from learner.checkpoint_files import refuse_damaged, refuse_without_room
from learner.config import LearnerConfig
from learner.deadline import DeadlineError, results
from learner.lost_learner import answers, refuse_lost_sender
from learner.micro_batches import plan, rows_of
from learner.mini_batches import deal
from learner.schedule import learning_rate
from learner.update_summary import combined, summary_of
from learner.worker import LearnerRank, MiniBatch
from rollout.records import ScoredTurn
from rollout.timeline import Span
from rollout.weights import PublishedBucket, WeightBuffer

MANIFEST = "learner.json"
POLL_S = 0.02
"""Between two looks at a checkpoint that is being written."""
logger = logging.getLogger(__name__)


class MismatchError(RuntimeError):
    """Sampler and learner do not agree on how likely the sampled tokens are."""


class LearnerGroup:
    """One to N learner processes that hold one policy. Every wait for them has the deadline of the configuration.

    When one is lost, every method raises `LearnerLostError`; `restart` and `load` bring the group back. Their room is reserved for all of them
    at once (a placement group): two runs on one cluster never wait for each other's half."""

    def __init__(self, config: LearnerConfig, policy_path: str):
        self.config = config
        self.policy_path = str(policy_path)
        self.policy_version = 0
        """Number of updates so far."""
        self.not_restored = ""
        """What the last `load` could not take over, as a sentence; empty: nothing."""
        self.steps: list[Span] = []
        """When the optimizer steps of the last update were made."""
        self._ranks: list[Any] = []
        self._places: PlacementGroup | None = None
        self.restart()

    @property
    def ranks(self) -> list[Any]:
        """Handles of the learner processes."""
        return self._ranks

    def restart(self) -> None:
        """New processes, which hold the policy on disk as version 0, in place of those that there are, some of which may be lost."""
        self.shutdown()
        config, count = self.config, self.config.num_learners
        needs = {"CPU": config.cpus_per_learner, "GPU": config.gpus_per_learner, config.resource: 0.001 if config.resource else 0.0}
        options: dict[str, Any] = {"num_cpus": needs["CPU"], "num_gpus": needs["GPU"]}
        options["resources"] = {config.resource: 0.001} if config.resource else {}
        options["runtime_env"] = {"env_vars": dict(config.environment)}
        options["scheduling_strategy"] = self._reserve([{name: amount for name, amount in needs.items() if amount}] * count)
        actor = ray.remote(**options)(LearnerRank)
        self._ranks = [actor.remote(rank, count, config, self.policy_path) for rank in range(count)]
        (address,) = self._wait([self._ranks[0].address.remote()], "the first learner process to start")
        self._all("connect", *address)
        self.build(config)

    def build(self, config: LearnerConfig) -> None:
        """Begin again from the policy on disk, as version 0, with another configuration but the same processes."""
        self.config, self.policy_version = config, 0
        self._all("build", config)

    def update(self, turns: Sequence[ScoredTurn]) -> dict[str, float]:
        """Learn from the turns of one iteration; the policy version goes up by one, even where there was nothing to learn.

        Returns metrics: `loss`, `grad_norm` (before clipping), `lr`, `entropy`, `ratio` and its maximum, `clip_fraction`, `mismatch` (mean and
        maximum of |log-prob here - log-prob of the sampler| before the first step: rollout and learner should agree; `mismatch_k3`: as a
        divergence), `kl`, `turns`, `learned_turns`, `learned_tokens`, `groups`, `dropped_groups`, `seconds`, `tokens_per_second` (prompts
        included).
        Raises: FloatingPointError for a loss or gradient norm that is no number; `MismatchError` for a `mismatch` above `learner.max_mismatch`.
        """
        begin = time.perf_counter()
        turns, penalty = self._penalised(turns) if self.config.kl_weight and self.config.kl_in == "reward" else (turns, {})
        advantages = turn_advantages(turns, self.config) if turns else _nothing()
        mini_batches = deal(turns, advantages, self.config, self.policy_version)
        episodes = len({turn.episode for turn in turns})
        lr = learning_rate(self.config, self.policy_version)
        by_rank: list[list[MiniBatch]] = [[] for _ in self._ranks]
        for rows in mini_batches:
            denominator = sum(row.weight for row in rows)
            for mine, micro_batches in zip(by_rank, plan(rows, len(self._ranks), self.config.tokens_per_micro_batch), strict=True):
                mine.append(MiniBatch(micro_batches, denominator, lr, episodes))
        refs = [rank.update.remote(mine) for rank, mine in zip(self._ranks, by_rank, strict=True)]
        steps = combined(self._wait(refs, f"the update from policy version {self.policy_version}"))
        self.steps = [Span("step", step["ended"] - step["seconds"], step["ended"]) for step in steps]
        for step in steps:
            loss, norm = step["loss"], step["grad_norm"]
            if not np.isfinite([loss, norm]).all() or norm < 0:  # -1: DeepSpeed's word for a norm that is no number
                raise FloatingPointError(
                    f"the loss of the update from policy version {self.policy_version} is {loss:g}, its gradient norm {norm:g}: "
                    "not a number that can be learned from, so this policy is not saved; "
                    "go on from the last checkpoint with a lower learner.lr (train.resume=auto), or look for a reward that is not finite"
                )
        summary = summary_of(steps)
        self._check_mismatch(summary.get("mismatch", 0.0))
        self.policy_version += 1
        return {
            "turns": float(len(turns)),
            "learned_turns": float(advantages.kept.sum()),
            "groups": float(advantages.groups),
            "dropped_groups": float(advantages.dropped_groups),
            "episode_groups": float(advantages.episode_groups),
            "dropped_episode_groups": float(advantages.dropped_episode_groups),
            "lr": lr,
            **summary,
            **penalty,
            "seconds": time.perf_counter() - begin,
            "policy_version": float(self.policy_version),
        }

    def publish(self) -> Iterator[PublishedBucket]:
        """The weights, bucket by bucket, in Ray's object store: workers take them from there, not through this process. While one is being sent,
        the next is gathered. A bucket that is as it was in the last version is the same object."""
        number = 0
        calls = [rank.publish_bucket.remote(number) for rank in self._ranks]  # all ranks have to take part
        while bucket := self._wait(calls, f"bucket {number + 1} of the weights of policy version {self.policy_version}")[0]:
            number += 1
            calls = [rank.publish_bucket.remote(number) for rank in self._ranks]
            yield bucket

    def weights(self) -> WeightBuffer:
        refs, version = [bucket.ref for bucket in self.publish()], self.policy_version
        try:
            return WeightBuffer(tuple(results(refs, f"the weights of policy version {version}", self.config.deadline_s)), version)
        except RayError as error:
            refuse_lost_sender(error, version)
            raise

    def save(self, folder: str | Path) -> None:
        """Write all that `load` needs, aside, and rename it when it is complete. The folder must be visible to all learner nodes.

        Raises OSError, and leaves an earlier checkpoint of that name as it was, when there is no room.
        """
        folder = Path(folder).absolute()
        aside = folder.with_name(folder.name + ".partial")
        shutil.rmtree(aside, ignore_errors=True)
        self.snapshot()
        self.write(aside)
        end = time.monotonic() + self.config.deadline_s
        while not self.written():
            if time.monotonic() > end:
                raise DeadlineError(f"waited {self.config.deadline_s:g} s for the learners to write {aside}")
            time.sleep(POLL_S)
        if folder.exists():
            shutil.rmtree(folder)
        aside.rename(folder)

    def snapshot(self) -> None:
        """Copy all that `load` needs into the memory of the learners, to be written by `write`. The learners stand still only for this."""
        self._snapshot_bytes = sum(self._all("snapshot"))
        self._snapshot_of = self._shape() | {"policy_version": self.policy_version}

    def write(self, folder: Path) -> None:
        """Begin to write the last snapshot into a new folder, while the learners go on; it is complete when `written` says so.

        Raises `NoRoomError` when the disk has too little room.
        """
        refuse_without_room(folder, self._snapshot_bytes)
        folder.mkdir(parents=True, exist_ok=True)
        self._writing = folder
        self._all("write", str(folder))

    def written(self) -> bool:
        """Whether what `write` began is complete; then it has a manifest. Raises OSError when it went wrong."""
        parts = self._all("written")
        if None in parts:
            return False
        files = {name: fact for part in parts for name, fact in part.items()}
        (self._writing / MANIFEST).write_text(json.dumps(self._snapshot_of | {"files": files}, indent=1))
        return True

    def load(self, folder: str | Path) -> str:
        """Go on exactly where `save` was called. Where another number of learners, another ZeRO stage or dtype wrote it, only the weights are
        taken over: the returned sentence says what was lost; otherwise it is empty.

        Raises: FileNotFoundError when the folder is not a complete checkpoint; `CorruptCheckpointError` when a file has not its size.
        """
        folder = Path(folder).absolute()
        if not (folder / MANIFEST).is_file():
            raise FileNotFoundError(f"{folder / MANIFEST} is missing: no complete learner checkpoint; choose another one")
        manifest = json.loads((folder / MANIFEST).read_text())
        refuse_damaged(folder, manifest["files"], read=False)
        self.not_restored = ""
        if other := {key: manifest[key] for key, value in self._shape().items() if manifest[key] != value}:
            was = ", ".join(f"learner.{key}={value} (now {self._shape()[key]})" for key, value in other.items())
            if manifest["lora_rank"] or self.config.lora_rank:
                raise ValueError(
                    f"{folder} was written with {was}: with adapters (learner.lora_rank) training goes on only as it began; set it back, or begin "
                    "a new run from the policy of this one (train.policy)"
                )
            self._all("build", self.config, str(folder))
            self.not_restored = f"{folder} was written with {was}: its weights are taken over, the moments of the optimizer begin at zero"
            logger.warning(self.not_restored)
        else:
            self._all("load", str(folder))
        self.policy_version = manifest["policy_version"]
        return self.not_restored

    def save_policy(self, folder: str | Path) -> None:
        """Write the policy in Hugging Face format (weights, tokenizer, image processor): it loads with `from_pretrained`."""
        folder = Path(folder).absolute()
        folder.mkdir(parents=True, exist_ok=True)
        self._all("save_policy", str(folder))

    def shutdown(self) -> None:
        for rank in self._ranks:
            ray.kill(rank)
        self._ranks = []
        if self._places:
            remove_placement_group(self._places)
            self._places = None

    def _check_mismatch(self, mismatch: float) -> None:
        bound = self.config.max_mismatch
        if bound and mismatch > bound:
            raise MismatchError(
                f"log-probabilities of sampler and learner differ by {mismatch:.4g} nats on average at policy version {self.policy_version}, "
                f"more than learner.max_mismatch={bound:g}: is rollout running in another dtype, or with other weights? learner.sampler_cap=2 "
                "corrects for a small difference"
            )

    def _penalised(self, turns: Sequence[ScoredTurn]) -> tuple[list[ScoredTurn], dict[str, float]]:
        """KL in the reward (Ahmadian et al. 2024, arXiv 2402.14740): kl_weight * KL of a turn, summed over its tokens, is taken off its
        reward, and that of all turns of an episode off its outcome. Returns the turns and the mean `kl` of a token."""
        spoken = [i for i, turn in enumerate(turns) if len(turn.turn.response_ids)]
        none = [0.0] * len(spoken)
        rows = rows_of([turns[i] for i in spoken], none, none, self.config.tokens_per_micro_batch, places=spoken)
        by_rank = plan(rows, len(self._ranks), self.config.tokens_per_micro_batch)
        refs = [rank.kl_to_reference.remote(mine) for rank, mine in zip(self._ranks, by_rank, strict=True)]
        found = self._wait(refs, f"the KL divergence of policy version {self.policy_version}")
        kl = np.zeros(len(turns))
        for mine, per_batch in zip(by_rank, found, strict=True):
            for batch, values in zip(mine, per_batch, strict=True):
                kl[[response.place for row in batch for response in row.responses]] = values
        of_episode: dict[str, float] = defaultdict(float)
        for turn, value in zip(turns, kl, strict=True):
            of_episode[turn.episode] += self.config.kl_weight * float(value)
        tokens = sum(len(turn.turn.response_ids) for turn in turns)
        penalised = [less_kl(turn, self.config.kl_weight * float(v), of_episode[turn.episode]) for turn, v in zip(turns, kl, strict=True)]
        return penalised, {"kl": float(kl.sum()) / max(1, tokens)}

    def _shape(self) -> dict[str, Any]:
        """What decides which tensors there are in a checkpoint, and in which pieces."""
        keys = ("num_learners", "zero_stage", "dtype", "freeze_vision", "lora_rank", "lora_alpha")
        return {key: getattr(self.config, key) for key in keys} | {"lora_targets": list(self.config.lora_targets)}

    def _reserve(self, bundles: list[dict[str, float]]) -> Any:
        """Room for all ranks or for none, on as few nodes as possible: they talk to each other all the time. Under Ray Tune the trial has it.
        Raises `DeadlineError`."""
        if not bundles[0] or get_current_placement_group():
            return None
        self._places = placement_group(bundles, strategy="PACK")
        if not self._places.wait(self.config.deadline_s):
            self.shutdown()
            what = f"room for {len(bundles)} learner processes (are there enough free CPUs or GPUs?)"
            raise DeadlineError(f"waited {self.config.deadline_s:g} s for {what}")
        return PlacementGroupSchedulingStrategy(self._places)

    def _all(self, method: str, *arguments: Any) -> list[Any]:
        return self._wait([getattr(rank, method).remote(*arguments) for rank in self._ranks], f"all learners to {method}")

    def _wait(self, refs: Sequence[ray.ObjectRef], what: str) -> list[Any]:
        return answers(refs, what, self.config.deadline_s)


def less_kl(turn: ScoredTurn, own: float, of_episode: float) -> ScoredTurn:
    """The turn with these penalties taken off its reward and off the outcome of its episode."""
    reward = turn.reward
    parts = (reward.parts or {"total": reward.total}) | {"kl": -own}
    return replace(turn, reward=replace(reward, total=reward.total - own, parts=parts), outcome=turn.outcome - of_episode)


def _nothing() -> TurnAdvantages:
    return TurnAdvantages(np.zeros(0, np.float32), np.zeros(0, bool), 0, 0, 0, 0)

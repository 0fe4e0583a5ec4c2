"""Episodes of the policy that comes with the repository, rolled out here and now: what simulated workers hand out, and in which order."""

from __future__ import annotations

import time
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from experiments.atlas import KNOWLEDGE_BASES, Atlas
from experiments.config import TrainConfig, find_policy
from rewards.config import RewardConfig
from rewards.scoring import score_trajectory
from rollout.config import RolloutConfig
from rollout.records import ScoredTurn, Trajectory

GROUP = 8


@dataclass(frozen=True)
class Recorded:
    """Trajectories with what a reward actor says of them, place by place."""

    trajectories: tuple[Trajectory, ...]
    scored: tuple[tuple[ScoredTurn, ...], ...]
    shares: tuple[float, ...]
    """Of the time of all of them, side by side on one worker, after which each was finished: the last one at 1."""

    @property
    def turns(self) -> float:
        """Scored turns of a trajectory, on average."""
        return float(np.mean([len(turns) for turns in self.scored]))


def record_episodes(questions: int) -> Recorded:
    """So many questions of the default world, in `branch` mode, on one thread."""
    import torch

    from experiments.benchmarks.pipeline import SlowShelves
    from rollout.engine_timeline import EngineTimeline
    from rollout.engines.transformers_engine import TransformersEngine
    from rollout.episode_run import EpisodeRun
    from rollout.policy import Policy

    torch.set_num_threads(1)
    policy = Policy.load(find_policy(TrainConfig().train.policy))
    atlas = Atlas("validation", worlds=1)
    shelves, asked = SlowShelves(atlas), atlas.questions(questions)
    config = RolloutConfig(group_size=GROUP, slots=GROUP * questions)
    engine = TransformersEngine(policy, config.slots, config.batch_tokens)
    timeline = EngineTimeline(engine)
    EpisodeRun(asked[:2], engine, shelves, config, 0, timeline).work()  # warm up
    began = time.perf_counter()
    run = EpisodeRun(asked, engine, shelves, config, 1, timeline)
    found: dict[int, tuple[Trajectory, float]] = {}
    while run.unfinished:
        done = run.work(0.05)
        found |= {place: (trajectories[0], time.perf_counter() - began) for place, trajectories in done}
    trajectories = tuple(found[place][0] for place in sorted(found))
    last = max(seconds for _, seconds in found.values())
    return Recorded(trajectories, tuple(map(scored_turns, trajectories)), tuple(found[place][1] / last for place in sorted(found)))


def scored_turns(trajectory: Trajectory) -> tuple[ScoredTurn, ...]:
    """By the step rewards; words in common stand in for an embedder's cosine."""
    retrievers = {retriever_name: kb for kb, (retriever_name, _) in KNOWLEDGE_BASES.items()}
    return tuple(score_trajectory(trajectory, words_in_common, RewardConfig(), retrievers))


def words_in_common(a: str, b: str) -> float:
    one, other = set(a.lower().split()), set(b.lower().split())
    return len(one & other) / max(1, len(one | other))


def distinct(turns: Sequence[ScoredTurn], mark: str) -> list[ScoredTurn]:
    """The same turns as those of another episode: recorded ones are handed out many times, and equal states would be compared with each other."""
    return [
        ScoredTurn(
            turn.state_key + mark,
            turn.prompt_ids,
            turn.image,
            turn.turn,
            turn.reward,
            turn.episode + mark,
            turn.outcome,
            turn.episode_group + mark,
        )
        for turn in turns
    ]

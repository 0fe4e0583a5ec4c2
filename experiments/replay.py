"""`r1-router replay RUN reward.KEY=VALUE ... [retrieval.folders.NAME=FOLDER ...]`: what a recorded run would have been paid under another reward.

RUN is a run folder, or a name in runs/. Its stored episodes are scored again; `reward.terms` replaces the terms of the run. With
`retrieval.folders.NAME=FOLDER` the queries that went to knowledge base NAME are searched again in FOLDER. Nothing is sampled: no GPU, no Ray.
The tables are in replay.html in the run's folder, too. (train.replay_rollouts is something else: it learns from what train.dump_rollouts wrote.)

    r1-router replay laptop reward.terms.routing=1 reward.terms.retrieval_cost=0.1
"""

import dataclasses
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path

from experiments.command_line.entry_point import command
from experiments.command_line.terminal import Console
from experiments.config import RunConfigError, TrainConfig
from experiments.config.reading import check_keys, from_arguments, is_setting, merged, typed, wrong_value
from experiments.evaluation.recorded_episodes import RecordedEpisode, recorded_episode, retriever_names
from experiments.evaluation.score_again import Embedding, SearchedAgain, score_again, search_again
from experiments.report import replay_page as page
from experiments.tracking.fingerprints import read_fingerprints
from experiments.tracking.run_folder import RunFolder, write_whole
from rewards.actor import RETRIEVERS
from rewards.config import RewardConfig
from rewards.terms import composed_of

ON_SCREEN = 5  # turns, and searches


@dataclass
class FoldersToSearch:
    folders: dict[str, str] = field(default_factory=dict)
    """Knowledge base of the run -> folder in which its recorded queries are searched again."""


@dataclass
class ReplaySettings:
    episodes: list[str] = field(default_factory=list)
    """Which stored episodes: `after`, `before`, `iteration-000020`, ...; empty: all."""
    reward: RewardConfig = field(default_factory=RewardConfig)
    retrieval: FoldersToSearch = field(default_factory=FoldersToSearch)


def read_replay(config: TrainConfig, arguments: Sequence[str]) -> ReplaySettings:
    """The reward of the run, and on top of it the settings of the command. Raises RunConfigError or RewardError."""
    given = from_arguments(ReplaySettings, arguments)
    check_keys(given, ReplaySettings)
    if not given.get("reward") and not given.get("retrieval"):
        raise RunConfigError("replay with what? Expected reward.terms.NAME=WEIGHT, another reward.KEY, or retrieval.folders.NAME=FOLDER")
    reward = dataclasses.asdict(config.reward) | ({"terms": {}} if "terms" in given.get("reward", {}) else {})
    settings = typed(ReplaySettings, merged({"reward": reward}, given))
    terms = composed_of(settings.reward.terms)
    if "information_gain" in settings.reward.terms:
        raise RunConfigError("reward.terms.information_gain: it asks the policy, which a replay does not load; expected other terms")
    if (valued := [term.name for term in terms if term.needs_values]) and not config.rollout.values.measured:
        raise RunConfigError(f"reward.terms.{valued[0]}: the run measured no values of routes; expected other terms")
    return settings


def read_episodes(run: RunFolder, config: TrainConfig, settings: ReplaySettings) -> tuple[list[RecordedEpisode], dict[str, str]]:
    """(episodes, retriever name -> knowledge base). Raises RunConfigError."""
    stored = run.trajectory_names()
    if not stored:
        expected = "a run that got to its measurement before training, or to a checkpoint"
        raise RunConfigError(f"{run.trajectories}: the run kept no trajectories; expected {expected}")
    if unknown := [name for name in settings.episodes if name not in stored]:
        raise wrong_value("episodes", unknown[0], f"some of {', '.join(stored)}", stored)
    if config.rollout.mode == "offline":
        raise RunConfigError(f"{run.path}: rollout.mode is offline, and the gold of recorded turns is not stored; expected branch or chain")
    rows = [(name, row) for name in settings.episodes or stored for row in run.read_trajectories(name)]
    chain_only = any(term.needs_chain for term in composed_of(settings.reward.terms))

    def alone(name: str) -> bool:  # in chain mode the siblings of a turn are of other episodes, with other outcomes
        return chain_only or config.rollout.mode == "chain" or not name.startswith("iteration")

    bases = read_fingerprints(run.path).get("knowledge_bases", {})
    retrievers = retriever_names((row for _, row in rows), list({kb for split in bases.values() for kb in split}), RETRIEVERS)
    return [recorded_episode(name, row, alone(name)) for name, row in rows], retrievers


@command
def main(arguments: list[str]) -> int:
    if not arguments or is_setting(arguments[0]):
        raise RunConfigError("which run? r1-router replay RUN reward.terms.NAME=WEIGHT ... [retrieval.folders.NAME=FOLDER ...]")
    console, run = Console(), RunFolder.open(path if (path := Path(arguments[0])).is_dir() else Path("runs") / arguments[0])
    config = run.config()
    settings = read_replay(config, arguments[1:])
    episodes, retrievers = read_episodes(run, config, settings)
    folders, searches, said = settings.retrieval.folders, list[SearchedAgain](), [" ".join(["r1-router replay", *arguments])]
    searched = {step.exchange.kb for episode in episodes for step in episode.trajectory.steps if step.exchange}
    if unknown := [name for name in folders if name not in searched]:
        where = f"the run searched {', '.join(sorted(searched)) or 'nothing'}"
        raise RunConfigError(f"retrieval.folders.{unknown[0]}: no recorded search went there; {where}")
    if folders:
        turns_before = sum(len(episode.trajectory.groups) for episode in episodes)
        episodes, searches = search_again(episodes, folders, config.rollout.passages, settings.reward.need_calibration)
        left_out = turns_before - sum(len(episode.trajectory.groups) for episode in episodes)
        said.append(
            f"Nobody has read the new passages: {left_out:,} answer turns that read others are not scored, later turns are as recorded."
        )
        if config.retrieval.hybrid or config.retrieval.reranker:
            said.append("The searches here are by vectors alone; the run had retrieval.hybrid or a reranker, too.")
    turns = list(score_again(episodes, settings.reward, retrievers, Embedding(config.retrieval.text_embedder)))
    if not any(turn.paid is not None for turn in turns):
        said.append("No stored turn has a reward of the run's own to compare with.")
    tables = [page.searches_table(searches, folders)] * bool(folders) + [page.rewards_table(turns)]
    for line in said[1:]:
        console.print(line, soft_wrap=True)
    for table in (*tables, page.changed_searches_table(searches, ON_SCREEN), page.disagreements_table(turns, ON_SCREEN)):
        if table.row_count:
            console.print(table)
    longer = [page.changed_searches_table(searches, page.SHOWN), page.disagreements_table(turns, page.SHOWN)]
    file = run.path / "replay.html"
    write_whole(file, page.replay_page(config.name, said, [*tables, *longer]))
    console.print(f"page: {file}", soft_wrap=True)
    return 0

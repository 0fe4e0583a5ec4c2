"""`data.gold=found`: gold steps of the training questions, made once from questions and answers (docs/16_found_steps.md), and kept in a folder.

settings.yaml     what decides: fingerprints of policy and knowledge bases, and the settings of episodes and answers
steps.jsonl       a line for each question: its gold steps, or why it has none
results.md, .tex  coverage by family

The folder lies in `data.kb_folder`/found_steps, and its name ends in a checksum of settings.yaml: the same command goes on where it was
stopped, and another policy, knowledge base or setting has another folder. Gold steps that a data set brings are never read.
"""

from __future__ import annotations

import dataclasses
import hashlib
import json
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import yaml
from rich.table import Table

from experiments.cluster.placement import placed_or_refused
from experiments.cluster.ray_session import start_ray
from experiments.command_line.progress import Countdown, Progress
from experiments.command_line.terminal import Console
from experiments.config import TrainConfig
from experiments.datasets import Dataset, ensure_knowledge_bases
from experiments.evaluation.evaluation_folder import SPEED_ONLY, Results
from experiments.evaluation.evaluator import Evaluator, rollout_as_measured
from experiments.evaluation.result_tables import results_table
from experiments.report.paper_tables import write_tables
from experiments.tracking.fingerprints import fingerprint
from retrieval_actors.actors.start_actors import start_retrieval
from retrieval_actors.folder_lock import hold
from retrieval_actors.sharded_search import Retriever
from rewards.config import RewardConfig
from rewards.necessity_check import WHY, Candidate, candidate_of, found_steps
from rollout.config import RolloutConfig
from rollout.records import GoldStep, Question, RecordedTurn
from rollout.trajectory_summary import summary_of

QUESTIONS_AT_ONCE, TURNS_AT_ONCE = 16, 128  # that a worker gets in one call
CALLS_PER_WORKER = 4  # before rows are written; a killed search repeats at most these
NOT_DECISIVE = {*SPEED_ONLY, "need_calibration", "episode_s", "enough", "straggler_s", "resource"}  # settings that change no found step
POLICY_FILES = {".safetensors", ".json", ".jinja", ".model", ".txt"}


def find_steps(config: TrainConfig, policy: str, dataset: Dataset, console: Console) -> Dataset:
    """The data set with found steps, by workers of its own: what `r1-router find-steps` does."""
    with start_ray(config), Progress(console, "find-steps", 1, 0) as progress:
        placed = placed_or_refused(config, replace(dataset, evaluation_kbs=dataset.training_kbs), progress, evaluation="only")
        progress.phase("knowledge bases")
        retrieval = replace(placed.retrieval, folders=ensure_knowledge_bases(dataset.training_kbs, progress.detail))
        retriever = start_retrieval(retrieval, progress.detail, announce=lambda plan: progress.if_verbose(plan.line()))
        return with_found_steps(config, policy, dataset, Evaluator(policy, placed), retriever, progress)


def with_found_steps(
    config: TrainConfig, policy: str, dataset: Dataset, evaluator: Evaluator, retriever: Retriever, progress: Progress
) -> Dataset:
    """The data set, whose training questions have the gold steps that were found, or none (None). Finds those that the folder does not have yet."""
    questions = without_gold(dataset)
    keys = [fingerprint([question]) for question in questions]
    keyed = dict(zip(keys, questions, strict=True))
    folder = steps_folder(config, policy, {card.name: card.fingerprint for card in retriever.catalog})
    rows = _stored(folder)
    if any(key not in rows or rows[key].get("search_errors") for key in keys):
        with hold(folder), evaluator.holding(policy):
            results = Results(folder, "steps")
            left = {key: keyed[key] for key in results.left(keyed)}
            progress.phase(f"gold steps of {len(questions):,} questions ({len(keyed) - len(left):,} are there already)")
            find(left, evaluator, retriever, steps_rollout(config), config.reward, results, progress)
            rows = results.rows
    table = coverage([rows[key] for key in keys], f"found steps of the training questions: {folder}")
    write_tables(folder, [table])
    progress.console.print(table)
    train = [replace(question, gold_steps=_read(rows[key]["gold_steps"])) for key, question in zip(keys, questions, strict=True)]
    if not any(question.gold_steps for question in train):
        progress.say("warning: no question has found steps, so no plan turn is judged; can this policy ask and read?", style="yellow")
    return replace(dataset, train=train, gold_tokens=sum(rows[key]["tokens"] for key in keys))


def without_gold(dataset: Dataset) -> list[Question]:
    """The training questions without the gold steps that the data set brings."""
    return [replace(question, gold_steps=None) for question in dataset.train if isinstance(question, Question)]


def find(
    left: Mapping[str, Question],
    evaluator: Evaluator,
    retriever: Retriever,
    rollout: RolloutConfig,
    reward: RewardConfig,
    results: Results,
    progress: Progress,
) -> None:
    """`left`: key in `results` -> question without gold steps. Workers roll out episodes of some questions, then answer the turns that decide."""
    cards, keys, countdown = {card.name: card for card in retriever.catalog}, list(left), Countdown(len(left))
    together = QUESTIONS_AT_ONCE * CALLS_PER_WORKER * len(evaluator.workers)
    for start in range(0, len(keys), together):
        some = keys[start : start + together]
        episodes: dict[str, list[Candidate | str]] = {key: [] for key in some}
        failed: Counter[str] = Counter()
        tokens: Counter[str] = Counter()
        for first, _, trajectories in evaluator.parts([left[key] for key in some], retriever, rollout, QUESTIONS_AT_ONCE):
            for number, trajectory in enumerate(trajectories):
                key = some[first + number // rollout.group_size]
                episodes[key].append(candidate_of(trajectory, rollout, reward, cards))
                failed[key] += trajectory.search_errors
                tokens[key] += int(summary_of(trajectory).counts["sampled_tokens"])
        asked = {key: [turn for found in episodes[key] if isinstance(found, Candidate) for turn in found.asked] for key in some}
        said, spent = answered([turn for turns in asked.values() for turn in turns], evaluator, retriever, rollout)
        for key, turns in asked.items():
            tokens[key] += sum(spent.get(turn, 0) for turn in dict.fromkeys(turns))
        results.add([_row(key, left[key], found_steps(episodes[key], said, reward), failed[key], tokens[key]) for key in some])
        progress.detail(f"{countdown.after(len(some))}, questions", start + len(some), len(keys))


def answered(
    turns: Sequence[RecordedTurn], evaluator: Evaluator, retriever: Retriever, rollout: RolloutConfig
) -> tuple[dict[RecordedTurn, str], dict[RecordedTurn, int]]:
    """What the policy says, greedily, and in how many tokens; a prompt that several episodes share is asked once."""
    distinct = list(dict.fromkeys(turns))
    said: dict[RecordedTurn, str] = {}
    tokens: dict[RecordedTurn, int] = {}
    numbered = [replace(turn, question=replace(turn.question, id=str(number))) for number, turn in enumerate(distinct)]
    for _, _, found in evaluator.parts(numbered, retriever, replace(rollout, group_size=1, temperature=0.0), TURNS_AT_ONCE):
        for trajectory in found:
            turn, response = distinct[int(trajectory.question.id)], trajectory.groups[0].chosen
            said[turn], tokens[turn] = response.text, len(response.response_ids)
    return said, tokens


def steps_rollout(config: TrainConfig) -> RolloutConfig:
    """`data.gold_samples` independent episodes a question, each query to every knowledge base."""
    settings = rollout_as_measured(config)
    return replace(settings, routing="ircot", group_size=config.data.gold_samples, temperature=config.rollout.temperature)


def steps_folder(config: TrainConfig, policy: str, kbs: Mapping[str, str]) -> Path:
    """The folder, with its settings.yaml. `kbs`: knowledge base -> fingerprint. A policy on the hub counts by its name."""
    rollout = {key: value for key, value in dataclasses.asdict(steps_rollout(config)).items() if key not in NOT_DECISIVE}
    decisive = {
        "policy": {file.name: _hash(file) for file in sorted(Path(policy).glob("*")) if file.suffix in POLICY_FILES} or policy,
        "knowledge_bases": dict(sorted(kbs.items())),
        "rollout": rollout | {"prompts": _hash(Path(config.rollout.prompts)) or config.rollout.prompts},
        "reward": {key: getattr(config.reward, key) for key in ("paper_tokens", "spare_answer_tokens")},
        "retrieval": {key: getattr(config.retrieval, key) for key in ("hybrid", "reranker")},
        "dtype": config.learner.dtype,
    }
    settings = yaml.safe_dump(decisive, allow_unicode=True, sort_keys=False)
    name = f"{config.data.name.replace(':', '.')}-{hashlib.sha256(settings.encode()).hexdigest()[:8]}"
    folder = Path(config.data.kb_folder) / "found_steps" / name
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "settings.yaml").write_text(settings, encoding="utf-8")
    return folder


def coverage(rows: Sequence[Mapping[str, Any]], title: str) -> Table:
    """By family: how many questions have found steps, how many steps and right knowledge bases these are, and why the others have none."""
    families = {family: [row for row in rows if row["family"] == family] for family in sorted({row["family"] for row in rows})}
    table = results_table(title, "family", ("questions", "with steps", "share", "steps a question", "knowledge bases a step", *WHY))
    for family, of_family in [("all", rows), *families.items()]:
        found = [row["gold_steps"] for row in of_family if row["gold_steps"] is not None]
        kbs, why = [len(step["kbs"]) for steps in found for step in steps], Counter(row["why"] for row in of_family)
        means = f"{len(found) / max(1, len(of_family)):.3f}", f"{len(kbs) / max(1, len(found)):.2f}", f"{sum(kbs) / max(1, len(kbs)):.2f}"
        table.add_row(family or "–", str(len(of_family)), str(len(found)), *means, *(str(why[reason]) for reason in WHY))
    return table


def _stored(folder: Path) -> dict[str, dict[str, Any]]:
    """The rows of complete lines. Unlike `Results` it changes nothing: another run may be writing."""
    file = folder / "steps.jsonl"
    whole = file.read_bytes().rpartition(b"\n")[0] if file.exists() else b""
    return {row["id"]: row for row in map(json.loads, whole.splitlines())}


def _row(key: str, question: Question, found: tuple[GoldStep, ...] | str, search_errors: int, tokens: int) -> dict[str, Any]:
    """A question without steps whose searches failed is asked again by the next command (`search_errors`). `tokens`: sampled for it."""
    row: dict[str, Any] = {"id": key, "question": question.id, "family": question.family, "tokens": tokens}
    if isinstance(found, str):
        return row | {"gold_steps": None, "why": found} | ({"search_errors": search_errors} if search_errors else {})
    return row | {"gold_steps": [{"query": step.query, "kbs": step.kbs, "answer": step.answer} for step in found], "why": ""}


def _read(steps: Sequence[Mapping[str, Any]] | None) -> tuple[GoldStep, ...] | None:
    return None if steps is None else tuple(GoldStep(**step) for step in steps)


def _hash(file: Path) -> str:
    """Of its content; empty where there is no such file."""
    if not file.is_file():
        return ""
    with file.open("rb") as content:
        return hashlib.file_digest(content, "sha256").hexdigest()[:16]

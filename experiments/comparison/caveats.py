"""What a reader has to know before believing a comparison: apples, pears, and runs that never ended."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

from experiments.comparison.runs import ComparedRun
from experiments.measures import MEASURES
from experiments.result_tables import HEADINGS

FEWEST = 10
"""Fewer shared questions than this are no comparison."""
UNEQUAL = 1.1
"""Runs whose sampled turns differ by more than this factor are not said to have had the same training."""
DECIDE_THE_MEASURING = (
    "evaluation.temperature",
    *(f"rollout.{key}" for key in ("max_steps", "passages", "max_new_tokens", "prompts", "max_passage_chars", "shuffle_passages")),
    "rollout.max_prompt_tokens",
    *(f"retrieval.{key}" for key in ("hybrid", "reranker", "rerank_candidates")),
)
"""Settings under which another figure comes out of the same policy."""


def same_questions(one: ComparedRun, other: ComparedRun) -> list[str]:
    """Ids of the held-out questions that both were asked: the same id, text and answers."""
    return [
        id
        for id, measured in one.questions.items()
        if (there := other.questions.get(id)) and (measured.text, measured.answers) == (there.text, there.answers)
    ]


def caveats(runs: Sequence[ComparedRun]) -> list[str]:
    """One line each, the gravest first."""
    if not runs:
        return []
    return [
        *_unmeasured(runs),
        *_other_questions(runs),
        *_other_data(runs),
        *_other_knowledge_bases(runs),
        *_missing_measures(runs),
        *_failed_episodes(runs),
        *_other_measuring(runs),
        *_other_training(runs),
        *_other_machines(runs),
        *_unknown_origin(runs),
    ]


def _unmeasured(runs: Sequence[ComparedRun]) -> list[str]:
    lines = []
    for run in runs:
        if run.state != "finished" or not run.after:
            reached = f"after {run.iterations} iterations" if run.iterations else "before its first iteration"
            how = {"finished": "finished", "stopped": "was stopped", "failed": "failed", "unfinished": "is unfinished"}[run.state]
            what = "it has no final figures, only its curves" if not run.after else "its final figures are those of an earlier end"
            lines.append(f"{run.name} {how} {reached}: {what}")
    return lines


def _other_questions(runs: Sequence[ComparedRun]) -> list[str]:
    first, lines = runs[0], []
    for run in runs[1:]:
        if not first.after or not run.after:
            continue
        if not first.questions or not run.questions:
            without = " and ".join(found.name for found in (first, run) if not found.questions)
            lines.append(
                f"{run.name} and {first.name}: no paired differences, as {without} kept nothing question by question (trajectories/after.parquet)"
            )
            continue
        common, asked = len(same_questions(first, run)), (len(first.questions), len(run.questions))
        if not common:
            lines.append(f"{run.name} and {first.name} were measured on different questions: they are not compared")
        elif common < max(asked):
            use = "differences are over the shared ones" if common >= FEWEST else f"too few to compare them, fewer than {FEWEST}"
            lines.append(f"{run.name} and {first.name} share {common} questions ({asked[1]} and {asked[0]} were asked): {use}")
    return lines


def _other_data(runs: Sequence[ComparedRun]) -> list[str]:
    names = _values(runs, lambda run: run.settings.get("data.name"))
    if len(names) > 1:
        return [f"different data sets: {_listed(names)}"]
    prints = _values(runs, lambda run: run.fingerprints.get("dataset", {}).get("splits", {}).get("training", {}).get("fingerprint"))
    return [f"trained on different questions (fingerprints {_listed(prints)})"] if len(prints) > 1 else []


def _other_knowledge_bases(runs: Sequence[ComparedRun]) -> list[str]:
    lines = []
    for split in ("training", "evaluation"):
        kbs = [run.fingerprints.get("knowledge_bases", {}).get(split, {}) for run in runs]
        for name in dict.fromkeys(name for found in kbs for name in found):
            having = {run.name: found.get(name, "none") for run, found in zip(runs, kbs, strict=True) if found}
            if len(set(having.values())) > 1:
                groups: dict[str, list[str]] = {}
                for run_name, digest in having.items():
                    groups.setdefault(digest[:8], []).append(run_name)
                lines.append(f"knowledge base {name} ({split}) is not the same: {_listed(groups)}")
    return lines


def _missing_measures(runs: Sequence[ComparedRun]) -> list[str]:
    measured = [run for run in runs if run.after]
    lines = []
    for run in measured:
        missing = [name for name in MEASURES if name not in run.after and any(name in other.after for other in measured)]
        if missing:
            lines.append(f"{run.name} did not measure {', '.join(HEADINGS[name] for name in missing)} (commit {commit(run)})")
    return lines


def _failed_episodes(runs: Sequence[ComparedRun]) -> list[str]:
    failed = {run.name: sum(bool(found.error) for found in run.questions.values()) for run in runs}
    return [f"{name}: {count} of its held-out episodes failed, and count as wrong" for name, count in failed.items() if count]


def _other_measuring(runs: Sequence[ComparedRun]) -> list[str]:
    lines = []
    for key in DECIDE_THE_MEASURING:
        values = _values([run for run in runs if run.after], lambda run, key=key: run.settings.get(key))  # type: ignore[misc]
        if len(values) > 1:
            lines.append(f"measured with different {key}: {_listed(values)}")
    return lines


def _other_training(runs: Sequence[ComparedRun]) -> list[str]:
    turns = {run.name: run.summary.get("turns") or sum(row.get("turns", 0) for row in run.metrics) for run in runs}
    if min(turns.values()) * UNEQUAL >= max(turns.values()):
        return []
    return [f"not the same training: sampled turns {', '.join(f'{name} {count:,}' for name, count in turns.items())}"]


def _other_machines(runs: Sequence[ComparedRun]) -> list[str]:
    def short(run: ComparedRun) -> str | None:
        found = run.summary.get("machine") or run.fingerprints.get("machine")
        return f"{found.get('cpus')} CPUs, {found.get('memory_gib')} GiB, {', '.join(found.get('gpus', [])) or 'no GPU'}" if found else None

    machines = _values(runs, short)
    return [f"seconds and tokens per second are of different machines: {_listed(machines)}"] if len(machines) > 1 else []


def _unknown_origin(runs: Sequence[ComparedRun]) -> list[str]:
    lines = []
    commits = _values(runs, commit)
    if len(commits) > 1:
        lines.append(f"made by different code: {_listed(commits)}")
    dirty = [run.name for run in runs if "+changes" in commit_of(run)]
    if dirty:
        lines.append(f"{', '.join(dirty)}: the code had changes that no commit holds")
    return lines


def commit_of(run: ComparedRun) -> str:
    return str(run.summary.get("git_commit") or run.fingerprints.get("git_commit") or "unknown")


def commit(run: ComparedRun) -> str:
    """Ten digits."""
    return commit_of(run).partition("+")[0][:10]


def _values(runs: Sequence[ComparedRun], value: Callable[[ComparedRun], Any]) -> dict[str, list[str]]:
    """Value -> names of the runs that have it; runs where it is not known are left out."""
    found: dict[str, list[str]] = {}
    for run in runs:
        if (known := value(run)) is not None:
            found.setdefault(str(known), []).append(run.name)
    return found


def _listed(values: Mapping[str, Sequence[str]]) -> str:
    return "; ".join(f"{value} ({', '.join(names)})" for value, names in values.items())

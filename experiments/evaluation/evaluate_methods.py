"""Methods side by side: the same held-out questions for each, resumed where they were stopped, compared pair by pair. The methods are those
of rollout/methods.py, and `sampled`: the router's sampled episodes, averaged (avg@k)."""

from __future__ import annotations

import time
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from experiments.cluster.findings import refuse
from experiments.cluster.placement import placed_or_refused
from experiments.cluster.ray_checks import check_output
from experiments.cluster.ray_session import check_start, start_ray
from experiments.command_line.progress import Countdown, Progress
from experiments.command_line.terminal import Console
from experiments.config import RunConfigError, TrainConfig
from experiments.datasets import Dataset, ensure_knowledge_bases, load_dataset
from experiments.evaluation.confidence import confidence_summary, fitted, judged
from experiments.evaluation.evaluation_folder import Results, evaluation_folder, result_row
from experiments.evaluation.evaluator import Evaluator, rollout_as_measured
from experiments.evaluation.metrics import count
from experiments.evaluation.significance import evaluation_summary, tested_differences
from experiments.evaluation.when_to_search import searches_by_knowledge
from experiments.tracking.evaluation_runs import send_evaluation
from experiments.tracking.fingerprints import fingerprint
from experiments.tracking.run_folder import TRACES, RunFolder
from experiments.tracking.traces import EVALUATED, append, trace_line
from retrieval_actors.actors.start_actors import start_retrieval
from retrieval_actors.sharded_search import Retriever
from rewards.actor import names_of
from rollout.confidence import Calibration, read_calibration, write_calibration
from rollout.config import RolloutConfig
from rollout.methods import METHODS, expected_names, is_method, label_of
from rollout.need_matcher import need_matcher
from rollout.records import RecordedTurn, Trajectory

SAMPLED, ORACLE, EVERY, POLICY, DIRECT = "sampled", "oracle", "every", "policy", "direct"
TESTED = ("f1_recall", "exact_match", "routing_accuracy", "retrievals_per_question")  # With p values, corrected for the number of methods
# The result of a recorded turn whose prompt is too long.
LEFT_OUT = {"family": "", "error": "left out: its prompt is longer than rollout.max_prompt_tokens", "failed_episodes": 1, "counts": {}}
QUESTIONS_AT_ONCE = 16  # Of a worker; a killed evaluation repeats at most these


@dataclass(frozen=True)
class MeasuredMethod:
    """One way to answer all questions."""

    name: str
    label: str
    isolates: str  # What its difference to the router shows
    rollout: RolloutConfig  # `group_size`: independent episodes for each question
    min_confidence: float = 0.0


def prepare(config: TrainConfig) -> tuple[Dataset, list[MeasuredMethod]]:
    """The questions and the methods of the configuration, checked. Raises RunConfigError, DataError or KnowledgeBaseError; starts nothing."""
    check_start(config)
    refuse(iter([check_output(config.evaluation.folder, "evaluation.folder")]))
    dataset = load_dataset(config.data, config.evaluation, config.retrieval.folders)
    methods = measured_methods(config, dataset)
    for source in dataset.evaluation_kbs:
        source.check()
    return dataset, methods


def evaluate(
    config: TrainConfig, policy: str, dataset: Dataset, methods: Sequence[MeasuredMethod], console: Console
) -> tuple[Path, dict[str, Any]]:
    """Measure the policy with every method: (the folder of the evaluation, the comparison that its summary.json holds)."""
    ids = [id_of(item) for item in dataset.heldout]
    with measuring("evaluate", config, policy, dataset, console) as (evaluator, retriever, folder, progress):
        evaluator.calibration = evaluator.calibration or _calibration(evaluator, dataset, retriever, folder, progress)
        countdown = Countdown(sum(len(Results(folder, method.name).left(ids)) for method in methods))
        traced = EVALUATED * config.tracking.traces * config.tracking.mlflow
        found = {method.name: measure(evaluator, method, dataset, retriever, folder, progress, countdown, traced) for method in methods}
    comparison = compare_methods(found, methods, ids)
    RunFolder(folder).write_summary({"policy": policy, "dataset": config.data.name, **comparison})
    if config.tracking.mlflow:
        try:
            send_evaluation(folder, config.tracking, (f"{config.data.name} held-out", fingerprint(dataset.heldout)), comparison["methods"])
        except Exception as error:  # whatever MLflow raises: the results are in the folder
            why = f"{type(error).__name__}: {' '.join(str(error).split())[:200]}"
            console.print(f"not in MLflow: {why}; the same command tries again", style="yellow", soft_wrap=True)
    return folder, comparison


@contextmanager
def measuring(
    command: str, config: TrainConfig, policy: str, dataset: Dataset, console: Console
) -> Iterator[tuple[Evaluator, Retriever, Path, Progress]]:
    """Evaluation workers, the knowledge bases of the held-out questions, and the folder of the evaluation, on a Ray of their own."""
    with start_ray(config), Progress(console, command, 1, 0) as progress:
        for note in dataset.notes:
            progress.say(note, style="yellow")
        placed = placed_or_refused(config, dataset, progress, evaluation="only")
        progress.phase("knowledge bases")
        retrieval = replace(placed.retrieval, folders=ensure_knowledge_bases(dataset.evaluation_kbs, progress.detail))
        retriever = start_retrieval(retrieval, progress.detail, announce=lambda plan: progress.if_verbose(plan.line()))
        folder = evaluation_folder(config, policy, {card.name: card.fingerprint for card in retriever.catalog}, dataset.heldout)
        yield Evaluator(policy, placed), retriever, folder, progress


def _calibration(evaluator: Evaluator, dataset: Dataset, retriever: Retriever, folder: Path, progress: Progress) -> Calibration | None:
    """Of a policy without one: fitted on the validation questions, and stored in the folder of the evaluation."""
    if (found := read_calibration(folder)) is None and dataset.validation:
        progress.phase("validation questions, for the confidence of answers")
        evaluation = evaluator.run(dataset.validation, retriever, progress=progress.detail)
        if found := fitted(evaluation.trajectories, evaluation.counts):
            write_calibration(folder, found)
    return found


def routable(names: Iterable[str], heldout: Iterable[Any]) -> list[str]:
    """`names`, without `oracle` if no held-out question has gold steps."""
    gold = any(getattr(item, "gold_steps", None) is not None for item in heldout)
    return [name for name in names if gold or name != ORACLE]


def measured_methods(config: TrainConfig, dataset: Dataset) -> list[MeasuredMethod]:
    """The methods of `evaluation.methods`, each once; by default the policy and `evaluation.baselines`. Raises RunConfigError for an unknown method
    and one that cannot be measured. Without gold steps, `oracle` is an error only if `evaluation.methods` names it; else it is left out."""
    if config.rollout.mode == "offline":
        return [_measured_method("policy", config)]
    kbs = [source.name for source in dataset.evaluation_kbs]
    asked = list(config.evaluation.methods or ["policy", *config.evaluation.baselines])
    if EVERY in asked:
        asked = [f"{name}:{kb}" if kb else name for name, method in METHODS.items() for kb in (kbs if method.per_kb else [""])]
        asked.insert(asked.index("policy") + 1, SAMPLED)
    names, why = routable(dict.fromkeys(asked), dataset.heldout), ""
    for name in [ORACLE] if ORACLE in config.evaluation.methods and ORACLE not in names else names:
        kb = name.partition(":")[2]
        if name not in names:
            why = "which follows gold steps, and no held-out question has any: leave it out"
        elif name != SAMPLED and not is_method(name):
            why = f"expected {EVERY}, {SAMPLED}, or some of {expected_names()}"
        elif kb and kb not in kbs:
            why = f"the knowledge bases are {', '.join(kbs) or 'none'}"
        elif name != "direct" and not kbs:
            why = f"data.name={config.data.name} brings no knowledge base: name some in retrieval.folders, or measure method=direct"
        if why:
            raise RunConfigError(f"evaluation.methods names {name!r}; {why}")
    return [_measured_method(name, config) for name in names]


def _measured_method(name: str, config: TrainConfig) -> MeasuredMethod:
    once, samples, temperature = rollout_as_measured(config), config.evaluation.samples, config.rollout.temperature
    least = config.evaluation.min_confidence
    if name != SAMPLED:
        return MeasuredMethod(name, label_of(name), METHODS[name.partition(":")[0]].isolates, replace(once, routing=name), least)
    isolates = "how well the most probable episode represents what was trained: sampled episodes, averaged"
    sampled = replace(once, routing="policy", group_size=samples, temperature=temperature)
    return MeasuredMethod(name, f"the router, sampled at {temperature:g}, avg@{samples}", isolates, sampled, least)


def measure(
    evaluator: Evaluator,
    method: MeasuredMethod,
    dataset: Dataset,
    retriever: Retriever,
    folder: Path,
    progress: Progress,
    countdown: Countdown | None = None,
    traced: int = 0,
) -> Results:
    """Every held-out question, answered by the method. Stored questions are asked again only if one of their searches failed. `countdown`: of the
    questions of all methods; without it, of this one. `traced`: of how many questions the folder gets lines for MLflow's traces."""
    results, retrievers = Results(folder, method.name), names_of(retriever)
    matcher = need_matcher(method.rollout.need_calibration)
    shown = frozenset(map(id_of, dataset.heldout[:traced]))
    left, total = frozenset(results.left(map(id_of, dataset.heldout))), len(dataset.heldout)
    done, countdown = total - len(left), countdown or Countdown(len(left))
    progress.phase(f"{method.label} ({done} of {total} are there already)" if done else method.label)
    items_left = [item for item in dataset.heldout if id_of(item) in left]
    for _, items, trajectories in evaluator.parts(items_left, retriever, method.rollout, QUESTIONS_AT_ONCE):
        episodes: dict[str, list[Trajectory]] = {}
        for trajectory in trajectories:
            episodes.setdefault(trajectory.question.id, []).append(trajectory)
        rows, lines, now = [], [], time.time()
        for id in map(id_of, items):
            gold = dataset.gold_passages.get(id, ())
            counts = [count(episode, retrievers, gold, matcher, method.min_confidence) for episode in episodes.get(id, [])]
            rows.append(result_row(episodes[id], counts, matcher) if counts else {"id": id, **LEFT_OUT})
            if counts and id in shown:
                routed, asked = counts[0].get("routing_accuracy", (0, 0))
                lines.append(trace_line(episodes[id][0], method.name, now, figures={"routing_accuracy": routed / asked} if asked else {}))
        results.add(rows)
        append(folder / TRACES, lines)
        done += len(items)
        progress.detail(f"{countdown.after(len(items))}, questions", done, total)
    return results


def id_of(item: Any) -> str:
    return item.question.id if isinstance(item, RecordedTurn) else item.id


def compare_methods(results: Mapping[str, Results], methods: Sequence[MeasuredMethod], ids: Sequence[str]) -> dict[str, Any]:
    """For summary.json: every metric of each method, and the paired difference of the first method to each of the others with p values. With the
    policy and the method without retrieval, also `when`: whether the policy searches less for what it knows. `confidence`: that of the policy's
    answers, if it is calibrated."""
    counts = {method.name: results[method.name].counts(ids) for method in methods}
    first, *others = counts
    families = [results[first].rows[id]["family"] for id in ids]
    measured = {
        method.name: {
            **{"label": method.label, "isolates": method.isolates},
            **results[method.name].failures(ids),
            **evaluation_summary(counts[method.name], families),
        }
        for method in methods
    }
    both = {POLICY, DIRECT} <= counts.keys()
    asked = ids if POLICY in counts else []
    answers = judged([results[POLICY].rows[id].get("confidence") for id in asked], counts.get(POLICY, []))
    return {
        "questions": len(ids),
        "methods": measured,
        "against": first,
        **({"confidence": confidence_summary(answers, methods[0].min_confidence)} if len(answers) else {}),
        **({"when": searches_by_knowledge(counts[DIRECT], counts[POLICY], families)} if both else {}),
        "differences": tested_differences({name: (counts[name], counts[first]) for name in others}, TESTED),
    }

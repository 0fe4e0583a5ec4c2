"""`r1-router gaps RUN_OR_POLICY [CONFIG.yaml] [key=value ...]`: what to add to the knowledge bases.

Lists the held-out questions that no knowledge base can answer, clustered by what is missing, with the passages nearest to an answer. RUN_OR_POLICY
is a policy folder, or a run folder, whose configuration and best policy are used. Everything is in gaps.json, and the report of the run shows it,
with the ceiling that retrieval sets in its learning curve.

    r1-router gaps runs/laptop evaluation.questions=256
"""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

from experiments.command_line.entry_point import command
from experiments.command_line.terminal import Console
from experiments.evaluate import read_test
from experiments.evaluation.evaluate_methods import measuring
from experiments.evaluation.evaluator import rollout_as_measured
from experiments.evaluation.gaps import ceiling, clusters, find_gaps, gaps_table, search_everywhere
from experiments.report.report_page import write_report
from experiments.tracking.run_folder import GAPS, RunFolder, plain, write_whole
from rollout.records import Question, Trajectory

ON_SCREEN = 12  # clusters


@command
def main(arguments: list[str]) -> int:
    console = Console()
    config, policy, dataset, _ = read_test(arguments, "gaps")
    questions = [item for item in dataset.heldout if isinstance(item, Question)]
    belief = config.rollout.engine == "transformers"
    rollout = replace(rollout_as_measured(config), routing="ircot", gold_gains=belief)
    with measuring("gaps", config, policy, dataset, console) as (evaluator, retriever, folder, progress):
        progress.phase("search everywhere")
        found = search_everywhere(questions, retriever, config.rollout.passages)
        progress.phase("the policy's own queries, everywhere")
        episodes = dict[str, Trajectory]()
        for _, _, trajectories in evaluator.parts(questions, retriever, rollout):
            episodes |= {trajectory.question.id: trajectory for trajectory in trajectories}
            progress.detail("questions", len(episodes), len(questions))
        gaps = find_gaps(questions, found, episodes)
        result = {"data": config.data.name, "questions": len(questions), "belief": belief, "ceiling": ceiling(questions, gaps)}
        result |= {"clusters": clusters(gaps, retriever)}
    if failed := sum(bool(passage.error) for passages in found.values() for passage in passages):
        console.print(f"warning: {failed} searches failed, so some of these gaps may be none (r1-router kb status)", style="yellow")
    text = json.dumps(plain(result), indent=1, ensure_ascii=False)
    write_whole(folder / GAPS, text)
    console.print(gaps_table(result, ON_SCREEN))
    if (Path(arguments[0]) / "config.yaml").is_file():
        run = RunFolder.open(arguments[0])
        write_whole(run.path / GAPS, text)
        write_report(run)
        console.print(f"report: {run.report}", soft_wrap=True)
    console.print(f"all of them: {folder / GAPS}", soft_wrap=True)
    return 0

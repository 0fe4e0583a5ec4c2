"""`r1-router study [CONFIG.yaml] [study.key=value ...] [key=value ...]`: train and measure several methods with several seeds.

Arms: cold start only, outcome GRPO, Step-GRPO, Step-GRPO with a cost of retrieval, and one step off, with equal numbers of sampled turns and
several seeds. Every policy is measured with every method on the same held-out questions. Then a sweep of Step-GRPO's factors. Resumes where it
stopped. Writes results.json, tables.md and learning.svg into runs/study.

    r1-router study study.seeds=[0,1,2] study.turns=12000
"""

from experiments.cluster.ray_session import check_start
from experiments.command_line.entry_point import STOPPED, command
from experiments.command_line.terminal import Console
from experiments.config import find_policy
from experiments.datasets import training_dataset
from experiments.studies.plan import read_study
from experiments.studies.run_study import run_study
from experiments.studies.study_results import study_results, write_results


@command
def main(arguments: list[str]) -> int:
    console, study = Console(), read_study(arguments)
    if not study.settings.render_only:
        check_start(study.base)
    policy, dataset = find_policy(study.base.train.policy), training_dataset(study.base)
    ended = study.settings.render_only or run_study(study, dataset, policy, console)
    results = study_results(study, dataset)
    console.print(f"tables: {write_results(results, study.folder)}", soft_wrap=True)
    if not ended:
        console.print("stopped; the same command resumes from here")
        return STOPPED
    return 1 if results["missing"] else 0  # 1: something could not be measured

"""The study: what is trained, and the results of what was measured."""

from __future__ import annotations

import json
from pathlib import Path
from types import SimpleNamespace

import pytest
from episodes import episode, question, step, stop
from rich.console import Console

from experiments.command_line.entry_point import WRONG_INPUT
from experiments.config import RunConfigError, flat
from experiments.datasets import Dataset
from experiments.datasets.dataset import KnowledgeBaseSource
from experiments.evaluation.evaluation_folder import Results, evaluation_folder, result_row
from experiments.evaluation.metrics import count
from experiments.run.run_state import Totals
from experiments.run.stop_signal import Stop
from experiments.run.training_loop import over
from experiments.studies.plan import ARMS, COLD_START, POINTS, STEP_GRPO, check_earlier, read_study
from experiments.studies.run_study import ATTEMPTS, finish, retried
from experiments.studies.study_results import area, measured_folder, study_results, write_results
from experiments.study import main
from experiments.tracking.run_folder import RunFolder
from learner.deadline import DeadlineError

QUESTIONS = [question(number) for number in range(12)]
DATA = Dataset(
    [], [], QUESTIONS, evaluation_kbs=(KnowledgeBaseSource("text", Path("kbs/text")), KnowledgeBaseSource("table", Path("kbs/table")))
)
INDIFFERENT = {
    "rollout.record_routes",
    "rollout.unjudged_without_gold",
    "name",
    "runs_folder",
    "train.resume",
    "train.seed",
    "train.turns",
    "tracking.parent",
}


def study(tmp_path: Path, *settings: str):
    return read_study([f"runs_folder={tmp_path}/runs", "study.turns=1000", "study.sweep=[default,beta-0.2]", *settings])


@pytest.fixture(scope="module")
def planned():
    """What `make study` does."""
    assert read_study(["study.yaml"]) == read_study([])
    return read_study([])


def test_all_arms_sample_as_many_turns_from_the_same_policy_and_data_with_the_same_seeds(planned):
    assert {(t.arm, t.seed) for t in planned.trainings} == {
        (arm, seed) for arm in planned.settings.arms if arm != COLD_START for seed in (0, 1, 2)
    }
    assert {t.config.train.turns for t in planned.trainings} == {planned.settings.turns}
    assert {t.config.train.turns for t in planned.sweep} == {planned.settings.turns // 2}
    base = flat(planned.base)
    for training in planned.trainings:
        changed = {key for key, value in flat(training.config).items() if base.get(key) != value} - INDIFFERENT
        meant = {setting.partition("=")[0] for setting in ARMS[training.arm].settings}
        assert changed <= meant | {key.rpartition(".")[0] for key in meant}, training.name
        assert training.config.train.seed == training.seed
    assert [t.seed for t in planned.trainings] == sorted(t.seed for t in planned.trainings)


def test_the_sweep_changes_one_factor_at_a_time_and_keeps_turns_an_iteration(planned):
    default = next(t.config for t in planned.sweep if t.arm == "default")
    for training in planned.sweep:
        config = training.config
        assert config.rollout.group_size * config.train.questions_per_iteration == 8 * 16
        changed = {key for key, value in flat(config).items() if flat(default)[key] != value} - INDIFFERENT
        sections = {key.partition(".")[0] for key in changed}
        assert bool(changed) == bool(POINTS[training.arm].settings)
        assert sections in (set(), {"reward"}, {"rollout", "train"}, {"learner"})


def test_mlflow_shows_the_arms_under_one_parent_and_the_sweep_under_another(planned, tmp_path):
    assert {t.config.tracking.parent for t in planned.trainings} == {"study"}
    assert {t.config.tracking.parent for t in planned.sweep} == {"study-sweep"}
    named = study(tmp_path, "study.seeds=[0]", "study.arms=[step_grpo]", "study.sweep=[default]", "tracking.parent=mine")
    assert [t.config.tracking.parent for t in (*named.trainings, *named.sweep)] == ["mine", "mine-sweep"]


def test_training_ends_with_the_iteration_in_which_the_turns_are_sampled(tmp_path):
    config = study(tmp_path, "study.seeds=[0]", "study.arms=[step_grpo]").trainings[0].config

    def enough(turns: int) -> bool:
        return over(SimpleNamespace(config=config, totals=Totals(turns=turns), dataset=DATA, iteration=5))

    assert (enough(999), enough(1000), enough(1700)) == (False, True, True)


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["study.turn=3"], "turns"),
        (["study.arms=[step_grp]"], "study.arms"),
        (["study.sweep=[beta]"], "study.sweep"),
        (["study.seeds=[]"], "study.seeds"),
        (["train.turn=3"], "train.turns"),
        (["data.name=webqa", "data.path=nowhere"], "data.path"),
    ],
)
def test_wrong_input_is_one_line_before_anything_starts(tmp_path, capsys, arguments, said):
    assert main([f"runs_folder={tmp_path}/runs", *arguments]) == WRONG_INPUT
    printed = capsys.readouterr().out.strip()
    assert said in printed
    assert "\n" not in printed
    assert not (tmp_path / "runs").exists()


def trained(training, turns: int = 1100) -> None:
    """The folder of a training that is over."""
    folder = RunFolder.start(training.config)
    for number in range(1, 4):
        folder.add_metrics(
            {
                "iteration": number,
                "turns": turns // 3 + 1,
                "sampled_tokens": 3000,
                "routing": 0.4 * number - 0.2,
                "validation_f1_recall": 0.2 * number,
                "validation_routing_accuracy": 0.3 * number,
                "use_text": 0.5,
                "use_text_image": 0.2,
                "use_table": 0.2,
                "use_stop": 0.1,
            }
        )
    folder.policy.mkdir()
    seconds = {"train": 60.0, "set_up": 5.0}
    best = {"iteration": 3, "score": 0.6}
    folder.write_summary({"turns": turns, "iterations": 3, "policy_version": 3, "sampled_tokens": 9000, "best": best, "seconds": seconds})


def asked(found, arm: str, seed: int, method: str, right) -> None:
    """What `measure` stores: question `n` is answered rightly where `right(n)` says so."""
    config = found.base
    config.evaluation.folder = str(measured_folder(found, arm, seed))
    folder = evaluation_folder(config, "policy", {}, QUESTIONS)
    rows = []
    for number, item in enumerate(QUESTIONS):
        kb, answer = ("text", "Tasla") if right(number) else ("table", "unknown")
        done = episode(item, step(kb, answer), stop(), answer=answer)
        rows.append(result_row([done], [count(done, {"Text Retriever": "text"})]))
    Results(folder, method).add(rows)


@pytest.fixture(scope="module")
def unfinished(tmp_path_factory):
    """A study that was stopped after its first seed."""
    arms, methods = "study.arms=[cold_start,step_grpo,retrieval_cost]", "evaluation.methods=[policy,random,all]"
    found = study(tmp_path_factory.mktemp("study"), "study.turns=1000", arms, methods)
    found.folder.mkdir(parents=True)
    for training in found.trainings:
        if training.seed == 0:
            trained(training)
            asked(found, training.arm, 0, "policy", lambda number: number < 10)
    for method, right in {"policy": 2, "random": 1, "all": 3}.items():
        asked(found, COLD_START, 0, method, lambda number, right=right: number < right)
    asked(found, STEP_GRPO, 0, "random", lambda number: number < 4)
    asked(found, STEP_GRPO, 0, "all", lambda number: number < 1)
    asked(found, "sweep-default", 0, "policy", lambda number: True)
    trained(found.sweep[0], turns=9000)
    return found


def test_the_results_of_an_unfinished_study_say_what_is_missing_and_compare_what_is_there(unfinished):
    results = study_results(unfinished, DATA)
    assert {"retrieval_cost, seed 0, random", "step_grpo, seed 1, policy", "sweep, beta-0.2"} <= set(results["missing"])
    assert "step_grpo, seed 0, policy" not in results["missing"]
    assert results["router_minus_method"]["step_grpo"]["random"]["f1_recall"]["value"] == pytest.approx(0.5)
    assert results["router_minus_method"]["step_grpo"]["all"]["f1_recall"]["value"] == pytest.approx(0.75)
    against = results["minus_cold_start"]["step_grpo"]["f1_recall"]
    assert (against["value"], against["low"] > 0, against["p_corrected"] < 0.05) == (pytest.approx(8 / 12, abs=1e-4), True, True)
    assert results["minus_step_grpo"]["retrieval_cost"]["f1_recall"]["value"] == 0
    assert results["confusion"]["step_grpo"] == {"stop": {"stop": 10}, "text": {"stop": 2, "table": 2, "text": 10}}
    assert results["trainings"]["step_grpo-seed0"]["learning"]["routing"] == pytest.approx(0.6)
    assert set(results["sweep"]) == {"default"}
    cost = results["trainings"]["step_grpo-seed0"]
    assert (cost["turns"], cost["sampled_tokens_until_routed"]) == (1100, 9000)


def test_results_are_written_as_json_tables_and_a_chart_and_the_same_again(unfinished):
    results = study_results(unfinished, DATA)
    write_results(results, unfinished.folder)
    names = ("results.json", "tables.md", "learning.svg")
    first = [(unfinished.folder / name).read_bytes() for name in names]
    write_results(json.loads(first[0]), unfinished.folder)
    assert [(unfinished.folder / name).read_bytes() for name in names] == first
    assert b"The router of each arm" in first[1]
    assert b"sampled tokens" in first[2]


def test_the_area_under_a_curve_counts_the_tokens_of_found_steps_and_what_is_left_after_the_last_point():
    assert area([(100, 1.0)], start=0.0, before=0, end=100) == pytest.approx(0.5)
    assert area([(100, 1.0)], start=0.0, before=0, end=200) == pytest.approx(0.75)
    assert area([(150, 1.0)], start=0.2, before=50, end=200) == pytest.approx((50 * 0.2 + 100 * 0.6 + 50 * 1.0) / 200)
    assert area([(100, 1.0), (300, 0.0)], start=1.0, before=0, end=200) == pytest.approx((100 + 75) / 200)


def test_areas_are_compared_seed_by_seed_with_a_budget_of_tokens(tmp_path):
    arms = "study.arms=[cold_start,step_grpo,found_steps]"
    found = study(tmp_path, "study.tokens=9000", "study.seeds=[0,1]", "study.sweep=[]", arms)
    found.folder.mkdir(parents=True)
    for training in found.trainings:
        assert (training.config.train.tokens, training.config.train.turns) == (9000, 0)
        assert not training.finished
        trained(training)
        assert training.finished
    for seed in (0, 1):
        asked(found, COLD_START, seed, "policy", lambda number: number < 3)
    results = study_results(found, DATA)
    f1 = results["areas"][STEP_GRPO]["f1_recall"]
    assert f1["seeds"] == pytest.approx([((0.25 + 0.2) / 2 + 0.3 + 0.5) / 3] * 2)
    assert results["areas"][STEP_GRPO]["minus_found_steps"]["seeds"] == [0.0, 0.0]
    assert "Area under the validation curves over 9,000 sampled tokens" in write_results(results, found.folder).read_text()


def test_a_study_that_has_only_begun_has_results_too(tmp_path):
    begun = study(tmp_path, "study.seeds=[0]")
    results = study_results(begun, DATA)
    assert len(results["missing"]) > 10
    assert write_results(results, begun.folder).exists()


def test_what_is_finished_is_known_by_its_folder_and_other_settings_are_no_continuation(unfinished):
    done, open_ = unfinished.trainings[0], unfinished.trainings[-1]
    assert done.finished
    assert not open_.finished
    more = study(Path(unfinished.base.runs_folder).parent, "study.arms=[step_grpo]", "study.seeds=[0]", "learner.lr=3e-4").trainings[0]
    check_earlier(done)
    with pytest.raises(RunConfigError, match=r"learner\.lr"):
        check_earlier(more)
    assert more.folder.path == done.folder.path


def test_a_finished_training_is_left_alone_and_needs_nothing_to_run_on(unfinished):
    done = unfinished.trainings[0]
    before = {path: path.stat().st_mtime_ns for path in done.folder.path.rglob("*")}
    assert finish(done, DATA, "policy", services=None, console=Console(quiet=True), stop=Stop())
    assert {path: path.stat().st_mtime_ns for path in done.folder.path.rglob("*")} == before


def test_what_fails_is_begun_again_and_reported_and_in_the_end_given_up():
    reported: list[str] = []
    failures = iter([DeadlineError("waited 3 s"), DeadlineError("waited 4 s")])

    def work() -> str:
        for failure in failures:
            raise failure
        return "done"

    assert retried("it", work, reported.append) == "done"
    assert [line.partition(":")[0] for line in reported] == [f"it failed, attempt {n} of {ATTEMPTS}" for n in (1, 2)]

    def never() -> str:
        raise DeadlineError("waited")

    assert retried("it", never, reported.append) is None
    with pytest.raises(ZeroDivisionError):
        retried("it", lambda: 1 / 0, reported.append)

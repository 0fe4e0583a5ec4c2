"""The study: what is trained, and the page that is rendered from what was measured."""

from __future__ import annotations

import json
from pathlib import Path
from types import SimpleNamespace

import pytest
from episodes import episode, question, step, stop
from rich.console import Console

from experiments.config import RunConfigError, flat
from experiments.datasets import Dataset
from experiments.datasets.dataset import KnowledgeBaseSource
from experiments.evaluation_folder import EvaluationFolder, row_of
from experiments.iteration import over
from experiments.measures import count
from experiments.run_folder import RunFolder
from experiments.stop import Stop
from experiments.studies.answers import HOLDS, answers
from experiments.studies.gather import gather, write_start
from experiments.studies.page import render, write_page
from experiments.studies.plan import ARMS, COLD_START, POINTS, STEP_GRPO, read_study
from experiments.studies.training import ATTEMPTS, check_earlier, finish, folder_of, is_finished, persistently
from experiments.study import WRONG_INPUT, main
from experiments.tally import Tally
from learner.deadline import DeadlineError

ROOT = Path(__file__).parents[2]
QUESTIONS = [question(number) for number in range(12)]
DATA = Dataset(
    [], [], QUESTIONS, evaluation_kbs=(KnowledgeBaseSource("text", Path("kbs/text")), KnowledgeBaseSource("table", Path("kbs/table")))
)
INDIFFERENT = {"name", "runs_folder", "train.resume", "train.seed", "train.turns", "tracking.parent"}


def study(tmp_path: Path, *settings: str):
    places = [f"runs_folder={tmp_path}/runs", f"study.page={tmp_path}/page/study.md"]
    return read_study([*places, "study.turns=1000", "study.sweep=[default,beta-0.2]", *settings])


@pytest.fixture(scope="module")
def planned():
    """What `make study` does."""
    return read_study([])


def test_the_page_in_docs_is_rendered_from_the_results_beside_it_byte_by_byte():
    results = json.loads((ROOT / "docs/study.json").read_text(encoding="utf-8"))
    assert (ROOT / "docs/study.md").read_text(encoding="utf-8") == render(results, "study")
    for picture in ("learning", "kb_use"):
        assert (ROOT / f"docs/images/study/{picture}.svg").stat().st_size < 200_000


def test_the_trainings_of_the_published_study_sampled_equal_numbers_of_turns():
    results = json.loads((ROOT / "docs/study.json").read_text(encoding="utf-8"))
    wanted = results["study"]["turns"]
    assert results["trainings"]
    for name, training in results["trainings"].items():
        in_one_iteration = training["turns"] / training["iterations"]
        assert wanted <= training["turns"] <= wanted + 2 * in_one_iteration, name


def test_all_arms_sample_as_many_turns_from_the_same_policy_and_data_with_the_same_seeds(planned):
    assert {(t.arm, t.seed) for t in planned.trainings} == {(arm, seed) for arm in ARMS if arm != COLD_START for seed in (0, 1, 2)}
    assert {t.config.train.turns for t in planned.trainings} == {planned.settings.turns}
    assert {t.config.train.turns for t in planned.sweep} == {planned.settings.sweep_turns}
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


def test_mlflow_shows_the_arms_under_one_parent_and_the_sweep_under_another(tmp_path):
    found = study(tmp_path)
    assert {t.config.tracking.parent for t in found.trainings} == {"study"}
    assert {t.config.tracking.parent for t in found.sweep} == {"study-sweep"}
    named = study(tmp_path, "tracking.parent=mine")
    assert {t.config.tracking.parent for t in (*named.trainings, *named.sweep)} == {"mine", "mine-sweep"}


def test_training_ends_with_the_iteration_in_which_the_turns_are_sampled(tmp_path):
    config = study(tmp_path, "study.seeds=[0]", "study.arms=[step_grpo]").trainings[0].config

    def enough(turns: int) -> bool:
        return over(SimpleNamespace(config=config, tally=Tally(turns=turns), iteration=5))

    assert (enough(999), enough(1000), enough(1700)) == (False, True, True)


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["study.turn=3"], "unknown key turn; did you mean turns?"),
        (["study.arms=[step_grp]"], "study.arms names step_grp; expected some of cold_start, outcome_grpo"),
        (["study.sweep=[beta]"], "study.sweep names beta; expected some of default"),
        (["study.seeds=[]"], "nothing to train"),
        (["train.turn=3"], "unknown key train.turn; did you mean train.turns?"),
        (["data.name=webqa", "data.path=nowhere"], "data.path is 'nowhere'"),
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
                "routing": 0.3 * number,
                "validation_f1_recall": 0.2 * number,
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
    place = found.folder / "measured" / f"{arm}-seed{seed}"
    config = found.base
    config.evaluation.folder = str(place)
    folder = EvaluationFolder(config, "policy", {}, QUESTIONS)
    (place / "newest").write_text(folder.path.name)
    rows = []
    for number, item in enumerate(QUESTIONS):
        kb, answer = ("text", "Tasla") if right(number) else ("table", "unknown")
        done = episode(item, step(kb, answer), stop(), answer=answer)
        rows.append(row_of([done], [count(done, {"Text Retriever": "text"})]))
    folder.results(method).add(rows)


@pytest.fixture
def unfinished(tmp_path):
    """A study that was stopped after its first seed."""
    found = study(
        tmp_path, "study.turns=1000", "study.arms=[cold_start,step_grpo,retrieval_cost]", "evaluation.methods=[policy,random,all]"
    )
    found.folder.mkdir(parents=True)
    write_start(found, {"f1_recall": 0.1})
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


def test_the_page_of_an_unfinished_study_says_what_is_missing_and_answers_only_what_was_measured(unfinished):
    results = gather(unfinished, DATA)
    page = render(results, "study")
    assert "**Unfinished.**" in page
    assert "Step-GRPO, retrieval cost, seed 0: random, all" in results["missing"]
    assert "Step-GRPO, seed 1: all methods" in results["missing"]
    assert "sweep, beta-0.2" in results["missing"]
    said = {found.question: found for found in answers(results)}
    assert said["Is learned routing better than random routing?"].verdict == HOLDS
    assert "+50.0 points" in said["Is learned routing better than random routing?"].says
    assert said["Is the reward of each step better than that of the outcome, in the end?"].verdict == "not measured yet"
    assert said["What does epsilon change?"].verdict == "not measured yet"
    static = said["Does the trained router beat the best static baseline, and by how many points of F1-Recall?"]
    assert "+75.0 points" in static.says
    assert "more than the paper's 7" in static.says


def test_the_same_results_are_the_same_page_and_pictures(unfinished):
    first = write_page(gather(unfinished, DATA), unfinished.page)
    files = {path.name: path.read_bytes() for path in first.parent.rglob("*.*") if path.is_file()}
    assert set(files) == {"study.md", "study.json", "learning.svg", "kb_use.svg"}
    again = write_page(json.loads(files["study.json"]), unfinished.page)
    assert {path.name: path.read_bytes() for path in again.parent.rglob("*.*") if path.is_file()} == files


def test_a_study_that_has_only_begun_has_a_page_too(tmp_path):
    results = gather(study(tmp_path, "study.seeds=[0]"), DATA)
    page = render(results, "study")
    assert page.count("not measured yet") >= 12
    assert "and" in page.split("**Unfinished.**")[1]
    assert json.loads(json.dumps(results)) == results


def test_what_is_finished_is_known_by_its_folder_and_other_settings_are_no_continuation(unfinished, tmp_path):
    done, open_ = unfinished.trainings[0], unfinished.trainings[-1]
    assert is_finished(done)
    assert not is_finished(open_)
    more = study(tmp_path, "study.arms=[step_grpo]", "study.seeds=[0]", "learner.lr=3e-4").trainings[0]
    check_earlier(done)
    with pytest.raises(RunConfigError, match=r"was trained with another learner\.lr; set it back, or give the study another name"):
        check_earlier(more)
    assert folder_of(more).path == folder_of(done).path


def test_a_finished_training_is_left_alone_and_needs_nothing_to_run_on(unfinished):
    done = unfinished.trainings[0]
    before = {path: path.stat().st_mtime_ns for path in folder_of(done).path.rglob("*")}
    assert finish(done, DATA, "policy", ground=None, console=Console(quiet=True), stop=Stop())
    assert {path: path.stat().st_mtime_ns for path in folder_of(done).path.rglob("*")} == before


def test_what_fails_is_begun_again_and_told_and_in_the_end_given_up():
    told: list[str] = []
    failures = iter([DeadlineError("waited 3 s"), DeadlineError("waited 4 s")])

    def work() -> str:
        for failure in failures:
            raise failure
        return "done"

    assert persistently("it", work, told.append) == "done"
    assert [line.partition(":")[0] for line in told] == [f"it failed, attempt {n} of {ATTEMPTS}" for n in (1, 2)]

    def never() -> str:
        raise DeadlineError("waited")

    assert persistently("it", never, told.append) is None
    with pytest.raises(ZeroDivisionError):
        persistently("it", lambda: 1 / 0, told.append)


def test_the_start_is_written_down_without_the_name_of_the_machine(unfinished):
    facts = json.loads((unfinished.folder / "start.json").read_text())
    assert facts["validation"] == {"validation_f1_recall": 0.1}
    assert {"cpus", "memory_gib"} <= set(facts["machine"])
    assert "CPUs" in render(gather(unfinished, DATA), "study")

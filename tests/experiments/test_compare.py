"""Runs side by side: what differs is found, what cannot be compared is said."""

from __future__ import annotations

import dataclasses
import json
import re
import shutil
from pathlib import Path
from typing import Any

import pytest
from made_run import begun, config_in, finished
from mlflow import MlflowClient

from experiments.compare import main
from experiments.comparison.caveats import DECIDE_THE_MEASURING
from experiments.comparison.chosen import all_found, chosen_runs, is_filter
from experiments.comparison.found import Comparison, compare_runs
from experiments.comparison.page import comparison_page
from experiments.comparison.runs import ComparedRun, named
from experiments.config import RunConfigError, TrackingConfig, TrainConfig, flat
from experiments.measures import paired_difference
from experiments.run_folder import RunFolder
from experiments.tracking.identity import identity, note
from experiments.upload import UploadSettings, upload


def few(number: int) -> bool:
    return number % 4 == 0


def most(number: int) -> bool:
    return number % 4 != 1


def compared(*folders: RunFolder) -> Comparison:
    return compare_runs(named([folder.path for folder in folders]))


def config(folder: Path, name: str, **train: Any) -> TrainConfig:
    made = config_in(folder, name)
    return dataclasses.replace(made, train=dataclasses.replace(made.train, **train))


def without(folder: RunFolder, *measures: str) -> RunFolder:
    """As code wrote it that did not have these measures yet."""
    summary = folder.summary()
    for part in (summary["before"]["overall"], summary["after"]["overall"], summary["difference"]):
        for name in measures:
            del part[name]
    folder.write_summary(summary)
    return folder


def test_runs_of_equal_footing_are_compared_question_by_question_without_a_warning(tmp_path: Path):
    one, other = finished(config(tmp_path, "one"), few), finished(config(tmp_path, "other", seed=7), most)
    found = compared(one, other)
    counts = [[measured.counts for measured in run.questions.values()] for run in found.runs]
    expected = paired_difference(*counts)
    (difference,) = found.differences
    assert (difference.questions, found.caveats) == (24, ["one, other: the code had changes that no commit holds"])
    figure = difference.figures["f1_recall"]
    assert (figure["value"], figure["low"], figure["high"]) == dataclasses.astuple(expected["f1_recall"])
    assert figure["value"] == pytest.approx(0.5)
    assert 0 < figure["p_corrected"] < 0.01
    assert found.settings == {"train.seed": [0, 7]}


def test_p_values_are_corrected_for_the_number_of_runs(tmp_path: Path):
    runs = [finished(config(tmp_path, name), right) for name, right in (("a", few), ("b", lambda n: few(n) or n in (1, 2, 3)), ("c", most))]
    figures = [difference.figures["f1_recall"] for difference in compared(*runs).differences]
    smaller, larger = sorted(figures, key=lambda figure: figure["p"])
    assert smaller["p_corrected"] == pytest.approx(2 * smaller["p"])
    assert larger["p_corrected"] == pytest.approx(larger["p"])


def test_the_order_of_the_questions_does_not_matter(tmp_path: Path):
    one = finished(config(tmp_path, "one"), few)
    forward, backward = (finished(config(tmp_path, n), most, numbers) for n, numbers in (("f", range(24)), ("b", range(23, -1, -1))))
    assert compared(one, forward).differences[0].figures == compared(one, backward).differences[0].figures


def test_other_questions_are_said_and_not_compared(tmp_path: Path):
    found = compared(finished(config(tmp_path, "one")), finished(config(tmp_path, "other"), numbers=range(100, 124), fingerprint="bbbb"))
    assert "other and one were measured on different questions: they are not compared" in found.caveats
    assert any("trained on different questions" in line for line in found.caveats)
    assert found.differences[0].figures == {}


def test_the_same_id_with_another_text_is_another_question(tmp_path: Path):
    one, other = finished(config(tmp_path, "one")), finished(config(tmp_path, "other"))
    runs = named([one.path, other.path])
    changed = {id: dataclasses.replace(measured, text="Something else?") for id, measured in runs[1].questions.items()}
    runs[1].__dict__["questions"] = changed
    assert compare_runs(runs).differences[0].questions == 0


def test_shared_questions_are_compared_and_counted(tmp_path: Path):
    one, other = finished(config(tmp_path, "one"), few), finished(config(tmp_path, "other"), most, numbers=range(12, 36))
    found = compared(one, other)
    assert found.differences[0].questions == 12
    assert any("share 12 questions (24 and 24 were asked)" in line for line in found.caveats)
    assert found.differences[0].figures["f1_recall"]["value"] == pytest.approx(0.5)


def test_too_few_shared_questions_are_no_comparison(tmp_path: Path):
    found = compared(finished(config(tmp_path, "one")), finished(config(tmp_path, "other"), numbers=range(20, 44)))
    assert (found.differences[0].questions, found.differences[0].figures) == (4, {})
    assert any("share 4 questions" in line and "too few" in line for line in found.caveats)


def test_other_data_sets_and_knowledge_bases_are_said(tmp_path: Path):
    one, other = finished(config(tmp_path, "one")), finished(config(tmp_path, "other"), kb="2222")
    text = (other.path / "config.yaml").read_text().replace("name: atlas", "name: real_atlas")
    (other.path / "config.yaml").write_text(text)
    lines = compared(one, other).caveats
    assert "different data sets: atlas (one); real_atlas (other)" in lines
    assert "knowledge base text (evaluation) is not the same: 1111 (one); 2222 (other)" in lines


def test_measures_that_one_run_lacks_are_said_and_left_out(tmp_path: Path):
    one = finished(config(tmp_path, "one"))
    found = compared(one, without(finished(config(tmp_path, "old")), "hit_at_k", "f1"))
    assert any(line.startswith("old did not measure F1, hit@k") for line in found.caveats)
    assert not {"hit_at_k", "f1"} & set(found.differences[0].figures)
    assert "exact_match" in found.differences[0].figures


@pytest.mark.parametrize(("outcome", "said"), [("", "is unfinished"), ("KILLED", "was stopped"), ("FAILED", "failed")])
def test_runs_that_did_not_end_have_curves_and_no_figures(tmp_path: Path, outcome: str, said: str):
    broken = begun(config(tmp_path, "broken"), rows=2)
    note(broken.path, outcome=outcome)
    broken.write_summary({"iterations": 2, "best": {"iteration": 2, "score": 0.7}})
    found = compared(finished(config(tmp_path, "one")), broken)
    assert next(run for run in found.runs if run.name == "broken").validated == "0.700 (iteration 2)"
    assert f"broken {said} after 2 iterations: it has no final figures, only its curves" in found.caveats
    assert found.differences[0].figures == {}
    page = comparison_page(found)
    assert said.split()[-1] in page
    assert page.count("<polyline") > 4


def test_a_run_that_failed_before_its_first_iteration_is_no_obstacle(tmp_path: Path):
    empty = RunFolder.start(config(tmp_path, "empty"))
    note(empty.path, outcome="FAILED")
    found = compared(empty, finished(config(tmp_path, "one")))
    assert any(line.startswith("empty failed before its first iteration") for line in found.caveats)
    assert "empty" in comparison_page(found)


def test_a_resumed_run_is_not_judged_by_an_earlier_end(tmp_path: Path):
    again = finished(config(tmp_path, "again"))
    note(again.path, outcome="KILLED")
    assert any(
        "its final figures are those of an earlier end" in line for line in compared(again, finished(config(tmp_path, "one"))).caveats
    )


def test_unequal_training_other_machines_and_other_code_are_said(tmp_path: Path):
    other = finished(
        config(tmp_path, "other"), turns=900, machine={"cpus": 64, "memory_gib": 512, "gpus": ["H100"]}, git_commit="f" * 40, iterations=3
    )
    lines = compared(finished(config(tmp_path, "one")), other).caveats
    for said in (
        "not the same training: sampled turns one 300, other 900",
        "of different machines: 2 CPUs",
        "made by different code: 0123456789 (one)",
    ):
        assert any(said in line for line in lines)


def test_settings_of_another_version_of_the_code_do_not_stop_a_comparison(tmp_path: Path):
    one, other = finished(config(tmp_path, "one")), finished(config(tmp_path, "other"))
    with (other.path / "config.yaml").open("a") as file:
        file.write("forgotten_section:\n  a_key: 5\n")
    found = compared(one, other)
    assert found.settings == {}
    assert found.only_some_know == ["settings that the code of only some of them knew: forgotten_section.a_key"]


def test_folders_of_one_name_are_told_apart_and_one_folder_is_one_run(tmp_path: Path):
    folders = [finished(config(tmp_path / place, "run")) for place in ("a", "b")]
    assert [run.name for run in named([folder.path for folder in folders])] == ["a/runs/run", "b/runs/run"]
    assert len(named([folders[0].path, folders[0].path.parent / "." / "run"])) == 1


def test_the_page_needs_no_other_file_and_trusts_no_name(tmp_path: Path):
    one, other = finished(config(tmp_path, "one")), finished(config(tmp_path, "<script>alert(1)<"))
    page = comparison_page(compared(one, other))
    assert "<script" not in page
    assert not re.search(r"(src|href)\s*=|@import|url\(", page)
    assert "prefers-color-scheme: dark" in page


@pytest.mark.parametrize(
    ("argument", "filter"),
    [
        ("metrics.`heldout/f1_recall` > 0.6", True),
        ("params.`train.seed` = '1'", True),
        ("tags.sweep LIKE 'a%'", True),
        ("status = 'FINISHED'", True),
        ("run_name = 'x'", True),
        ("runs/laptop", False),
        ("uri=http://x", False),
        ("metrics", False),
    ],
)
def test_filters_are_told_from_names_and_settings(argument: str, filter: bool):
    assert is_filter(argument) == filter


@pytest.fixture
def both(tmp_path: Path, monkeypatch, new_store) -> tuple[str, RunFolder, RunFolder]:
    """(store, two finished runs in runs/, both in MLflow); the test stands beside runs/."""
    monkeypatch.chdir(tmp_path)
    uri = new_store(tmp_path)
    one, other = finished(config(tmp_path, "one"), few), finished(config(tmp_path, "other", seed=7), most)
    for folder in (one, other):
        upload(folder, UploadSettings(uri=uri, model=""))
    return uri, one, other


def test_the_command_compares_by_name_id_and_filter_and_logs_back_once(both, tmp_path: Path, capsys):
    uri, one, other = both
    id = identity(one.path)["run_id"]
    printed = []
    for chosen in (["one", "other"], [id, "runs/other"], [id, "params.`train.seed` = '7'"], []):
        assert main(["runs_folder=runs", *chosen, f"uri={uri}"]) == 0
        printed.append(capsys.readouterr().out)
    assert len(set(printed)) == 1
    assert "+0.500 ±" in printed[0]
    assert "train.seed" in printed[0]
    folder = tmp_path / "comparisons/one-other"
    assert {path.name for path in folder.iterdir()} == {"comparison.html", "comparison.json", "curves.png"}
    assert json.loads((folder / "comparison.json").read_text())["differences"][0]["questions"] == 24
    client = MlflowClient(tracking_uri=uri)
    experiment = client.get_experiment_by_name("r1-router").experiment_id
    (run,) = [found for found in client.search_runs([experiment]) if "comparison" in found.data.tags]
    assert run.data.tags["compared_runs"].split(", ") == [id, identity(other.path)["run_id"]]
    assert run.data.metrics["difference_other/f1_recall"] == pytest.approx(0.5)
    assert {entry.path for entry in client.list_artifacts(run.info.run_id)} == {"comparison.html", "comparison.json", "curves.png"}


def test_runs_whose_folder_is_on_another_machine_come_from_mlflow(both, tmp_path: Path, capsys):
    uri, one, other = both
    ids = [identity(folder.path)["run_id"] for folder in (one, other)]
    shutil.rmtree(tmp_path / "runs")
    assert main([*ids, f"uri={uri}", "mlflow=false"]) == 0
    assert "+0.500 ±" in capsys.readouterr().out
    found = json.loads(next((tmp_path / "comparisons").rglob("comparison.json")).read_text())
    assert [run["run_id"] for run in found["runs"]] == ids
    assert [run["state"] for run in found["runs"]] == ["finished", "finished"]


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["nothing"], "nothing: no run folder, no run of that name (one)"),
        (["one", "runs_foldr=x"], "unknown key runs_foldr"),
        (["0" * 32], "MLflow at sqlite"),
        (["params.`x` ~ = 3"], "MLflow at sqlite"),
        (["params.x = '3'"], "no run of experiment r1-router"),
        (["runs_folder=elsewhere"], "no runs in elsewhere/"),
    ],
)
def test_what_cannot_be_found_is_one_line(arguments: list[str], said: str, tmp_path: Path, monkeypatch, new_store, capsys):
    monkeypatch.chdir(tmp_path)
    begun(config(tmp_path, "one"))
    uri = new_store(tmp_path)
    MlflowClient(tracking_uri=uri).create_experiment("r1-router")
    assert main([*arguments, f"uri={uri}"]) == 2
    printed = capsys.readouterr().out.strip()
    assert said in printed
    assert "\n" not in printed


def test_an_mlflow_that_is_away_costs_the_comparison_nothing(both, tmp_path: Path, capsys):
    (tmp_path / "file").write_text("")
    assert main(["one", "other", f"uri=sqlite:///{tmp_path}/file/mlflow.db"]) == 0
    assert "the page is there all the same" in capsys.readouterr().out
    assert (tmp_path / "comparisons/one-other/comparison.html").exists()


def test_a_comparison_of_one_run_shows_it_alone(tmp_path: Path):
    found = compared(finished(config(tmp_path, "one")))
    assert (found.differences, found.settings) == ([], {})
    assert isinstance(found.runs[0], ComparedRun)
    assert "F1-Recall" in comparison_page(found)


def test_runs_of_studies_are_compared_by_their_name_where_it_is_one_run_s_alone(tmp_path: Path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    for place in ("", "study", "other"):
        for name in ("default", *(["seed0"] if place else []), *(["seed1"] if place == "study" else [])):
            begun(dataclasses.replace(config(tmp_path, name), runs_folder=f"runs/{place}"))
    place = lambda *names: [run.folder.path.as_posix() for run in chosen_runs(names, Path("runs"), TrackingConfig(), tmp_path)]  # noqa: E731
    assert place("seed1", "default") == ["runs/study/seed1", "runs/default"]
    assert len(place()) == 6
    with pytest.raises(RunConfigError, match=r"seed0: 2 runs have that name; .* runs/other/seed0, runs/study/seed0"):
        place("seed0")


def test_a_filter_finds_every_run_however_many_mlflow_hands_out_at_a_time(both, monkeypatch):
    uri, *_ = both
    monkeypatch.setattr("experiments.comparison.chosen.AT_ONCE", 1)
    client = MlflowClient(tracking_uri=uri)
    experiment = client.get_experiment_by_name("r1-router").experiment_id
    assert {run.info.run_name for run in all_found(client, experiment, "params.`data.name` = 'atlas'")} == {"one", "other"}
    assert all_found(client, experiment, "params.`data.name` = 'none'") == []


@pytest.mark.parametrize(
    "setting",
    ["retrieval.hybrid", "retrieval.reranker", "rollout.max_passage_chars", "rollout.shuffle_passages", "rollout.max_prompt_tokens"],
)
def test_settings_that_decide_what_is_measured_are_said_when_they_differ(setting: str):
    assert setting in DECIDE_THE_MEASURING
    assert setting in flat(TrainConfig())

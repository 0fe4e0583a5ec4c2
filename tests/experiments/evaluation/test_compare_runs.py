"""Runs side by side: differences are found, and what makes a comparison doubtful is reported."""

from __future__ import annotations

import dataclasses
import io
import re
from pathlib import Path
from typing import Any

import pytest
from made_run import begun, config_in, finished
from rich.console import Console

from experiments.compare import main
from experiments.config import RunConfigError, TrainConfig
from experiments.evaluation.compare_runs import Comparison, compare_runs, find_runs, print_comparison
from experiments.evaluation.significance import paired_difference
from experiments.tracking.mlflow_connection import note
from experiments.tracking.run_folder import RunFolder


def few(number: int) -> bool:
    return number % 4 == 0


def most(number: int) -> bool:
    return number % 4 != 1


def found_runs(*arguments: Path | str):
    return find_runs([str(argument) for argument in arguments], Path("runs"))


def compared(*folders: RunFolder) -> Comparison:
    return compare_runs(found_runs(*(folder.path for folder in folders)))


def config(folder: Path, name: str, **train: Any) -> TrainConfig:
    made = config_in(folder, name)
    return dataclasses.replace(made, train=dataclasses.replace(made.train, **train))


def caveat(found: Comparison, *words: str) -> bool:
    return any(all(word in line for word in words) for line in found.caveats)


def test_runs_of_equal_footing_are_compared_question_by_question_without_a_warning(tmp_path: Path):
    found = compared(finished(config(tmp_path, "one"), few), finished(config(tmp_path, "other", seed=7), most))
    expected = paired_difference(*(run.counts(list(run.questions)) for run in found.runs))
    assert found.shared == {"other": 24}
    assert found.caveats == []
    result = found.differences["other"]["f1_recall"]
    assert {key: result[key] for key in ("value", "low", "high")} == expected["f1_recall"]
    assert result["value"] == pytest.approx(0.5)
    assert 0 < result["p_corrected"] < 0.01
    assert found.settings == {"train.seed": [0, 7]}


def test_p_values_are_corrected_for_the_number_of_runs(tmp_path: Path):
    runs = [finished(config(tmp_path, name), right) for name, right in (("a", few), ("b", lambda n: few(n) or n in (1, 2, 3)), ("c", most))]
    smaller, larger = sorted((of["f1_recall"] for of in compared(*runs).differences.values()), key=lambda result: result["p"])
    assert smaller["p_corrected"] == pytest.approx(2 * smaller["p"])
    assert larger["p_corrected"] == pytest.approx(larger["p"])


def test_the_order_of_the_questions_does_not_matter(tmp_path: Path):
    one = finished(config(tmp_path, "one"), few)
    forward, backward = (finished(config(tmp_path, n), most, numbers) for n, numbers in (("f", range(24)), ("b", range(23, -1, -1))))
    assert compared(one, forward).differences["f"] == compared(one, backward).differences["b"]


def test_other_questions_are_reported_and_not_compared(tmp_path: Path):
    found = compared(finished(config(tmp_path, "one")), finished(config(tmp_path, "other"), numbers=range(100, 124), fingerprint="bbbb"))
    assert caveat(found, "share 0 stored questions")
    assert found.settings["training questions"] == ["aaaa-training", "bbbb-training"]
    assert found.differences["other"] == {}


def test_the_same_id_with_another_text_is_another_question(tmp_path: Path):
    one, other = found_runs(*(finished(config(tmp_path, name)).path for name in ("one", "other")))
    changed = {id: question | {"text": "Something else?"} for id, question in other.questions.items()}
    assert compare_runs([one, dataclasses.replace(other, questions=changed)]).shared == {"other": 0}


@pytest.mark.parametrize(("first", "shared"), [(12, 12), (20, 4)])
def test_shared_questions_are_compared_where_they_are_enough(tmp_path: Path, first: int, shared: int):
    one, other = finished(config(tmp_path, "one"), few), finished(config(tmp_path, "other"), most, numbers=range(first, first + 24))
    found = compared(one, other)
    assert found.shared == {"other": shared}
    assert caveat(found, f"share {shared} stored questions")
    if shared == 12:
        assert found.differences["other"]["f1_recall"]["value"] == pytest.approx(0.5)
    else:
        assert found.differences["other"] == {}


def test_other_data_sets_and_knowledge_bases_are_reported(tmp_path: Path):
    one, other = finished(config(tmp_path, "one")), finished(config(tmp_path, "other"), kb="2222")
    text = (other.path / "config.yaml").read_text().replace("name: atlas", "name: real_atlas")
    (other.path / "config.yaml").write_text(text)
    found = compared(one, other)
    assert found.settings["data.name"] == ["atlas", "real_atlas"]
    assert found.settings["knowledge bases for evaluation"] == ["text 1111", "text 2222"]


def test_metrics_that_one_run_lacks_are_left_out(tmp_path: Path):
    old = finished(config(tmp_path, "old"))
    summary = old.summary()
    for name in ("hit_at_k", "f1"):
        del summary["after"]["overall"][name]
    old.write_summary(summary)
    found = compared(finished(config(tmp_path, "one")), old)
    assert not {"hit_at_k", "f1"} & set(found.differences["old"])
    assert "exact_match" in found.differences["old"]


@pytest.mark.parametrize(("outcome", "state"), [("", "unfinished"), ("KILLED", "stopped"), ("FAILED", "failed")])
def test_runs_that_did_not_end_have_no_results(tmp_path: Path, outcome: str, state: str):
    broken = begun(config(tmp_path, "broken"), rows=2)
    note(broken.path, outcome=outcome)
    broken.write_summary({"iterations": 2, "best": {"iteration": 2, "score": 0.7}})
    found = compared(finished(config(tmp_path, "one")), broken)
    assert caveat(found, f"broken is {state} after 2 iterations")
    assert found.differences["broken"] == {}
    out = io.StringIO()
    print_comparison(Console(file=out, width=200), found)
    assert "0.700 (iteration 2)" in out.getvalue()


def test_a_run_that_failed_before_its_first_iteration_is_no_obstacle(tmp_path: Path):
    empty = RunFolder.start(config(tmp_path, "empty"))
    note(empty.path, outcome="FAILED")
    assert caveat(compared(empty, finished(config(tmp_path, "one"))), "empty is failed after 0 iterations")


def test_a_resumed_run_is_not_judged_by_an_earlier_end(tmp_path: Path):
    again = finished(config(tmp_path, "again"))
    note(again.path, outcome="KILLED")
    assert caveat(compared(again, finished(config(tmp_path, "one"))), "again is stopped", "before it was resumed")


def test_unequal_training_and_other_code_are_reported(tmp_path: Path):
    other = finished(config(tmp_path, "other"), turns=900, git_commit="f" * 40)
    found = compared(finished(config(tmp_path, "one")), other)
    assert found.settings == {"version of the code": ["0123456789 with uncommitted changes", "ffffffffff"]}
    out = io.StringIO()
    print_comparison(Console(file=out, width=200), found)
    assert re.search(r"other +│ finished │ +3 │ +900", out.getvalue())


def test_settings_of_another_version_of_the_code_do_not_stop_a_comparison(tmp_path: Path):
    one, other = finished(config(tmp_path, "one")), finished(config(tmp_path, "other"))
    with (other.path / "config.yaml").open("a") as file:
        file.write("forgotten_section:\n  a_key: 5\n")
    found = compared(one, other)
    assert found.settings == {"forgotten_section.a_key": ["–", 5]}


def test_a_comparison_of_one_run_shows_it_alone(tmp_path: Path):
    found = compared(finished(config(tmp_path, "one")))
    assert (found.differences, found.settings) == ({}, {})
    print_comparison(Console(file=io.StringIO()), found)


def test_runs_are_found_by_folder_and_by_a_name_that_is_one_run_s_alone(tmp_path: Path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    for place in ("", "study", "other"):
        for name in ("default", *(["seed0"] if place else []), *(["seed1"] if place == "study" else [])):
            begun(dataclasses.replace(config(tmp_path, name), runs_folder=f"runs/{place}"))
    assert [run.name for run in found_runs("seed1", "default", "runs/default")] == ["seed1", "default"]
    assert [run.name for run in found_runs("runs/study/seed0", "runs/other/seed0")] == ["runs/study/seed0", "runs/other/seed0"]
    assert len(found_runs()) == 6
    with pytest.raises(RunConfigError, match=r"seed0: 2 runs have that name; .* runs/other/seed0, runs/study/seed0"):
        found_runs("seed0")


def test_the_command_compares_by_name_folder_and_id(tmp_path: Path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    finished(config(tmp_path, "other", seed=7), most)
    note(finished(config(tmp_path, "one"), few).path, run_id="4f0c9a51")
    printed = []
    for chosen in (["one", "other"], ["4f0c9a51", "runs/other"], []):
        assert main(chosen) == 0
        printed.append(capsys.readouterr().out)
    assert len(set(printed)) == 1
    assert "+0.500 ±" in printed[0]
    assert "train.seed" in printed[0]


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["nothing"], "nothing"),
        (["one", "runs_foldr=x"], "runs_foldr"),
        (["0" * 32], "MLflow id"),
        (["runs_folder=elsewhere"], "elsewhere"),
    ],
)
def test_what_cannot_be_found_is_one_line(arguments: list[str], words: str, tmp_path: Path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    begun(config(tmp_path, "one"))
    assert main(arguments) == 2
    printed = capsys.readouterr().out.strip()
    assert words in printed
    assert "\n" not in printed

"""A run folder and its run in MLflow: everything gets there, under names that can be read, and nothing twice."""

from __future__ import annotations

import dataclasses
import json
import shutil
from pathlib import Path
from typing import Any

import pytest
import torch
from made_run import begun, config_in, finished, row

from experiments.config import LoopConfig, TrackingConfig, resolved_yaml
from experiments.tracking.fingerprints import fingerprint
from experiments.tracking.mlflow_connection import experiment_id, identity, note
from experiments.tracking.mlflow_upload import RunUpload
from experiments.tracking.model_registry import model_name
from experiments.tracking.run_folder import RunFolder
from experiments.upload import main as upload_command
from experiments.upload import tracking_of
from rollout.policies import load_policy
from rollout.records import GoldStep, Image, Question


@pytest.fixture(scope="module")
def store(new_store, tmp_path_factory) -> str:
    return new_store(tmp_path_factory.mktemp("store"))


@pytest.fixture(scope="module")
def client(store: str) -> Any:
    import mlflow

    mlflow.set_tracking_uri(store)  # of what has no client of its own: tables and the files of models
    return mlflow.MlflowClient(tracking_uri=store)


@pytest.fixture
def tracking(store: str, tmp_path: Path) -> TrackingConfig:
    """An experiment and a model of its own for each test, all in one data base."""
    return TrackingConfig(uri=store, experiment=tmp_path.name, model=tmp_path.name)


def upload(folder: RunFolder, tracking: TrackingConfig, outcome: str = "FINISHED") -> tuple[RunUpload, str]:
    run = RunUpload(folder.path, tracking)
    run.open()
    run.finish(outcome)
    return run, run.run_id


def everything(client: Any, run_id: str) -> dict[str, Any]:
    """All that MLflow knows of a run."""
    run = client.get_run(run_id)
    return {
        "info": dict(run.info),
        "params": run.data.params,
        "tags": run.data.tags,
        "points": {name: [(p.step, p.value, p.timestamp) for p in client.get_metric_history(run_id, name)] for name in run.data.metrics},
        "files": {
            path.relative_to(place): path.stat().st_mtime_ns for place in [artifacts(run)] for path in place.rglob("*") if path.is_file()
        },
    }


def artifacts(run: Any) -> Path:
    return Path(run.info.artifact_uri.removeprefix("file://"))


def test_a_whole_run_is_in_mlflow_and_a_second_upload_changes_nothing(tracking: TrackingConfig, client: Any, tmp_path: Path):
    folder = finished(config_in(tmp_path, "whole"))
    sent, run_id = upload(folder, tracking)
    found = everything(client, run_id)
    assert sent.points == sum(len(points) for points in found["points"].values())
    assert [point[:2] for point in found["points"]["reward"]] == [(1, 0.51), (2, 0.52), (3, 0.53)]
    assert [point[2] for point in found["points"]["reward"]] == [1_700_000_010_000, 1_700_000_020_000, 1_700_000_030_000]
    assert [point[:2] for point in found["points"]["heldout_f1_recall"]] == [(0, pytest.approx(5 / 24)), (3, 0.5)]
    assert found["points"]["heldout_difference_f1_recall"][0][:2] == (0, pytest.approx(7 / 24))
    assert found["params"]["rollout.group_size"] == str(folder.config().rollout.group_size)
    assert (found["tags"]["mlflow.source.git.commit"][:7], found["tags"]["git_dirty"]) == ("0123456", "true")
    assert (found["tags"]["dataset.heldout"], found["tags"]["kb.evaluation.text"]) == ("aaaa-heldout", "1111")
    assert "`rollout.mode=branch`" in found["tags"]["mlflow.note.content"]
    files = {path.as_posix() for path in found["files"]}
    assert files >= {
        "config.yaml",
        "summary.json",
        "metrics.jsonl",
        "fingerprints.json",
        "trajectories/after.parquet",
    }
    assert (found["info"]["status"], found["info"]["end_time"]) == ("FINISHED", int((1.7e9 + 1000) * 1000))

    again, same = upload(folder, tracking)
    assert (again.points, again.files, again.versions, same) == (0, 0, [], run_id)
    assert everything(client, run_id) == found


def test_a_partly_logged_run_gets_only_what_is_missing_even_from_another_place(tracking: TrackingConfig, client: Any, tmp_path: Path):
    folder = begun(config_in(tmp_path, "partly"), rows=2)
    first, run_id = upload(folder, tracking, "KILLED")
    elsewhere = RunFolder(tmp_path / "elsewhere")
    shutil.copytree(folder.path, elsewhere.path)
    elsewhere.add_metrics(row(3))
    second, same = upload(elsewhere, tracking, "KILLED")
    assert same == run_id
    assert second.points == first.points / 2
    assert [point.step for point in client.get_metric_history(run_id, "reward")] == [1, 2, 3]


def test_iterations_that_came_out_otherwise_after_a_restart_are_there_as_well(tracking: TrackingConfig, client: Any, tmp_path: Path):
    folder = begun(config_in(tmp_path, "again"), rows=3)
    _, run_id = upload(folder, tracking, "KILLED")
    folder.forget_after(1)
    folder.add_metrics(row(2))
    folder.add_metrics(row(3, finished=1.7e9 + 99, reward=0.9))
    assert upload(folder, tracking)[0].points == 1
    assert [(p.step, p.value) for p in client.get_metric_history(run_id, "reward")] == [(1, 0.51), (2, 0.52), (3, 0.53), (3, 0.9)]
    assert client.get_run(run_id).data.metrics["reward"] == 0.9


def test_many_long_and_strangely_named_settings_become_parameters(tracking: TrackingConfig, client: Any, tmp_path: Path):
    config = config_in(tmp_path, "strange")
    config.data.path = "x" * 7000
    config.reward.terms = {"my.rewards:polite": 1.0, "what?": 2.0} | {f"term_{number}": float(number) for number in range(250)}
    folder = begun(config)
    _, run_id = upload(folder, tracking)
    params = client.get_run(run_id).data.params
    assert len(params["data.path"]) == 6000
    assert params["data.path"].endswith("x…")
    assert (params["reward.terms.my.rewards:polite"], params["reward.terms.what_"], params["reward.terms.term_249"]) == (
        "1.0",
        "2.0",
        "249.0",
    )
    assert len(params) > 300


def test_a_setting_that_a_resumed_run_changed_is_told_in_a_tag(tracking: TrackingConfig, client: Any, tmp_path: Path):
    config = config_in(tmp_path, "longer")
    folder = begun(config)
    upload(folder, tracking, "KILLED")
    resumed = dataclasses.replace(config, train=LoopConfig(iterations=999, resume="auto"))
    (folder.path / "config.yaml").write_text(resolved_yaml(resumed))
    run = client.get_run(upload(folder, tracking)[1])
    assert run.data.params["train.iterations"] == "400"
    assert run.data.tags["changed.train.iterations"] == "999"


def test_a_policy_is_registered_once_and_comes_back_by_its_alias_as_it_was(
    tracking: TrackingConfig, client: Any, tmp_path: Path, start_policy: str
):
    import mlflow.artifacts

    folder = finished(config_in(tmp_path, "learned"))
    shutil.copytree(start_policy, folder.policy)
    name = model_name(tracking, "atlas")
    assert upload(folder, tracking)[0].versions == [f"{name} 1"]
    assert upload(folder, tracking)[0].versions == []
    for reference in (f"models:/{name}@best", f"models:/{name}/latest"):
        back = mlflow.artifacts.download_artifacts(reference, dst_path=str(tmp_path / "back"))
        ours, theirs = (load_policy(path).model.state_dict() for path in (start_policy, back))
        assert all(torch.equal(ours[key], theirs[key]) for key in ours)
    version = client.get_model_version(name, "1")
    assert (version.tags["f1_recall"], version.tags["heldout"]) == ("0.5", "aaaa-heldout")


@pytest.mark.slow
def test_best_is_the_best_of_those_that_were_measured_on_the_same_questions(tracking: TrackingConfig, client: Any, tmp_path: Path):
    name = model_name(tracking, "atlas")

    def registered(run: str, right: int, fingerprint: str = "aaaa") -> None:
        folder = finished(config_in(tmp_path, run), right_after=lambda number: number < right, fingerprint=fingerprint)
        folder.policy.mkdir()
        (folder.policy / "config.json").write_text(json.dumps(run))
        upload(folder, tracking)

    best = []
    for run, right, asked in (("middling", 12, "aaaa"), ("good", 20, "aaaa"), ("bad", 4, "aaaa"), ("elsewhere", 8, "bbbb")):
        registered(run, right, asked)
        best.append(str(client.get_model_version_by_alias(name, "best").version))
    assert best == ["1", "2", "2", "4"]


def test_a_training_that_somebody_else_measures_is_registered_by_its_validation_score(
    tracking: TrackingConfig, client: Any, tmp_path: Path
):
    """A training of a study: it is finished, and has neither before nor after."""
    name = model_name(tracking, "atlas")
    for run, score, outcome in (("good", 0.8, "FINISHED"), ("worse", 0.4, "FINISHED"), ("stopped", 0.9, "KILLED")):
        folder = begun(config_in(tmp_path, run))
        folder.policy.mkdir()
        (folder.policy / "config.json").write_text(json.dumps(run))
        folder.write_summary({"name": run, "iterations": 3, "best": {"iteration": 2, "score": score}})
        note(folder.path, outcome=outcome)
        sent, run_id = upload(folder, tracking, outcome)
        assert len(sent.versions) == (outcome == "FINISHED")
        assert "policy" in {entry.path for entry in client.list_artifacts(run_id)}
    assert str(client.get_model_version_by_alias(name, "best").version) == "1"
    version = client.get_model_version(name, "2")
    assert (version.tags["validation"], "f1_recall" in version.tags) == ("0.4", False)


def test_without_a_model_name_the_policy_stays_where_it_is(tracking: TrackingConfig, client: Any, tmp_path: Path):
    folder = finished(config_in(tmp_path, "big"))
    folder.policy.mkdir()
    (folder.policy / "config.json").write_text("{}")
    sent, run_id = upload(folder, dataclasses.replace(tracking, model=""))
    assert sent.versions == []
    assert "policy" not in {entry.path for entry in client.list_artifacts(run_id)}


def test_runs_with_the_same_parent_setting_are_children_of_one_run(tracking: TrackingConfig, client: Any, tmp_path: Path):
    child = dataclasses.replace(tracking, parent="alpha")
    first, second = (client.get_parent_run(upload(begun(config_in(tmp_path, name)), child)[1]) for name in ("trial1", "trial2"))
    assert first.info.run_id == second.info.run_id
    assert (first.info.run_name, first.info.status) == ("alpha", "FINISHED")


def test_the_command_sends_folders_says_what_was_new_and_names_what_is_wrong(tracking: TrackingConfig, tmp_path: Path, capsys):
    folder = begun(config_in(tmp_path, "mine", uri=tracking.uri, experiment=tracking.experiment))
    assert upload_command([str(folder.path)]) == 0
    assert f"{folder.path}: 27 figures" in capsys.readouterr().out
    assert upload_command([str(folder.path), f"tracking.experiment={tracking.experiment}"]) == 0
    assert "nothing was missing" in capsys.readouterr().out
    assert identity(folder.path)["uri"] == tracking.uri
    assert upload_command(["runs/nothing"]) == 2
    assert upload_command([str(folder.path), "tracking.url=x"]) == 2
    (tmp_path / "file").write_text("")
    assert upload_command([str(folder.path), f"tracking.uri=sqlite:///{tmp_path}/file/mlflow.db"]) == 1
    assert all(line.startswith("error: ") for line in capsys.readouterr().out.splitlines())


def test_a_fingerprint_knows_every_word_and_picture_and_their_order():
    questions = [Question("a", "Which?", ("x",)), Question("b", "Who?", ("y",), Image.of(b"picture"))]
    others = [
        questions[::-1],
        questions[:1],
        [questions[0], dataclasses.replace(questions[1], image=Image.of(b"another"))],
        [dataclasses.replace(questions[0], answers=("z",)), questions[1]],
    ]
    assert fingerprint(questions) == fingerprint(list(questions))
    assert len({fingerprint(questions), *map(fingerprint, others)}) == 5


def test_a_fingerprint_is_the_same_as_when_a_gold_step_named_one_knowledge_base():
    one, two = (Question("q", "t", ("a",), None, (GoldStep("Who?", kbs, "a", ("A",)),)) for kbs in ("text", ("text", "table")))
    assert fingerprint([one]) == "c3a56486e207338a" != fingerprint([two])


def test_artifacts_of_a_local_data_base_lie_beside_it(tracking: TrackingConfig, client: Any, store: str):
    location = client.get_experiment(experiment_id(client, tracking)).artifact_location
    assert Path(location.removeprefix("file://")) == Path(store.removeprefix("sqlite:///")).parent / "mlruns" / tracking.experiment


@pytest.mark.parametrize(("said", "model"), [([], "mine"), (["model=other"], "other"), (["model="], "")])
def test_a_later_upload_names_models_as_the_run_was_told_where_nothing_else_is_said(tmp_path: Path, said: list[str], model: str):
    folder = begun(config_in(tmp_path, "told", model="mine"))
    assert tracking_of(folder, said).model == model
    untold = begun(config_in(tmp_path, "kept", model=""))
    assert tracking_of(untold, []).model == ""

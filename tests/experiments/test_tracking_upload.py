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

from experiments.command_settings import read_settings
from experiments.config import LoopConfig, TrackingConfig, resolved_yaml
from experiments.fingerprints import fingerprint
from experiments.iteration_figures import LEARNER, ROLLOUT
from experiments.run_folder import RunFolder
from experiments.tracking.identity import identity, note
from experiments.tracking.metric_names import SECTIONS, metric_name, seconds_of
from experiments.tracking.policy_version import model_name
from experiments.tracking.run_upload import RunUpload, Sent
from experiments.tracking.store import experiment_id
from experiments.tracking.sweep import sweep
from experiments.upload import UploadSettings, told_by
from experiments.upload import main as upload_command
from rollout.policy import Policy
from rollout.records import Image, Question


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


def upload(folder: RunFolder, tracking: TrackingConfig, outcome: str = "FINISHED") -> tuple[Sent, str]:
    run = RunUpload(folder.path, tracking)
    run.open()
    run.metrics()
    run.results()
    run.describe()
    run.close(outcome)
    return run.sent, run.run_id


def everything(client: Any, run_id: str) -> dict[str, Any]:
    """All that MLflow knows of a run."""
    run = client.get_run(run_id)
    return {
        "info": dict(run.info),
        "params": run.data.params,
        "tags": run.data.tags,
        "points": {name: [(p.step, p.value, p.timestamp) for p in client.get_metric_history(run_id, name)] for name in run.data.metrics},
        "inputs": [(found.dataset.name, found.dataset.digest) for found in run.inputs.dataset_inputs],
        "files": {
            path.relative_to(place): path.stat().st_mtime_ns for place in [artifacts(run)] for path in place.rglob("*") if path.is_file()
        },
    }


def artifacts(run: Any) -> Path:
    return Path(run.info.artifact_uri.removeprefix("file://"))


def test_every_figure_has_a_section_that_is_explained():
    keys = [
        *LEARNER,
        *ROLLOUT,
        *row(1),
        "outcome",
        "seconds_push",
        "workers_restarts",
        "retrieval_errors",
        "validation_f1_recall",
        "unheard_of",
    ]
    names = {key: metric_name(key) for key in keys}
    assert {name.split("/")[0] for name in names.values()} <= set(SECTIONS)
    assert len(set(names.values())) == len(names)
    assert (names["reward_plan"], names["use_text"], names["unheard_of"]) == ("reward/plan", "kb_share/text", "run/unheard_of")


def test_iterations_that_do_not_say_their_time_are_laid_out_by_how_long_they_took():
    assert seconds_of([{"seconds_learn": 1.0}, {"seconds_learn": 2.0, "seconds_push": 1.0}, {"seconds_learn": 4.0}], end=100.0) == [
        93.0,
        96.0,
        100.0,
    ]
    assert seconds_of([row(1), row(2)], end=0.0) == [1.7e9 + 10, 1.7e9 + 20]


def test_a_whole_run_is_in_mlflow_and_a_second_upload_changes_nothing(tracking: TrackingConfig, client: Any, tmp_path: Path):
    folder = finished(config_in(tmp_path, "whole"))
    sent, run_id = upload(folder, tracking)
    found = everything(client, run_id)
    assert sent.points == sum(len(points) for points in found["points"].values())
    assert [point[:2] for point in found["points"]["reward/all"]] == [(1, 0.51), (2, 0.52), (3, 0.53)]
    assert [point[2] for point in found["points"]["reward/all"]] == [1_700_000_010_000, 1_700_000_020_000, 1_700_000_030_000]
    assert [point[:2] for point in found["points"]["heldout/f1_recall"]] == [(0, pytest.approx(5 / 24)), (3, 0.5)]
    assert found["points"]["heldout_gain/f1_recall"][0][:2] == (0, pytest.approx(7 / 24))
    assert found["params"]["rollout.group_size"] == str(folder.config().rollout.group_size)
    assert (found["tags"]["mlflow.source.git.commit"][:7], found["tags"]["git_dirty"]) == ("0123456", "true")
    assert (found["tags"]["dataset.heldout"], found["tags"]["kb.evaluation.text"]) == ("aaaa-heldout", "1111")
    assert {("atlas-training", "aaaa-training"), ("kb-text", "1111")} <= set(found["inputs"])
    assert "| F1-Recall | " in found["tags"]["mlflow.note.content"]
    files = {path.as_posix() for path in found["files"]}
    assert files >= {
        "config.yaml",
        "summary.json",
        "metrics.jsonl",
        "fingerprints.json",
        "trajectories/after.parquet",
        "plots/curves.png",
        "tables/measures.json",
    }
    assert (found["info"]["status"], found["info"]["end_time"]) == ("FINISHED", int((1.7e9 + 1000) * 1000))
    table = client.load_table(tracking_experiment(client, tracking), "tables/measures.json", [run_id])
    assert set(table["policy"]) == {"before", "after", "after, random", "after - before, paired"}

    again, same = upload(folder, tracking)
    assert (again, same) == (Sent(), run_id)
    assert everything(client, run_id) == found


def tracking_experiment(client: Any, tracking: TrackingConfig) -> str:
    return client.get_experiment_by_name(tracking.experiment).experiment_id


def test_a_partly_logged_run_gets_only_what_is_missing_even_from_another_place(tracking: TrackingConfig, client: Any, tmp_path: Path):
    folder = begun(config_in(tmp_path, "partly"), rows=2)
    first, run_id = upload(folder, tracking, "KILLED")
    elsewhere = RunFolder(tmp_path / "elsewhere")
    shutil.copytree(folder.path, elsewhere.path)
    elsewhere.add_metrics(row(3))
    second, same = upload(elsewhere, tracking, "KILLED")
    assert same == run_id
    assert second.points == first.points / 2
    assert [point.step for point in client.get_metric_history(run_id, "reward/all")] == [1, 2, 3]


def test_iterations_that_came_out_otherwise_after_a_restart_are_there_as_well(tracking: TrackingConfig, client: Any, tmp_path: Path):
    folder = begun(config_in(tmp_path, "again"), rows=3)
    _, run_id = upload(folder, tracking, "KILLED")
    folder.forget_after(1)
    folder.add_metrics(row(2))
    folder.add_metrics(row(3, finished=1.7e9 + 99, reward=0.9))
    assert upload(folder, tracking)[0].points == 1
    assert [(p.step, p.value) for p in client.get_metric_history(run_id, "reward/all")] == [(1, 0.51), (2, 0.52), (3, 0.53), (3, 0.9)]
    assert client.get_run(run_id).data.metrics["reward/all"] == 0.9


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
        ours, theirs = (Policy.load(path).model.state_dict() for path in (start_policy, back))
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
    assert version.description == (
        "Run worse, iteration 2: not measured on held-out questions by the run; 0.400 on the validation questions."
    )


def test_without_a_model_name_the_policy_stays_where_it_is(tracking: TrackingConfig, client: Any, tmp_path: Path):
    folder = finished(config_in(tmp_path, "big"))
    folder.policy.mkdir()
    (folder.policy / "config.json").write_text("{}")
    sent, run_id = upload(folder, dataclasses.replace(tracking, model=""))
    assert sent.versions == []
    assert "policy" not in {entry.path for entry in client.list_artifacts(run_id)}


def test_runs_of_a_sweep_stand_under_one_parent_whoever_made_it(tracking: TrackingConfig, client: Any, tmp_path: Path):
    child = dataclasses.replace(tracking, parent="alpha")
    _, first = upload(begun(config_in(tmp_path, "trial1")), child)
    with sweep(tracking, "alpha"):
        parent = client.get_parent_run(first)
        assert parent.info.status == "RUNNING"
        _, second = upload(begun(config_in(tmp_path, "trial2")), child)
    assert client.get_parent_run(second).info.run_id == parent.info.run_id
    assert client.get_run(parent.info.run_id).info.status == "FINISHED"
    assert parent.info.run_name == "alpha"
    with pytest.raises(ZeroDivisionError), sweep(tracking, "alpha"):
        raise ZeroDivisionError
    assert client.get_run(parent.info.run_id).info.status == "FAILED"


def test_a_sweep_without_its_store_goes_on(tmp_path: Path):
    (tmp_path / "file").write_text("")
    with sweep(TrackingConfig(uri=f"sqlite:///{tmp_path}/file/mlflow.db"), "alpha"):
        pass


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


def test_artifacts_of_a_local_data_base_lie_beside_it(tracking: TrackingConfig, client: Any, store: str):
    location = client.get_experiment(experiment_id(client, tracking)).artifact_location
    assert Path(location.removeprefix("file://")) == Path(store.removeprefix("sqlite:///")).parent / "mlruns" / tracking.experiment


@pytest.mark.parametrize(("said", "model"), [([], "mine"), (["model=other"], "other"), (["model=''"], "")])
def test_a_later_upload_names_models_as_the_run_was_told_where_nothing_else_is_said(tmp_path: Path, said: list[str], model: str):
    folder = begun(config_in(tmp_path, "told", model="mine"))
    assert told_by(folder, read_settings(UploadSettings, said)).model == model
    untold = begun(config_in(tmp_path, "kept", model=""))
    assert told_by(untold, UploadSettings()).model == ""

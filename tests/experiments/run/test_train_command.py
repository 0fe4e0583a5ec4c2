"""`python -m experiments.train` from the outside: wrong input, a whole run, a killed run."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from experiments.command_line.entry_point import STOPPED, WRONG_INPUT
from experiments.evaluation.metrics import METRICS
from experiments.train import main
from rollout.policies import load_policy

ROOT = Path(__file__).parents[3]
PATIENCE = 280
"""Seconds that a run may take on a busy machine; alone on two cores it takes less than one minute."""


def command(folder: Path, policy: str, *settings: str) -> list[str]:
    places = [f"runs_folder={folder}/runs", f"data.kb_folder={folder}/kbs", f"tracking.uri=sqlite:///{folder}/mlflow.db"]
    return [sys.executable, "-m", "experiments.train", "smoke.yaml", f"train.policy={policy}", *places, *settings]


def wait_for(path: Path, process: subprocess.Popen) -> None:
    end = time.monotonic() + PATIENCE
    while not (path.exists() and path.stat().st_size):
        assert process.poll() is None, "the run ended too early"
        assert time.monotonic() < end, f"{path} did not appear in {PATIENCE} s"
        time.sleep(0.05)


@pytest.mark.timeout(2 * PATIENCE + 30)
@pytest.mark.slow
def test_a_killed_run_goes_on_from_its_checkpoint_and_leaves_a_whole_run_folder(tmp_path: Path, start_policy: str):
    run = tmp_path / "runs/smoke"
    with subprocess.Popen(command(tmp_path, start_policy, "train.iterations=3"), cwd=ROOT, stdout=subprocess.DEVNULL) as process:
        wait_for(run / "checkpoints/iteration-000001/complete.json", process)
        process.send_signal(signal.SIGKILL)
    resumed = subprocess.run(
        command(tmp_path, start_policy, "train.iterations=3", "train.resume=auto", "train.trace=true"),
        cwd=ROOT,
        capture_output=True,
        text=True,
        timeout=PATIENCE,
    )
    assert resumed.returncode == 0, resumed.stdout[-2000:] + resumed.stderr[-2000:]
    assert "resumed after iteration" in resumed.stdout
    assert json.loads((run / "failures/001.json").read_text())["role"] == "driver"
    assert not (run / "driver.json").exists()
    assert "before and after" in resumed.stdout

    metrics = [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]
    assert [row["iteration"] for row in metrics] == [1, 2, 3]
    assert [row["policy_version"] for row in metrics] == [1, 2, 3]
    assert all(0 <= row["retrieval_cache_hit_rate"] <= 1 and row["retrieval_errors"] == 0 for row in metrics)

    trace = json.loads((run / "trace-000003.json").read_text())["traceEvents"]
    names = {event["args"]["name"]: event["tid"] for event in trace if event["ph"] == "M"}
    assert set(names) == {"driver", "learner", "rollout worker 1", "rollout worker 2"}
    sampled = [event for event in trace if event["ph"] == "X" and event["tid"] == names["rollout worker 1"] and event["name"] != "idle"]
    (rolled_out,) = [event for event in trace if event["name"] == "rollout"]
    assert {"decode", "encode"} <= {event["name"] for event in sampled}
    assert all(rolled_out["ts"] - 5e4 <= event["ts"] <= rolled_out["ts"] + rolled_out["dur"] for event in sampled)

    summary = json.loads((run / "summary.json").read_text())
    for part in ("before", "after"):
        assert set(summary[part]["overall"]) == set(METRICS)
        assert all({"value", "low", "high"} <= set(figure) for figure in summary[part]["overall"].values())
        assert sum(family["questions"] for family in summary[part]["by_family"].values()) == summary[part]["questions"] == 8
    assert set(summary["difference"]) == set(METRICS)
    assert set(summary["baselines"]) == {"random"}
    assert summary["iterations"] == summary["policy_version"] == 3
    assert {"set_up", "evaluate_before", "train", "train_rollout", "train_learn", "evaluate_after"} <= set(summary["seconds"])
    assert summary["turns"] == sum(row["turns"] for row in metrics)
    assert summary["sampled_tokens"] == sum(row["sampled_tokens"] for row in metrics) > 0
    assert summary["config"]["train"]["iterations"] == 3
    assert {"git_commit", "machine", "best"} <= set(summary)

    assert {path.name for path in (run / "trajectories").iterdir()} >= {"before.parquet", "after.parquet", "iteration-000003.parquet"}
    assert load_policy(run / "policy").model.num_parameters() > 0
    assert (run / "report.html").stat().st_size > 10_000

    from mlflow import MlflowClient

    client = MlflowClient(tracking_uri=f"sqlite:///{tmp_path}/mlflow.db")
    (tracked,) = client.search_runs([client.get_experiment_by_name("r1-router").experiment_id])
    assert tracked.info.status == "FINISHED"
    assert [point.step for point in client.get_metric_history(tracked.info.run_id, "reward")][-1] == 3


@pytest.mark.slow
def test_a_run_that_is_asked_to_stop_saves_itself_first(tmp_path: Path, start_policy: str):
    settings = ("train.iterations=1000", "train.checkpoint_every=0", "train.evaluate_every=0")
    with subprocess.Popen(command(tmp_path, start_policy, *settings), cwd=ROOT, stdout=subprocess.PIPE, text=True) as process:
        wait_for(tmp_path / "runs/smoke/metrics.jsonl", process)
        time.sleep(0.5)
        os.kill(process.pid, signal.SIGTERM)
        said, _ = process.communicate(timeout=PATIENCE)
    assert process.returncode == STOPPED
    assert "resume with train.resume=auto" in said
    assert "report so far" in said
    assert (tmp_path / "runs/smoke/report.html").stat().st_size > 10_000
    metrics = (tmp_path / "runs/smoke/metrics.jsonl").read_text().splitlines()
    assert (tmp_path / f"runs/smoke/checkpoints/iteration-{len(metrics):06d}/complete.json").exists()


def line(**record: object) -> str:
    return json.dumps({"text": "Whose flag?", "answers": ["Kormu"]} | record) + "\n"


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["train.iteration=3"], "unknown key train.iteration; did you mean train.iterations?"),
        (["train.policy=runs/nothing"], "train.policy is 'runs/nothing'"),
        (["train.resume=runs/nothing"], "train.resume is 'runs/nothing'"),
        (["data.name=questions", "data.path={folder}/not_json.jsonl", "retrieval.folders.text={folder}"], "not_json.jsonl:2: not JSON"),
        (["data.name=questions", "data.path={folder}/broken.jsonl", "retrieval.folders.text={folder}"], "broken.jsonl:1: image"),
        (["data.name=questions", "data.path={folder}/fine.jsonl", "retrieval.folders.text={folder}/no_kb"], "kb.json"),
    ],
)
def test_wrong_input_is_one_line_before_anything_starts(tmp_path: Path, start_policy: str, capsys, arguments: list[str], said: str):
    (tmp_path / "no_kb").mkdir()
    (tmp_path / "broken.png").write_bytes(b"not a picture")
    (tmp_path / "not_json.jsonl").write_text(line() + "{oops\n")
    (tmp_path / "broken.jsonl").write_text(line(image="broken.png"))
    (tmp_path / "fine.jsonl").write_text("".join(line(id=str(i)) for i in range(30)))
    wrong = [argument.format(folder=tmp_path) for argument in arguments]
    policy = [] if any(argument.startswith("train.policy") for argument in wrong) else [f"train.policy={start_policy}"]
    began = time.monotonic()
    assert main(["smoke.yaml", f"runs_folder={tmp_path}/runs", *policy, *wrong]) == WRONG_INPUT
    printed = capsys.readouterr().out.strip()
    assert said in printed
    assert "\n" not in printed
    assert time.monotonic() - began < 30
    assert not (tmp_path / "runs").exists()

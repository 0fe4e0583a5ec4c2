"""Half a run at a time: what is rolled out alone can be learned from alone."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
from test_train_command import PATIENCE, ROOT, command

from experiments.config import RunConfigError, load_config
from experiments.train import WRONG_INPUT, main
from rollout.policies import load_policy
from rollout.record_files import read_rollouts


def run(arguments: list[str]) -> str:
    done = subprocess.run(arguments, cwd=ROOT, capture_output=True, text=True, timeout=PATIENCE, env=os.environ | {"PYTHONPATH": str(ROOT)})
    assert done.returncode == 0, done.stdout[-2000:] + done.stderr[-2000:]
    return done.stdout


@pytest.mark.slow
@pytest.mark.timeout(2 * PATIENCE + 30)
def test_rollouts_without_learning_are_learned_from_without_rolling_out(tmp_path: Path, start_policy: str, capsys):
    rollouts = tmp_path / "rollouts"
    half = ["evaluation.questions=1", "evaluation.validation_questions=1", "tracking.mlflow=false", "train.num_rollout_workers=1"]
    rolled_out = ["train.rollout_only=true", f"train.dump_rollouts={rollouts}", "data.train_questions=4", "name=first"]
    run(command(tmp_path, start_policy, *rolled_out, *half))
    assert sorted(path.name for path in rollouts.iterdir()) == ["iteration-000001", "iteration-000002"]
    trajectories, turns = read_rollouts(rollouts / "iteration-000001")
    assert len(trajectories) == 4
    assert {turn.turn.policy_version for turn in turns} == {0}
    first = [json.loads(line) for line in (tmp_path / "runs/first/metrics.jsonl").read_text().splitlines()]
    assert first[0]["judged_turns"] == len(turns)
    _, later = read_rollouts(rollouts / "iteration-000002")  # the next epoch: the same four questions
    assert {turn.episode_group for turn in later} == {turn.episode_group for turn in turns}
    seen, again = ({turn.turn.response_ids.tobytes() for turn in found} for found in (turns, later))
    assert seen != again
    assert "loss" not in first[0]

    settings = [sys.executable, "-m", "experiments.train", "smoke.yaml", f"train.policy={start_policy}", f"runs_folder={tmp_path}/runs"]
    said = run([*settings, f"train.replay_rollouts={rollouts}", "data.path=nowhere", "data.name=questions", "name=second", *half])
    assert "policy:" in said
    second = [json.loads(line) for line in (tmp_path / "runs/second/metrics.jsonl").read_text().splitlines()]
    assert [row["policy_version"] for row in second] == [1, 2]
    assert second[0]["mismatch_max"] < 1e-4
    assert [row["reward"] for row in second] == [row["reward"] for row in first]
    assert second[0]["learned_tokens"] > 0
    assert load_policy(tmp_path / "runs/second/policy")


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        (["train.rollout_only=true", "train.replay_rollouts=x"], "train.replay_rollouts is 'x'; expected at most one"),
        (["train.replay_rollouts=x", "train.resume=auto"], "expected at most one"),
        (["train.replay_rollouts=x", "train.dump_rollouts=y"], "train.dump_rollouts is 'y'"),
    ],
)
def test_halves_that_exclude_each_other_are_refused(settings, message):
    with pytest.raises(RunConfigError, match=message):
        load_config(["smoke.yaml", *settings])


def test_a_folder_without_rollouts_is_refused_before_anything_starts(tmp_path: Path, start_policy: str, capsys):
    assert main(["smoke.yaml", f"train.policy={start_policy}", f"train.replay_rollouts={tmp_path}"]) == WRONG_INPUT
    assert "no iteration-000001, ... there; expected what train.dump_rollouts wrote" in capsys.readouterr().out
    (tmp_path / "iteration-000001").mkdir()
    assert main(["smoke.yaml", f"train.policy={start_policy}", f"train.dump_rollouts={tmp_path}"]) == WRONG_INPUT
    assert "which holds rollouts already; expected a new folder" in capsys.readouterr().out

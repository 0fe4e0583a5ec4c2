"""A reward of the user's own that goes wrong in the middle of training: the run ends with one line that names the function."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import yaml

from rewards.config import RewardConfig
from rewards.terms import RewardError

ROOT = Path(__file__).parents[2]
PATIENCE = 280


def broken(body: str) -> str:
    """Fine in the evaluation before training, where no turn has siblings."""
    return f"def reward(turn):\n    if len(turn.trajectory.groups[0].turns) > 1:\n        {body}\n    return 0.5\n"


@pytest.mark.slow
@pytest.mark.timeout(PATIENCE + 30)
@pytest.mark.parametrize(
    ("body", "said"),
    [
        ("return float('nan')", "reward mine:reward returned nan for a plan turn of question"),
        ("return {}['kindness']", "reward mine:reward raised KeyError: 'kindness'"),
    ],
)
def test_a_reward_that_goes_wrong_in_an_iteration_ends_the_run_with_its_name(tmp_path: Path, body: str, said: str):
    (tmp_path / "mine.py").write_text(broken(body))
    settings = yaml.safe_load((ROOT / "experiments/configs/smoke.yaml").read_text())
    settings["reward"] = {"terms": {"mine:reward": 1.0}}
    (tmp_path / "own.yaml").write_text(yaml.safe_dump(settings))
    places = [f"runs_folder={tmp_path}/runs", f"data.kb_folder={tmp_path}/kbs", "tracking.mlflow=false", "evaluation.baselines=[]"]
    done = subprocess.run(
        [sys.executable, "-m", "experiments.train", str(tmp_path / "own.yaml"), *places],
        cwd=ROOT,
        env=os.environ | {"PYTHONPATH": os.pathsep.join([str(tmp_path), str(ROOT)])},
        capture_output=True,
        text=True,
        timeout=PATIENCE,
    )
    assert done.returncode == 1
    (error,) = [line for line in done.stdout.splitlines() if line.startswith("error: ")]
    assert said in error
    assert "Traceback" not in done.stdout
    assert (tmp_path / "runs/smoke/summary.json").exists()  # what was measured before is kept


def test_a_reward_actor_tells_whose_reward_went_wrong(ray_cluster):
    """The same without a run around it: what an iteration gets from the actor is the error itself."""
    import ray
    from many_episodes import World

    from rewards.actor import RewardActor

    class AllAlike:
        catalog = ()

        def embed(self, texts):
            return np.ones((len(texts), 4), np.float32) / 2

    actor = (
        ray.remote(RewardActor)
        .options(num_cpus=0)
        .remote(ray.cloudpickle.dumps(AllAlike()), RewardConfig(terms={"math:sqrt": {"final": 1.0}}))
    )
    with pytest.raises(RewardError, match=r"reward math:sqrt raised TypeError: must be real number, not JudgedTurn .* for a final turn of"):
        ray.get(actor.score.remote([World().episode(0)]), timeout=60)

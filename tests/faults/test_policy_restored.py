"""`policy/` is the policy that the run's figures call the best, whatever the run goes on from. Learner, checkpoints and files are real."""

from __future__ import annotations

import json
import math
from dataclasses import replace
from types import SimpleNamespace

import pytest
import torch
from test_nan_check import spoil
from tiny_turns import fetched, weights_of

from experiments.config import LoopConfig, TrainConfig
from experiments.run.best_policy import keep_if_best
from experiments.run.checkpoints import LEARNER, Checkpoints, newest_good, refuse_corrupt, restore, resume
from experiments.run.run_state import Totals
from experiments.tracking.run_folder import COMPLETE, RunFolder
from learner.ranks.checkpoint_files import CorruptCheckpointError, facts_of
from rollout.nan_check import NotFiniteError
from rollout.policies import load_policy
from rollout.weight_buckets import unpack_weights


@pytest.fixture
def run(algorithm, tmp_path):
    """As much of a run as checkpoints and the choice of the best policy see. Without validation questions the newest policy is the best."""
    config = TrainConfig(name="mine", runs_folder=str(tmp_path), train=LoopConfig(keep_last=9, keep_best=0))
    actors = SimpleNamespace(algorithm=algorithm, fingerprints=dict, training_folders={})
    said: list[str] = []
    progress = SimpleNamespace(say=lambda text, style="": said.append(text))
    dataset = SimpleNamespace(validation=[])
    algorithm.learner_group.build(algorithm.config.learner)  # another test may have left it anywhere
    algorithm.workers.version = -1
    return SimpleNamespace(
        config=config,
        folder=RunFolder.start(config),
        actors=actors,
        progress=progress,
        totals=Totals(),
        dataset=dataset,
        iteration=0,
        said=said,
        warn=said.append,
    )


def train(run, checkpoints=None, best=True):
    run.actors.algorithm.train()
    run.iteration += 1
    if best:
        keep_if_best(run)
    if checkpoints:
        checkpoints.save()
        checkpoints.wait()


def learned(run) -> dict[str, torch.Tensor]:
    return {name: tensor.clone() for name, tensor in unpack_weights(fetched(weights_of(run.actors.algorithm.learner_group))).items()}


def is_in_folder(run, weights: dict[str, torch.Tensor]) -> bool:
    saved = dict(load_policy(run.folder.policy).model.named_parameters())
    return all(torch.equal(saved[name], tensor) for name, tensor in weights.items())


def test_the_policy_folder_goes_back_with_the_figures_to_the_checkpoint_that_a_run_goes_on_from(run):
    with Checkpoints(run) as checkpoints:
        train(run, checkpoints, best=False)
        train(run, checkpoints)
        second = learned(run)
        train(run, checkpoints)
        third = learned(run)
        train(run)  # keep_best=0: the best policy is saved, a checkpoint is not
        assert run.totals.best["iteration"] == 4
        assert not is_in_folder(run, third)

        restore(run, newest_good(run.folder, pytest.fail))
        assert (run.iteration, run.totals.best["iteration"]) == (3, 3)
        assert is_in_folder(run, third)
        restore(run, run.folder.checkpoint_at(2))
        assert run.totals.best["iteration"] == 2
        assert is_in_folder(run, second)
        train(run, checkpoints)
        refuse_corrupt(run.folder.checkpoint_at(2))  # what is saved later leaves the linked weights alone
        assert not is_in_folder(run, second)

        restore(run, run.folder.checkpoint_at(1))
        assert run.totals.best == {}
        assert not run.folder.policy.exists()
        train(run)
        restore(run, None)
        assert not run.folder.policy.exists()
    assert {path.name for path in run.folder.path.iterdir()} == {"checkpoints", "trajectories", "config.yaml", "metrics.jsonl"}


def test_a_checkpoint_with_nan_is_refused(run):
    with Checkpoints(run) as checkpoints:
        train(run, checkpoints)
    newest = run.folder.checkpoint_at(1)
    spoil(newest / LEARNER / "engine/mp_rank_00_model_states.pt", math.nan)
    facts = json.loads((newest / COMPLETE).read_text())
    (newest / COMPLETE).write_text(json.dumps(facts | {"files": facts_of(newest, facts["files"])}))
    for setting in (str(newest), "auto"):
        with pytest.raises(NotFiniteError, match=r"\d+ tensors hold NaN or infinity \(.*; choose an earlier checkpoint"):
            resume(going_on_from(run, setting))


def going_on_from(run, checkpoint: str):
    run.config = replace(run.config, train=replace(run.config.train, resume=checkpoint))
    return run


def test_the_weights_of_the_best_policy_lie_on_the_disk_once_and_a_damaged_policy_is_a_damaged_checkpoint(run):
    with Checkpoints(run) as checkpoints:
        train(run, checkpoints)
        train(run, checkpoints, best=False)
    (weights,) = run.folder.policy.glob("*.safetensors")
    assert weights.stat().st_nlink == 3
    assert (run.folder.policy / "config.json").stat().st_nlink == 1
    (run.folder.checkpoint_at(2) / "policy/config.json").write_text("{}")
    with pytest.raises(CorruptCheckpointError, match=r"policy/config\.json is corrupt"):
        refuse_corrupt(run.folder.checkpoint_at(2))

"""`bench peers` gives all contenders the same work: as many tokens, and one update with the same gradient."""

import dataclasses
import importlib.util

import pytest
from policy_families import saved_family

from experiments.benchmarks.fresh_process import in_fresh_process
from experiments.benchmarks.peer_process import ALONE, Work, contender, measured
from experiments.benchmarks.peers import OURS, SAME_UPDATE, against_trl, in_rounds, rollout_bars, rows_of, work_of

SLOW = {"seconds": 2.0, "cores": 1.0, "peak": 2.0**20}


@pytest.fixture(scope="module")
def work() -> Work:
    return work_of(saved_family("smollm2", max_position_embeddings=4096), prompts=2, new_tokens=6, siblings=4)


def updates_of(work: Work, names: list[str]) -> dict:
    """Of our rollout, and of updates on what it has sampled."""
    found = {name: measured(contender(name, work)) for name in ("rollout, ours", f"rollout, ours{ALONE}", "rollout, generate", "limits")}
    columns = {"responses": found[OURS]["ids"], "logprobs": found[OURS]["logprobs"]}
    cut = {name: [[one[: 6 - i] for i, one in enumerate(group)] for group in column] for name, column in columns.items()}
    work = dataclasses.replace(work, **cut)
    return found | {name: measured(contender(name, work)) for name in names}


def test_all_sample_as_much_and_one_update_has_the_loss_and_the_gradient_of_a_bare_loop_and_of_trl(work):
    names = ["update, ours", "update, bare torch", "iteration, ours", *["update, TRL"] * bool(importlib.util.find_spec("trl"))]
    found = in_fresh_process(updates_of, work, names)
    rollouts = [found[name] for name in found if name.startswith("rollout")]
    assert {one["tokens"] for one in rollouts} == {2 * 4 * 6}
    assert found["limits"]["flops"] > 1e6 < found["limits"]["bandwidth"]
    norm, loss = found["update, ours"]["norm"], found["update, ours"]["loss"]
    assert norm > 1e-3 < abs(loss)
    assert found["update, bare torch"]["norm"] == pytest.approx(norm, rel=SAME_UPDATE)
    assert found["iteration, ours"]["norm"] > 0
    if "update, TRL" in found:
        assert found["update, TRL"]["norm"] == pytest.approx(norm, rel=SAME_UPDATE)
        assert found["update, TRL"]["loss"] == pytest.approx(loss, rel=SAME_UPDATE)


def test_a_contender_that_fails_says_why_and_the_others_are_measured(work, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    found = in_rounds(["limits", "rollout, generate"], dataclasses.replace(work, policy="./nowhere"), rounds=1)
    assert [one["peak"] > 2**30 for one in found["limits"]] == [True]
    (row,) = rows_of("rollout, generate", found["rollout, generate"])
    assert "FileNotFoundError: policy ./nowhere: no such folder" in row.name
    assert row.holds is None


def test_the_bars_are_set_against_the_best_peer_and_a_missed_one_is_shown(work):
    least = {"prefill_flop": 1e9, "step_flop": 1e9, "step_bytes": 1e6}
    found = {
        "limits": [{"flops": 1e9, "bandwidth": 1e9}],
        OURS: [SLOW | least | {"tokens": 30}],
        f"{OURS}{ALONE}": [SLOW | {"tokens": 12}],
        "rollout, generate": [SLOW | {"tokens": 10}],
        "rollout, vLLM": [SLOW | {"tokens": 24}],
    }
    grouped, alone, limit = rollout_bars(found, work)
    assert grouped.name.endswith("rollout, vLLM")
    assert (grouped.ratio, grouped.holds) == (1.25, False)
    assert (alone.ratio, alone.holds) == (1.2, None)
    assert limit.baseline == 30 / (1 + 5 * 1)  # seconds: of the prompts, and of 5 steps for 6 tokens


def test_updates_and_iterations_are_held_against_trl_in_speed_memory_and_result():
    ours, theirs = SLOW | {"loss": 1.0, "norm": 2.0}, SLOW | {"seconds": 6.0, "loss": 1.1, "norm": 2.0, "peak": 2.0**19}
    found = {"update, ours": [ours], "update, TRL": [theirs], "iteration, ours": [ours], "iteration, TRL": [theirs]}
    loss, norm, speed, memory = against_trl("update", found)
    assert [loss.holds, norm.holds, speed.holds, memory.holds] == [False, True, True, False]
    assert speed.ratio == pytest.approx(3)
    assert [row.bar for row in against_trl("iteration", found)] == [2.0, 1.0]
    assert list(against_trl("update", {"update, TRL": [theirs]})) == []

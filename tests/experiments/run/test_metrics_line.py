"""One name for a metric, from where it is measured to metrics.jsonl."""

from __future__ import annotations

from experiments.run.metrics_line import metrics_line


def test_metrics_keep_the_names_under_which_they_are_measured():
    result = {
        "training_iteration": 3,
        "rollout": {"turns": 40.0, "sampled_tokens": 900.0, "retrievals_per_question": 1.5, "staleness": float("nan")},
        "reward": {"reward": 0.5, "reward_plan": 0.4, "routing": 0.3, "judged_turns": 38.0},
        "learner": {"loss": -0.1, "turns": 38.0, "tokens_per_second": 7.0, "seconds": 4.0, "policy_version": 3.0},
        "seconds": {"rollout": 2.0, "learn": 4.5},
        "workers": {"idle_s": 0.1},
    }
    line = metrics_line(result)
    assert line.pop("finished") > 1e9
    assert line == {
        "iteration": 3,
        **{"loss": -0.1, "policy_version": 3},
        **{"reward": 0.5, "reward_plan": 0.4, "routing": 0.3, "judged_turns": 38},
        **{"turns": 40, "sampled_tokens": 900, "retrievals_per_question": 1.5, "trajectories": 0},
        **{"seconds_rollout": 2.0, "seconds_learn": 4.5, "workers_idle_s": 0.1, "tokens_per_second": 450.0},
    }
    assert all(isinstance(line[name], int) for name in ("turns", "judged_turns", "sampled_tokens", "policy_version"))


def test_without_a_rollout_there_is_no_sampling_speed():
    assert "tokens_per_second" not in metrics_line(
        {"training_iteration": 1, "learner": {"tokens_per_second": 7.0}, "seconds": {"learn": 1.0}}
    )

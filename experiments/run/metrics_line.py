"""The line of metrics.jsonl for one iteration.

A metric has one name where it is measured (`learner/iteration_data.py`, `learner/learner_group.py`), in metrics.jsonl, in MLflow and in the
report. Prefixes: `seconds_PHASE`, `workers_...`, `use_KB` (share of plan turns), `retrieval_...`, `validation_...`."""

import time
from collections.abc import Mapping
from typing import Any

COUNTS = ("policy_version", "trajectories", "turns", "judged_turns", "sampled_tokens")  # integers; RLlib makes everything a float
NOT_COPIED = ("seconds", "tokens_per_second")  # of the learner: the line has `seconds_learn`, and the rollout's `tokens_per_second`


def metrics_line(result: Mapping[str, Any]) -> dict[str, Any]:
    """`result`: what `StepGRPO.train` returns."""
    rollout, reward, learner, seconds, workers = (result.get(part, {}) for part in ("rollout", "reward", "learner", "seconds", "workers"))
    line = {"iteration": int(result["training_iteration"]), "finished": round(time.time(), 3)}
    line |= {name: value for name, value in learner.items() if name not in NOT_COPIED}
    line |= {**reward, **rollout} | {f"seconds_{phase}": value for phase, value in seconds.items()}
    line |= {f"workers_{name}": value for name, value in workers.items()}
    if "rollout" in seconds:
        line["tokens_per_second"] = rollout.get("sampled_tokens", 0) / max(seconds["rollout"], 1e-9)
    line = {name: value for name, value in line.items() if value is not None and value == value}  # RLlib gives NaN for what was not logged
    return line | {name: int(line.get(name, 0)) for name in COUNTS}

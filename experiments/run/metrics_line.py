"""The line of metrics.jsonl for one iteration.

A metric has one name everywhere: where it is measured (`learner/iteration_data.py`, `learner/learner_group.py`), in metrics.jsonl, in MLflow and
in the report. Those of a kind share a prefix: `seconds_PHASE`, `workers_...`, `use_KB` (of plan turns), `retrieval_...`, `validation_...`."""

from __future__ import annotations

import time
from collections.abc import Mapping
from typing import Any

COUNTS = ("policy_version", "trajectories", "turns", "judged_turns", "sampled_tokens")  # integers; RLlib makes everything a float
OF_THE_LINE = (
    "seconds",
    "tokens_per_second",
)  # of the learner; in the line `seconds_learn`, and the sampled tokens per second of the rollout


def metrics_line(result: Mapping[str, Any]) -> dict[str, Any]:
    """`result`: what `StepGRPO.train` returns."""
    rollout, reward, learner, seconds, workers = (result.get(part, {}) for part in ("rollout", "reward", "learner", "seconds", "workers"))
    line = {"iteration": int(result["training_iteration"]), "finished": round(time.time(), 3)}
    line |= {name: value for name, value in learner.items() if name not in OF_THE_LINE}
    line |= {**reward, **rollout} | {f"seconds_{phase}": value for phase, value in seconds.items()}
    line |= {f"workers_{name}": value for name, value in workers.items()}
    if "rollout" in seconds:
        line["tokens_per_second"] = rollout.get("sampled_tokens", 0) / max(seconds["rollout"], 1e-9)
    line = {name: value for name, value in line.items() if value is not None and value == value}  # RLlib gives NaN for what was not logged
    return line | {name: int(line.get(name, 0)) for name in COUNTS}

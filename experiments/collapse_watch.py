"""Signs of collapse, told where a run is watched: on the screen, in the metrics, in the summary."""

from __future__ import annotations

from dataclasses import asdict
from typing import Any

from experiments.parts import Run
from experiments.stop import Stop
from learner.collapse import Watch


def tell(run: Run, watch: Watch, row: dict[str, Any], stop: Stop) -> None:
    """Look at the figures of one more iteration; `row` gets `warnings`, the number of signs that stand. With `learner.collapse.stop` a sign ends
    the training."""
    for sign in watch.add(row):
        run.progress.say(f"warning, iteration {run.iteration}: {sign}", style="yellow")
        run.tally.warnings.append({"iteration": run.iteration, **asdict(sign)})
        if watch.config.stop:
            stop.ask(f"{sign.name} is {sign.found:.4g}, threshold {sign.threshold:g} (learner.collapse.stop=true)")
    row["warnings"] = watch.standing


def how_it_stopped(run: Run, stop: Stop) -> str:
    """One line for the reader of a run that was stopped."""
    best = run.tally.best
    kept = f"the best policy so far, of iteration {best['iteration']}, is in {run.folder.policy}" if best else "no policy was validated yet"
    why = f": {stop.reason}; {kept}" if stop.reason else ""
    return f"stopped after iteration {run.iteration}{why}; go on with train.resume=auto"

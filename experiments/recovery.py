"""A lost learner rank: the group is started anew and goes on from the last checkpoint, without anybody being called."""

from __future__ import annotations

from experiments.checkpoints import Checkpoints, newest_good, restore
from experiments.parts import Run
from learner.lost_learner import LearnerLostError


class Recovery:
    """Counts the restarts of one driver: after `train.max_restarts` the next loss ends the run."""

    def __init__(self, run: Run):
        self._run, self.restarts = run, 0

    def go_on(self, lost: LearnerLostError, checkpoints: Checkpoints) -> None:
        """Every iteration after the checkpoint is made again: their questions are asked again, and nothing that was learned from them is left.

        Raises `lost` when there were too many, and what the restart raises.
        """
        run, most = self._run, self._run.config.train.max_restarts
        if self.restarts >= most:
            raise lost
        self.restarts += 1
        checkpoints.forget()
        good = newest_good(run.folder, lambda warning: run.progress.say(warning, style="yellow"))
        where = f"from {good.name}" if good else "from the beginning, as there is no checkpoint yet"
        run.supervisor.tell(
            run.supervisor.explain(
                lost, fatal=False, then=f"the learner group is started anew and goes on {where} ({self.restarts} of {most})"
            )
        )
        known = run.tally
        run.supervisor.forget("learner rank")
        with run.timed("restart_learner"):
            run.parts.algorithm.restart_learner()
            restore(run, good)
        run.tracker.rewind()
        run.tally.restarts = known.restarts + 1
        run.tally.failures = known.failures + 1 + len(run.supervisor.look())

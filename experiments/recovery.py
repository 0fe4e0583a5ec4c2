"""A lost learner rank: the group is started anew and goes on from the last checkpoint, without anybody being called."""

from __future__ import annotations

from pathlib import Path

from experiments.checkpoints import Checkpoints, newest_good, restore
from experiments.parts import Run
from learner.lost_learner import LearnerLostError


class Recovery:
    """Counts the restarts of one driver: after `train.max_restarts` the next loss ends the run."""

    def __init__(self, run: Run):
        self._run, self.restarts = run, 0

    def go_on(self, lost: LearnerLostError, checkpoints: Checkpoints) -> None:
        """Every iteration after the checkpoint is made again: their questions are asked again, and nothing that was learned from them is left.

        A learner that is lost while it is started anew is one more loss. Raises the last of them when there were too many, and what else the
        restart raises.
        """
        run, before, known = self._run, self.restarts, self._run.tally
        if self.restarts < run.config.train.max_restarts:
            checkpoints.forget()
            good = newest_good(run.folder, lambda warning: run.progress.say(warning, style="yellow"))
        while True:
            if self.restarts >= run.config.train.max_restarts:
                raise lost
            self._tell(lost, good)
            try:
                with run.timed("restart_learner"):
                    run.parts.algorithm.restart_learner()
                    restore(run, good)
                break
            except LearnerLostError as again:
                lost = again
        run.tracker.rewind()
        run.tally.restarts = known.restarts + self.restarts - before
        run.tally.failures = known.failures + self.restarts - before + len(run.supervisor.look())

    def _tell(self, lost: LearnerLostError, good: Path | None) -> None:
        self.restarts += 1
        supervisor, most = self._run.supervisor, self._run.config.train.max_restarts
        where = f"from {good.name}" if good else "from the beginning, as there is no checkpoint yet"
        then = f"the learner group is started anew and goes on {where} ({self.restarts} of {most})"
        supervisor.tell(supervisor.explain(lost, fatal=False, then=then))
        supervisor.forget("learner rank")

"""`experiments.train`, whose driver is killed at the beginning of a phase.

python losing_the_driver.py PHASE N [CONFIG.yaml] [key=value ...]   when the phase begins for the Nth time
"""

from __future__ import annotations

import os
import signal
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager

from experiments.tracking.heartbeat import CHECK_S
from experiments.train import main
from rollout.timeline import Timeline


def kill_at(phase: str, times: int) -> None:
    real, begun = Timeline.doing, []

    @contextmanager
    def doing(self: Timeline, name: str) -> Iterator[None]:
        with real(self, name):
            if name == phase:
                begun.append(name)
                if len(begun) == times:
                    time.sleep(5 * CHECK_S)  # until the file of the driver says so
                    os.kill(os.getpid(), signal.SIGKILL)
            yield

    Timeline.doing = doing  # type: ignore[method-assign]


if __name__ == "__main__":
    kill_at(sys.argv[1], int(sys.argv[2]))
    sys.exit(main(sys.argv[3:]))

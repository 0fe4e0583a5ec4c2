"""How long a study takes: what its parts took so far, added up over restarts, and what is left."""

from __future__ import annotations

import json
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager

from experiments.studies.plan import COLD_START, Study
from experiments.studies.training import is_finished

FOUND_DONE_S = 1.0
"""A part that ends sooner was there already, or was not begun."""


class Clock:
    def __init__(self, study: Study, say: Callable[[str], None]):
        self._study, self._say = study, say
        self._file = study.folder / "seconds.json"
        self.seconds: dict[str, list[float]] = json.loads(self._file.read_text(encoding="utf-8")) if self._file.exists() else {}
        """Kind of part -> seconds of each that was done."""
        self._began = time.monotonic()

    def elapsed(self) -> float:
        """Seconds since this process began."""
        return time.monotonic() - self._began

    @contextmanager
    def timed(self, kind: str) -> Iterator[None]:
        """`kind`: `train`, `measure` (a policy), `sweep`."""
        began = time.monotonic()
        try:
            yield
        finally:
            seconds = time.monotonic() - began
            if seconds > FOUND_DONE_S:
                self.seconds.setdefault(kind, []).append(round(seconds, 1))
                self._file.write_text(json.dumps(self.seconds), encoding="utf-8")
                if left := self.left():
                    self._say(f"{kind}: {seconds:.0f} s; about {left / 60:.0f} minutes are left")

    def left(self) -> float | None:
        """Seconds, from the means so far; None before anything was trained and measured."""
        known = {kind: sum(found) / len(found) for kind, found in self.seconds.items()}
        if not {"train", "measure"} <= set(known):
            return None
        settings = self._study.settings
        policies = len(self._study.trainings) + len(settings.seeds) * (COLD_START in settings.arms)
        trainings = sum(not is_finished(training) for training in self._study.trainings)
        points = sum(not is_finished(training) for training in self._study.sweep)
        short = known["train"] * settings.sweep_turns / settings.turns + known["measure"] / 10
        return trainings * known["train"] + max(0, policies - len(self.seconds["measure"])) * known["measure"] + points * short

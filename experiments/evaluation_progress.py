"""What an evaluation shows while it runs: on a terminal a bar for each method, elsewhere a line for every tenth."""

from __future__ import annotations

import time
from typing import Any

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn, TimeRemainingColumn
from rich.text import Text


class EvaluationProgress:
    """To be used in a `with` block."""

    def __init__(self, console: Console):
        self.console = console
        self._began = time.monotonic()
        self._bars = Progress(
            TextColumn("{task.description}"),
            BarColumn(),
            MofNCompleteColumn(),
            TimeElapsedColumn(),
            TimeRemainingColumn(),
            console=console,
            disable=not console.is_terminal,
        )
        self._task: Any = None
        self._phase, self._done, self._total, self._began_with = "", 0, 0, 0

    def __enter__(self) -> EvaluationProgress:
        self._bars.__enter__()
        return self

    def __exit__(self, *exception: Any) -> None:
        self._bars.__exit__(*exception)

    def say(self, line: str, style: str = "") -> None:
        self.console.print(Text(line, style=style), soft_wrap=True)

    def phase(self, phase: str, total: int = 0, done: int = 0) -> None:
        """What begins now, of how many, of which some were done before this process began."""
        self._phase, self._total, self._done, self._began_with = phase, total, done, done
        self._task = self._bars.add_task(phase, total=total or None, completed=done)
        if not self.console.is_terminal:
            self.say(f"[{time.monotonic() - self._began:6.0f} s] {phase}" + (f": {done} of {total} are there already" if done else ""))

    def detail(self, what: str, done: int, total: int) -> None:
        """How far the phase is."""
        self._bars.update(self._task, completed=done, total=total)

    def advance(self, questions: int) -> None:
        before, self._done = self._done, self._done + questions
        self._bars.update(self._task, completed=self._done)
        if not self.console.is_terminal and 10 * before // self._total != 10 * self._done // self._total:
            self.say(f"[{time.monotonic() - self._began:6.0f} s] {self._phase}: {self._done} of {self._total} questions")

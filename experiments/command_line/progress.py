"""Progress on the screen. Runs: a line that stays in its place on a terminal, and elsewhere a line every half minute. Other long work: bars."""

import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from datetime import timedelta
from typing import Any, Self

from rich import progress
from rich.console import Console, RenderableType
from rich.filesize import decimal
from rich.live import Live
from rich.text import Text

from experiments.command_line.terminal import visible

# Metric -> its label
SHOWN = {"reward": "reward", "routing": "routing", "retrievals_per_question": "searches", "tokens_per_second": "tokens/s"}
SECONDS_BETWEEN_LINES = 30.0  # where the output is no terminal


class Progress:
    def __init__(self, console: Console, name: str, iterations: int, minutes: float, verbose: bool = False):
        self.console, self._verbose = console, verbose
        self._name, self._iterations, self._minutes = name, iterations, minutes
        self._began = self._phase_began = time.monotonic()
        self._phase = self._detail = ""
        self._iteration, self._trained = 0, 0.0
        self._latest, self._said = "", -SECONDS_BETWEEN_LINES  # the line of an iteration that was not printed; when one was
        self._live = Live(get_renderable=self._status, console=console, refresh_per_second=2, transient=True)

    def __enter__(self) -> Self:
        if self.console.is_terminal:
            self._live.start()
        return self

    def __exit__(self, *exception: Any) -> None:
        self._live.stop()
        self._print(self._latest)

    def say(self, line: str, style: str = "") -> None:
        self.console.print(Text(visible(line), style=style), soft_wrap=True)

    def if_verbose(self, shown: RenderableType) -> None:
        if self._verbose:
            self.console.print(shown, style="dim", highlight=False, soft_wrap=isinstance(shown, str))

    def phase(self, phase: str) -> None:
        """The phase that begins now: `evaluate before`, `train`, ..."""
        self._print(self._latest)
        if phase not in (self._phase, "train"):
            self.say(f"[{time.monotonic() - self._began:6.0f} s] {phase}")
        self._phase, self._phase_began, self._detail = phase, time.monotonic(), ""

    def detail(self, what: str, done: int, total: int) -> None:
        self._detail = f"{what} {done}/{total}"
        if not self.console.is_terminal and time.monotonic() - max(self._said, self._phase_began) > SECONDS_BETWEEN_LINES:
            self._print(f"           {self._detail}")

    def iteration(self, row: Mapping[str, Any], trained_seconds: float) -> None:
        """`row`: the line of metrics.jsonl of the iteration that just ended; `trained_seconds`: training so far, without evaluations."""
        self._iteration, self._trained = int(row["iteration"]), trained_seconds
        figures = "  ".join(f"{label} {_shown(row[name])}" for name, label in SHOWN.items() if isinstance(row.get(name), int | float))
        self._detail = f"iteration {self._iteration}  {figures}"
        self._latest = f"iteration {self._iteration:4d}  {figures}{self._time_left()}"
        last = self._iteration == self._iterations
        if last or not (self.console.is_terminal or time.monotonic() - self._said < SECONDS_BETWEEN_LINES):
            self._print(self._latest)

    def _print(self, line: str) -> None:
        if line:
            self.say(line)
            self._latest, self._said = "", time.monotonic()

    def _time_left(self) -> str:
        """By iterations or by minutes, whichever ends the training first."""
        by_minutes = self._trained / (60 * self._minutes) if self._minutes else 0.0
        fraction = min(1.0, max(self._iteration / self._iterations, by_minutes))
        if not fraction:
            return ""
        minutes, seconds = divmod(round(self._trained * (1 - fraction) / fraction), 60)
        return f"  {minutes}:{seconds:02d} left"

    def _status(self) -> RenderableType:
        doing = f"{self._name}: {self._phase} {self._detail} ({time.monotonic() - self._phase_began:.0f} s){self._time_left()}"
        return Text(visible(doing), style="cyan", no_wrap=True, overflow="ellipsis")


def _shown(value: float) -> str:
    return f"{value:,.0f}" if value >= 100 else f"{value:.3f}"


class Countdown:
    """The time left of work in pieces, by its speed so far."""

    def __init__(self, pieces: int):
        self._pieces, self._done, self._began = pieces, 0, time.monotonic()

    def after(self, pieces: int) -> str:
        """`0:12:30 left`, now that so many more are done."""
        self._done += pieces
        seconds = (time.monotonic() - self._began) * (self._pieces - self._done) / self._done
        return f"{timedelta(seconds=round(seconds))} left"


@contextmanager
def bars(console: Console, of_bytes: bool = False) -> Iterator[Callable[[str, int, int], None]]:
    """A function that shows (name of the work, done, total; 0: unknown). Without a terminal: a line every half minute for bytes, else nothing."""
    counts = (progress.DownloadColumn(), progress.TransferSpeedColumn()) if of_bytes else (progress.MofNCompleteColumn(),)
    columns = (progress.TextColumn("{task.description}", markup=False), progress.BarColumn(), *counts, progress.TimeRemainingColumn())
    tasks: dict[str, progress.TaskID] = {}
    hidden, said = not console.is_terminal, time.monotonic()
    with progress.Progress(*columns, console=console, transient=True, disable=hidden, speed_estimate_period=600) as shown:

        def report(what: str, done: int, total: int) -> None:
            nonlocal said
            if hidden and of_bytes and time.monotonic() - said > SECONDS_BETWEEN_LINES:
                console.print(f"{what}: {decimal(done)} of {decimal(total) if total else 'an unknown size'}")
                said = time.monotonic()
            if what not in tasks:  # the work of an earlier build does not count as speed
                tasks[what] = shown.add_task(what, completed=done, total=total or None)
            shown.update(tasks[what], completed=done, total=total or None)

        yield report

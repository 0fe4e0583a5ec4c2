"""What a run shows while it runs: on a terminal a panel that stays in place, elsewhere a line for each iteration."""

from __future__ import annotations

import time
from collections.abc import Mapping
from typing import Any

from rich.console import Console, Group, RenderableType
from rich.live import Live
from rich.panel import Panel
from rich.progress_bar import ProgressBar
from rich.table import Table
from rich.text import Text

SPARKS = "▁▂▃▄▅▆▇█"
SHOWN = {
    "reward": "reward of a turn",
    "reward_plan": "plan turns",
    "reward_answer": "answer turns",
    "reward_final": "final turns",
    "routing": "routed to the right knowledge base",
    "format": "well-formed",
    "retrievals": "retrievals a question",
}
"""Metric of an iteration -> how it is called on the screen."""


class Progress:
    """`phase` says what is being done, `iteration` what an iteration brought. To be used in a `with` block."""

    def __init__(self, console: Console, name: str, iterations: int, minutes: float):
        self.console = console
        self._name, self._iterations, self._minutes = name, iterations, minutes
        self._began = time.monotonic()
        self._phase, self._phase_began, self._detail = "", self._began, ""
        self._history: list[dict[str, Any]] = []
        self._trained = 0.0
        self._live = (
            Live(get_renderable=self._panel, console=console, refresh_per_second=2, transient=True) if console.is_terminal else None
        )

    def __enter__(self) -> Progress:
        if self._live:
            self._live.__enter__()
        return self

    def __exit__(self, *exception: Any) -> None:
        if self._live:
            self._live.__exit__(*exception)

    def say(self, line: str, style: str = "") -> None:
        """One line that stays."""
        self.console.print(Text(line, style=style), soft_wrap=True)

    def phase(self, phase: str) -> None:
        """What begins now: `set up`, `evaluate before`, `train`, ..."""
        if phase != self._phase and self._live is None and phase != "train":
            self.say(f"[{time.monotonic() - self._began:6.0f} s] {phase}")
        self._phase, self._phase_began, self._detail = phase, time.monotonic(), ""

    def detail(self, what: str, done: int, total: int) -> None:
        """How far the phase is."""
        self._detail = f"{what} {done}/{total}"

    def iteration(self, row: Mapping[str, Any], trained_seconds: float) -> None:
        """`row`: the metrics of the iteration that just ended; `trained_seconds`: training so far, evaluations left out."""
        self._history.append(dict(row))
        self._trained = trained_seconds
        if self._live is None:
            figures = "  ".join(f"{name} {row[name]:.3f}" for name in SHOWN if isinstance(row.get(name), int | float))
            left = self._seconds_left()
            until = f"  {_clock(left)} left" if left is not None else ""
            self.say(f"iteration {int(row['iteration']):4d}  {figures}  {row.get('tokens_per_second', 0):,.0f} tokens/s{until}")

    def _fraction(self) -> float:
        """Of the training that is done: by iterations or by minutes, whichever ends it first."""
        done = self._history[-1]["iteration"] / self._iterations if self._history else 0.0
        return min(1.0, max(done, self._trained / (60 * self._minutes) if self._minutes else 0.0))

    def _seconds_left(self) -> float | None:
        fraction = self._fraction()
        return self._trained * (1 - fraction) / fraction if fraction > 0 else None

    def _panel(self) -> RenderableType:
        left = self._seconds_left()
        head = Table.grid(expand=True, padding=(0, 1))
        head.add_column(width=24)
        head.add_column(ratio=1)
        head.add_column(justify="right", width=14)
        iteration = int(self._history[-1]["iteration"]) if self._history else 0
        head.add_row(
            Text(f"iteration {iteration} of {self._iterations}" if not self._minutes else f"iteration {iteration}", style="bold"),
            ProgressBar(total=1.0, completed=self._fraction(), complete_style="cyan"),
            Text(f"{_clock(left)} left" if left is not None else "", style="dim"),
        )
        busy = time.monotonic() - self._phase_began
        head.add_row(Text(self._phase, style="cyan"), Text(self._detail, style="dim"), Text(f"{busy:.0f} s", style="dim"))
        return Panel(Group(head, self._figures()), title=f"[bold]{self._name}", title_align="left", border_style="dim", padding=(0, 1))

    def _figures(self) -> RenderableType:
        table = Table.grid(padding=(0, 2))
        for name, label in [*SHOWN.items(), ("tokens_per_second", "sampled tokens a second")]:
            values = [row[name] for row in self._history if isinstance(row.get(name), int | float)]
            if values:
                shown = f"{values[-1]:,.0f}" if name == "tokens_per_second" else f"{values[-1]:.3f}"
                table.add_row(Text(label, style="dim"), Text(shown, style="bold"), Text(sparkline(values), style="cyan"))
        return table


def sparkline(values: list[float], width: int = 40) -> str:
    """The last values as small bars, means of equal parts where there are more of them than places."""
    if not values:
        return ""
    part = max(1, -(-len(values) // width))
    means = [sum(values[i : i + part]) / len(values[i : i + part]) for i in range(0, len(values), part)]
    low, high = min(means), max(means)
    return "".join(SPARKS[round((mean - low) / (high - low) * (len(SPARKS) - 1)) if high > low else 0] for mean in means)


def _clock(seconds: float) -> str:
    minutes, rest = divmod(round(seconds), 60)
    return f"{minutes}:{rest:02d}"

"""One failure as people read it: who was lost, where, doing what, why, and what to try. A panel on the screen, a file in the run folder."""

from __future__ import annotations

import dataclasses
import json
from dataclasses import dataclass
from pathlib import Path

from rich.console import Group, RenderableType
from rich.panel import Panel
from rich.table import Table
from rich.text import Text

FOLDER = "failures"
"""Of the run folder: 001.json, 002.json, ..."""


@dataclass(frozen=True)
class Failure:
    role: str
    """`rollout worker 1`, `learner rank 0`, `shard 2 of knowledge base text`, `MLflow`, `driver`, `program`, ..."""
    phase: str
    """`set up`, `roll out`, `search`, `score`, `update`, `broadcast`, `save`, `evaluate`, `log`."""
    reason: str
    """One sentence: what happened."""
    fatal: bool
    """Whether the run ended with it."""
    iteration: int
    """That was going on; 0: none had begun."""
    policy_version: int
    when: str
    """Time of day, of the process that was lost where that is known."""
    process: int = 0
    """Its id on its node; 0: unknown."""
    node: str = ""
    exit: str = ""
    """`killed by SIGKILL`, `exit code 1`, `unknown`."""
    memory: str = ""
    """Of the process before it ended, and of its node."""
    out_of_memory: str = ""
    """`yes, ...`, `possibly, ...` or `no`, with what speaks for it."""
    ray: str = ""
    """What Ray says of its end."""
    then: str = ""
    """What the run does now."""
    mend: tuple[str, ...] = ()
    """What to try."""
    log: tuple[str, ...] = ()
    """The last lines that the process wrote."""
    traceback: str = ""
    """Of the driver; in the file only."""

    def line(self) -> str:
        """For a run that goes on."""
        where = f" on node {self.node}" if self.node else ""
        process = f", process {self.process}" if self.process else ""
        said = [self.reason, f"out of memory: {self.out_of_memory}" if self.out_of_memory.startswith(("yes", "poss")) else "", self.then]
        return f"{self.role} ({self.phase}{process}{where}): {'; '.join(filter(None, said))}"

    def panel(self) -> RenderableType:
        table = Table.grid(padding=(0, 2))
        table.add_column(style="dim", no_wrap=True)
        table.add_column(overflow="fold")
        rows = [
            ("what", self.reason),
            ("role", self.role),
            ("phase", f"{self.phase}, iteration {self.iteration}, policy version {self.policy_version}"),
            ("process", f"{self.process} on node {self.node or 'unknown'}" if self.process else ""),
            ("when", self.when),
            ("ended", self.exit),
            ("memory", self.memory),
            ("out of memory", self.out_of_memory),
            ("Ray says", self.ray),
            ("then", self.then),
        ]
        for name, value in rows:
            if value:
                table.add_row(name, Text(value))
        for number, mend in enumerate(self.mend):
            table.add_row("" if number else "try", Text(f"- {mend}"))
        parts: list[RenderableType] = [table]
        if self.log:
            parts += [Text("\nlast lines of its log:", style="dim"), Text("\n".join(self.log), style="dim")]
        return Panel(Group(*parts), title=f"{self.role} failed", title_align="left", border_style="red")

    def write(self, run_folder: Path) -> Path:
        """Next to those of earlier failures. Returns the file."""
        folder = run_folder / FOLDER
        folder.mkdir(parents=True, exist_ok=True)
        file = folder / f"{len(list(folder.glob('*.json'))) + 1:03d}.json"
        file.write_text(json.dumps(dataclasses.asdict(self), indent=1, ensure_ascii=False) + "\n", encoding="utf-8")
        return file


def read_failures(run_folder: Path) -> list[dict]:
    """In their order."""
    return [json.loads(file.read_text(encoding="utf-8")) for file in sorted((run_folder / FOLDER).glob("*.json"))]

"""The result of a check, with its fix; and the tables of the doctor and the dry run."""

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from typing import Any

from rich.table import Table
from rich.text import Text

from experiments.command_line.terminal import visible
from experiments.config import RunConfigError

STYLES = {"ok": "green", "warn": "yellow", "fail": "red"}


@dataclass(frozen=True)
class Finding:
    what: str
    found: str
    fix: str = ""  # what to do; empty: the check passed
    fatal: bool = True  # a run fails without the fix

    @property
    def status(self) -> str:
        return "ok" if not self.fix else "fail" if self.fatal else "warn"

    def as_json(self) -> dict[str, Any]:
        return {"status": self.status, "what": self.what, "found": self.found, "fix": self.fix}


def verdict(findings: Sequence[Finding]) -> str:
    """`21 ok, 1 warn`."""
    counts = {status: sum(finding.status == status for finding in findings) for status in STYLES}
    return ", ".join(f"{count} {status}" for status, count in counts.items() if count)


def any_fails(findings: Iterable[Finding]) -> bool:
    return any(finding.status == "fail" for finding in findings)


def refuse(findings: Iterable[Finding], say: Callable[[str], None] = lambda line: None) -> None:
    """Raises RunConfigError, one line, for the first check that fails; prints warnings with `say`."""
    for finding in findings:
        line = f"{finding.found}; {finding.fix}"
        if finding.status == "fail":
            raise RunConfigError(line)
        if finding.fix:
            say(f"warning: {line}")


def findings_table(findings: Iterable[Finding]) -> Table:
    table = Table(box=None, show_header=False, padding=(0, 2, 0, 0))
    for column in ("status", "what", "found", "fix"):
        table.add_column(column, no_wrap=column == "status", overflow="fold")
    for finding in findings:
        style = STYLES[finding.status]
        table.add_row(Text(finding.status, style=style), finding.what, finding.found, Text(visible(finding.fix), style=style))
    return table


def number_table(title: str, columns: Sequence[str], rows: Iterable[Sequence[str]]) -> Table:
    """The first and the last column hold text, the others numbers."""
    table = Table(title=title, box=None, padding=(0, 2, 0, 0), title_justify="left")
    for name in columns:
        table.add_column(name, justify="left" if name in (columns[0], columns[-1]) else "right", no_wrap=name != columns[-1])
    for row in rows:
        table.add_row(*row)
    return table

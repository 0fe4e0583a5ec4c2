"""What a check found, whether it is all right, and what to do where it is not: for `doctor` and for a dry run."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any

from rich.table import Table
from rich.text import Text

STYLES = {"ok": "green", "warn": "yellow", "fail": "red"}


@dataclass(frozen=True)
class Finding:
    what: str
    found: str
    mend: str = ""
    """What to do; empty when all is well."""
    fatal: bool = True
    """Whether a run cannot do without."""

    @property
    def status(self) -> str:
        """`ok`, `warn` or `fail`."""
        return "ok" if not self.mend else "fail" if self.fatal else "warn"

    def as_json(self) -> dict[str, Any]:
        return {"status": self.status, "what": self.what, "found": self.found, "mend": self.mend}


def findings_table(findings: Iterable[Finding]) -> Table:
    table = Table(box=None, show_header=False, padding=(0, 2, 0, 0))
    for column in ("status", "what", "found", "mend"):
        table.add_column(column, no_wrap=column in ("status",), overflow="fold")
    for finding in findings:
        style = STYLES[finding.status]
        table.add_row(Text(finding.status, style=style), finding.what, finding.found, Text(finding.mend, style=style))
    return table


def verdict(findings: Sequence[Finding]) -> str:
    """One line."""
    counts = {status: sum(finding.status == status for finding in findings) for status in STYLES}
    return ", ".join(f"{count} {status}" for status, count in counts.items() if count)


def any_fails(findings: Iterable[Finding]) -> bool:
    return any(finding.status == "fail" for finding in findings)

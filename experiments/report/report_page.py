"""`r1-router report RUN [RUN ...]`: write report.html of a run again, one page with all results that needs no other file."""

from __future__ import annotations

import re
from html import escape
from pathlib import Path

from experiments.command_line.entry_point import command
from experiments.command_line.terminal import Console
from experiments.config import RunConfigError
from experiments.evaluation.metrics import confusion
from experiments.report import browser
from experiments.report import html_sections as results
from experiments.tracking.gate_file import gate_of
from experiments.tracking.run_folder import RunFolder, write_whole

STYLE = (Path(__file__).parent / "page/report.css").read_text(encoding="utf-8")  # Light and dark by the reader's setting


def write_report(folder: RunFolder) -> None:
    """Needs config.yaml; what else is missing is left out of the page."""
    summary, rows, gaps = folder.summary(), folder.metrics(), folder.gaps()
    name = str(summary.get("name", folder.path.name))
    kbs = list(dict.fromkeys([*results.ORDER, *(kb for kb in results.kb_use(rows) if kb != "stop")]))
    data = browser.browser_data(folder, kbs)
    before, after = (confusion(folder.read_trajectories(when)) for when in ("before", "after"))
    settings = escape((folder.path / "config.yaml").read_text(encoding="utf-8"))
    body = "".join(
        [
            results.warnings(summary),
            results.before_after(summary),
            results.confusion_section(before, after, data["kbs"]),
            results.methods_and_families(summary),
            results.confidence_section(summary),
            results.gate_section(gate_of(folder.policy)),
            results.gaps_section(gaps),
            results.curves_section(rows, (gaps.get("ceiling") or summary.get("ceiling") or {}).get("value")),
            browser.browser_section(data),
            results.time_section(summary),
            f"<h2 id='settings'>Settings</h2><details><summary>config.yaml</summary><pre>{settings}</pre></details>",
        ]
    )
    headings = re.findall(r"<h2 id=['\"]([a-z-]+)['\"]>([^<]+)</h2>", body)
    contents = "".join(f"<a href='#{section}'>{heading}</a>" for section, heading in headings)
    page = (
        f'<!doctype html><html lang="en"><head><meta charset="utf-8"><meta name="viewport" content="width=device-width, initial-scale=1">'
        f'<meta http-equiv="Content-Security-Policy" content="{browser.security_policy()}"><meta name="color-scheme" content="light dark">'
        f"<title>{escape(name)}</title><style>{STYLE}{browser.STYLE}</style></head>"
        f"<body><main>{results.head(summary, name)}<nav class='contents'>{contents}</nav>{body}</main></body></html>\n"
    )
    write_whole(folder.report, page)


@command
def main(arguments: list[str]) -> int:
    if not arguments:
        raise RunConfigError("which run? r1-router report RUN [RUN...]")
    for path in arguments:
        folder = RunFolder.open(path)
        write_report(folder)
        Console().print(f"report: {folder.report} ({folder.report.stat().st_size / 2**20:.1f} MB)", soft_wrap=True)
    return 0

"""`report.html`: everything that a run measured, on one page that needs no other file.

python -m experiments.report RUN [RUN...]    makes it again from the folder of each run
"""

from __future__ import annotations

import re
import sys
from html import escape

from experiments.config import RunConfigError
from experiments.report_style import STYLE
from experiments.reports import browser, results
from experiments.reports.browser_data import browser_data
from experiments.reports.confusion import confusion, confusion_section
from experiments.reports.curves import curves, kb_use
from experiments.reports.time_breakdown import time_section
from experiments.run_folder import RunFolder

ORDER = ("text", "text_image", "table")
"""Knowledge bases whose colours are the same in every report; others follow."""


def write_report(folder: RunFolder) -> None:
    """Needs config.yaml; what else is missing is left out of the page."""
    summary, rows = folder.summary(), folder.metrics()
    name = str(summary.get("name", folder.path.name))
    kbs = list(dict.fromkeys([*ORDER, *(kb for kb in kb_use(rows) if kb != "stop")]))
    data = browser_data(folder, kbs)
    before, after = (confusion(folder.read_trajectories(when)) for when in ("before", "after"))
    parts = [
        results.tiles(summary),
        results.warnings(summary),
        results.before_after(summary),
        confusion_section(before, after, data["kbs"]),
        results.methods(summary),
        curves(rows),
        results.families(summary),
        browser.browser_section(data),
        time_section(summary, rows),
        _settings(folder),
    ]
    body = "".join(parts)
    page = (
        f'<!doctype html><html lang="en"><head><meta charset="utf-8"><meta name="viewport" content="width=device-width, initial-scale=1">'
        f'<meta http-equiv="Content-Security-Policy" content="{browser.security_policy()}"><meta name="color-scheme" content="light dark">'
        f"<title>{escape(name)}</title><style>{STYLE}{browser.STYLE}</style></head>"
        f"<body><main>{results.head(summary, name)}{_contents(body)}{body}</main></body></html>\n"
    )
    aside = folder.report.with_name("report.html.new")
    aside.write_text(page, encoding="utf-8")
    aside.replace(folder.report)


def _contents(body: str) -> str:
    """Links to the sections that are there."""
    found = re.findall(r"<h2 id=['\"]([a-z-]+)['\"]>([^<]+)</h2>", body)
    links = [f"<a href='#{name}'>{heading}</a>" for name, heading in found]
    return f"<nav class='contents'>{''.join(links)}</nav>"


def _settings(folder: RunFolder) -> str:
    settings = escape((folder.path / "config.yaml").read_text(encoding="utf-8"))
    return f"<h2 id='settings'>Settings</h2><details><summary>config.yaml</summary><pre>{settings}</pre></details>"


def main(arguments: list[str]) -> int:
    if not arguments:
        print("error: which run? python -m experiments.report RUN [RUN...]", file=sys.stderr)
        return 2
    for path in arguments:
        try:
            folder = RunFolder.open(path)
        except RunConfigError as error:
            print(f"error: {error}", file=sys.stderr)
            return 2
        write_report(folder)
        print(f"report: {folder.report} ({folder.report.stat().st_size / 2**20:.1f} MB)")
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))

"""Line charts, drawn with matplotlib: SVG within HTML pages, and SVG files. With a transparent background and mid-grey axes, one SVG is readable
on light and dark pages. `inline_svg` writes colours as CSS variables (`--series-0`, `--soft`), which a page may define for either theme."""

from __future__ import annotations

import io
import math
import re
import statistics
import warnings
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from html import escape
from typing import Any

Points = Sequence[tuple[float, float]]
INK = "#767c85"  # Of axes and text
SERIES = ("#2f6fb3", "#c9722b", "#2c8c74", "#8d5bb0", "#b5497f", "#8a7a1f", "#3d8a35", "#5a5fc7", "#a03c3c", "#70757d")
"""Colour of the i-th line; on a page `--series-i`."""
VARIABLES = {INK: "--soft"} | {colour: f"--series-{number}" for number, colour in enumerate(SERIES)}
STYLE: Any = {
    **{"svg.fonttype": "none", "text.parse_math": False, "font.size": 9, "font.sans-serif": ["DejaVu Sans"]},
    **dict.fromkeys(("text.color", "axes.edgecolor", "axes.labelcolor", "xtick.color", "ytick.color"), INK),
    **{"axes.titlesize": 9.5, "axes.titleweight": "bold", "axes.titlelocation": "left"},
    **{"axes.spines.top": False, "axes.spines.right": False, "axes.grid": True, "axes.axisbelow": True},
    **{"grid.color": "#808080", "grid.alpha": 0.25, "legend.frameon": False, "legend.fontsize": 8, "lines.linewidth": 1.8},
}
CEILING = "ceiling of retrieval"  # in the legend
LEGEND_WIDTH = 72  # Characters of a legend that fit below a panel
MARKED_AT_MOST = 12  # Points of a line that are drawn as dots; longer lines are drawn thin, under their moving mean


@dataclass(frozen=True)
class Panel:
    """One pair of axes with lines."""

    title: str
    lines: Mapping[str, Points]  # Name in the legend -> (x, y); what is not finite is left out, and a line without points keeps its colour
    y: str = ""  # What the y axis shows, with its unit; empty where the title says it
    x: str = "iteration"
    low: float | None = None
    high: float | None = None  # Ends of the y axis; None: from the data
    ceiling: float | None = None  # A dashed line across: what can be reached at best


def line_charts(panels: Sequence[Panel], name: str, columns: int = 1) -> str:
    """Reproducible SVG: panels row by row, with legends; empty without points. `name` keeps the ids of charts on one page apart."""
    panels = [panel for panel in panels if any(_finite(points) for points in panel.lines.values())]
    if not panels:
        return ""
    import matplotlib
    from matplotlib.figure import Figure

    columns, text = min(columns, len(panels)), io.StringIO()
    rows = -(-len(panels) // columns)
    with matplotlib.rc_context(STYLE | {"svg.hashsalt": name}), warnings.catch_warnings():
        warnings.filterwarnings("ignore", "Glyph")  # quotes untrusted characters to the terminal
        figure = Figure(figsize=(4.6 * columns, 2.6 * rows), layout="constrained")
        for number, panel in enumerate(panels):
            _draw(figure.add_subplot(rows, columns, number + 1), panel)
        figure.savefig(text, format="svg", transparent=True, metadata=dict.fromkeys(("Creator", "Date", "Format", "Type")))
    return text.getvalue()


def inline_svg(svg: str, label: str) -> str:
    """The chart as an element of a page, as wide as its container; empty for no chart. `label`: text for screen readers."""
    if not svg:
        return ""
    svg = re.sub(r"<defs>\s*<style.*?</defs>", "", svg[svg.index("<svg") :], count=1, flags=re.S)  # it would apply to the whole page
    svg = re.sub(r' id="([^"]+)"', lambda found: found[0] if f"#{found[1]}" in svg else "", svg)  # a page may hold many charts
    svg = re.sub(r"(\d\.\d\d)\d+", r"\1", svg)  # hundredths of a point are enough, and half the bytes
    svg = re.sub("#[0-9a-f]{6}", lambda found: f"var({VARIABLES[found[0]]}, {found[0]})" if found[0] in VARIABLES else found[0], svg)
    svg = re.sub(r'(<svg[^>]*?) width="[^"]*"', r"\1", re.sub(r'(<svg[^>]*?) height="[^"]*"', r"\1", svg, count=1), count=1)
    return svg.replace("<svg ", f'<svg class="chart" role="img" aria-label="{escape(label)}" ', 1)


def moving_mean(points: Points) -> list[tuple[float, float]]:
    """Each y as the mean of about a twentieth of the points around it."""
    reach, ys = len(points) // 40, [y for _, y in points]
    return [(x, statistics.fmean(ys[max(0, place - reach) : place + reach + 1])) for place, (x, _) in enumerate(points)]


def points_of(rows: Sequence[Mapping[str, Any]], metric: str) -> list[tuple[float, float]]:
    """(iteration, value) of a metric, wherever a line of metrics.jsonl has a number for it."""
    return [(row["iteration"], float(row[metric])) for row in rows if isinstance(row.get(metric), int | float)]


def _draw(axes: Any, panel: Panel) -> None:
    from matplotlib.ticker import MaxNLocator

    xs: set[float] = set()
    for number, (name, line) in enumerate(panel.lines.items()):
        points, colour = _finite(line), SERIES[number % len(SERIES)]
        if not points:
            continue
        xs |= {x for x, _ in points}
        long = len(points) > MARKED_AT_MOST
        if long:
            axes.plot(*zip(*points, strict=True), color=colour, linewidth=0.8, alpha=0.3)
            points = moving_mean(points)
        axes.plot(*zip(*points, strict=True), color=colour, marker="" if long else "o", markersize=3.5, label=name)
    if panel.ceiling is not None:
        axes.axhline(panel.ceiling, color=INK, linewidth=1.2, linestyle="--", label=CEILING)
    axes.set(xlabel=panel.x, ylabel=panel.y, title=panel.title)
    axes.set_ylim(panel.low, panel.high)
    if all(float(x).is_integer() for x in xs):
        axes.xaxis.set_major_locator(MaxNLocator(integer=True))
    names = [*panel.lines, *[CEILING] * (panel.ceiling is not None)]
    if len(names) > 1:
        fits = LEGEND_WIDTH // (max(map(len, names)) + 6)  # 6: the mark and the gap
        axes.legend(loc="upper center", bbox_to_anchor=(0.5, -0.22), ncols=min(4, max(1, fits)), handlelength=1.2, columnspacing=1.2)


def _finite(points: Points) -> list[tuple[float, float]]:
    return [(x, y) for x, y in points if math.isfinite(y)]

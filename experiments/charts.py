"""Small charts as inline SVG. Colours are CSS variables, so one picture serves light and dark pages."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from html import escape

WIDTH, HEIGHT = 420, 200
LEFT, RIGHT, TOP, BOTTOM = 44, 12, 12, 28

COLOURS = 5
"""How many `--series-i` the style sheet defines."""
KB_COLOURS = 8
"""How many `--kb-i` it defines: the colours of the knowledge bases, in their order, as on the page of the service."""
Points = Sequence[tuple[float, float]]


def line_chart(
    series: Mapping[str, Points], *, label: str, low: float | None = None, high: float | None = None, x: str = "iteration"
) -> str:
    """Lines through (x, y) points; the i-th series has the colour `--series-i`. `low`, `high`: ends of the y axis, else from the data."""
    series = {name: [(a, b) for a, b in points if math.isfinite(b)] for name, points in series.items()}
    everything = [point for points in series.values() for point in points]
    if not everything:
        return ""
    xs, ys = [a for a, _ in everything], [b for _, b in everything]
    bottom, top = _ends(min(ys) if low is None else low, max(ys) if high is None else high)
    scale = _Scale(min(xs), max(xs), bottom, top)
    lines = []
    for number, (name, points) in enumerate(series.items()):
        raw = " ".join(f"{scale.x(a):.1f},{scale.y(b):.1f}" for a, b in points)
        smooth = " ".join(f"{scale.x(a):.1f},{scale.y(b):.1f}" for a, b in moving_mean(points))
        colour = f"var(--series-{number})"
        if len(points) > 12:
            lines.append(f'<polyline class="raw" style="stroke:{colour}" points="{raw}"/>')
        else:
            lines += [f'<circle r="3" cx="{scale.x(a):.1f}" cy="{scale.y(b):.1f}" style="fill:{colour}"/>' for a, b in points]
        lines.append(f'<polyline class="line" style="stroke:{colour}" points="{smooth}"><title>{escape(name)}</title></polyline>')
    return _figure(label, list(series), scale.axes(x) + "".join(lines))


def area_chart(shares: Mapping[str, Points], *, label: str, x: str = "iteration") -> str:
    """Shares that add up to 1, stacked. All series have the same x values; the i-th has the colour `--kb-i`, `stop` has `--kb-stop`."""
    names = list(shares)
    if not names or not shares[names[0]]:
        return ""
    smooth = {name: moving_mean(points) for name, points in shares.items()}
    xs = [a for a, _ in smooth[names[0]]]
    scale = _Scale(xs[0], xs[-1], 0.0, 1.0)
    below, bands = [0.0] * len(xs), []
    for number, name in enumerate(names):
        above = [base + y for base, (_, y) in zip(below, smooth[name], strict=True)]
        upper = [f"{scale.x(a):.1f},{scale.y(b):.1f}" for a, b in zip(xs, above, strict=True)]
        lower = [f"{scale.x(a):.1f},{scale.y(b):.1f}" for a, b in zip(xs, below, strict=True)]
        bands.append(
            f'<polygon style="fill:{kb_colour(number, name)}" points="{" ".join(upper + lower[::-1])}"><title>{escape(name)}</title></polygon>'
        )
        below = above
    return _figure(label, names, "".join(bands) + scale.axes(x), [kb_colour(number, name) for number, name in enumerate(names)])


def kb_colour(number: int, name: str) -> str:
    """Of the i-th knowledge base; stopping has a colour of its own."""
    return "var(--kb-stop)" if name == "stop" else f"var(--kb-{number % KB_COLOURS})"


def share_chart(parts: Mapping[str, float], *, label: str) -> str:
    """Seconds by phase as one bar that is the whole, with a legend of seconds and shares. The last colour serves all others."""
    total = sum(parts.values())
    if total <= 0:
        return ""
    bars, legend, left = [], [], 0.0
    for number, (name, seconds) in enumerate(parts.items()):
        colour, width = f"var(--series-{number % COLOURS})", 1000 * seconds / total
        fade = f"opacity:{1 - 0.45 * (number // COLOURS):g}"
        told = f"{name}: {duration(seconds)}, {seconds / total:.0%}"
        bars.append(
            f'<rect x="{left:.1f}" y="0" width="{max(width - 1.5, 0.5):.1f}" height="26" rx="3" style="fill:{colour};{fade}">'
            f"<title>{escape(told)}</title></rect>"
        )
        legend.append(
            f'<span><i style="background:{colour};{fade}"></i>{escape(name)} <b>{duration(seconds)}</b> {seconds / total:.0%}</span>'
        )
        left += width
    picture = (
        f'<svg class="bar" viewBox="0 0 1000 26" preserveAspectRatio="none" role="img" aria-label="{escape(label)}">{"".join(bars)}</svg>'
    )
    caption = f"<figcaption>{escape(label)}: {duration(total)}</figcaption>"
    return f'<figure class="wide">{caption}{picture}<div class="legend">{"".join(legend)}</div></figure>'


def duration(seconds: float) -> str:
    """`340 ms`, `12.5 s`, `4 min 10 s`, `2 h 5 min`."""
    if seconds < 1:
        return f"{seconds * 1000:.0f} ms"
    if seconds < 60:
        return f"{seconds:.1f} s"
    minutes, rest = divmod(round(seconds), 60)
    return f"{minutes} min {rest} s" if minutes < 60 else f"{minutes // 60} h {minutes % 60} min"


def interval_chart(rows: Mapping[str, tuple[float, float, float]], *, label: str) -> str:
    """One row for each name: a dot at the value, a bar from low to high, on a scale from 0 to the largest. The last colour serves all others."""
    if not rows:
        return ""
    top = max(max(row) for row in rows.values()) * 1.05 or 1.0
    step, left, width = 30, 320, 310
    parts = []
    for place, (name, (value, low, high)) in enumerate(rows.items()):
        y, colour = 18 + place * step, min(place, COLOURS - 1)
        at = [left + number / top * width for number in (low, high, value)]
        parts.append(
            f'<text x="0" y="{y + 4}">{escape(name)}</text><line class="track" x1="{left}" x2="{left + width}" y1="{y}" y2="{y}"/>'
            f'<line class="interval" x1="{at[0]:.1f}" x2="{at[1]:.1f}" y1="{y}" y2="{y}" style="stroke:var(--series-{colour})"/>'
            f'<circle cx="{at[2]:.1f}" cy="{y}" r="5" style="fill:var(--series-{colour})"/>'
            f'<text class="value" x="{left + width + 12}" y="{y + 4}">{value:.3f}</text>'
        )
    height = step * len(rows) + 8
    picture = f'<svg viewBox="0 0 700 {height}" role="img" aria-label="{escape(label)}">{"".join(parts)}</svg>'
    return f'<figure class="wide"><figcaption>{escape(label)}</figcaption>{picture}</figure>'


def moving_mean(points: Points) -> list[tuple[float, float]]:
    """Each y as the mean of about a twentieth of the points around it."""
    reach = len(points) // 40
    smooth = []
    for place, (x, _) in enumerate(points):
        near = points[max(0, place - reach) : place + reach + 1]
        smooth.append((x, sum(y for _, y in near) / len(near)))
    return smooth


class _Scale:
    """From data to the picture."""

    def __init__(self, left: float, right: float, bottom: float, top: float):
        self.left, self.right, self.bottom, self.top = left, right if right > left else left + 1, bottom, top

    def x(self, value: float) -> float:
        return LEFT + (value - self.left) / (self.right - self.left) * (WIDTH - LEFT - RIGHT)

    def y(self, value: float) -> float:
        inside = min(max(value, self.bottom), self.top)
        return HEIGHT - BOTTOM - (inside - self.bottom) / (self.top - self.bottom) * (HEIGHT - TOP - BOTTOM)

    def axes(self, name: str) -> str:
        parts = []
        for step in range(5):
            value = self.bottom + (self.top - self.bottom) * step / 4
            y = self.y(value)
            parts.append(f'<line class="grid" x1="{LEFT}" x2="{WIDTH - RIGHT}" y1="{y:.1f}" y2="{y:.1f}"/>')
            parts.append(f'<text class="tick" x="{LEFT - 6}" y="{y + 4:.1f}" text-anchor="end">{value:.3g}</text>')
        for value, anchor in ((self.left, "start"), (self.right, "end")):
            parts.append(f'<text class="tick" x="{self.x(value):.1f}" y="{HEIGHT - 8}" text-anchor="{anchor}">{value:g}</text>')
        middle = (LEFT + WIDTH - RIGHT) / 2
        return "".join(parts) + f'<text class="tick" x="{middle}" y="{HEIGHT - 8}" text-anchor="middle">{escape(name)}</text>'


def _ends(low: float, high: float) -> tuple[float, float]:
    return (low, high) if high > low else (low - 0.5, low + 0.5)


def _figure(label: str, names: Sequence[str], inside: str, colours: Sequence[str] = ()) -> str:
    colours = colours or [f"var(--series-{number})" for number in range(len(names))]
    legend = "".join(f'<span><i style="background:{colour}"></i>{escape(name)}</span>' for name, colour in zip(names, colours, strict=True))
    return (
        f"<figure><figcaption>{escape(label)}</figcaption>"
        f'<svg viewBox="0 0 {WIDTH} {HEIGHT}" role="img" aria-label="{escape(label)}">{inside}</svg>'
        f'<div class="legend">{legend if len(names) > 1 else ""}</div></figure>'
    )

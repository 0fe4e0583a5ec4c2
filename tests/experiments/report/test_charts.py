"""Charts: whole SVG that pages can hold many of, in light and in dark."""

from __future__ import annotations

import xml.etree.ElementTree as ET

import pytest

from experiments.report.charts import Panel, inline_svg, line_charts, moving_mean

LONG = [(float(x), x % 7 / 7) for x in range(1, 60)]
CHARTS = {
    "lines": lambda: line_charts([Panel("a <b> & $c$", {"_one": LONG, "two": [(1, 0.5), (2, float("nan"))]}, y="nats")], "lines"),
    "several": lambda: line_charts([Panel("t", {"a": [(1, 1.0), (64, 9.0)]}, x="nodes")] * 3, "several", columns=2),
}


@pytest.mark.parametrize("name", CHARTS)
def test_a_chart_on_a_page_is_whole_has_no_background_and_takes_its_colours_from_the_page(name: str):
    svg = inline_svg(CHARTS[name](), label="what <it> shows")
    root = ET.fromstring(svg)
    assert root.attrib["aria-label"] == "what <it> shows"
    assert "width" not in root.attrib
    assert "var(--soft, #" in svg
    assert "#ffffff" not in svg
    ids = [element.attrib["id"] for element in root.iter() if "id" in element.attrib]
    assert all(f"#{found}" in svg for found in ids)


def test_the_same_chart_gives_the_same_file():
    assert CHARTS["lines"]() == CHARTS["lines"]()


def test_a_chart_without_points_is_left_out():
    assert inline_svg(line_charts([Panel("nothing", {"a": [], "b": [(1.0, float("inf"))]})], "nothing"), "nothing") == ""


def test_the_moving_mean_of_a_line_is_the_line():
    points = [(float(i), 2.0) for i in range(100)]
    assert moving_mean(points) == points

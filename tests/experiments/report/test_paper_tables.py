"""Tables to paste: the average over data sets, Markdown and LaTeX."""

from __future__ import annotations

import io
import math
import re

import numpy as np
import pytest
from rich.console import Console

from experiments.evaluate import each_data_set
from experiments.evaluation.result_tables import results_table
from experiments.evaluation.significance import evaluation_summary, interval
from experiments.report.paper_tables import average, averages, data_set_tables, latex, markdown, write_tables


def counts(right: int, of: int) -> list[dict[str, tuple[float, float]]]:
    return [{metric: (float(n < right), 1.0) for metric in ("exact_match", "f1", "f1_recall")} for n in range(of)]


def comparison(**right: int) -> dict:
    """20 questions, of which each method answers so many."""
    methods = {name: {"label": f"the {name}_method", **evaluation_summary(counts(many, 20), [""] * 20)} for name, many in right.items()}
    return {"questions": 20, "methods": methods}


SETS = {"nq": comparison(policy=10, direct=5), "2wiki": comparison(policy=20, direct=7), "musique": comparison(policy=3)}


def test_every_data_set_weighs_the_same_in_the_average():
    found = averages(SETS)
    assert found["policy"]["exact_match"]["value"] == pytest.approx((0.5 + 1.0 + 0.15) / 3)
    assert found["direct"]["exact_match"] == {}  # it was not asked everywhere
    assert average([{"value": math.nan, "low": math.nan, "high": math.nan}, {"value": 1.0, "low": 1.0, "high": 1.0}]) == {}


def test_the_interval_of_the_average_is_that_of_a_bootstrap_over_the_questions_of_each_set():
    rng = np.random.default_rng(0)
    sets = [
        np.stack([rng.random(size) < share, np.ones(size)], axis=1).astype(float) for size, share in ((200, 0.3), (400, 0.6), (100, 0.5))
    ]
    found = average([interval(counted) for counted in sets])
    drawn = sum(rng.binomial(len(counted), counted[:, 0].mean(), size=20_000) / len(counted) for counted in sets) / len(sets)
    low, high = np.percentile(drawn, [2.5, 97.5])
    assert (found["low"], found["high"]) == (pytest.approx(low, abs=0.006), pytest.approx(high, abs=0.006))


def test_several_data_sets_are_one_table_with_a_row_for_each_method(tmp_path):
    exact, *_ = tables = data_set_tables(SETS)
    files = write_tables(tmp_path, tables)
    assert [file.name for file in files] == ["results.md", "results.tex"]
    lines = files[0].read_text().splitlines()
    assert lines[0].startswith("**exact match")
    assert lines[2:4] == ["| method | nq (20) | 2wiki (20) | musique (20) | average |", "| --- | ---: | ---: | ---: | ---: |"]
    assert re.fullmatch(r"\| the policy_method \| 0\.500 ±0\.\d{3} \| 1\.000 ±0\.000 \| 0\.150 ±0\.\d{3} \| 0\.550 ±0\.\d{3} \|", lines[4])
    assert lines[5].endswith("| – | – |")
    out = io.StringIO()
    Console(file=out, width=140).print(exact)
    assert "the policy_method" in out.getvalue()


def test_latex_is_escaped_and_every_row_has_every_column():
    table = results_table("50 % of a_b & c", "family", ("f1_recall", "x|y"))
    table.add_row("50 % {a_b} \\ # $ ~ ^ & é", "0.5 ±0.1", "–")
    table.add_section()
    table.add_row("a | b\nc", "1 → 2", "<.001")
    text = latex(table)
    assert r"\caption{50 \% of a\_b \& c}" in text
    assert r"50 \% \{a\_b\} \textbackslash{} \# \$ \textasciitilde{} \textasciicircum{} \& é & 0.5 $\pm$0.1 & -- \\" in text
    assert r"a \textbar{} b c & 1 $\to$ 2 & $<$.001 \\" in text
    assert [line for line in text.splitlines() if "rule" in line] == ["\\toprule", "\\midrule", "\\midrule", "\\bottomrule"]
    assert "\\begin{tabular}{lrr}" in text
    bare = re.sub(r"\\.", "", text)
    assert bare.count("{") == bare.count("}")
    body = [line for line in text.splitlines() if line.endswith(r" \\")]
    assert [len(re.findall(r"(?<!\\)&", line)) for line in body] == [2, 2, 2]
    assert markdown(table).splitlines()[-1] == "| a / b c | 1 → 2 | <.001 |"


def test_several_data_sets_are_asked_one_by_one_with_the_same_settings():
    assert each_data_set(["policy", "dataset=nq,musique", "method=direct"]) == [
        ["policy", "dataset=nq", "method=direct"],
        ["policy", "dataset=musique", "method=direct"],
    ]
    assert each_data_set(["policy", "data.name=nq"]) == [["policy", "data.name=nq"]]

"""Results as tables, for the terminal and the report: before and after training, methods side by side, question families."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from rich.console import Console
from rich.table import Table
from rich.text import Text

from experiments.evaluation.metrics import METRICS
from experiments.evaluation.significance import Interval, excludes_zero
from rollout.faults import FAULTS
from rollout.methods import label_of

HEADINGS = {name: name.replace("_", " ") for name in METRICS}  # Metric -> its name with spaces, so that it wraps in a narrow column
LESS_IS_BETTER = frozenset(name for name in METRICS if name.startswith(("retrievals_", "tokens_", "seconds_", "premature_", "unjudged_")))
METHOD_METRICS = ("f1_recall", "exact_match", "f1", "routing_accuracy", "stop_accuracy", "retrievals_per_question", "hit_at_k")
BASELINE_METRICS = (*METHOD_METRICS, "tokens_per_question")
TRUST_METRICS = ("citation_precision", "citation_recall", "abstention_precision", "abstention_recall")
FAMILY_METRICS = ("f1_recall", "exact_match", "routing_accuracy", "stop_accuracy", "retrievals_per_question", "format_rate")
RUN_METRICS = {  # columns at the end of a run
    "f1_recall": "F1-Recall",
    "exact_match": "exact match",
    "routing_accuracy": "routing",
    "stop_accuracy": "stops",
    "retrievals_per_question": "searches",
}
WIDE = 100  # columns of a terminal in which intervals fit
FORBIDDEN = {"wrong": "wrong answers", "obeys": "orders obeyed", "late": "over the step limit"}  # figure of a fault -> what it counts
COSTS = ("tokens_per_question", "seconds_per_question", "retrievals_per_right_answer", "tokens_per_right_answer")


def known(result: Interval | None) -> bool:
    """Whether it was measured: a value of NaN, or None in a stored summary, was not."""
    return result is not None and result.get("value") is not None and result["value"] == result["value"]


def shown(result: Interval | None, signed: bool = False) -> str:
    """`.912 ±.021`, with half the width of the interval; `.912` where it has none, as with a single seed."""
    if not result or not known(result):
        return "–"
    half, digits = (result["high"] - result["low"]) / 2, 0 if abs(result["value"]) >= 100 else 3
    value = f"{result['value']:{'+' if signed else ''}.{digits}f}"
    return f"{value} ±{half:.{digits}f}" if half == half else value


def results_table(title: str, first: str, columns: Iterable[str]) -> Table:
    """An empty table; `columns` that are metrics get their heading."""
    table = Table(title=title, title_justify="left", title_style="bold")
    table.add_column(first, overflow="fold")
    for column in columns:
        table.add_column(HEADINGS.get(column, column), justify="right", overflow="fold")
    return table


def metric_table(title: str, names: Sequence[str], rows: Iterable[tuple[str, Mapping[str, Interval]]], first: str = "method") -> Table:
    """`rows`: (label, metric -> result)."""
    table = results_table(title, first, names)
    for label, found in rows:
        table.add_row(label, *(shown(found.get(name)) for name in names))
    return table


def difference_table(title: str, first: str, names: Sequence[str], rows: Sequence[tuple[str, Mapping[str, Interval]]]) -> Table:
    """`rows`: (label, metric -> difference). A column for each metric, and one for its corrected p where it was tested."""
    tested = {name for name in names if any("p_corrected" in found.get(name, {}) for _, found in rows)}
    table = results_table(title, first, [column for name in names for column in (name, *["p"] * (name in tested))])
    for label, differences in rows:
        cells: list[Text | str] = []
        for name in names:
            cells.append(difference_cell(name, differences.get(name)))
            if name in tested:
                p = differences.get(name, {}).get("p_corrected")
                cells.append("–" if p is None or p != p else "<.001" if p < 0.001 else f"{p:.3f}")
        table.add_row(label, *cells)
    return table


def difference_cell(name: str, result: Interval | None) -> Text:
    """Green for better, red for worse, without colour where the interval includes zero."""
    style = ""
    if result and known(result) and excludes_zero(result):
        style = "green" if (result["value"] > 0) != (name in LESS_IS_BETTER) else "red"
    return Text(shown(result, signed=True), style=style)


def failure_warnings(measured: Mapping[str, Mapping[str, Any]]) -> list[str]:
    """A line for each evaluation, by its name, with failed episodes or searches."""
    lines = []
    for name, found in measured.items():
        failed, searches = found.get("failed_episodes", 0), found.get("search_errors", 0)
        if failed or searches:
            said = f"; {searches} searches failed, the {found.get('unmeasured_episodes', 0)} episodes that made them are not measured"
            lines.append(f"warning, {name}: {failed} episodes failed and count as wrong{said if searches else ''}")
    return lines


def failures_of_run(summary: Mapping[str, Any]) -> list[str]:
    """The same for the evaluations of a finished run."""
    others = {label_of(name): found for name, found in (summary.get("baselines") or {}).items()}
    return failure_warnings({"before": summary["before"], "after": summary["after"]} | others)


def before_after_table(summary: Mapping[str, Any]) -> Table:
    """Of a finished run."""
    before, after, difference = summary["before"], summary["after"], summary["difference"]
    title = f"before and after, {before['questions']} held-out questions, 95 % intervals"
    table = results_table(title, "metric", ("before", "after", "difference"))
    for name in METRICS:
        if name in before["overall"] and name in after["overall"]:
            both = shown(before["overall"][name]), shown(after["overall"][name])
            table.add_row(HEADINGS[name], *both, difference_cell(name, difference[name]))
    return table


def routing_table(summary: Mapping[str, Any]) -> Table:
    after, before = {"policy": summary["after"], **summary.get("baselines", {})}, summary.get("start_baselines", {})
    rows = [(label_of(name), found["overall"]) for name, found in after.items()]
    rows += [(f"{label_of(name)}, before training", found["overall"]) for name, found in before.items()]
    return metric_table("ways of routing, same questions", BASELINE_METRICS, rows)


def family_table(summary: Mapping[str, Any]) -> Table:
    table = results_table("by question family, before → after", "family", ("questions", *FAMILY_METRICS))
    for family, then in summary["before"]["by_family"].items():
        now = summary["after"]["by_family"][family]
        cells = (f"{_value(then[name])} → {_value(now[name])}" for name in FAMILY_METRICS)
        table.add_row(family or "all", str(then["questions"]), *cells)
    return table


def print_results(console: Console, summary: Mapping[str, Any]) -> None:
    """The end of a run: one table and a sentence; the report has the rest."""
    console.print(run_table(summary, intervals=console.width >= WIDE))
    _print_warnings(console, failures_of_run(summary))
    console.print(what_happened(summary), style="bold", soft_wrap=True)


def run_table(summary: Mapping[str, Any], intervals: bool = True) -> Table:
    """Of a finished run, in at most 100 columns: before, after, and the other methods with the trained policy."""
    rows = [("before", summary["before"]), ("after", summary["after"])]
    rows += [(f"after, {name}", found) for name, found in (summary.get("baselines") or {}).items()]
    title = f"{summary['before']['questions']} held-out questions{', 95 % intervals' if intervals else ''}"
    table = results_table(title, "", RUN_METRICS.values())
    for label, found in rows:
        cells = (found["overall"].get(name) for name in RUN_METRICS)
        table.add_row(label, *(shown(cell) if intervals else _value(cell) if cell else "–" for cell in cells))
    return table


def what_happened(summary: Mapping[str, Any]) -> str:
    """What a finished run changed, in a sentence."""
    before, after, difference = summary["before"]["overall"], summary["after"]["overall"], summary["difference"]

    def change(name: str) -> str:
        return f"{_value(before[name])} → {_value(after[name])}"

    routing, answers, said = difference["routing_accuracy"], difference["f1_recall"], []
    if known(routing):
        learned = routing["value"] > 0 and excludes_zero(routing)
        said.append(f"{'learned' if learned else 'did not learn'} where to search: routing {change('routing_accuracy')}")
    better = "" if excludes_zero(answers) else " (within chance)"
    said.append(f"answers {change('f1_recall')}{better}")
    gold = ((summary.get("baselines") or {}).get("oracle") or {}).get("overall", {}).get("f1_recall")
    if known(gold):
        reached = after["f1_recall"]["high"] >= gold["value"]
        said[-1] += ", the ceiling of its reading" if reached else f", of {_value(gold)} with the right knowledge base given at every step"
    return f"{'; '.join(said)}; searches per question {change('retrievals_per_question')}"


def print_methods(console: Console, comparison: Mapping[str, Any], title: str) -> None:
    """All tables of an evaluation, and a line for each method that failed somewhere."""
    by_family, *others = method_tables(comparison, title)
    console.print(by_family)
    _print_warnings(console, failure_warnings({found["label"]: found for found in comparison["methods"].values()}))
    console.print(*others)


def method_tables(comparison: Mapping[str, Any], title: str) -> list[Table]:
    """Of an evaluation: the first method by family, the methods side by side, what they cost, and their differences."""
    methods = comparison["methods"]
    first = methods[comparison["against"]]
    table = results_table(title, "family", ("questions", *FAMILY_METRICS))
    for family, found in first["by_family"].items():
        table.add_row(family or "-", str(found["questions"]), *(_value(found[name]) for name in FAMILY_METRICS))
    table.add_section()
    table.add_row("overall", str(first["questions"]), *(shown(first["overall"][name]) for name in FAMILY_METRICS), style="bold")
    rows = [(found["label"], found["overall"]) for found in methods.values()]
    tables = [table, metric_table("methods, same questions", METHOD_METRICS, rows)]
    tables.append(metric_table("citations, and questions without an answer", TRUST_METRICS, rows))
    shares = sorted({f"share of {kb}" for found in methods.values() for kb in found["kb_shares"]})
    rows = [(m["label"], m["overall"] | {f"share of {kb}": share for kb, share in m["kb_shares"].items()}) for m in methods.values()]
    tables.append(metric_table("what they cost, and where they search", (*COSTS, *shares), rows))
    if "confidence" in comparison:
        tables.append(confidence_table({"": comparison["confidence"]}))
    if "when" in comparison:
        tables.append(when_table(comparison["when"]))
    if comparison["differences"]:
        title = f"{first['label']} minus the others, paired; p corrected (Holm)"
        rows = [(methods[name]["label"], found) for name, found in comparison["differences"].items()]
        tables.append(difference_table(title, "method", [name for name, found in rows[0][1].items() if "p" in found], rows))
    return tables


def when_table(found: Mapping[str, Any]) -> Table:
    """The policy's searches, for the questions it knows and the others, and the correlation: below 0 it searches less for what it knows."""
    names = ("questions", "known", "searches of known", "searches of others", "correlation")
    table = results_table("searches of the router, by what it knows: right without retrieval", "family", names)

    def add(label: str, row: Mapping[str, Any]) -> None:
        shares = (shown(row[name]) for name in ("searches_of_known", "searches_of_others"))
        table.add_row(label, str(row["questions"]), str(row["known"]), *shares, shown(row["correlation"], signed=True))

    for family, row in found["by_family"].items():
        add(family or "-", row)
    table.add_section()
    add("overall", found)
    table.add_row("overall, within families", "", "", "", "", shown(found["within_families"], signed=True))
    return table


def gate_table(found: Mapping[str, Any], title: str) -> Table:
    """Of gate.yaml."""
    columns = ("searches find", "required", "questions", "right", "abstains", "asks elsewhere", "forbidden", "share", "at most", "passed")
    table = results_table(title, "fault", columns)
    for kind, row in found["faults"].items():
        rule = FAULTS[kind]
        shares = [shown(row[name]) for name in ("right", "abstains")] + [shown(row["asks_elsewhere"]) if not rule.everywhere else "–"]
        passed = Text("yes", "green") if row["passed"] else Text("no" if row["questions"] else "no question to judge", "red")
        table.add_row(
            *(kind, rule.finds, rule.required, str(row["questions"]), *shares, FORBIDDEN[rule.figure]),
            *(shown(row[rule.figure]), f"{rule.at_most:g}", passed),
        )
    return table


def confidence_table(found: Mapping[str, Mapping[str, Any]]) -> Table:
    """Label -> what confidence.py measured: how far confidence tells right answers from wrong ones, and what refusing the others does."""
    columns = ("aurc", "ece", "coverage", "risk", "outside_refused", "right_answers_lost")
    least = next((measured["min_confidence"] for measured in found.values()), 0.0)
    table = results_table(f"confidence of the router's answers, refused below {least:g}", "", [name.replace("_", " ") for name in columns])
    for label, measured in found.items():
        table.add_row(label, *(shown(measured[name]) for name in columns))
    return table


def _print_warnings(console: Console, lines: Iterable[str]) -> None:
    for line in lines:
        console.print(line, style="yellow", soft_wrap=True, markup=False, highlight=False)


def _value(result: Interval) -> str:
    return f"{result['value']:.2f}" if known(result) else "–"

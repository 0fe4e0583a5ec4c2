"""What `r1-router replay` shows: tables for the terminal, and `replay.html` in the run's folder."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from html import escape

import numpy as np
from rich.table import Table

from experiments.evaluation.result_tables import results_table
from experiments.evaluation.score_again import ReplayedTurn, SearchedAgain, correlation, disagreements, other_best_sibling
from experiments.report.browser import security_policy
from experiments.report.html_sections import html_table
from experiments.report.report_page import STYLE
from rollout.turn_parser import PLAN, STOP, parse_answer

SHOWN = 100  # turns, and searches, on the page
KINDS = ("plan", "answer", "final")
EXPLAINED = "paid: what the run paid for a turn; would be paid: what these settings pay for it. Means are over the turns that both judge."


def rewards_table(turns: Sequence[ReplayedTurn]) -> Table:
    columns = ("turns", "paid", "would be paid", "correlation", "another sibling is best", "judged by one of the two")
    table = results_table("Rewards: as recorded, and as they would be now", "episodes", ("kind of turn", *columns))
    for stored in dict.fromkeys(turn.stored for turn in turns):
        for kind in KINDS:
            some = [turn for turn in turns if turn.stored == stored and turn.kind == kind]
            pairs = [turn.both for turn in some for _ in range(turn.times) if turn.both is not None]
            means = np.mean(pairs, axis=0).tolist() if pairs else (None, None)
            other, groups = other_best_sibling(some)
            shown = ["–" if value is None else f"{value:.3f}" for value in (*means, correlation(pairs))]
            one = sum(turn.times for turn in some if (turn.paid is None) != (turn.again is None))
            if some:
                table.add_row(stored, kind, f"{len(pairs):,}", *shown, f"{other} of {groups} groups" if groups else "–", f"{one:,}")
    return table


def searches_table(searches: Sequence[SearchedAgain], folders: Mapping[str, str]) -> Table:
    columns = ("searched again in", "searches", "the same first passage", "for a gold step", "held its answer", "hold it now")
    table = results_table("Searches: as recorded, and again", "knowledge base", columns)
    for kb, folder in folders.items():
        some = [search for search in searches if search.exchange.kb == kb]
        asked = [search for search in some if search.holds_now is not None]
        same, before, now = (
            f"{sum(map(bool, found)) / len(found):.1%}" if found else "–"
            for found in ([s.same_first for s in some], [s.held_before for s in asked], [s.holds_now for s in asked])
        )
        table.add_row(kb, folder, f"{len(some):,}", same, f"{len(asked):,}", before, now)
    return table


def disagreements_table(turns: Sequence[ReplayedTurn], at_most: int) -> Table:
    table = results_table(
        "Where the two disagree most, measured in standard deviations", "question", ("turn", "paid", "would be paid", "text")
    )
    for turn in disagreements(turns, at_most):
        assert turn.paid is not None
        assert turn.again is not None
        paid, again = (_reward(*earned) for earned in ((turn.paid, turn.paid_parts), (turn.again.total, turn.again.parts)))
        table.add_row(turn.question.text, turn.kind, paid, again, _decision(turn.text))
    return _left(table)


def _decision(text: str) -> str:
    """The decision or the answer, without the thought; a malformed turn as it is."""
    if plan := PLAN.fullmatch(text):
        return "stop" if plan[2].strip() == STOP else f"{plan[1].strip()} → {plan[2].strip()}"
    return parse_answer(text) or text


def _reward(total: float, parts: Mapping[str, float]) -> str:
    shown = ", ".join(f"{name} {value:.2f}" for name, value in parts.items() if value)
    return f"{total:.3f} ({shown})" if shown and total else f"{total:.3f}"


def changed_searches_table(searches: Sequence[SearchedAgain], at_most: int) -> Table:
    columns = ("knowledge base", "query", "held the answer", "holds it now", "first passage before", "first passage now")
    table = results_table("Searches that gained or lost the answer", "question", columns)
    distinct: dict[tuple[str, str, str], SearchedAgain] = {}
    for search in searches:
        if search.held_before != search.holds_now:
            distinct.setdefault((search.question.id, search.exchange.kb, search.exchange.query), search)
    for search in list(distinct.values())[:at_most]:
        held = ["yes" if held else "no" for held in (search.held_before, search.holds_now)]
        first = [passages[0].full_text if passages else "–" for passages in (search.before, search.now)]
        table.add_row(search.question.text, search.exchange.kb, search.exchange.query, *held, *first)
    return _left(table)


def _left(table: Table) -> Table:
    for column in table.columns:
        column.justify = "left"
    return table


def replay_page(name: str, said: Sequence[str], tables: Sequence[Table]) -> str:
    """`said`: lines about what was replayed. Tables without a row are left out."""
    lines = "".join(f"<p class='soft'>{escape(line)}</p>" for line in (*said, EXPLAINED))
    body = "".join(f"<h2>{escape(str(table.title))}</h2>{html_table(table)}" for table in tables if table.row_count)
    return (
        f'<!doctype html><html lang="en"><head><meta charset="utf-8"><meta name="viewport" content="width=device-width, initial-scale=1">'
        f'<meta http-equiv="Content-Security-Policy" content="{security_policy()}"><meta name="color-scheme" content="light dark">'
        f"<title>{escape(name)}: replay</title><style>{STYLE} th, td {{ white-space: normal; text-align: left; vertical-align: top; }}</style>"
        f"</head><body><main><h1>{escape(name)}: replay</h1>{lines}{body}</main></body></html>\n"
    )

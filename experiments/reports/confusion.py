"""Which knowledge base a plan turn should have named, and which it named."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from html import escape
from typing import Any

STOP, MALFORMED = "stop", "malformed"
Confusion = Mapping[tuple[str, str], int]
"""(what was right, what was chosen) -> plan turns. Right is a set of knowledge bases ("table or text"), or `stop` where nothing was left to ask."""


def confusion(rows: Sequence[Mapping[str, Any]]) -> Confusion:
    """`rows`: of `RunFolder.read_trajectories`. Searches that no turn decided do not count, nor do turns of questions without known gold steps."""
    counts: Counter[tuple[str, str]] = Counter()
    for row in rows:
        for step in row["steps"]:
            if step.get("gold") is not None:
                counts[" or ".join(sorted(step["gold"])) or STOP, chosen(step)] += 1
    return counts


def chosen(step: Mapping[str, Any]) -> str:
    """What a plan turn came to: the knowledge base, `stop`, or `malformed`."""
    return step["kb"] or (STOP if step.get("stops", step["plan"].rstrip().endswith("</ret>")) else MALFORMED)


def is_right(gold: str, choice: str) -> bool:
    return choice in gold.split(" or ")


def confusion_section(before: Confusion, after: Confusion, kbs: Sequence[str]) -> str:
    """Both as tables of the same shape. Empty where gold steps were not stored, or are not known."""
    if not before and not after:
        return ""
    golds = sorted({gold for counts in (before, after) for gold, _ in counts}, key=lambda gold: (gold == STOP, " or " in gold, gold))
    seen = {choice for counts in (before, after) for _, choice in counts}
    choices = [*(kb for kb in kbs if kb in seen or kb in golds), STOP, *([MALFORMED] if MALFORMED in seen else [])]
    shown = [_table(counts, golds, choices, when) for counts, when in ((before, "before training"), (after, "after training")) if counts]
    return (
        "<h2 id='routing'>Where the plan turns went</h2><p>Rows: the knowledge bases that could be asked for what was still missing, or stop where "
        "nothing was. Columns: what was chosen. Share of the row and number of plan turns; right choices are framed.</p>"
        f"<div class='figures'>{''.join(shown)}</div>"
    )


def _table(counts: Confusion, golds: Sequence[str], choices: Sequence[str], caption: str) -> str:
    right = sum(n for (gold, choice), n in counts.items() if is_right(gold, choice))
    total = sum(counts.values())
    heads = "".join(f"<th scope='col'>{escape(choice.replace('_', '-'))}</th>" for choice in choices)
    names = [(gold, escape(gold.replace("_", "-"))) for gold in golds]
    cells = {gold: "".join(_cell(counts, gold, choice) for choice in choices) for gold in golds}
    body = "".join(f"<tr><th scope='row'>{name}</th>{cells[gold]}</tr>" for gold, name in names)
    return (
        f"<figure class='confusion'><figcaption>{escape(caption)}: {right / total:.1%} of {total:,} plan turns right</figcaption>"
        f"<div class='scroll'><table><tr><th>right ↓ chosen →</th>{heads}</tr>{body}</table></div></figure>"
    )


def _cell(counts: Confusion, gold: str, choice: str) -> str:
    n, row = counts.get((gold, choice), 0), sum(n for (other, _), n in counts.items() if other == gold)
    share = n / row if row else 0.0
    kind = " class='right'" if is_right(gold, choice) else ""
    shown = f"{share:.0%} <small>{n:,}</small>" if n else "<span class='soft'>·</span>"
    return f"<td{kind} style='--share:{share:.3f}'>{shown}</td>"

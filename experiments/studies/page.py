"""The page of a study, rendered from its results alone: the same results are always the same page."""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

from experiments.result_tables import HEADINGS
from experiments.studies.answers import answers, best_static, spread
from experiments.studies.confusion import MALFORMED, STOP
from experiments.studies.curves import draw
from experiments.studies.plan import COLD_START, DEFAULTS, STEP_GRPO

OVERALL = ("f1_recall", "exact_match", "routing_accuracy", "stop_accuracy", "premature_stop_rate", "retrievals_per_question", "hit_at_k")
METHODS = ("f1_recall", "exact_match", "retrievals_per_question", "tokens_per_question")
SWEPT = ("f1_recall", "routing_accuracy", "retrievals_per_question", "stop_accuracy")
Found = Mapping[str, Any]


def write_page(results: Found, page: Path) -> Path:
    """The page, its figures beside it as .json, its pictures in images/ there. Returns the page."""
    page.parent.mkdir(parents=True, exist_ok=True)
    page.with_suffix(".json").write_text(json.dumps(results, indent=1, ensure_ascii=False) + "\n", encoding="utf-8")
    draw(results, page.parent / "images" / page.stem)
    page.write_text(render(results, page.stem), encoding="utf-8")
    return page


def render(results: Found, name: str) -> str:
    """Markdown. `name`: of the page, hence of the folder of its pictures."""
    parts = [
        _head(results),
        _missing(results),
        _answers(results),
        _arms(results),
        _methods(results),
        _families(results),
        _pictures(results, name),
        _confusions(results),
        _sweep(results),
        _cost(results),
        _how(results),
    ]
    return "\n\n".join(part for part in parts if part) + "\n"


def _head(results: Found) -> str:
    study = results["study"]
    machine = study.get("machine", {})
    spent = sum(sum(found) for found in study["seconds"].values()) / 60
    began = study.get("began", "an unknown day")
    return (
        "# The study\n\n"
        "Written by `make study` from what it measured; every number and every verdict on this page is computed "
        "(`python -m experiments.study study.render_only=true` writes it again).\n\n"
        f"{len(study['seeds'])} seeds, {study['turns']:,} sampled turns for each training, {study['questions']} held-out questions "
        f"(`{study['data']}`), greedy unless said. {machine.get('cpus', '?')} CPUs ({machine.get('processor', '?')}), "
        f"{machine.get('memory_gib', '?')} GiB, {began}, commit `{str(study.get('commit') or 'unknown')[:10]}`; {spent:.0f} minutes, "
        f"{_shared(study)}."
    )


def _shared(study: Found) -> str:
    """Whether others used the machine: its load when the study began, over what the study itself keeps busy."""
    load, cpus = study.get("load"), study.get("machine", {}).get("cpus")
    if load is None or not cpus:
        return "on a machine of unknown load"
    return (
        f"on a machine that others used as well (load {load:g} when it began)"
        if load > cpus
        else f"on a quiet machine (load {load:g} when it began)"
    )


def _missing(results: Found) -> str:
    if not results["missing"]:
        return ""
    some = results["missing"][:12]
    more = f"\n- and {len(results['missing']) - len(some)} more" if len(results["missing"]) > len(some) else ""
    return "**Unfinished.** The same command goes on from here. Not measured yet:\n\n" + "\n".join(f"- {name}" for name in some) + more


def _answers(results: Found) -> str:
    rows = [(found.question, f"**{found.verdict}**", found.says or "–") for found in answers(results)]
    return (
        "## Answers\n\n"
        + table(("question", "", "what was measured"), rows)
        + "\n\n*Holds*: the whole 95 % interval and every seed say so. *Does not hold*: they all say the opposite. *Cannot be told apart*: "
        "anything else, which is no proof of equality. *By construction*: it could not have come out otherwise."
    )


def _arms(results: Found) -> str:
    arms = [arm for arm in results["study"]["arms"] if results["figures"].get(arm, {}).get("policy")]
    if not arms:
        return ""
    label = _labels(results)
    rows = [(label[arm], *(cell(results["figures"][arm]["policy"][name]) for name in OVERALL)) for arm in arms]
    parts = ["## The arms, each with its own router", table(("arm", *(HEADINGS[name] for name in OVERALL)), rows)]
    for key, other in (("against_start", COLD_START), ("against_step", STEP_GRPO)):
        against = results[key]
        if against and other in label:
            rows = [
                (label[arm], *(signed(found[name]) for name in OVERALL), p_of(found["f1_recall"]), by_seed(found["f1_recall"]))
                for arm, found in against.items()
            ]
            heads = (f"minus {label[other]}", *(HEADINGS[name] for name in OVERALL), "p (F1-Recall)", "F1-Recall, by seed")
            parts += [f"Paired differences to {label[other]}:", table(heads, rows)]
    way, course = results["on_the_way"]["routing"], results["on_the_way"]["validation_f1_recall"]
    if way:
        rows = [
            (label[arm], cell(found), signed(found["against_step"]), cell(course.get(arm)), signed(course.get(arm, {}).get("against_step")))
            for arm, found in way.items()
        ]
        heads = ("on the way", "routing of sampled plan turns", "minus Step-GRPO", "F1-Recall, validation questions", "minus Step-GRPO")
        parts += ["How fast they learned, as means over the course of the training (Student's intervals over seeds):", table(heads, rows)]
    return "\n\n".join(parts)


def _methods(results: Found) -> str:
    """Every method with every policy, and how far the router is ahead of it."""
    arms = [arm for arm in results["study"]["arms"] if results["figures"].get(arm)]
    if not arms:
        return ""
    label, methods = _labels(results), results["study"]["methods"]
    parts = ["## The methods, with every policy", "F1-Recall:"]
    rows = [
        (found["label"], *(cell(results["figures"][arm].get(method, {}).get("f1_recall")) for arm in arms))
        for method, found in methods.items()
    ]
    parts.append(table(("method", *(label[arm] for arm in arms)), rows))
    if STEP_GRPO in arms:
        against, best = results["against_methods"].get(STEP_GRPO, {}), best_static(results, STEP_GRPO)
        rows = []
        for method, found in methods.items():
            figures = results["figures"][STEP_GRPO].get(method)
            if figures:
                name = found["label"] + (" (best static)" if method == best else "")
                ahead = against.get(method, {}).get("f1_recall")
                rows.append((name, *(cell(figures[m]) for m in METHODS), signed(ahead), p_of(ahead), found["isolates"]))
        heads = ("method", *(HEADINGS[m] for m in METHODS), "router minus method, F1-Recall", "p", "the difference shows")
        parts += [f"With the policies of {label[STEP_GRPO]}:", table(heads, rows)]
    return "\n\n".join(parts)


def _families(results: Found) -> str:
    arms = [arm for arm in results["study"]["arms"] if results["families"].get(arm)]
    if not arms:
        return ""
    label, first = _labels(results), results["families"][arms[0]]
    rows = [
        (family or "all", str(found["questions"]), *(cell(results["families"][arm][family]["f1_recall"]) for arm in arms))
        for family, found in first.items()
    ]
    return "## F1-Recall by family, the router\n\n" + table(("family", "questions", *(label[arm] for arm in arms)), rows)


def _pictures(results: Found, name: str) -> str:
    if not results["curves"]:
        return ""
    return (
        "## How they learned\n\n"
        f"Line: mean over seeds; band: from the lowest to the highest seed.\n\n![Learning curves](images/{name}/learning.svg)\n\n"
        f"What plan turns chose while training (sampled, trunks):\n\n![Use of the knowledge bases](images/{name}/kb_use.svg)"
    )


def _confusions(results: Found) -> str:
    matrices = {arm: found for arm, found in results["confusion"].items() if found}
    if not matrices:
        return ""
    label = _labels(results)
    parts = [
        "## Where plan turns went",
        "Rows: the knowledge bases of what could be asked for at that turn (any of them is right), or stop when nothing was left. Columns: what "
        "the router chose. Plan turns of held-out questions, greedy, all seeds.",
    ]
    named = {kb for matrix in matrices.values() for chosen in matrix.values() for kb in chosen}
    columns = [*sorted(named - {STOP, MALFORMED}), STOP, MALFORMED]
    for arm, matrix in matrices.items():
        rows = [
            (gold, *(f"{chosen.get(kb, 0)} ({chosen.get(kb, 0) / max(1, sum(chosen.values())):.0%})" for kb in columns))
            for gold, chosen in matrix.items()
        ]
        parts += [f"{label[arm]}:", table(("right → chosen", *columns), rows)]
    return "\n\n".join(parts)


def _sweep(results: Found) -> str:
    points = results["sweep"]
    if not points:
        return ""
    rows = [
        (
            point["factor"] or "default",
            point["value"],
            str(point["seed"]),
            f"{point['turns']:,}",
            f"{point['on_the_way']:.3f}",
            *(cell(point["figures"][name]) for name in SWEPT),
            signed(point["against_default"].get("f1_recall")),
        )
        for point in points.values()
    ]
    heads = ("factor", "value", "seed", "turns", "routing on the way", *(HEADINGS[name] for name in SWEPT), "F1-Recall minus default")
    apart = spread([point["figures"]["f1_recall"]["value"] for point in points.values() if not point["factor"]])
    yardstick = f"The seeds of the default lie {100 * apart:.1f} points of F1-Recall apart." if apart is not None else ""
    return (
        "## What the factors change\n\n"
        f"Step-GRPO with one factor changed, by Ray Tune, {results['study']['sweep_turns']:,} sampled turns each; the default has "
        + ", ".join(f"{factor} {value}" for factor, value in DEFAULTS.items())
        + ". alpha is the weight of asking (query and names, 2 to 3), beta that of routing. Routing on the way: of sampled plan turns, "
        f"on average over the training. Intervals over questions; one seed a value. {yardstick}\n\n" + table(heads, rows)
    )


def _cost(results: Found) -> str:
    if not results["trainings"]:
        return ""
    rows = [
        (
            name,
            f"{t['turns']:,}",
            str(t["iterations"]),
            str(t["best"]),
            f"{t['sampled_tokens']:,}",
            *(_seconds(t, key) for key in ("set_up", "train", "validate")),
        )
        for name, t in results["trainings"].items()
    ]
    heads = ("training", "turns", "iterations", "best after", "sampled tokens", "set-up, s", "training, s", "validation, s")
    return (
        "## What it cost\n\n"
        "Each training ends with the iteration in which its turns are sampled; the policy that is measured is the one that did best on "
        f"{results['study']['validation_questions']} validation questions.\n\n" + table(heads, rows)
    )


def _how(results: Found) -> str:
    study = results["study"]
    changed = "\n".join(
        f"- {arm['label']}: {', '.join(f'`{s}`' for s in arm['settings']) or 'nothing changed'}" for arm in study["arms"].values()
    )
    return (
        "## How it was measured\n\n"
        f"Every arm starts from the same policy and differs from `configs/study.yaml` in:\n\n{changed}\n\n"
        "The policies of one seed are asked the same questions with the same evaluation seed, which orders passages and draws random routes; "
        f"cold start only has no other seeds. The router sampled: {study['samples']} episodes a question. Intervals: 95 %, bootstrap over "
        "seeds and questions together (2,000 draws), paired for differences; with few seeds the part of the seeds is rough, so every seed has to "
        "agree as well. p: permutation test over questions, corrected for the number of rows (Holm). What was learned on the way: Student's "
        "interval over seeds."
    )


def _labels(results: Found) -> dict[str, str]:
    return {arm: found["label"] for arm, found in results["study"]["arms"].items()}


def _seconds(training: Found, key: str) -> str:
    return f"{training['seconds'].get(key, 0.0):.0f}"


def cell(found: Found | None) -> str:
    """`.669 [.625, .708]`."""
    if not found or found["value"] is None:
        return "–"
    digits = 0 if abs(found["value"]) >= 100 else 3
    ends = "" if found["low"] is None else f" [{found['low']:.{digits}f}, {found['high']:.{digits}f}]"
    return f"{found['value']:.{digits}f}{ends}"


def signed(found: Found | None) -> str:
    """The same of a difference, bold where the interval excludes zero."""
    if not found or found["value"] is None:
        return "–"
    digits = 0 if abs(found["value"]) >= 100 else 3
    ends = "" if found["low"] is None else f" [{found['low']:+.{digits}f}, {found['high']:+.{digits}f}]"
    sure = found["low"] is not None and (found["low"] > 0 or found["high"] < 0)
    return f"**{found['value']:+.{digits}f}**{ends}" if sure else f"{found['value']:+.{digits}f}{ends}"


def p_of(found: Found | None) -> str:
    p = (found or {}).get("p_corrected")
    return "–" if p is None else "< .001" if p < 0.001 else f"{p:.3f}"


def by_seed(found: Found) -> str:
    return " / ".join("–" if value is None else f"{value:+.3f}" for value in found["seeds"])


def table(heads: Sequence[str], rows: Iterable[Sequence[str]]) -> str:
    lines = [heads, ["---"] * len(heads), *rows]
    return "\n".join(f"| {' | '.join(cell.replace('|', '/') for cell in line)} |" for line in lines)

"""The plain answers of a study: what its intervals say, in words. Pure; nothing here knows a result beforehand."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from experiments.studies.plan import COLD_START, DEFAULTS, STEP_GRPO

HOLDS, FAILS, OPEN = "holds", "does not hold", "cannot be told apart"
NOT_MEASURED = "not measured yet"
PAPER_POINTS = 7.0
"""Points of F1-Recall by which the paper's router is ahead of its baselines, on average."""
PAPER_RANDOM = 55.93 - 52.50
"""Points by which the paper's learned routing is ahead of random routing."""
COURSES = {
    "validation_f1_recall": "F1-Recall on the validation questions",
    "routing": "routing accuracy of sampled plan turns",
}
"""What was measured on the way, on average over the training: what is judged by, and what is told beside it. The second is what the reward of each
step pays for, and is of the policy that sampled, which is one version older one step off: it says which reward is followed sooner, no more."""
BY_CONSTRUCTION = "by construction"
Found = Mapping[str, Any]
"""A figure as `results.json` has it: value, low, high, seeds."""


@dataclass(frozen=True)
class Answer:
    question: str
    verdict: str
    """`holds`, `does not hold`, `cannot be told apart` or `not measured yet`; of questions without a claim, and of what cannot be otherwise, a few
    words."""
    says: str


def verdict(found: Found | None, less: bool = False) -> str:
    """Of the claim that a difference is positive (`less`: negative): it holds when the whole interval and every seed say so, it does not hold when
    they all say the opposite."""
    if not found or found["value"] is None or found["low"] is None:
        return NOT_MEASURED
    sign = -1 if less else 1
    ends = sorted((sign * found["low"], sign * found["high"]))
    seeds = [sign * value for value in found["seeds"] if value is not None]
    if ends[0] > 0 and all(value > 0 for value in seeds):
        return HOLDS
    if ends[1] < 0 and all(value < 0 for value in seeds):
        return FAILS
    return OPEN


def beside(found: Found, claimed: float) -> str:
    """How the interval of a difference, in points, lies to a number that somebody else measured."""
    low, high = 100 * found["low"], 100 * found["high"]
    if low > claimed:
        return f"more than the paper's {claimed:.3g}"
    if high < claimed:
        return f"less than the paper's {claimed:.3g}"
    return f"not told apart from the paper's {claimed:.3g}"


def best_static(results: Found, arm: str) -> str | None:
    """The method that searches the same places whatever is asked and has the highest F1-Recall, with the policy of `arm`."""
    static = {
        m: found["f1_recall"]["value"] for m, found in results["figures"].get(arm, {}).items() if m.partition(":")[0] in ("all", "single")
    }
    known = {method: value for method, value in static.items() if value is not None}
    return max(known, key=lambda method: known[method]) if known else None


def answers(results: Found) -> list[Answer]:
    return [
        _static(results),
        _interleaved(results),
        _routing(results),
        _trained(results),
        *_outcome(results),
        _retrievals(results),
        _stopping(results),
        _cost(results),
        *_overlap(results),
        *(_factor(results, factor) for factor in DEFAULTS),
    ]


def _static(results: Found) -> Answer:
    question = "Does the trained router beat the best static baseline, and by how many points of F1-Recall?"
    method = best_static(results, STEP_GRPO)
    found = results["against_methods"].get(STEP_GRPO, {}).get(method, {}).get("f1_recall") if method else None
    if verdict(found) == NOT_MEASURED:
        return Answer(question, NOT_MEASURED, "")
    assert found
    assert method
    label = results["study"]["methods"][method]["label"]
    says = f"By {points(found)} over {label}, the best of the static ones with the same trained policy: {beside(found, PAPER_POINTS)}."
    return Answer(question, verdict(found), says)


def _interleaved(results: Found) -> Answer:
    """IRCoT's way is no static baseline: it asks step by step as well, but of every knowledge base."""
    found = results["against_methods"].get(STEP_GRPO, {}).get("ircot", {})
    says = ""
    if found:
        says = f"{points(found['f1_recall'])} of F1-Recall, at {amount(found['retrievals_per_question'])} searches a question."
    return Answer("Does it beat asking every knowledge base at every step (IRCoT)?", verdict(found.get("f1_recall")), says)


def _routing(results: Found) -> Answer:
    found = results["against_methods"].get(STEP_GRPO, {}).get("random", {}).get("f1_recall")
    says = (
        ""
        if verdict(found) == NOT_MEASURED
        else f"Same policy, same questions: {points(found)} of F1-Recall, {beside(found, PAPER_RANDOM)}."
    )
    return Answer("Is learned routing better than random routing?", verdict(found), says)


def _trained(results: Found) -> Answer:
    found = results["against_start"].get(STEP_GRPO, {})
    says = ""
    if found:
        says = f"{points(found['f1_recall'])} of F1-Recall, {points(found['routing_accuracy'])} of routing accuracy."
    return Answer("Is Step-GRPO better than the cold start alone?", verdict(found.get("f1_recall")), says)


def _outcome(results: Found) -> list[Answer]:
    against = results["against_step"].get("outcome_grpo", {})
    turned = {name: negative(found) for name, found in against.items()}
    says = ""
    if turned:
        says = (
            f"Step-GRPO minus outcome GRPO after as many turns: {points(turned['f1_recall'])} of F1-Recall ({verdict(turned['f1_recall'])}), "
            f"{points(turned['routing_accuracy'])} of routing accuracy ({verdict(turned['routing_accuracy'])})."
        )
    course = {name: negative(found) for name, found in on_the_way(results, "outcome_grpo").items()}
    learned = told_of_courses("Step-GRPO minus outcome GRPO", course)
    if verdict(course.get("routing")) != NOT_MEASURED:
        learned += " The latter is what the reward of each step pays for, and that of the outcome does not: no proof of faster learning."
    return [
        Answer("Is the reward of each step better than that of the outcome, in the end?", verdict(turned.get("f1_recall")), says),
        Answer("Does the reward of each step learn faster?", verdict(course.get("validation_f1_recall")), learned),
    ]


def on_the_way(results: Found, arm: str) -> dict[str, Found]:
    """Measure of `COURSES` -> the arm minus Step-GRPO, on average over the training; without those that are not known."""
    found = {name: results["on_the_way"].get(name, {}).get(arm, {}).get("against_step") for name in COURSES}
    return {name: difference for name, difference in found.items() if difference}


def told_of_courses(what: str, course: Mapping[str, Found]) -> str:
    parts = [f"{points(found)} of {COURSES[name]} ({verdict(found)})" for name, found in course.items() if verdict(found) != NOT_MEASURED]
    return f"{what}, on average over the training: {', '.join(parts)}." if parts else ""


def _retrievals(results: Found) -> Answer:
    found = results["against_start"].get(STEP_GRPO, {}).get("retrievals_per_question")
    figures = [results["figures"].get(arm, {}).get("policy", {}).get("retrievals_per_question") for arm in (COLD_START, STEP_GRPO)]
    says = ""
    if verdict(found, less=True) != NOT_MEASURED and all(figures):
        says = f"From {figures[0]['value']:.2f} to {figures[1]['value']:.2f}: {amount(found)} a question."
    return Answer("Do retrievals per question fall?", verdict(found, less=True), says)


def _stopping(results: Found) -> Answer:
    found = results["against_methods"].get(STEP_GRPO, {}).get("never_stop", {})
    """Never stopping makes every search there is room for, so only its price is a finding; and the price is not that of searching on alone."""
    question = "Does stopping save searches?"
    if verdict(found.get("retrievals_per_question"), less=True) == NOT_MEASURED:
        return Answer(question, NOT_MEASURED, "")
    says = (
        f"{amount(found['retrievals_per_question'])} searches against never stopping, which always makes all of them. What comes with it: "
        f"{points(found['f1_recall'])} of F1-Recall. That is no price of searching on alone: where the policy would stop, the whole question is "
        "asked in its place, and what is read then stands before the final answer."
    )
    return Answer(question, BY_CONSTRUCTION, says)


def _cost(results: Found) -> Answer:
    found = results["against_step"].get("retrieval_cost", {})
    saved, kept = verdict(found.get("retrievals_per_question"), less=True), verdict(found.get("f1_recall"))
    says = ""
    if found:
        quality = {HOLDS: "a gain", FAILS: "a loss", OPEN: "a difference that cannot be told from none"}[kept]
        searches, right = amount(found["retrievals_per_question"]), points(found["f1_recall"])
        says = f"Against Step-GRPO without it: {searches} a question, {right} of F1-Recall, {quality}."
    return Answer("Does a cost of retrieval save retrievals?", saved, says)


def _overlap(results: Found) -> list[Answer]:
    """What is learned one step off is compared three ways: how good, how fast in turns, how fast in seconds."""
    end = results["against_step"].get("one_step_off", {}).get("f1_recall")
    course = on_the_way(results, "one_step_off")
    seconds = {
        arm: [t["seconds"].get("train", 0.0) for t in results["trainings"].values() if t["arm"] == arm]
        for arm in (STEP_GRPO, "one_step_off")
    }
    says = ""
    if verdict(end) != NOT_MEASURED:
        says = f"One step off minus in step, after as many turns: {points(end)} of F1-Recall."
        if all(seconds.values()):
            means = {arm: sum(found) / len(found) for arm, found in seconds.items()}
            says += f" Training took {means['one_step_off']:.0f} s one step off, {means[STEP_GRPO]:.0f} s in step."
    words = {HOLDS: "better one step off", FAILS: "worse one step off", OPEN: OPEN, NOT_MEASURED: NOT_MEASURED}
    learned = told_of_courses("One step off minus in step", course)
    if verdict(course.get("routing")) != NOT_MEASURED:
        learned += " The latter is of turns that a policy one version older sampled."
    return [
        Answer("Is as much learned one step off (overlap=1), in the end?", words[verdict(end)], says),
        Answer("And on the way there?", words[verdict(course.get("validation_f1_recall"))], learned),
    ]


def _factor(results: Found, factor: str) -> Answer:
    """In the end: a value differs when its interval over questions excludes 0, and it is further from the default than the default's seeds are from
    one another. On the way: when it is further from their mean than they are from one another."""
    sweep = results["sweep"]
    question = f"What does {factor} change?"
    mine = [point for point in sweep.values() if point["factor"] == factor and point["against_default"]]
    if not mine:
        return Answer(question, NOT_MEASURED, "")
    defaults = [point for point in sweep.values() if not point["factor"]]
    end, way = spread([point["figures"]["f1_recall"]["value"] for point in defaults]), spread([point["on_the_way"] for point in defaults])
    if end is None or way is None:
        return Answer(question, NOT_MEASURED, "The default has one seed: nothing can be said of how far seeds lie apart.")
    usual = sum(point["on_the_way"] for point in defaults) / len(defaults)
    changes = [
        f"{p['value']} ends {side(p['against_default']['f1_recall']['value'])}"
        for p in mine
        if differs(p["against_default"]["f1_recall"], end)
    ]
    changes += [
        f"{p['value']} learns {'faster' if p['on_the_way'] > usual else 'slower'}" for p in mine if abs(p["on_the_way"] - usual) > way
    ]
    ends = "; ".join(f"{p['value']}: {points(p['against_default']['f1_recall'])}" for p in mine)
    ways = "; ".join(f"{p['value']}: {100 * (p['on_the_way'] - usual):+.1f}" for p in mine)
    says = (
        f"F1-Recall against the default ({DEFAULTS[factor]}): {ends}; its seeds lie {100 * end:.1f} points apart. "
        f"Routing on the way: {ways} points; its seeds lie {100 * way:.1f} apart."
    )
    return Answer(question, ", ".join(changes) or OPEN, says)


def side(value: float) -> str:
    return "higher" if value > 0 else "lower"


def spread(values: Sequence[float]) -> float | None:
    """Between the lowest and the highest; None of a single one."""
    return max(values) - min(values) if len(values) > 1 else None


def differs(found: Found, between_seeds: float) -> bool:
    return verdict(found) in (HOLDS, FAILS) and abs(found["value"]) > between_seeds


def negative(found: Found) -> dict[str, Any]:
    """The difference the other way round."""
    turn = lambda value: None if value is None else -value  # noqa: E731
    return {
        **found,
        "value": turn(found["value"]),
        "low": turn(found["high"]),
        "high": turn(found["low"]),
        "seeds": [turn(v) for v in found["seeds"]],
    }


def points(found: Found) -> str:
    """`+12.3 points [+9.8, +14.9]`."""
    if found["value"] is None:
        return "–"
    ends = "" if found["low"] is None else f" [{100 * found['low']:+.1f}, {100 * found['high']:+.1f}]"
    return f"{100 * found['value']:+.1f} points{ends}"


def amount(found: Found) -> str:
    """`-0.55 [-0.61, -0.49]`."""
    if found["value"] is None:
        return "–"
    ends = "" if found["low"] is None else f" [{found['low']:+.2f}, {found['high']:+.2f}]"
    return f"{found['value']:+.2f}{ends}"

"""What the knowledge bases lack: the held-out questions that no search can answer, clustered by what is missing, and the ceiling that this sets.

A question can be answered if a passage that some search finds holds the answer, that of each gold step where they are known; or if a sub-answer of
the policy, whose queries go to every knowledge base, raises its belief in the right answer, as a passage may say it in other words. Searched for
are the question, its gold steps, and the policy's queries."""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import replace
from typing import Any, NamedTuple

import numpy as np
from rich.table import Table

from experiments.evaluation.result_tables import results_table, shown
from experiments.evaluation.significance import Interval, interval
from retrieval_actors.records import Passage, Query
from retrieval_actors.sharded_search import Retriever
from rollout.need_matcher import masked, mentions, names_in
from rollout.needs import by_accident, holds_answer
from rollout.records import GoldStep, Question, Trajectory

RAISED = 0.1  # of belief, the policy's probability of the right answer
ALIKE = 0.7  # cosine of what two questions miss, names masked, from which they are in one cluster (average linkage)
AT_ONCE = 64  # queries
EXAMPLES = 3  # of a cluster, and passages near to their answers
Episodes = Mapping[str, Trajectory]  # question id -> episode


class Gap(NamedTuple):
    question: Question
    missing: GoldStep  # the first that no passage answers; without gold steps, the question itself


def search_everywhere(questions: Sequence[Question], retriever: Retriever, k: int) -> dict[str, list[Passage]]:
    """Question id -> the k best passages of every knowledge base for the question and for each of its gold steps."""
    asked = [
        (question.id, card.name, Query(text, question.image.data if question.image else None))
        for question in questions
        for text in dict.fromkeys([question.text, *(step.query for step in question.gold_steps or ())])
        for card in retriever.catalog
    ]
    found = defaultdict[str, list[Passage]](list)
    for start in range(0, len(asked), AT_ONCE):
        part = asked[start : start + AT_ONCE]
        for (id, _, _), passages in zip(part, retriever.search_routed([(kb, query) for _, kb, query in part], k), strict=True):
            found[id] += passages
    return found


def find_gaps(questions: Iterable[Question], found: Mapping[str, Sequence[Passage]], episodes: Episodes) -> list[Gap]:
    """The questions that cannot be answered. `episodes`: of the policy; belief counts where they have gains (`rollout.gold_gains`)."""
    gaps = []
    for question in questions:
        episode = episodes.get(question.id)
        steps, groups = (episode.steps, episode.groups) if episode else ((), ())
        missing = _missing(question, [*found.get(question.id, ()), *(passage for step in steps for passage in step.passages)])
        if missing and max((gain for group in groups for gain in group.gains), default=0.0) < RAISED:
            gaps.append(Gap(question, missing))
    return gaps


def _missing(question: Question, passages: Sequence[Passage]) -> GoldStep | None:
    """What no passage answers. Answers that stand in a text by accident (yes, a short number) count only where a gold step says what about."""
    if question.gold_steps is None:
        answers = [answer for answer in question.answers if not by_accident(answer)]
        held = any(mentions(passage.full_text, (answer,)) == 1.0 for passage in passages for answer in answers)
        return None if held or not question.answers else GoldStep(question.text, (), question.answers[0])
    anywhere = [replace(passage, kb="") for passage in passages]
    return next((s for s in question.gold_steps if not any(holds_answer(p, s) for p in (passages if s.kbs else anywhere))), None)


def ceiling(questions: Sequence[Question], gaps: Sequence[Gap]) -> Interval:
    """Share of the questions that can be answered."""
    lacking = {gap.question.id for gap in gaps}
    return interval(np.array([(question.id not in lacking, 1) for question in questions if question.answers], float).reshape(-1, 2))


def clusters(gaps: Sequence[Gap], retriever: Retriever) -> list[dict[str, Any]]:
    """The gaps by what is missing, the largest cluster first, with the passages nearest to an answer: for gaps.json."""
    from scipy.cluster.hierarchy import fcluster, linkage

    if not gaps:
        return []
    texts = [masked(gap.missing.query, names_in(gap.missing.query)) for gap in gaps]
    distance = float(np.sqrt(2 - 2 * ALIKE))  # of unit vectors with this cosine
    labels = fcluster(linkage(retriever.embed(texts), "average"), distance, "distance") if len(gaps) > 1 else [1]
    found = []
    for label, size in Counter(map(int, labels)).most_common():
        mine = [i for i, other in enumerate(labels) if other == label]
        listed = [{"question": gaps[i].question.text, "missing": gaps[i].missing.query, "answer": gaps[i].missing.answer} for i in mine]
        ((missing, _),) = Counter(texts[i] for i in mine).most_common(1)
        near = _nearest([f"{each['missing']} {each['answer']}" for each in listed[:EXAMPLES]], retriever)
        found.append({"missing": missing, "size": size, "questions": listed, "nearest": near})
    return found


def _nearest(wanted: Sequence[str], retriever: Retriever) -> list[dict[str, Any]]:
    """The passages of all knowledge bases whose texts are most like one that would answer, each once."""
    asked = [(card.name, Query(text)) for text in wanted for card in retriever.catalog]
    passages = [passage for some in retriever.search_routed(asked, 1) for passage in some if not passage.error]
    if not passages:
        return []
    likeness = (retriever.embed([passage.full_text for passage in passages]) @ retriever.embed(list(wanted)).T).max(axis=1)
    best = {passages[i].full_text: (passages[i], float(likeness[i])) for i in np.argsort(likeness)}
    return [
        {"kb": passage.kb, "id": passage.id, "text": passage.full_text, "cosine": round(cosine, 3)}
        for passage, cosine in list(best.values())[::-1][:EXAMPLES]
    ]


def gaps_table(found: Mapping[str, Any], at_most: int) -> Table:
    """Of gaps.json."""
    lacking = sum(cluster["size"] for cluster in found["clusters"])
    title = f"{lacking} of {found['questions']} questions cannot be answered; ceiling {shown(found['ceiling'])}"
    table = results_table(title, "missing", ("questions", "for example", "answer", "nearest passage", "in", "cosine"))
    for cluster in found["clusters"][:at_most]:
        first, *_ = cluster["questions"]
        near = cluster["nearest"][0] if cluster["nearest"] else {"text": "–", "kb": "–", "cosine": "–"}
        table.add_row(
            *(cluster["missing"], str(cluster["size"]), first["missing"], first["answer"], near["text"], near["kb"], str(near["cosine"]))
        )
    for column in table.columns:
        column.justify = "left"
    return table

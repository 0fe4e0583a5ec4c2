"""How many of the passages that are needed does one search find?"""

from __future__ import annotations

from collections.abc import Collection, Sequence

from retrieval_actors.records import Query
from retrieval_actors.retriever import Retriever

QUERIES_AT_ONCE = 256
"""A search has a deadline, which thousands of new queries would miss together."""


def recall_at(
    retriever: Retriever, kb: str, questions_with_gold_ids: Sequence[tuple[str, Collection[str]]], ks: Sequence[int]
) -> dict[int, float]:
    """Recall@k for each k: the share of a question's gold passages among its k best, averaged over questions with at least one gold.

    Raises ValueError when there is none, or when a search failed: a recall over error passages would be a wrong number.
    """
    asked = [(text, {str(gold) for gold in golds}) for text, golds in questions_with_gold_ids if golds]
    if not asked:
        raise ValueError("recall needs at least one question with gold passages")
    queries = [Query(text) for text, _ in asked]
    found = [
        passages
        for start in range(0, len(queries), QUERIES_AT_ONCE)
        for passages in retriever.search(kb, queries[start : start + QUERIES_AT_ONCE], max(ks))
    ]
    if errors := [passages[0].error for passages in found if passages and passages[0].error]:
        raise ValueError(f"{len(errors)} of {len(asked)} searches failed: {errors[0]}")
    ranked = [([passage.id for passage in passages], golds) for passages, (_, golds) in zip(found, asked, strict=True)]
    return {k: sum(len(golds & set(ids[:k])) / len(golds) for ids, golds in ranked) / len(ranked) for k in ks}

"""What a text model wants to read in front of a query and of a passage."""

from __future__ import annotations

import re
from collections.abc import Mapping

PREFIXES = (
    (r"(multilingual-)?e5-(small|base|large)(-v2|-unsupervised)?", "query: ", "passage: "),
    (r"e5-mistral-7b-instruct|multilingual-e5-large-instruct", "Instruct: {task}\nQuery: ", ""),
    (r"bge-(small|base|large)-en(-v1\.5)?", "Represent this sentence for searching relevant passages: ", ""),
    (r"qwen3-embedding-.*", "Instruct: {task}\nQuery:", ""),
)
"""Pattern of the model's own name (the last part of hub name or path, case ignored), query prefix, passage prefix, as the model cards say.

For models whose files do not say it themselves. Prompts in a model's config_sentence_transformers.json win; to give one to a model that
is not listed here, write them there: {"prompts": {"query": "...", "document": "..."}}.
"""
TASK = "Given a web search query, retrieve relevant passages that answer the query"
PASSAGE_KEYS = ("document", "passage", "corpus")
"""How models call what is searched; sentence-transformers looks them up in this order as well."""


def prefixes(model: str, prompts: Mapping[str, str | None]) -> tuple[str, str]:
    """(query prefix, passage prefix) of the model at that hub name or path; `prompts` are those of its configuration."""
    query = prompts.get("query") or ""
    passage = next((prompt for key in PASSAGE_KEYS if (prompt := prompts.get(key))), "")
    if query or passage:
        return query, passage
    own_name = model.rstrip("/").rpartition("/")[2].lower()
    for pattern, before_query, before_passage in PREFIXES:
        if re.fullmatch(pattern, own_name):
            return before_query.format(task=TASK), before_passage
    return "", ""

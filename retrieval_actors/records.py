"""What goes into a search and what comes out of it."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class Query:
    """One search: the text that is asked and, for knowledge bases that look at pictures, the picture it is asked about."""

    text: str
    image: bytes | None = None
    """Encoded picture (PNG or JPEG bytes); text-only knowledge bases ignore it."""


@dataclass(frozen=True)
class Passage:
    """One entry of a knowledge base, as it is stored (score 0) or as a search returned it."""

    id: str
    """Unique within its knowledge base."""
    text: str
    """What the policy reads: a sentence, a caption, a linearised table row."""
    title: str = ""
    """Of the page it comes from; shown and searched in front of the text."""
    image: bytes | None = None
    """Encoded picture of a text-image entry; searched with, not shown to the policy."""
    kb: str = ""
    """Name of the knowledge base that returned it."""
    score: float = 0.0
    """Inner product with the query; higher is nearer."""
    error: str = ""
    """Not empty when the search failed: the passage then holds no knowledge, is counted, and is masked from learning."""


@dataclass(frozen=True)
class KnowledgeBaseCard:
    """What a knowledge base says about itself: enough to name it in a prompt, to compare it with another, and to refuse wrong queries."""

    name: str
    """How configuration, records and metrics call it (`text`, `text_image`, `table`)."""
    retriever_name: str
    """How the policy writes it in a plan turn ("Text Retriever")."""
    description: str
    """One sentence for the prompt: what can be found here."""
    modality: str
    """`text`, `text_image` or `table`."""
    passages: int
    fingerprint: str
    """Hash over the manifest with the checksums of all files: equal only for equal content."""
    embedder: str
    """Name of the embedder whose vectors are stored; queries must come from the same."""
    dimension: int
    shards: int

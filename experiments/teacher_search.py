"""What the teacher of the cold start finds: by the embedders of a run, or by shared words where embedding would take too long."""

from __future__ import annotations

import hashlib
from collections.abc import Iterable
from dataclasses import replace
from pathlib import Path

import numpy as np

from experiments.atlas import KNOWLEDGE_BASES, Atlas, World
from retrieval_actors.embedders import build_embedder
from retrieval_actors.pictures import colour_layout
from retrieval_actors.records import Passage, Query
from rollout.records import Question

PICTURE_SHARE = 0.8
"""Of a picture in the similarity of two entries that have picture and text: `colour-layout+minilm` gives it twice the length of the text."""


class EmbeddedAtlas:
    """Retrieval as a run has it: the same vectors, as many worlds side by side, exact search; in memory, without actors.

    Its neighbours are what makes reading hard: the same relation of a country whose name shares a syllable, the same table in another year, a
    flag with one other colour. Shared words bring nothing of the kind (other facts about the right country), and a policy that learned to read
    from them took the wrong one of two neighbours in four readings of ten.
    """

    def __init__(self, atlas: Atlas, queries: Iterable[str] = (), folder: Path | None = None):
        """`queries` are embedded at once, which is several times faster than when they come. Vectors are kept in `folder`, if one is given."""
        self.embedder, self.folder = build_embedder("minilm"), folder
        self.passages = {kb: [replace(passage, kb=kb) for passage in atlas.passages(kb)] for kb in KNOWLEDGE_BASES}
        self.vectors = {kb: self._embedded([passage.text for passage in found]) for kb, found in self.passages.items()}
        self.pictures = np.stack([colour_layout(passage.image or b"", passage.id) for passage in self.passages["text_image"]])
        known = list(dict.fromkeys(queries))
        self.queries = dict(zip(known, self._embedded(known), strict=True))

    def search(self, kb: str, query: str, question: Question, k: int) -> list[Passage]:
        """The k nearest passages, best first."""
        if query not in self.queries:
            self.queries[query] = self.embedder.embed_queries([Query(query)])[0]
        scores = self.vectors[kb] @ self.queries[query]
        if kb == "text_image" and question.image:
            scores = (1 - PICTURE_SHARE) * scores + PICTURE_SHARE * (self.pictures @ colour_layout(question.image.data, question.id))
        return [self.passages[kb][i] for i in np.argsort(-scores)[:k]]

    def _embedded(self, texts: list[str]) -> np.ndarray:
        """(texts, dimension); read from the folder where they were embedded before. MiniLM embeds queries as it embeds passages."""
        name = hashlib.blake2b("\n".join(texts).encode(), digest_size=8).hexdigest()
        kept = self.folder / f"{name}.npy" if self.folder else None
        if kept and kept.exists():
            return np.load(kept)
        vectors = self.embedder.embed_queries([Query(text) for text in texts])
        if kept:
            kept.parent.mkdir(parents=True, exist_ok=True)
            np.save(kept, vectors)
        return vectors


class WordOverlap:
    """A stand-in for retrieval over one world: shared words weighted by their rarity, with noise. Quick, and kinder than embeddings."""

    def __init__(self, world: World):
        self.texts = {"text": world.sentences(), "table": world.rows()}
        captions = world.pictures()
        self.texts["text_image"] = [caption for caption, _ in captions]
        self.flags = [flag for _, flag in captions]
        self.shown = {country.name: country.flag for country in world.countries}
        self.rng = np.random.default_rng(world.seed)
        self.places: dict[str, dict[str, list[int]]] = {kb: {} for kb in self.texts}
        for kb, texts in self.texts.items():
            for i, text in enumerate(texts):
                for word in _words(text):
                    self.places[kb].setdefault(word, []).append(i)

    def search(self, kb: str, query: str, question: Question, k: int) -> list[Passage]:
        """The k best passages."""
        texts, places = self.texts[kb], self.places[kb]
        scores = self.rng.gumbel(0, 0.7, len(texts))
        for word in _words(query):
            if word in places:
                scores[places[word]] += np.log(1 + len(texts) / len(places[word]))
        flag = self.shown[question.gold_steps[0].answer] if question.image and question.gold_steps else None
        if flag and kb == "text_image":
            for i, (layout, colours) in enumerate(self.flags):
                scores[i] += 2.0 * (layout == flag[0]) + 4.0 * sum(a == b for a, b in zip(colours, flag[1], strict=False)) / len(flag[1])
        return [Passage(f"{kb}-{i}", texts[i], kb=kb) for i in np.argsort(-scores)[:k]]


def _words(text: str) -> set[str]:
    whole = text.lower().replace(".", " ").replace("?", " ").split()
    return set(whole) | {part for word in whole for part in word.split("-")}

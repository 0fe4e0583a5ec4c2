"""Retrieval for the teacher of the cold start: with the embedders of a run, or by shared words where embedding would take too long."""

from collections.abc import Iterable, Mapping
from dataclasses import replace

import numpy as np

from experiments.worlds.atlas import KNOWLEDGE_BASES, Atlas, World
from retrieval_actors.actors.search_actors import PassageRows
from retrieval_actors.embedders.registry import build_embedder
from retrieval_actors.index.exact import merge_top_k
from retrieval_actors.knowledge_base import KnowledgeBase
from retrieval_actors.pictures import colour_layout
from retrieval_actors.records import Passage, Query
from rollout.records import Image, Question

PICTURE_SHARE = 0.8  # Of the picture in the similarity of two entries with picture and text, as in `colour-layout+minilm`


class EmbeddedAtlas:
    """The vectors and the exact search of a run, in memory. It finds similar, wrong passages, such as the same relation of a country whose name
    shares a syllable. A policy that learned to read from those of `WordOverlap` confused such neighbours in four of ten answer turns."""

    def __init__(self, atlas: Atlas, queries: Iterable[str] = ()):
        """`queries` are embedded at once, which is several times faster than one by one."""
        self.embedder = build_embedder("minilm")
        self.passages = {kb: [replace(passage, kb=kb) for passage in atlas.passages(kb)] for kb in KNOWLEDGE_BASES}
        # MiniLM embeds passages and queries alike
        texts = {kb: [Query(passage.text) for passage in found] for kb, found in self.passages.items()}
        self.vectors = {kb: self.embedder.embed_queries(found) for kb, found in texts.items()}
        self.pictures = np.stack([colour_layout(passage.image or b"", passage.id) for passage in self.passages["text_image"]])
        known = list(dict.fromkeys(queries))
        self.queries = dict(zip(known, self.embedder.embed_queries([Query(query) for query in known]), strict=True))

    def search(self, kb: str, query: str, question: Question, k: int) -> list[Passage]:
        if query not in self.queries:
            self.queries[query] = self.embedder.embed_queries([Query(query)])[0]
        scores = self.vectors[kb] @ self.queries[query]
        if kb == "text_image" and question.image:
            scores = (1 - PICTURE_SHARE) * scores + PICTURE_SHARE * (self.pictures @ colour_layout(question.image.data, question.id))
        return [self.passages[kb][i] for i in np.argsort(-scores)[:k]]


class KnowledgeBases:
    """The knowledge bases of a run, searched by their vectors in this process, without actors."""

    def __init__(self, folders: Mapping[str, str]):
        """Raises KnowledgeBaseError."""
        self.bases = {kb: KnowledgeBase.open(folder) for kb, folder in folders.items()}
        self.cards = {kb: base.card for kb, base in self.bases.items()}
        self.found: dict[tuple[str, str, Image | None], list[Passage]] = {}

    def prepare(self, asked: Iterable[tuple[str, Question]], k: int) -> None:
        """Searches all knowledge bases for each query of a question at once, which is several times faster than one by one."""
        asked, embedded = list(asked), dict[tuple[str, bool], np.ndarray]()
        for kb, base in self.bases.items():
            keys = dict.fromkeys(self._key(kb, query, question) for query, question in asked)
            alike = base.card.embedder, self._looks(kb)  # Knowledge bases with the same vectors of queries
            if alike not in embedded:
                queries = [Query(text, image.data if image else None) for _, text, image in keys]
                embedded[alike] = build_embedder(base.card.embedder).embed_queries(queries)
            shards = [base.shard(number) for number in range(base.card.shards)]
            hits = [PassageRows(shard.table).hits(shard.first, *shard.search(embedded[alike], k), pictures=False) for shard in shards]
            _, positions = merge_top_k([(found.scores, found.positions) for found in hits], k)
            passages = {position: passage for found in hits for position, passage in found.passages.items()}
            for key, row in zip(keys, positions.tolist(), strict=True):
                self.found[key] = [Passage(*passages[position], kb) for position in row if position >= 0]

    def search(self, kb: str, query: str, question: Question, k: int) -> list[Passage]:
        key = self._key(kb, query, question)
        if key not in self.found:
            self.prepare([(query, question)], k)
        return self.found[key][:k]

    def _key(self, kb: str, query: str, question: Question) -> tuple[str, str, Image | None]:
        return kb, query, question.image if self._looks(kb) else None

    def _looks(self, kb: str) -> bool:
        return "image" in self.cards[kb].modality


class WordOverlap:
    """Retrieval over one world by shared words, weighted by their rarity, with noise. Fast, but its passages are easier to read."""

    def __init__(self, world: World):
        captions, self.flags = zip(*world.pictures(), strict=True)
        self.texts = {"text": world.sentences(), "table": world.rows(), "text_image": list(captions)}
        self.shown = {country.name: country.flag for country in world.countries}
        self.rng = np.random.default_rng(world.seed)
        self.places: dict[str, dict[str, list[int]]] = {kb: {} for kb in self.texts}
        for kb, texts in self.texts.items():
            for i, text in enumerate(texts):
                for word in _words(text):
                    self.places[kb].setdefault(word, []).append(i)

    def search(self, kb: str, query: str, question: Question, k: int) -> list[Passage]:
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

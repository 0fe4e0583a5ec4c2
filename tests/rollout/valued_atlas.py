"""The atlas, searched in this process, and the cold-start policy: episodes whose routes are worth something."""

from __future__ import annotations

from scripted import Card

from experiments.worlds.atlas import KNOWLEDGE_BASES, Atlas
from experiments.worlds.teacher_search import EmbeddedAtlas
from rollout.records import Image, Question


class AtlasLibrary:
    catalog = tuple(Card(kb, name, description, kb) for kb, (name, description) in KNOWLEDGE_BASES.items())

    def __init__(self, atlas: Atlas):
        self.atlas = EmbeddedAtlas(atlas)

    def search_routed(self, asked, k):
        def question(query):
            return Question("", query.text, (), Image.of(query.image) if query.image else None)

        return [self.atlas.search(kb, query.text, question(query), k) for kb, query in asked]

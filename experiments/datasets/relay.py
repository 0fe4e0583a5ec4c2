"""`relay`: worlds in which a question is a chain of relations, each in one of several knowledge bases that nothing but searching tells apart."""

from __future__ import annotations

from experiments.config import DataConfig, EvaluationConfig, RunConfigError
from experiments.datasets.dataset import Dataset, KnowledgeBaseSource, generated
from experiments.worlds.relay import Relay
from retrieval_actors.records import Passage


def load_relay(data: DataConfig, evaluation: EvaluationConfig) -> Dataset:
    """Relations are in the same places everywhere. Validation and held-out worlds share knowledge bases; no two worlds share a name. A small world
    has fewer questions than asked for. Raises RunConfigError."""
    train, heldout = relay_world("train", data), relay_world("heldout", data)
    validation = relay_world("validation", data, beside=heldout)
    counts = {train: data.train_questions, validation: evaluation.validation_questions, heldout: evaluation.questions}
    first, second, third = (world.questions(count, data.seed) for world, count in counts.items())
    return Dataset(first, second, third, relay_sources("train", data, train), relay_sources("evaluation", data, validation, heldout))


def relay_world(split: str, data: DataConfig, beside: Relay | None = None) -> Relay:
    try:
        return Relay(split, data.seed, data.hops, data.knowledge_bases, data.countries, data.doubled, beside)
    except ValueError as error:
        raise RunConfigError(f"data.countries is {data.countries} with data.hops={data.hops}: {error}; lower data.countries") from None


def relay_sources(purpose: str, data: DataConfig, *worlds: Relay) -> tuple[KnowledgeBaseSource, ...]:
    """The retriever names say nothing. The descriptions tell which relations a knowledge base holds: `rollout.prompts=short` does not show them."""
    home = worlds[0].home
    described = {kb: ", ".join(sorted(relation for relation in home if home[relation] == kb)) for kb in worlds[0].kbs}
    cards = {kb: (f"Retriever {kb[-1].upper()}", description) for kb, description in described.items()}

    def passages(kb: str) -> list[Passage]:
        return [passage for world in worlds for passage in world.passages(kb)]

    return generated(f"relay-{purpose}", data, cards, passages, modality="text")

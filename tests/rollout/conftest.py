"""A small fresh policy that knows the formats' tokens, and a small atlas behind real retrieval actors."""

from __future__ import annotations

import itertools

import pytest

from experiments.datasets import EMBEDDERS
from experiments.worlds.atlas import KNOWLEDGE_BASES, Atlas
from experiments.worlds.teacher import demonstrations
from experiments.worlds.tiny_policy import tiny_policy, train_tokenizer
from retrieval_actors.actors.start_actors import start_retrieval
from retrieval_actors.build.from_passages import build_knowledge_base
from retrieval_actors.config import RetrievalConfig
from rollout.engines.transformers_engine import TransformersEngine
from rollout.policies import Policy


@pytest.fixture(scope="session")
def fresh_policy() -> Policy:
    turns = list(itertools.islice(demonstrations(3), 400))
    tokenizer = train_tokenizer((turn.message.user + turn.response for turn in turns), vocabulary=700)
    return tiny_policy(tokenizer, hidden=64, layers=2, heads=2, vision_hidden=32)


@pytest.fixture
def engine(fresh_policy) -> TransformersEngine:
    return TransformersEngine(fresh_policy)


@pytest.fixture(scope="session")
def atlas() -> Atlas:
    return Atlas("train", seed=5, worlds=1, countries=6)


@pytest.fixture(scope="session")
def retriever(models, atlas, tmp_path_factory):
    root = tmp_path_factory.mktemp("kbs")
    for kb, (retriever_name, description) in KNOWLEDGE_BASES.items():
        build_knowledge_base(
            list(atlas.passages(kb)),
            root / kb,
            name=kb,
            retriever_name=retriever_name,
            description=description,
            modality=kb,
            embedder_name=EMBEDDERS[kb],
        )
    retriever = start_retrieval(RetrievalConfig(folders={kb: str(root / kb) for kb in KNOWLEDGE_BASES}), models_of=models)
    yield retriever
    retriever.close()

"""Indexes that propose candidates: tuned to a recall, scored exactly, saved with the knowledge base."""

from __future__ import annotations

import faiss
import numpy as np
import pytest

from retrieval_actors.build.from_passages import write_knowledge_base
from retrieval_actors.index.approximate import RECALL, check_index_name, choose_index
from retrieval_actors.index.exact import exact_top_k
from retrieval_actors.knowledge_base import KnowledgeBase
from retrieval_actors.records import Passage


@pytest.fixture(scope="module")
def clustered():
    random = np.random.default_rng(0)
    centres = random.normal(size=(80, 32))
    vectors = centres[random.integers(0, 80, 4000)] + 0.5 * random.normal(size=(4000, 32))
    return (vectors / np.linalg.norm(vectors, axis=1, keepdims=True)).astype(np.float32)


def write(folder, vectors, index, shards=1):
    faiss.omp_set_num_threads(1)
    passages = [Passage(str(row), f"passage {row}") for row in range(len(vectors))]
    card = {"name": "text", "retriever_name": "Text Retriever", "description": "", "modality": "text", "embedder": "minilm"}
    return write_knowledge_base(folder, passages=passages, vectors=vectors, index=index, shards=shards, **card)


@pytest.mark.parametrize("index", ["HNSW16", "IVF64,Flat", "IVF64,SQ8", pytest.param("OPQ8_32,IVF64,PQ8x4", marks=pytest.mark.slow)])
def test_every_kind_is_tuned_to_its_recall_and_gives_the_scores_of_the_exact_search(tmp_path, clustered, index):
    base = write(tmp_path / "kb", clustered, index, shards=2)
    first, second = base.manifest["shards"]
    assert first["index"] == second["index"] == index
    assert first["search"]["recall_at_10"] >= RECALL
    shard = KnowledgeBase.open(tmp_path / "kb").shard(1)
    random = np.random.default_rng(1)
    queries = shard.vectors[::20] + 0.05 * random.normal(size=(100, 32)).astype(np.float32)
    queries /= np.linalg.norm(queries, axis=1, keepdims=True)
    scores, rows = shard.search(queries, 10)
    true_scores, true_rows = exact_top_k(shard.vectors, queries, 10)
    right = [np.intersect1d(found, true) for found, true in zip(rows, true_rows, strict=True)]
    assert np.mean([len(found) / 10 for found in right]) >= RECALL - 0.03
    same = rows == true_rows
    np.testing.assert_array_equal(scores[same], true_scores[same])
    assert same[:, 0].mean() > 0.95


def test_the_same_vectors_give_the_same_bytes(tmp_path, clustered):
    assert write(tmp_path / "a", clustered, "IVF64,SQ8").fingerprint == write(tmp_path / "b", clustered, "IVF64,SQ8").fingerprint


def test_k_beyond_what_is_proposed_leaves_the_rest_empty_and_no_passages_are_legal(tmp_path, clustered):
    base = write(tmp_path / "kb", clustered[:200], "IVF100,Flat")
    scores, rows = base.shard(0).search(clustered[:3], 150)
    assert scores.shape == rows.shape == (3, 150)
    assert (rows[:, 0] == [0, 1, 2]).all()
    assert np.isneginf(scores[rows < 0]).all()
    assert write(tmp_path / "empty", clustered[:0], "IVF100,Flat").shard(0).search(clustered[:3], 5)[0].shape == (3, 0)


def test_a_name_that_is_no_index_and_too_few_vectors_are_said_before_and_while_it_is_built(tmp_path, clustered):
    with pytest.raises(ValueError, match="index 'IVFmany': use auto, exact or a FAISS factory string for 32 dimensions"):
        check_index_name("IVFmany", 32)
    with pytest.raises(ValueError, match="'IVF512,Flat' has 512 lists for 300 passages"):
        write(tmp_path / "kb", clustered[:300], "IVF512,Flat")


def test_auto_is_exact_while_that_is_quick_and_keeps_less_in_memory_the_more_there_is():
    gib = 2**30
    assert choose_index(0, 384, gib) == choose_index(250_000, 384, 2 * gib) == "exact"
    assert choose_index(250_000, 384, gib) == "IVF1024,SQ8"
    assert choose_index(1_000_000, 384, 16 * gib) == "IVF2048,SQ8"
    assert choose_index(1_000_000, 384, gib // 2) == "OPQ64_256,IVF2048_HNSW32,PQ64"
    assert choose_index(21_000_000, 384, 64 * gib) == "OPQ64_256,IVF8192_HNSW32,PQ64"
    for passages in (1_000_000, 21_000_000):
        check_index_name(choose_index(passages, 768, 64 * gib), 768)

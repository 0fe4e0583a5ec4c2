"""A knowledge base folder is whole, or it is refused by the name of the file."""

from __future__ import annotations

import json

import numpy as np
import pytest

from retrieval_actors.build.from_passages import write_knowledge_base
from retrieval_actors.knowledge_base import KnowledgeBase, KnowledgeBaseError
from retrieval_actors.records import Passage

PASSAGES = [Passage(f"p{row}", f"Sätze {row} 東京", title=f"t{row}", image=bytes([row]) if row % 2 else None) for row in range(5)]


def write(folder, passages=PASSAGES, shards=2, **changes):
    card = {"name": "text", "retriever_name": "Text Retriever", "description": "Five.", "modality": "text", "embedder": "minilm"}
    card["vectors"] = np.eye(8, dtype=np.float32)[: len(passages)]
    return write_knowledge_base(folder, passages=passages, shards=shards, **(card | changes))


def test_what_was_written_is_what_is_opened(tmp_path):
    written = write(tmp_path / "kb")
    opened = KnowledgeBase.open(tmp_path / "kb")
    assert list(opened.passages()) == PASSAGES
    assert opened.card == written.card
    assert (opened.card.passages, opened.card.shards, opened.card.dimension) == (5, 2, 8)
    assert [opened.shard(number).first for number in range(2)] == [0, 2]
    assert sorted(path.name for path in tmp_path.iterdir()) == ["kb"]


def test_the_fingerprint_changes_with_the_content_and_only_with_it(tmp_path):
    fingerprint = write(tmp_path / "a").fingerprint
    assert write(tmp_path / "b").fingerprint == fingerprint
    assert write(tmp_path / "c", passages=PASSAGES[:4]).fingerprint != fingerprint
    assert write(tmp_path / "d", description="Other.").fingerprint != fingerprint


@pytest.mark.parametrize("shards", [1, 3, 8])
def test_more_shards_than_passages_and_no_passages_at_all_are_legal(tmp_path, shards):
    assert list(write(tmp_path / "kb", shards=shards).passages()) == PASSAGES
    assert list(write(tmp_path / "empty", passages=[], shards=shards).passages()) == []


@pytest.mark.parametrize("name", ["kb.json", "passages-00001.arrow", "vectors-00000.npy"])
def test_a_missing_file_is_refused_by_its_name(tmp_path, name):
    write(tmp_path / "kb")
    (tmp_path / "kb" / name).unlink()
    with pytest.raises(KnowledgeBaseError, match=rf"{name} is missing: .* build it again") as refusal:
        KnowledgeBase.open(tmp_path / "kb")
    assert "\n" not in str(refusal.value)


@pytest.mark.parametrize("name", ["passages-00000.arrow", "vectors-00001.npy"])
def test_an_altered_or_shortened_file_is_refused_by_its_name(tmp_path, name):
    write(tmp_path / "kb")
    path = tmp_path / "kb" / name
    content = bytearray(path.read_bytes())
    content[-9] ^= 1
    path.write_bytes(content)
    with pytest.raises(KnowledgeBaseError, match=rf"{name} was altered"):
        KnowledgeBase.open(tmp_path / "kb")
    path.write_bytes(content[:-1])
    with pytest.raises(KnowledgeBaseError, match=rf"{name} has \d+ bytes"):
        KnowledgeBase.open(tmp_path / "kb", verify=False)


def test_a_manifest_that_says_something_else_is_refused(tmp_path):
    write(tmp_path / "kb")
    path = tmp_path / "kb" / "kb.json"
    good = json.loads(path.read_text())
    for change, finding in [
        ({"dimension": "8"}, "no key 'dimension' of type int"),
        ({"format": 9}, "has format 9"),
        ({"format": 2}, "has format 2, this program reads 3: .* build it again"),
    ]:
        path.write_text(json.dumps(good | change))
        with pytest.raises(KnowledgeBaseError, match=rf"kb\.json.*{finding}"):
            KnowledgeBase.open(tmp_path / "kb")
    path.write_text("{")
    with pytest.raises(KnowledgeBaseError, match=r"kb\.json is no JSON"):
        KnowledgeBase.open(tmp_path / "kb")
    with pytest.raises(KnowledgeBaseError, match="is no folder"):
        KnowledgeBase.open(tmp_path / "nowhere")


def test_a_knowledge_base_is_replaced_and_anything_else_is_left_alone(tmp_path):
    write(tmp_path / "kb")
    write(tmp_path / "kb", passages=PASSAGES[:2])
    assert KnowledgeBase.open(tmp_path / "kb").card.passages == 2
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine" / "thesis.tex").write_text("precious")
    with pytest.raises(ValueError, match="is no knowledge base"):
        write(tmp_path / "mine")
    assert (tmp_path / "mine" / "thesis.tex").read_text() == "precious"
    assert sorted(path.name for path in tmp_path.iterdir()) == ["kb", "mine"]


def test_what_can_not_be_searched_is_not_written(tmp_path):
    with pytest.raises(ValueError, match="'p0' occurs twice"):
        write(tmp_path / "kb", passages=[PASSAGES[0], PASSAGES[0]])
    for wrong in (np.nan, 2.0, 0.5):
        vectors = np.eye(8, dtype=np.float32)[:5]
        vectors[3] *= wrong
        with pytest.raises(ValueError, match="unit rows"):
            write(tmp_path / "kb", vectors=vectors)
    assert list(tmp_path.iterdir()) == []


def test_stored_vectors_are_read_only(tmp_path):
    vectors = write(tmp_path / "kb").shard(0).vectors
    np.testing.assert_array_equal(vectors, np.eye(8, dtype=np.float32)[:2])
    with pytest.raises(ValueError, match="read-only"):
        vectors[0, 0] = 2

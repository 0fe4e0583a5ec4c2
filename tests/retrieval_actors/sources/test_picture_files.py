"""Folders of pictures whose captions are text files beside them, or their names."""

from __future__ import annotations

import io

import pytest
from PIL import Image

from retrieval_actors.sources.data_files import DataError
from retrieval_actors.sources.passage_lines import Pictures
from retrieval_actors.sources.read_passages import Reading, find_source, read_source


def picture(colour: str, form: str = "PNG") -> bytes:
    data = io.BytesIO()
    Image.new("RGB", (8, 8), colour).save(data, form)
    return data.getvalue()


@pytest.fixture
def folder(tmp_path):
    (tmp_path / "below").mkdir()
    (tmp_path / "mont_saint-michel.jpg").write_bytes(picture("grey", "JPEG"))
    (tmp_path / "IMG_1.PNG").write_bytes(picture("red"))
    (tmp_path / "IMG_1.txt").write_text("The old town hall\nof Bern.\n")
    (tmp_path / "below/no_text.png").write_bytes(picture("blue"))
    (tmp_path / "below/no_text.txt").write_text(" ")
    return tmp_path


def test_the_caption_is_the_text_beside_a_picture_or_its_name(folder):
    assert find_source("auto", folder) is Pictures
    assert [(found.id, found.title, found.text, found.image) for found in read_source(folder)] == [
        ("IMG_1.PNG", "", "The old town hall of Bern.", picture("red")),
        ("below/no_text.png", "", "no text", picture("blue")),
        ("mont_saint-michel.jpg", "", "mont saint-michel", picture("grey", "JPEG")),
    ]
    assert [found.id for found in read_source(folder / "IMG_1.PNG")] == ["IMG_1.PNG"]
    assert Pictures().left_out(folder) == []


def test_what_is_no_picture_is_named_and_a_changed_caption_is_another_plan(folder):
    (folder / "a.gif").write_bytes(b"GIF89a")
    (folder / "remarks.txt").write_text("to do")
    assert Pictures().left_out(folder) == [(name, "not one of .png, .jpg, .jpeg") for name in ("a.gif", "remarks.txt")]
    before = Reading(folder, Pictures()).described()
    (folder / "IMG_1.txt").write_text("Another caption.")
    assert Reading(folder, Pictures()).described() != before


def test_captions_in_a_file_and_folders_of_documents_are_not_pictures(folder):
    (folder / "report.md").write_text("# Report\n")
    assert find_source("auto", folder).name == "documents"
    (folder / "captions.jsonl").write_text('{"file": "IMG_1.PNG", "caption": "a"}\n')
    assert find_source("auto", folder).name == "captions"


def test_a_broken_picture_and_a_caption_that_is_no_utf_8_are_named(folder):
    (folder / "IMG_1.txt").write_bytes("Zürich".encode("latin-1"))
    with pytest.raises(DataError, match=r"IMG_1\.PNG:1: IMG_1\.txt is not UTF-8 \(byte 0xfc"):
        list(read_source(folder))
    (folder / "IMG_1.txt").unlink()
    (folder / "IMG_1.PNG").write_bytes(b"not a png")
    with pytest.raises(DataError, match=r"IMG_1\.PNG:1: image 'IMG_1\.PNG' does not decode"):
        list(read_source(folder))

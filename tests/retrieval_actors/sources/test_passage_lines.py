"""JSON Lines of passages: a wrong line is named by file and number."""

from __future__ import annotations

import gzip
from pathlib import Path

import pytest
from PIL import Image

from retrieval_actors.sources.reading import read_source
from retrieval_actors.sources.source import SourceError

DATA = Path(__file__).parents[3] / "../shared/data"


def lines(folder, *rows):
    path = folder / "passages.jsonl"
    path.write_text("\n".join(rows) + "\n", encoding="utf-8")
    return path


def test_a_line_is_a_passage_and_ids_count_lines(tmp_path):
    Image.new("RGB", (4, 4), "red").save(tmp_path / "flag.png")
    path = lines(
        tmp_path,
        '{"title": "Zorn", "text": "A river."}',
        '{"id": 7, "text": "Ohne Titel: Zürich"}',
        '{"id": "x", "title": "Flag", "text": "", "image": "flag.png"}',
        '{"idx": 9, "text": "A lake.", "title": null}',
    )
    first, second, third, fourth = read_source(path)
    assert (first.id, first.title, first.text, first.image) == ("0", "Zorn", "A river.", None)
    assert (second.id, second.text) == ("7", "Ohne Titel: Zürich")
    assert (third.id, third.title, third.text, third.image) == ("x", "Flag", "", (tmp_path / "flag.png").read_bytes())
    assert (fourth.id, fourth.title) == ("9", "")
    assert [passage.id for passage in read_source(path, limit=2)] == ["0", "7"]


@pytest.mark.parametrize(
    ("row", "finding"),
    [
        ("{nonsense", "not JSON .Expecting property name .* at column 2.; expected an object with 'text'"),
        ("[1]", "expected a JSON object, found list"),
        ('{"txt": "a"}', r"expected 'text' or 'title', found the keys \['txt'\]"),
        ('{"text": 3}', "'text' must be a string, found int"),
        ('{"text": "a", "id": [1]}', "'id' must be a text or a whole number, found .1."),
        ('{"text": "a", "image": "no.png"}', "image 'no.png' does not exist"),
        ('{"text": "a", "image": "../secret.png"}', "is outside the folder"),
        ('{"text": "a", "image": "half.png"}', "image 'half.png' does not decode .*: expected PNG or JPEG"),
        ("", "not JSON"),
    ],
)
def test_a_wrong_line_is_named_by_file_and_number(tmp_path, row, finding):
    Image.effect_noise((64, 64), 50).save(tmp_path / "whole.png")
    (tmp_path / "half.png").write_bytes((tmp_path / "whole.png").read_bytes()[:900])
    path = lines(tmp_path, '{"text": "good"}', row, '{"text": "good"}')
    with pytest.raises(SourceError, match=rf"passages\.jsonl:2: .*{finding}") as refusal:
        list(read_source(path))
    assert "\n" not in str(refusal.value)


def test_bytes_that_are_no_utf8_are_a_wrong_line(tmp_path):
    (tmp_path / "latin.jsonl").write_bytes('{"text": "Zürich"}\n'.encode("latin-1"))
    with pytest.raises(SourceError, match=r"latin\.jsonl:1: not UTF-8"):
        list(read_source(tmp_path / "latin.jsonl", source="passages"))


def test_a_folder_is_read_file_by_file_and_its_line_numbers_stay_unique(tmp_path):
    lines(tmp_path, '{"text": "one"}', '{"text": "two"}')
    with gzip.open(tmp_path / "more.jsonl.gz", "wt") as packed:
        packed.write('{"text": "three"}\n')
    found = {passage.id: passage.text for passage in read_source(tmp_path)}
    assert found == {"more.jsonl.gz:0": "three", "passages.jsonl:0": "one", "passages.jsonl:1": "two"}


def test_text_is_composed_and_blanks_collapse(tmp_path):
    path = lines(tmp_path, r'{"title": " Zu\u0308rich ", "text": "a\n\n b\u00a0\tc"}', '{"text": " \\n "}')
    (passage,) = read_source(path)
    assert (passage.title, passage.text) == ("Zürich", "a b c")


@pytest.mark.skipif(not DATA.is_dir(), reason="the shared data are not here")
def test_the_passages_of_2wiki_are_all_read():
    passages = list(read_source(DATA / "2wiki_hipporag1000/corpus.jsonl"))
    assert len(passages) == 6119
    assert (passages[5].id, passages[6118].id) == ("5", "6118")
    assert passages[0].text.startswith("Teutberga( died 11 November 875)")


@pytest.mark.skipif(not DATA.is_dir(), reason="the shared data are not here")
def test_titles_are_made_of_the_fields_of_the_factbook():
    passages = list(read_source(DATA / "factbook/passages.jsonl", title_from="country,section,field"))
    assert len({passage.id for passage in passages}) == 32687
    assert passages[0].title == "Algeria | Introduction | Background"
    with pytest.raises(SourceError, match=r"passages\.jsonl:1: title_from names 'land', found the keys"):
        next(read_source(DATA / "factbook/passages.jsonl", title_from="land"))

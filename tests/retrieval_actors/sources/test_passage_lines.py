"""JSON Lines of passages: a wrong line is named by file and number."""

from __future__ import annotations

import gzip
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from PIL import Image

from experiments.datasets.question_file import read_questions
from experiments.kb import planned
from retrieval_actors.sources.data_files import DataError
from retrieval_actors.sources.passage_lines import PassageLines
from retrieval_actors.sources.read_passages import Reading, read_source

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
        ("{nonsense", "not JSON .Expecting property name .* at column 2, found 'nonsense'.; expected one object on each line"),
        ("[1]", "found list, expected a JSON object"),
        ('{"txt": "a"}', r"expected 'text', 'contents' or 'title', found the keys \['txt'\]; text_from=KEY names another"),
        ('{"text": 3}', "'text' must be a string, found int"),
        ('{"text": "a", "id": [1]}', "'id' must be a text or a whole number, found .1."),
        ('{"text": "a", "image": "no.png"}', "image 'no.png' does not exist"),
        ('{"text": "a", "image": "../secret.png"}', "is outside the folder"),
        ('{"text": "a", "image": "half.png"}', "image 'half.png' does not decode .*; expected a complete PNG or JPEG"),
    ],
)
def test_a_wrong_line_is_named_by_file_and_number(tmp_path, row, finding):
    Image.effect_noise((64, 64), 50).save(tmp_path / "whole.png")
    (tmp_path / "half.png").write_bytes((tmp_path / "whole.png").read_bytes()[:900])
    path = lines(tmp_path, '{"text": "good"}', row, '{"text": "good"}')
    with pytest.raises(DataError, match=rf"passages\.jsonl:2: .*{finding}") as refusal:
        list(read_source(path))
    assert "\n" not in str(refusal.value)


def test_bytes_that_are_no_utf8_are_a_wrong_line(tmp_path):
    (tmp_path / "latin.jsonl").write_bytes('{"text": "Zürich"}\n'.encode("latin-1"))
    with pytest.raises(DataError, match=r"latin\.jsonl:1: not UTF-8"):
        list(read_source(tmp_path / "latin.jsonl", source="passages"))


def test_a_folder_is_read_file_by_file_and_its_line_numbers_stay_unique(tmp_path):
    lines(tmp_path, '{"text": "one"}', '{"text": "two"}')
    with gzip.open(tmp_path / "more.jsonl.gz", "wt") as packed:
        packed.write('{"text": "three"}\n')
    found = {passage.id: passage.text for passage in read_source(tmp_path)}
    assert found == {"more.jsonl.gz:0": "three", "passages.jsonl:0": "one", "passages.jsonl:1": "two"}


@pytest.mark.parametrize(
    ("rows", "expected"),
    [
        (
            ['{"id": "0", "contents": "\\"The \\"Otto\\"\\"\\nOtto founded\\nRell."}'],
            [("0", 'The "Otto"', "Otto founded Rell.")],
        ),  # Search-R1
        (['{"id": "0", "contents": "no title\\nat all"}'], [("0", "", "no title at all")]),
        (['{"_id": "7", "title": "Otto", "text": "a", "metadata": {}}'], [("7", "Otto", "a")]),  # BEIR
        (['{"id": null, "text": "a"}', "", '{"id": 7.0, "text": "b"}', '{"text": "c"}'], [("0", "", "a"), ("7", "", "b"), ("2", "", "c")]),
        (['[{"text": "a"}, {"text": "b"}]'], [("0", "", "a"), ("1", "", "b")]),
    ],
)
def test_corpora_as_others_publish_them_are_passages(tmp_path, rows, expected):
    assert [(passage.id, passage.title, passage.text) for passage in read_source(lines(tmp_path, *rows))] == expected


def test_the_corpus_of_dpr_is_a_table_with_a_header(tmp_path):
    content = b'id\ttext\ttitle\n1\t"Otto founded ""Rell""\tin 1901."\tOtto\n2\t\t\n'
    for name, packed in (("psgs.tsv", content), ("psgs.tsv.gz", gzip.compress(content))):
        (tmp_path / name).write_bytes(packed)
        (passage,) = read_source(tmp_path / name)
        assert (passage.id, passage.title, passage.text) == ("1", "Otto", 'Otto founded "Rell" in 1901.')


@pytest.mark.parametrize(
    "empty", ['{"id": "d", "text": ""}', '{"text": null, "title": null}', '{"text": " \\n"}', '{"contents": "\\"\\"\\n"}']
)
def test_a_passage_without_text_is_left_out_and_counted(tmp_path, empty):
    reading = Reading(lines(tmp_path, '{"text": "a"}', empty), PassageLines())
    assert [len(passages) for _, passages in reading.outcomes(reading.parts()[0])] == [1, 0]


def test_a_picture_may_lie_in_the_row_itself_as_hugging_face_stores_it(tmp_path):
    Image.new("RGB", (4, 4), "red").save(tmp_path / "flag.png")
    data = (tmp_path / "flag.png").read_bytes()
    rows = [{"bytes": data, "path": "elsewhere.png"}, {"bytes": None, "path": "flag.png"}, None]
    pq.write_table(pa.table({"text": ["a", "b", "c"], "image": rows, "answers": [["x"]] * 3}), tmp_path / "a.parquet")
    assert [passage.image for passage in read_source(tmp_path / "a.parquet")] == [data, data, None]
    assert [question.image and question.image.data for question in read_questions(tmp_path / "a.parquet")] == [data, data, None]
    pq.write_table(pa.table({"text": ["a"], "image": [{"bytes": data[:40]}], "answers": [["x"]]}), tmp_path / "a.parquet")
    for read in (read_source, read_questions):
        with pytest.raises(DataError, match=r"a\.parquet:1: the picture in 'image' does not decode"):
            list(read(tmp_path / "a.parquet"))


def test_half_a_surrogate_pair_is_refused_by_its_line(tmp_path):
    path = lines(tmp_path, '{"text": "a"}', r'{"text": "a\ud83d"}')
    with pytest.raises(DataError, match=r"passages\.jsonl:2: found \\ud83d, half of a surrogate pair"):
        list(read_source(path))


def test_text_may_be_under_a_key_of_ones_own(tmp_path):
    path = lines(tmp_path, '{"id": 1, "body": "a", "text": "not this"}', '{"id": 2, "body": null}')
    reading, *_ = planned(path, tmp_path / "kb", ["text_from=body"])
    outcomes = list(reading.outcomes([path]))
    assert [passage.text for _, passages in outcomes for passage in passages] == ["a"]
    with pytest.raises(DataError, match=r"passages\.jsonl:1: text_from names 'bodi', found the keys \['body', 'id', 'text'\]"):
        list(read_source(path, text_from="bodi"))


def test_a_folder_is_read_whatever_its_files_are_packed_in(tmp_path):
    pq.write_table(pa.table({"id": ["a"], "text": ["one"]}), tmp_path / "a.parquet")
    (tmp_path / "b.json").write_text('[{"id": "b", "text": "two"}]')
    (tmp_path / "c.tsv").write_text("id\ttext\nc\tthree\n")
    for ignored in ("README.md", "._a.parquet"):
        (tmp_path / ignored).write_text("no data")
    assert {passage.id: passage.text for passage in read_source(tmp_path)} == {"a": "one", "b": "two", "c": "three"}
    for file in tmp_path.glob("[abc].*"):
        file.unlink()
    with pytest.raises(DataError, match=r"no data file in this folder; source=passages expects"):
        list(read_source(tmp_path, source="passages"))


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
    with pytest.raises(DataError, match=r"passages\.jsonl:1: title_from names 'land', found the keys"):
        next(read_source(DATA / "factbook/passages.jsonl", title_from="land"))

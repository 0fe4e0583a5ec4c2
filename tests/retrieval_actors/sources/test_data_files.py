"""The reader of data files: the same records come out of every form, and what is broken is named by file and line."""

from __future__ import annotations

import bz2
import gzip
import io
import json
import tracemalloc
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from retrieval_actors.sources.data_files import DataError, read_records, records

RECORDS = [{"id": "a", "text": "Zürich\u2028lies by the lake"}, {"id": "b", "text": 'He said "no", 😀'}, {"id": "c", "text": "1901"}]
LINES = "".join(json.dumps(record, ensure_ascii=False) + "\n" for record in RECORDS)
PLAIN = LINES.encode()
BOM = b"\xef\xbb\xbf"


def parquet(table: pa.Table) -> bytes:
    written = io.BytesIO()
    pq.write_table(table, written)
    return written.getvalue()


def columns(as_type: pa.DataType) -> dict[str, pa.Array]:
    return {key: pa.array([record[key] for record in RECORDS]).cast(as_type) for key in ("id", "text")}


TABLE = "id\ttext\n" + "".join(f'{r["id"]}\t"{r["text"].replace(chr(34), chr(34) * 2)}"\n' for r in RECORDS)
FORMS = {
    "lines.jsonl": PLAIN,
    "mark_and_crlf.jsonl": BOM + PLAIN.replace(b"\n", b"\r\n"),
    "lone_cr.jsonl": PLAIN.replace(b"\n", b"\r"),
    "blank_lines.jsonl": b"\n \n" + PLAIN.replace(b"\n", b"\n\n\t\n"),
    "no_end_of_line.jsonl": PLAIN.rstrip(),
    "joined.jsonl": BOM + BOM.join(PLAIN.splitlines(keepends=True)),
    "packed.jsonl.gz": gzip.compress(PLAIN),
    "two_members.jsonl.gz": gzip.compress(PLAIN[:90]) + gzip.compress(PLAIN[90:]),
    "packed.jsonl.bz2": bz2.compress(PLAIN),
    "really_packed.jsonl": gzip.compress(PLAIN),
    "really_plain.jsonl.gz": PLAIN,
    "array.json": json.dumps(RECORDS, indent=1).encode(),
    "array_of_one_line.json": BOM + json.dumps(RECORDS).encode(),
    "array.jsonl": b"\n[\n" + b",\n".join(PLAIN.splitlines()) + b"\n]\n",
    "packed_array.json.gz": gzip.compress(json.dumps(RECORDS).encode()),
    "rows.parquet": parquet(pa.table(columns(pa.string()))),
    "large.pq": parquet(pa.table(columns(pa.large_string()))),
    "dictionary.pq": parquet(pa.table(columns(pa.dictionary(pa.int32(), pa.string())))),
    "of_pandas.parquet": parquet(pa.table(columns(pa.string()) | {"__index_level_0__": pa.array([4, 7, 9])})),
    "unnamed_parquet": parquet(pa.table(columns(pa.string()))),
    "table.tsv": TABLE.encode(),
    "table.tsv.gz": gzip.compress(BOM + TABLE.replace("\n", "\r\n").encode()),
    "table.csv": TABLE.replace("\t", ",").encode(),
}


@pytest.mark.parametrize("name", FORMS)
def test_every_form_gives_the_same_records(tmp_path: Path, name: str):
    (tmp_path / name).write_bytes(FORMS[name])
    assert [record for _, record in read_records(tmp_path / name)] == RECORDS


def test_a_place_is_the_line_or_row_and_the_element_of_an_array(tmp_path: Path):
    def places(name: str, content: bytes) -> list[str]:
        (tmp_path / name).write_bytes(content)
        return [where.removeprefix(f"{tmp_path}/") for where, _ in read_records(tmp_path / name)]

    assert places("a.jsonl", b'\n{"a": 1}\r\n\r\n{"a": 2}') == ["a.jsonl:2", "a.jsonl:4"]
    assert places("a.json", b'[{"a": 1},\n{"a":\n2}, {"a": 3}]') == ["a.json:1 (element 1)", "a.json:2 (element 2)", "a.json:3 (element 3)"]
    assert places("a.tsv", b'a\tb\n1\t"x\ny"\n2\tz\n') == ["a.tsv:2", "a.tsv:4"]
    assert places("a.pq", parquet(pa.table({"a": [1, 2]}))) == ["a.pq:1", "a.pq:2"]


def test_null_and_nan_are_left_out_in_every_form(tmp_path: Path):
    (tmp_path / "a.jsonl").write_text('{"a": null, "b": NaN, "c": [null, NaN, 1.5], "d": {"e": null}}\n')
    table = pa.table(
        {
            "a": pa.nulls(1),
            "b": [float("nan")],
            "c": [[None, float("nan"), 1.5]],
            "d": pa.array([{"e": None}], pa.struct({"e": pa.string()})),
        }
    )
    (tmp_path / "a.parquet").write_bytes(parquet(table))
    for name in ("a.jsonl", "a.parquet"):
        assert [record for _, record in read_records(tmp_path / name)] == [{"c": [None, None, 1.5], "d": {}}]


GOOD = b'{"text": "good"}\n'
BROKEN = {
    "half_a_pair.jsonl": (GOOD + rb'{"text": "a\ud83d"}', r":2: found \\ud83d, half of a surrogate pair; expected whole characters"),
    "half_a_pair_deep.json": (b"[" + GOOD + rb',{"a": [{"\uDE00b": 1}]}]', r":2 \(element 2\): found \\ude00, half of a surrogate pair"),
    "latin.jsonl": (GOOD + "{'Zürich'}".encode("latin-1"), r":2: not UTF-8 \(byte 0xfc at place 4\); expected UTF-8: save"),
    "latin.csv": (b"text\n" + "Zürich".encode("latin-1"), r":2: not UTF-8 \(byte 0xfc"),
    "comma.jsonl": (GOOD + b'{"text": "a"},\n', r":2: not JSON \(Extra data at column 14, found ','\); expected one object on each line"),
    "page.jsonl": (b"<!DOCTYPE html>\n", r":1: not JSON \(Expecting value at column 1, found '<!DOCTYPE html>'\)"),
    "pretty.json": (b'{\n  "text": "a"\n}\n', r":1: not JSON .*; expected one object on each line, or an array of objects"),
    "list.jsonl": (GOOD + b"[1]\n", ":2: found list, expected a JSON object"),
    "numbers.json": (b"[1, 2]", r":1 \(element 1\): found int, expected a JSON object"),
    "lists.jsonl": (b'[]\n["a"]\n', r""":1: found '\["a"\]' after the end of the array; expected one array"""),
    "twice.jsonl": (GOOD + b'{"text": "a", "text": "b"}', ":2: key 'text' occurs twice in one object"),
    "deep.jsonl": (b'{"a": ' + b"[" * 200_000, ":1: not JSON that can be read: nested too deeply"),
    "long_number.jsonl": (b'{"a": ' + b"1" * 5000 + b"}", ":1: holds a number of thousands of digits"),
    "zeros.jsonl": (GOOD + b"\0\0\0", r":2: not JSON .*found '\\x00"),
    "cut.jsonl": (GOOD + b'{"text": "a', r":2: not JSON \(Unterminated string"),
    "cut.json": (b"[" + GOOD + b',{"text": "a', r":2 \(element 2\): not JSON \(Unterminated string starting at line 2"),
    "cut_between.json": (b"[" + GOOD + b",", r":2 \(element 2\): the array has no end: is the file complete\?"),
    "comma_missing.json": (
        b'[\n{"a": 1 "b": 2}]',
        r":2 \(element 1\): not JSON \(Expecting ',' delimiter at line 2, found '\"b\": 2}\]'\)",
    ),
    "cut.jsonl.gz": (gzip.compress(GOOD * 9)[:-12], r":\d: the file cannot be read beyond this line .*: is it complete\?"),
    "wrong_sum.jsonl.gz": (gzip.compress(GOOD)[:-6] + b"\0" * 6, r"the file cannot be read beyond this line \(CRC"),
    "cut.jsonl.bz2": (bz2.compress(GOOD)[:-4], "the file cannot be read beyond this line"),
    "cut.parquet": (parquet(pa.table({"a": [1]}))[:-9], r"cut.parquet: not Parquet, or not complete \(.*\); write or download it again"),
    "text.parquet": (b"no parquet at all", "text.parquet: not Parquet"),
    "fields.tsv": (b"id\ttext\n1\ta\n2\n", r":3: 1 fields, the header has 2 \(id, text\)"),
    "quote.tsv": (
        b'id\ttext\n1\t"Otto" of Rell\n',
        r":2: .* expected a quoted field to end with its quote, and quotes in it to be doubled",
    ),
    "open_quote.tsv": (b'id\ttext\n1\t"Otto\n2\tRell\n', r":2: .* expected a quoted field to end with its quote"),
    "columns.csv": (b"id,id\n1,2\n", r":1: two columns have one name \(id, id\); rename one"),
}


@pytest.mark.parametrize("name", BROKEN)
def test_what_is_broken_is_named_in_one_line_by_file_and_line(tmp_path: Path, name: str):
    content, said = BROKEN[name]
    (tmp_path / name).write_bytes(content)
    with pytest.raises(DataError, match=said) as refusal:
        list(read_records(tmp_path / name))
    assert str(refusal.value).startswith(f"{tmp_path / name}:")
    assert "\n" not in str(refusal.value)


def test_what_is_no_file_to_read_is_refused_by_its_name(tmp_path: Path):
    for name, said in (
        (".", "a folder, expected a file; name one"),
        ("none.jsonl", "no such file; check the path"),
        ("x" * 300, "cannot be read"),
    ):
        with pytest.raises(DataError, match=rf"{name}: {said}" if name != "." else said):
            list(read_records(tmp_path / name))
    (tmp_path / "empty.jsonl").write_bytes(b"")
    assert list(read_records(tmp_path / "empty.jsonl")) == []


def test_a_broken_record_does_not_hide_those_behind_it(tmp_path: Path):
    invalid = pa.array([b"good", b"Z\xfcrich", b"good"]).view(pa.string())
    for name, content in (
        ("a.jsonl", GOOD + b'{"text": "a"},\n' + GOOD),
        ("a.json", b"[" + GOOD + b",7," + GOOD + b"]"),
        ("a.tsv", b'text\ngood\n"a"b\ngood\n'),
        ("a.parquet", parquet(pa.table({"text": invalid}))),
    ):
        (tmp_path / name).write_bytes(content)
        first, broken, third = (record for _, record in records(tmp_path / name))
        assert first == third == {"text": "good"}
        assert isinstance(broken, ValueError)


@settings(max_examples=60)
@given(
    st.lists(
        st.dictionaries(st.text(max_size=3), st.one_of(st.text(max_size=30), st.floats(allow_nan=False), st.booleans()), max_size=4),
        max_size=5,
    ),
    st.sampled_from([None, 0, 1, 40]),
    st.booleans(),
)
def test_an_array_is_read_the_same_however_it_is_laid_out(tmp_path_factory, found, indent, ascii_only):
    file = tmp_path_factory.mktemp("arrays") / "a.json"
    file.write_text(json.dumps(found, indent=indent, ensure_ascii=ascii_only), encoding="utf-8")
    assert [record for _, record in records(file)] == found


def test_lines_are_not_held_in_memory(tmp_path: Path):
    (tmp_path / "a.jsonl").write_text(f"{json.dumps({'text': 'word ' * 2_000})}\n" * 3_000)
    tracemalloc.start()
    assert sum(1 for _ in records(tmp_path / "a.jsonl")) == 3_000
    assert tracemalloc.get_traced_memory()[1] < (tmp_path / "a.jsonl").stat().st_size / 3
    tracemalloc.stop()

"""Spreadsheets: cells of every kind come out as a reader of the sheet sees them, and rows become passages as those of tables do."""

from __future__ import annotations

import datetime
import re
import zipfile
from decimal import Decimal
from pathlib import Path

import openpyxl
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from retrieval_actors.sources.data_files import DataError, read_records
from retrieval_actors.sources.read_passages import Reading, find_source, read_source
from retrieval_actors.sources.tables import Spreadsheets

FILMS = [
    ["film", "year", "shown", "rating", None],
    ["Der Fischer", 1931, datetime.datetime(1931, 5, 4), 0.1 + 0.2, None],
    [None, None, None, None, None],
    ["Fährmann Maria", 1936, datetime.datetime(1936, 1, 7, 20, 15), 8.0, "a note"],
]


def workbook(path: Path, **sheets: list[list[object]]) -> Path:
    book = openpyxl.Workbook()
    book.remove(book.active)
    for name, rows in sheets.items():
        sheet = book.create_sheet(name)
        for row in rows:
            sheet.append(row)
        sheet.sheet_state = "hidden" if name == "lists" else "visible"
    book.save(path)
    return path


def texts(path: Path, **settings: int) -> dict[str, str]:
    return {passage.id: passage.text for passage in read_source(path, **settings)}


def test_a_workbook_becomes_a_table_for_each_sheet(tmp_path):
    one = workbook(tmp_path / "films.xlsx", Sheet1=[[], *FILMS], lists=[["x"], ["y"]])
    assert find_source("auto", one) is Spreadsheets
    assert Spreadsheets.modality == "table"
    rows = "row: Der Fischer ; 1931 ; 1931-05-04 ; 0.3 ; | row: Fährmann Maria ; 1936 ; 1936-01-07 20:15:00 ; 8 ; a note"
    assert texts(one) == {"films.xlsx#0": f"films | header: film ; year ; shown ; rating ; E | {rows}"}
    two = workbook(tmp_path / "book.xlsx", Films=FILMS[:2], Lakes=[["lake", "km²"], ["Thun", 48], ["Brienz", 30]])
    assert texts(two, words_per_chunk=3) == {
        "book.xlsx!Films#0": "book | Films | header: film ; year ; shown ; rating | row: Der Fischer ; 1931 ; 1931-05-04 ; 0.3",
        "book.xlsx!Lakes#0": "book | Lakes | header: lake ; km² | row: Thun ; 48",
        "book.xlsx!Lakes#1": "book | Lakes | header: lake ; km² | row: Brienz ; 30",
    }


def test_a_folder_of_all_forms_is_read_and_the_rest_is_named(tmp_path):
    (tmp_path / "a.csv").write_text("Ort;Höhe\nBern;540\n;\nThun;560\n")
    (tmp_path / "b.tsv").write_text("place\theight\nSpiez\t628\n")
    (tmp_path / "c").mkdir()
    pq.write_table(pa.table({"day": [datetime.date(2020, 2, 1)], "chf": [Decimal("1.50")]}), tmp_path / "c/prices.parquet")
    (tmp_path / "only_a_header.csv").write_text("place,height\n")
    (tmp_path / "old.xls").write_bytes(b"")
    assert texts(tmp_path) == {
        "a.csv#0": "a | header: Ort ; Höhe | row: Bern ; 540 | row: Thun ; 560",
        "b.tsv#0": "b | header: place ; height | row: Spiez ; 628",
        "c/prices.parquet#0": "prices | header: day ; chf | row: 2020-02-01 ; 1.50",
    }
    assert Spreadsheets().left_out(tmp_path) == [("old.xls", "not one of .csv, .tsv, .xlsx, .parquet, .pq")]


@pytest.mark.parametrize(
    ("header", "name"),
    [
        ("text,topic", "passages"),
        ("id,contents", "passages"),
        ("id,title,image", "passages"),
        ("title", "passages"),
        ("file,caption", "captions"),
        ("title,director,year", "spreadsheets"),
        ("city", "spreadsheets"),
    ],
)
def test_a_csv_with_texts_holds_passages_and_another_is_a_table(tmp_path, header, name):
    (tmp_path / "a.csv").write_text(f"{header}\n{','.join('x' for _ in header.split(','))}\n")
    assert find_source("auto", tmp_path / "a.csv").name == name


def test_rows_of_a_workbook_are_records_with_their_place(tmp_path):
    path = workbook(tmp_path / "a.xlsx", A=[["text", "n"], ["one", 1], ["two", None]], B=[["text"], ["three"]])
    assert list(read_records(path)) == [
        (f"{path}:A!2", {"text": "one", "n": 1}),
        (f"{path}:A!3", {"text": "two"}),
        (f"{path}:B!2", {"text": "three"}),
    ]
    assert [passage.text for passage in read_source(path)] == ["one", "two", "three"]


def test_a_formula_has_the_value_that_was_saved_with_it(tmp_path):
    """As Excel writes it: the cell has both."""
    made, path = workbook(tmp_path / "made.xlsx", A=[["sum"], ["=1+2"]]), tmp_path / "a.xlsx"
    with zipfile.ZipFile(made) as source, zipfile.ZipFile(path, "w") as copy:
        for name in source.namelist():
            content = source.read(name)
            if name == "xl/worksheets/sheet1.xml":
                content, changed = re.subn(rb"<f>1\+2</f><v ?/>|<f>1\+2</f><v></v>", b"<f>1+2</f><v>3</v>", content)
                assert changed == 1
            copy.writestr(name, content)
    assert list(read_records(path)) == [(f"{path}:2", {"sum": 3})]


@pytest.mark.parametrize(
    ("content", "said"),
    [
        (b"PK\x03\x04 and then nothing", r"bad\.xlsx:1: no XLSX workbook that can be read \(.+\); expected a complete one"),
        (b"", r"bad\.xlsx:1: no XLSX workbook that can be read"),
        (None, r"bad\.xlsx:1: two columns have one name \(a, a\); rename one"),
    ],
)
def test_a_workbook_that_cannot_be_read_is_one_line_and_can_be_skipped(tmp_path, content, said):
    (tmp_path / "good.csv").write_text("city\nBern\n")
    if content is None:
        workbook(tmp_path / "bad.xlsx", A=[["a", "a"], [1, 2]])
    else:
        (tmp_path / "bad.xlsx").write_bytes(content)
    with pytest.raises(DataError, match=said) as refusal:
        list(read_source(tmp_path, "spreadsheets"))
    assert "\n" not in str(refusal.value)
    reading = Reading(tmp_path, Spreadsheets())
    outcomes = [found for _, found in reading.outcomes([file for part in reading.parts() for file in part])]
    assert [passage.id for found in outcomes if isinstance(found, list) for passage in found] == ["good.csv#0"]

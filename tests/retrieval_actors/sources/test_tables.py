"""Tables as text: cut between rows, each chunk with its title and header."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from retrieval_actors.sources.data_files import DataError
from retrieval_actors.sources.read_passages import read_source
from retrieval_actors.sources.tables import Tables

DATA = Path(__file__).parents[3] / "../shared/data"
TABLE = {
    "table_id": "Rivers_0",
    "title": "Rivers",
    "section_title": "Longest",
    "header": ["Name", "Length\n(km)"],
    "rows": [["Zorn", "97"], ["Ill", None], ["Rhein", 1233]],
}


def written(folder, *tables):
    path = folder / "tables.jsonl"
    path.write_text("".join(json.dumps(table) + "\n" for table in tables), encoding="utf-8")
    return path


def test_a_table_is_title_section_header_and_rows(tmp_path):
    (passage,) = read_source(written(tmp_path, TABLE))
    assert passage.id == "Rivers_0#0"
    assert passage.title == ""
    assert passage.text == "Rivers | Longest | header: Name ; Length (km) | row: Zorn ; 97 | row: Ill ; | row: Rhein ; 1233"


def test_title_and_header_are_repeated_in_each_chunk(tmp_path):
    first, second = read_source(written(tmp_path, TABLE), words_per_chunk=7)
    assert first.text.endswith("| row: Zorn ; 97 | row: Ill ;")
    assert (second.id, second.text) == ("Rivers_0#1", "Rivers | Longest | header: Name ; Length (km) | row: Rhein ; 1233")
    assert len(list(read_source(written(tmp_path, TABLE), words_per_chunk=1))) == 3


@given(
    st.lists(st.lists(st.text("ab ", max_size=30), min_size=2, max_size=2), min_size=1, max_size=12),
    st.integers(0, 20),
)
def test_every_row_is_in_one_chunk_in_order_and_chunks_keep_their_bound(rows, words):
    source = Tables(words_per_chunk=words)
    chunks = list(source.passages({"header": ["x", "y"], "rows": rows, "table_id": "t#1"}, Path("t"), "0"))
    cut = [chunk.text.split(" | row: ")[1:] for chunk in chunks]
    assert [row for chunk in cut for row in chunk] == [" ; ".join(" ".join(cell.split()) for cell in row) for row in rows]
    assert {chunk.id.rpartition("#")[0] for chunk in chunks} == {"t#1"}
    for chunk in cut:
        assert len(chunk) == 1 or not words or sum(len(f"row: {row}".split()) for row in chunk) <= words


def test_a_cell_without_a_value_is_empty_and_a_gap_makes_no_fraction_of_a_whole_number(tmp_path):
    """pandas writes NaN where a value is missing, and then the numbers of that column as floats."""
    rows = [["Rell", 1901.0, float("nan"), 1.0], ["Ost", float("nan"), "port", 2.5], ["nan", 1e300, None, True]]
    header = ["town", 2019.0, "note", None]
    table = {"header": header, "rows": rows}
    (passage,) = read_source(written(tmp_path, table))
    assert (
        passage.text == "header: town ; 2019 ; note ; | row: Rell ; 1901.0 ; ; 1.0 | row: Ost ; ; port ; 2.5 | row: nan ; 1e+300 ; ; True"
    )
    (passage,) = read_source(written(tmp_path, table | {"rows": rows[:2]}))
    assert passage.text.endswith("| row: Rell ; 1901 ; ; 1.0 | row: Ost ; ; port ; 2.5")


def test_a_table_without_rows_is_left_out_and_one_without_an_id_is_called_by_its_number(tmp_path):
    path = written(tmp_path, TABLE | {"rows": []}, TABLE | {"table_id": None})
    assert [passage.id for passage in read_source(path)] == ["1#0"]


@pytest.mark.parametrize(
    ("change", "finding"),
    [
        ({"rows": [["a", "b"], ["c"]]}, "row 2 has 1 cells, the header has 2"),
        ({"rows": None}, "'rows' must be a list of rows, found NoneType"),
        ({"header": [["Name", "Name"], ["first", "last"]]}, "'header' must be a list of texts or numbers"),
        ({"header": "Name"}, "'header' must be a list of texts or numbers, found Name"),
        ({"rows": [[{}, "b"]]}, "row 1 must be a list of texts or numbers"),
        ({"title": 3}, "'title' must be a string, found int"),
        ({"table_id": True}, "'table_id' must be a text or a whole number, found True"),
    ],
)
def test_a_wrong_table_is_named_by_file_and_line(tmp_path, change, finding):
    with pytest.raises(DataError, match=rf"tables\.jsonl:2: {finding}"):
        list(read_source(written(tmp_path, TABLE, TABLE | change)))


@pytest.mark.skipif(not DATA.is_dir(), reason="the shared data are not here")
@pytest.mark.parametrize(("folder", "tables"), [("ottqa_dev", 3000), ("wikitablequestions", 2108)])
def test_all_rows_of_real_tables_are_found_again(folder, tables):
    path = DATA / folder / "tables.jsonl"
    rows: dict[str, int] = {}
    for passage in read_source(path):
        table_id = passage.id.rpartition("#")[0]
        rows[table_id] = rows.get(table_id, 0) + passage.text.count("| row: ")
    with path.open() as read:
        expected = {table["table_id"]: len(table["rows"]) for table in map(json.loads, read)}
    assert len(expected) == tables
    assert rows == expected

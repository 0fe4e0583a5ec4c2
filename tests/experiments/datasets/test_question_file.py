"""Questions from a file: every kind of wrong line is said with file and line."""

from __future__ import annotations

import datetime
import io
import json
from pathlib import Path

import openpyxl
import PIL.Image
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from experiments.datasets.question_file import read_questions
from retrieval_actors.sources.data_files import DataError
from rollout.records import GoldStep


def write(folder: Path, *lines: object) -> Path:
    path = folder / "questions.jsonl"
    path.write_text("\n".join(line if isinstance(line, str) else json.dumps(line) for line in lines) + "\n")
    return path


def picture() -> bytes:
    data = io.BytesIO()
    PIL.Image.new("RGB", (8, 6), (200, 10, 10)).save(data, "PNG")
    return data.getvalue()


def test_a_whole_question_is_read(tmp_path: Path):
    (tmp_path / "flag.png").write_bytes(picture())
    gold = {"query": "What is the capital of Kormu?", "kb": "text", "answer": "Tasla", "entities": ["Kormu"]}
    line = {"id": "q1", "text": "Capital?", "answers": ["Tasla", "Old Tasla"], "image": "flag.png", "family": "flags", "gold_steps": [gold]}
    question = read_questions(write(tmp_path, line, "", {"text": "Why?", "answers": ["so"]}))[0]
    assert question.answers == ("Tasla", "Old Tasla")
    assert question.gold_steps == (GoldStep("What is the capital of Kormu?", "text", "Tasla", ("Kormu",)),)
    assert question.image is not None
    assert question.image.data == picture()


def test_a_gold_step_names_one_knowledge_base_or_several(tmp_path: Path):
    step = {"query": "Which capital?", "answer": "Tasla"}
    path = write(
        tmp_path, *({"text": "a", "answers": ["b"], "gold_steps": [step | kbs]} for kbs in ({"kb": "text"}, {"kbs": ["text", "table"]}))
    )
    assert [question.gold_steps[0].kbs for question in read_questions(path)] == [("text",), ("text", "table")]


def test_unknown_gold_steps_differ_from_none_being_needed(tmp_path: Path):
    path = write(tmp_path, {"text": "a", "answers": ["b"]}, {"text": "c", "answers": ["d"], "gold_steps": []})
    assert [question.gold_steps for question in read_questions(path)] == [None, ()]


@pytest.mark.parametrize(
    ("line", "said"),
    [
        ("{not json", r"not JSON \(.*column 2, found"),
        ([1], "found list, expected a JSON object"),
        ({"text": "a"}, r"answers is None, expected a list of texts, at least one"),
        ({"text": "a", "answers": None}, "answers is None, expected a list"),
        ({"text": "a", "answers": "b"}, r"answers is 'b', expected a list of texts, at least one: \['Vienna'\]"),
        ({"text": "a", "answers": [["b"]]}, r"answers is \[\['b'\]\], expected a list of texts"),
        ({"text": "a", "answers": ["b", None]}, r"answers is \['b', None\], expected a list of texts"),
        ({"text": "a", "answers": [float("nan")]}, r"answers is \[None\], expected a list of texts"),
        ({"id": True, "text": "a", "answers": ["b"]}, "'id' must be a text or a whole number, found True"),
        ({"text": "a\ud83d", "answers": ["b"]}, r"found \\ud83d, half of a surrogate pair"),
        ({"text": "a", "answers": []}, r"answers is \[\]"),
        ({"text": " ", "answers": ["b"]}, "text is ' '"),
        ({"text": "a", "answers": ["b"], "anwser": "b"}, "unknown key 'anwser' in a question"),
        ({"text": "a", "answers": ["b"], "gold_steps": {}}, "gold_steps is dict"),
        ({"text": "a", "answers": ["b"], "gold_steps": [{"query": "q", "kb": "text"}]}, "answer is None"),
        ({"text": "a", "answers": ["b"], "gold_steps": [{"query": "q", "answer": "c"}]}, "kb is None"),
        ({"text": "a", "answers": ["b"], "gold_steps": [{"query": "q", "kb": "x", "kbs": ["y"], "answer": "c"}]}, "both kb and kbs"),
        ({"text": "a", "answers": ["b"], "image": "none.png"}, "image 'none.png' does not exist in"),
        ({"text": "a", "answers": ["b"], "image": "../../etc/passwd"}, "outside the folder of pictures"),
        ({"text": "a", "answers": ["b"], "image": "broken.png"}, r"does not decode \(it begins with b'not a pn'"),
        ({"id": "q0", "text": "a", "answers": ["b"]}, "id 'q0' occurs twice"),
    ],
)
def test_a_wrong_line_is_named_by_file_and_line(tmp_path: Path, line: object, said: str):
    (tmp_path / "broken.png").write_bytes(b"not a png")
    path = write(tmp_path, {"id": "q0", "text": "fine", "answers": ["yes"]}, line)
    with pytest.raises(DataError, match=said) as caught:
        read_questions(path)
    assert str(caught.value).startswith(f"{path}:2: ")
    assert "\n" not in str(caught.value)


def test_null_is_missing_and_a_number_and_its_text_are_the_same_id(tmp_path: Path):
    bare = {"text": "a", "answers": ["b"]}
    path = write(tmp_path, bare | dict.fromkeys(("id", "family", "image", "gold_steps")), bare, bare | {"id": 7})
    assert [(question.id, question.family, question.gold_steps) for question in read_questions(path)] == [
        (f"{path}:1", "", None),
        (f"{path}:2", "", None),
        ("7", "", None),
    ]
    with pytest.raises(DataError, match=r":2: id '7' occurs twice"):
        read_questions(write(tmp_path, bare | {"id": "7"}, bare | {"id": 7}))
    path.write_text(json.dumps([bare, bare]))
    assert [question.id for question in read_questions(path)] == [f"{path}:1 (element 1)", f"{path}:1 (element 2)"]


ROWS = [
    ["id", "question", "answer", "image", "family"],
    [7, "When did it open?", 1931, "flag.png", "films"],
    [None, None, None, None, None],
    ["b", "Which capital? ", " Bern |Berne|| 3.5", None, 2020],
    ["c", "When was that?", datetime.datetime(1931, 5, 4), None, None],
]
EXPECTED = [
    ("7", "When did it open?", ("1931",), True, "films"),
    ("b", "Which capital?", ("Bern", "Berne", "3.5"), False, "2020"),
    ("c", "When was that?", ("1931-05-04",), False, ""),
]


def read_all(path: Path) -> list[tuple]:
    return [(q.id, q.text, q.answers, q.image is not None, q.family) for q in read_questions(path)]


@pytest.fixture
def workbook(tmp_path: Path) -> Path:
    (tmp_path / "flag.png").write_bytes(picture())
    book = openpyxl.Workbook()
    for row in ROWS:
        book.active.append(row)
    book.save(tmp_path / "questions.xlsx")
    return tmp_path / "questions.xlsx"


def test_a_spreadsheet_of_any_form_holds_the_same_questions(workbook: Path):
    assert read_all(workbook) == EXPECTED
    texts = [["" if cell is None else str(cell).removesuffix(" 00:00:00") for cell in row] for row in ROWS]
    for name, between in [("a.csv", ","), ("of_excel.csv", ";"), ("a.tsv", "\t")]:
        workbook.with_name(name).write_text("".join(between.join(row) + "\n" for row in texts), encoding="utf-8-sig")
        assert read_all(workbook.with_name(name)) == EXPECTED
    _, *rows = (row for row in texts if any(row))
    columns = dict(zip(("id", "text", "answers", "image", "family"), map(list, zip(*rows, strict=True)), strict=True))
    columns["answers"] = [[1931], ["Bern", "Berne", "3.5"], ["1931-05-04"]]
    rows_of_lists = pa.table(columns | {"answers": [list(map(str, found)) for found in columns["answers"]]})
    pq.write_table(rows_of_lists, workbook.with_name("a.parquet"))
    assert read_all(workbook.with_name("a.parquet")) == EXPECTED
    years = {"question": ["When?", "How high?"], "answer": pa.array([1931.0, None]), "answers": [None, ["540"]]}
    pq.write_table(pa.table(years), workbook.with_name("years.parquet"))
    assert [question.answers for question in read_questions(workbook.with_name("years.parquet"))] == [("1931",), ("540",)]


@pytest.mark.parametrize(
    ("table", "said"),
    [
        ("question,answer\nWhy?,\n", r"2: answers is \[\], expected a list of texts, at least one"),
        ("question,answer\nWhy?, | \n", r"2: answers is \[\], expected a list of texts"),
        ("question,answer\n,so\n", "2: text is None, expected a text that is not empty"),
        ("question,text,answer\nWhy?,Why?,so\n", "2: both columns 'question' and 'text' have a value; expected one of them"),
        ("question,answer,note\nWhy?,so,x\n", "2: unknown key 'note' in a question; known are"),
        ("question,answer,gold_steps\nWhy?,so,[]\n", "2: gold_steps is str, expected a list"),
    ],
)
def test_a_wrong_row_is_named_by_file_and_line(tmp_path: Path, table: str, said: str):
    (tmp_path / "a.csv").write_text(table)
    with pytest.raises(DataError, match=rf"a\.csv:{said}"):
        read_questions(tmp_path / "a.csv")


def test_a_missing_file_says_what_to_set(tmp_path: Path):
    with pytest.raises(DataError, match=r"none\.jsonl: no such file; check the path"):
        read_questions(tmp_path / "none.jsonl")


def test_half_a_picture_does_not_pass(tmp_path: Path):
    (tmp_path / "half.png").write_bytes(picture()[: len(picture()) // 2])
    with pytest.raises(DataError, match="does not decode"):
        read_questions(write(tmp_path, {"text": "a", "answers": ["b"], "image": "half.png"}))


def test_a_line_that_is_not_utf_8_is_named_and_nothing_of_it_is_guessed(tmp_path: Path):
    file = tmp_path / "questions.jsonl"
    line = json.dumps({"text": "Wo liegt Zürich?", "answers": ["Zürich"]}, ensure_ascii=False)
    file.write_bytes(line.encode("utf-8") + b"\r\n" + line.encode("latin-1") + b"\n")
    with pytest.raises(DataError, match=rf"^{file}:2: not UTF-8 \(byte 0xfc at place \d+\); expected UTF-8"):
        read_questions(file)
    file.write_bytes(line.encode("utf-8") + b"\r\n")
    assert read_questions(file)[0].answers == ("Zürich",)


def test_a_number_without_end_and_the_address_of_a_picture_are_refused_with_what_to_do(tmp_path: Path):
    for more, said in [
        ('"answers": [' + "9" * 6000 + "]", r"questions\.jsonl:1: holds a number of thousands of digits; write it in quotes"),
        ('"answers": ["x"], "image": "https://x/y.png"', r"questions\.jsonl:1: image is the address 'https://x/y\.png'; .* fetch it"),
    ]:
        (tmp_path / "questions.jsonl").write_text('{"text": "Who?", ' + more + "}\n")
        with pytest.raises(DataError, match=said):
            read_questions(tmp_path / "questions.jsonl")

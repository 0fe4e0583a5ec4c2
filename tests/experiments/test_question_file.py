"""Questions from a file: every kind of wrong line is said with file and line."""

from __future__ import annotations

import io
import json
from pathlib import Path

import PIL.Image
import pytest

from experiments.question_file import DataError, read_questions
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


def test_unknown_gold_steps_differ_from_none_being_needed(tmp_path: Path):
    path = write(tmp_path, {"text": "a", "answers": ["b"]}, {"text": "c", "answers": ["d"], "gold_steps": []})
    assert [question.gold_steps for question in read_questions(path)] == [None, ()]


@pytest.mark.parametrize(
    ("line", "said"),
    [
        ("{not json", r"not JSON \(.*column 2\)"),
        ([1], "found list, expected a JSON object"),
        ({"text": "a"}, r"answers is None, expected a list"),
        ({"text": "a", "answers": []}, r"answers is \[\]"),
        ({"text": " ", "answers": ["b"]}, "text is ' '"),
        ({"text": "a", "answers": ["b"], "anwser": "b"}, "unknown key 'anwser' in a question"),
        ({"text": "a", "answers": ["b"], "gold_steps": {}}, "gold_steps is dict"),
        ({"text": "a", "answers": ["b"], "gold_steps": [{"query": "q", "kb": "text"}]}, "answer is None"),
        ({"text": "a", "answers": ["b"], "image": "none.png"}, "no image"),
        ({"text": "a", "answers": ["b"], "image": "../../etc/passwd"}, "outside the image folder"),
        ({"text": "a", "answers": ["b"], "image": "broken.png"}, r"does not decode \(9 bytes"),
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


def test_a_missing_file_says_what_to_set(tmp_path: Path):
    with pytest.raises(DataError, match=r"no such file; set data\.path"):
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

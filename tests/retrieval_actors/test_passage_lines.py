"""JSON Lines of passages: a wrong line is named by file and number."""

from __future__ import annotations

import pytest

from retrieval_actors.passage_lines import read_passages


def lines(folder, *rows):
    path = folder / "passages.jsonl"
    path.write_text("\n".join(rows) + "\n", encoding="utf-8")
    return path


def test_a_line_is_a_passage_and_ids_count_lines(tmp_path):
    (tmp_path / "flag.png").write_bytes(b"picture")
    path = lines(
        tmp_path,
        '{"title": "Zorn", "text": "A river."}',
        '{"id": 7, "text": "Ohne Titel: Zürich"}',
        '{"id": "x", "title": "Flag", "text": "", "image": "flag.png"}',
    )
    first, second, third = read_passages(path)
    assert (first.id, first.title, first.text, first.image) == ("0", "Zorn", "A river.", None)
    assert (second.id, second.text) == ("7", "Ohne Titel: Zürich")
    assert (third.id, third.title, third.text, third.image) == ("x", "Flag", "", b"picture")
    assert [passage.id for passage in read_passages(path, limit=2)] == ["0", "7"]


@pytest.mark.parametrize(
    ("row", "finding"),
    [
        ("{nonsense", "Expecting property name"),
        ("[1]", "expected a JSON object, found list"),
        ('{"txt": "a"}', r"expected 'text' or 'title', found the keys \['txt'\]"),
        ('{"text": 3}', "'text' must be a string, found int"),
        ('{"text": "a", "image": "no.png"}', "image 'no.png' does not exist"),
        ('{"text": "a", "image": "../secret.png"}', "is outside the folder"),
        ("", "Expecting value"),
    ],
)
def test_a_wrong_line_is_named_by_file_and_number(tmp_path, row, finding):
    path = lines(tmp_path, '{"text": "good"}', row, '{"text": "good"}')
    with pytest.raises(ValueError, match=rf"passages\.jsonl:2: .*{finding}") as refusal:
        list(read_passages(path))
    assert "\n" not in str(refusal.value)

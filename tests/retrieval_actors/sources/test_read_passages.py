"""Which source a path is: recognised, asked for by name, or one file of the user's own."""

from __future__ import annotations

import re
import sys
from pathlib import Path

import pytest

from retrieval_actors.sources.data_files import DataError
from retrieval_actors.sources.read_passages import SOURCES, find_source, read_source

ROOT = Path(__file__).parents[3]


@pytest.mark.parametrize(
    ("line", "name"),
    [
        ('{"text": "a"}', "passages"),
        ('{"title": "a", "text": "b", "image": "c.png"}', "passages"),
        ('{"header": [], "rows": [], "title": "a"}', "tables"),
        ('{"file": "a.png", "caption": "b"}', "captions"),
        ('{"did": "9:1", "modality": "text", "txt": "a", "img_path": null, "src_content": null}', "mbeir"),
    ],
)
def test_the_first_line_says_what_a_file_is(tmp_path, line, name):
    (tmp_path / "source.jsonl").write_text(line + "\n")
    assert find_source("auto", tmp_path / "source.jsonl") is SOURCES[name]


def test_what_no_source_recognises_is_refused_with_the_forms_that_are_known(tmp_path):
    (tmp_path / "source").write_text('{"question": "a"}')
    with pytest.raises(
        DataError, match=r"source: no source recognises it: a first record with the keys \['question'\].*text_from=KEY"
    ) as refusal:
        find_source("auto", tmp_path / "source")
    assert all(f"source={name} (" in str(refusal.value) for name in SOURCES)
    with pytest.raises(DataError, match=rf"{tmp_path}: no source recognises it: a folder without data files"):
        find_source("auto", tmp_path)
    (tmp_path / "source").write_text("\n")
    with pytest.raises(DataError, match="source: holds no record; expected at least one"):
        find_source("auto", tmp_path / "source")
    (tmp_path / "source").write_text("<html>\n<body>\n")
    with pytest.raises(DataError, match=r"source:1: not JSON \(Expecting value at column 1, found '<html>'\); expected one object"):
        find_source("auto", tmp_path / "source")
    with pytest.raises(DataError, match=r"source=sql: use auto, MODULE:CLASS, or one of mbeir"):
        find_source("sql", tmp_path / "source")


def test_the_example_in_the_docs_is_a_source(tmp_path, monkeypatch):
    page = (ROOT / "docs/05_knowledge_bases.md").read_text(encoding="utf-8")
    (code,) = re.findall(r"```python\n(.*?)```", page, re.DOTALL)
    assert len(code.splitlines()) <= 20
    (tmp_path / "forum.py").write_text(code)
    monkeypatch.syspath_prepend(tmp_path)
    (tmp_path / "threads.jsonl").write_text(
        '{"thread": 7, "question": "Where is Zorn?", "answers": ["In Alsace.", "Near  Hochfelden."]}\n{"thread": 8, "question": "Why?"}\n'
    )
    passages = read_source(tmp_path / "threads.jsonl", source="forum:Forum")
    found = [next(passages), next(passages)]
    assert [(passage.id, passage.title, passage.text) for passage in found] == [
        ("7#0", "Where is Zorn?", "In Alsace."),
        ("7#1", "Where is Zorn?", "Near Hochfelden."),
    ]
    with pytest.raises(DataError, match=r"threads\.jsonl:2: KeyError: 'answers'; expected an object with"):
        next(passages)
    monkeypatch.delitem(sys.modules, "forum")
    with pytest.raises(DataError, match=r"source=forum:Fora: .*expected MODULE:CLASS"):
        find_source("forum:Fora", tmp_path / "threads.jsonl")

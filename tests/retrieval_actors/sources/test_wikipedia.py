"""Wikipedia as wikiextractor writes it: articles in windows, no disambiguation or list pages. The files are made up."""

from __future__ import annotations

import bz2
import html
import itertools
import json

import pytest
from hypothesis import given
from hypothesis import strategies as st

from retrieval_actors.sources.data_files import DataError
from retrieval_actors.sources.read_passages import read_source
from retrieval_actors.sources.source import word_windows

WORDS = " ".join(f"w{number}" for number in range(230))
PAGES = [
    ("12", "Anarchism & order", f"Anarchism is.\n\nSection.\n{WORDS}"),
    ("13", "Mercury (disambiguation)", "Mercury is a planet."),
    ("14", "List of rivers", "Zorn, Ill."),
    ("15", "Mercury", "Mercury most commonly refers to the planet.\nMercury may also refer to:\nCompanies."),
    ("16", "Anar", "Anar may refer to:\nAnar, Iran"),
    ("17", "Nothing", ""),
    ("18", 'The "Zorn"', "A river <in> Alsace."),
]
KEPT = {"12": 4, "15": 1, "18": 1}


def as_json(page):
    page_id, title, text = page
    return json.dumps({"id": page_id, "revid": "1", "url": "u", "title": title, "text": html.escape(text)}) + "\n"


def extracted(folder, packed=False):
    for name, pages in (("AA/wiki_00", PAGES[:3]), ("AA/wiki_01", PAGES[3:5]), ("AB/wiki_00", PAGES[5:])):
        path = folder / "text" / (name + ".bz2" if packed else name)
        path.parent.mkdir(parents=True, exist_ok=True)
        with bz2.open(path, "wt", encoding="utf-8") if packed else path.open("w", encoding="utf-8") as file:
            file.write("".join(map(as_json, pages)))
    return folder / "text"


@pytest.mark.parametrize("packed", [False, True])
def test_articles_are_windows_of_100_words_50_apart(tmp_path, packed):
    found: dict[str, list] = {}
    for passage in read_source(extracted(tmp_path, packed)):
        page, _, number = passage.id.partition("#")
        found.setdefault(page, []).append(passage)
        assert int(number) == len(found[page]) - 1
    assert {page: len(windows) for page, windows in found.items()} == KEPT
    windows = [passage.text.split() for passage in found["12"]]
    assert windows[0][:4] == ["Anarchism", "is.", "Section.", "w0"]
    assert [len(window) for window in windows] == [100, 100, 100, 83]
    assert windows[1][:50] == windows[0][50:]
    assert windows[3][-1] == "w229"
    assert {passage.title for passage in found["12"]} == {"Anarchism & order"}
    assert (found["18"][0].title, found["18"][0].text) == ('The "Zorn"', "A river <in> Alsace.")


@given(st.integers(0, 300), st.integers(1, 40), st.integers(1, 40))
def test_windows_cover_every_word_and_none_is_inside_another(count, words, stride):
    stride = min(stride, words)
    windows = [[int(word) for word in window.split()] for window in word_windows(" ".join(map(str, range(count))), words, stride)]
    assert sorted({word for window in windows for word in window}) == list(range(count))
    assert [window[0] for window in windows] == [number * stride for number in range(len(windows))]
    assert all(later[-1] > earlier[-1] for earlier, later in itertools.pairwise(windows))
    assert all(len(window) == words for window in windows[:-1])


def test_windows_that_would_leave_words_out_are_refused():
    with pytest.raises(ValueError, match="windows of 10 words, 11 apart"):
        list(word_windows("a b", 10, 11))


@pytest.mark.parametrize(
    ("broken", "finding"),
    [
        (as_json(PAGES[0]) + '{"id": 3, "text": "a"}\n', "wiki_00:2: expected 'title'"),
        (
            '<doc id="1" url="u" title="A">\nA\n\ntext\n</doc>\n',
            "wiki_00: found <doc> blocks, expected JSON Lines: run wikiextractor with --json",
        ),
    ],
)
def test_a_broken_page_is_named_by_file_and_line_and_another_form_by_its_file(tmp_path, broken, finding):
    (tmp_path / "wiki_00").write_text(broken, encoding="utf-8")
    for source in (tmp_path, tmp_path / "wiki_00"):
        with pytest.raises(DataError, match=finding):
            list(read_source(source))


def test_a_folder_without_files_of_wikiextractor_is_refused(tmp_path):
    with pytest.raises(DataError, match=r"no file wiki_\* in it; expected the folder that wikiextractor --json wrote"):
        list(read_source(tmp_path, source="wikipedia"))

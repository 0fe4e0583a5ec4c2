"""Documents become windows of words below their titles: no word is lost, and what cannot be read is named."""

from __future__ import annotations

import io
import itertools
import re
from copy import copy
from pathlib import Path

import pypdf
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from made_pdf import pdf
from pypdf.generic import NameObject

from retrieval_actors.sources.data_files import DataError
from retrieval_actors.sources.documents import Documents
from retrieval_actors.sources.read_passages import Reading, find_source, read_source


def read(folder: Path, **settings: int) -> list[tuple[str, str, str]]:
    return [(passage.id, passage.title, passage.text) for passage in read_source(folder, "documents", **settings)]


MARKDOWN = """---
title: The Aare
---
A river.

# The Aare

Its source.

## Cities

### Bern

```
# no heading
```

### Thun ###

Lake
----

Water, and a list:

- one
---

#hashtag
"""
HTML = """<!DOCTYPE html><html><head><title>Bern &amp; around</title><style>p {}</style><script>var word;</script></head><body>
<nav><a href="x">Home</a></nav><div role="navigation">Menu</div><p hidden>not seen</p>
<h1>Bern &amp; around</h1><p>The <b>c</b>apital<br>of a country.</p>
<!-- a comment --><h2>Old <i>town</i></h2><ul><li>Arcades</li><li>Fountains</li></ul>
<table><tr><td>1191</td><td>founded</td></tr></table></body></html>"""


def test_a_passage_has_the_title_of_its_document_and_the_headings_above_it(tmp_path):
    (tmp_path / "aare.md").write_text(MARKDOWN)
    (tmp_path / "bern.html").write_text(HTML)
    (tmp_path / "no_title.HTM").write_text("<h1>Thun</h1><p>A city.</p><h1>Spiez</h1>By the lake.")
    (tmp_path / "notes.txt").write_bytes(b"\xef\xbb\xbfZ\xc3\xbcrich lies\r\nby the lake.")
    assert read(tmp_path) == [
        ("aare.md#0", "The Aare", "title: The Aare A river."),
        ("aare.md#1", "The Aare", "Its source."),
        ("aare.md#2", "The Aare - Cities - Bern", "``` # no heading ```"),
        ("aare.md#3", "The Aare - Cities - Thun", ""),
        ("aare.md#4", "The Aare - Lake", "Water, and a list: - one --- #hashtag"),
        ("bern.html#0", "Bern & around", "The capital of a country."),
        ("bern.html#1", "Bern & around - Old town", "Arcades Fountains 1191 founded"),
        ("no_title.HTM#0", "Thun", "A city."),
        ("no_title.HTM#1", "Thun - Spiez", "By the lake."),
        ("notes.txt#0", "notes", "Zürich lies by the lake."),
    ]


SECTIONS = st.lists(st.tuples(st.integers(1, 6), st.integers(1, 3), st.integers(0, 40)), min_size=1, max_size=6)
"""Level, words in the heading, words in the text."""


@settings(max_examples=60, deadline=None)
@given(sections=SECTIONS, words=st.integers(1, 12), data=st.data())
def test_no_word_is_lost_and_ids_count_the_passages_of_a_file(tmp_path_factory, sections, words, data):
    folder, numbers = tmp_path_factory.mktemp("documents"), itertools.count()
    written = [(level, *(" ".join(f"w{next(numbers)}" for _ in range(count)) for count in counts)) for level, *counts in sections]
    (folder / "a.md").write_text("".join(f"{'#' * level} {heading}\n{text}\n" for level, heading, text in written))
    (folder / "b.html").write_text("".join(f"<h{level}>{heading}</h{level}><p>{text}</p>" for level, heading, text in written))
    (folder / "c.txt").write_text("\n".join(f"{heading} {text}" for _, heading, text in written))
    found = read(folder, chunk_words=words, chunk_stride=data.draw(st.integers(1, words)))
    for name in ("a.md", "b.html", "c.txt"):
        own = [passage for passage in found if passage[0].startswith(name)]
        assert [own_id for own_id, _, _ in own] == [f"{name}#{number}" for number in range(len(own))]
        assert all(title and len(text.split()) <= words for _, title, text in own)
        assert {word for _, title, text in own for word in f"{title} {text}".split()} >= {
            f"w{number}" for number in range(next(copy(numbers)))
        }


def test_windows_repeat_the_words_between_stride_and_length(tmp_path):
    words = [f"w{number}" for number in range(400)]
    (tmp_path / "long.txt").write_text(" ".join(words))
    texts = [text.split() for _, _, text in read(tmp_path)]
    assert [text[0] for text in texts] == ["w0", "w110", "w220", "w330"]
    assert [len(text) for text in texts] == [150, 150, 150, 70]
    assert all(before[110:] == after[:40] for before, after in itertools.pairwise(texts))
    with pytest.raises(DataError, match=r"long\.txt:1: windows of 150 words, 200 apart: expected 0 < stride <= words"):
        read(tmp_path, chunk_stride=200)


def test_a_pdf_is_read_with_the_title_that_it_states(tmp_path):
    (tmp_path / "a.pdf").write_bytes(pdf("The Aare is a river.", "", "It flows.", title="Rivers of  Bern"))
    (tmp_path / "no title.pdf").write_bytes(pdf("Lakes."))
    (tmp_path / "opens_without.pdf").write_bytes(pdf("Open.", password="", owner_password="secret"))
    assert read(tmp_path) == [
        ("a.pdf#0", "Rivers of Bern", "The Aare is a river. It flows."),
        ("no title.pdf#0", "no title", "Lakes."),
        ("opens_without.pdf#0", "opens_without", "Open."),
    ]


@pytest.mark.parametrize(
    ("name", "content", "said"),
    [
        ("locked.pdf", pdf("Secret.", password="x"), r":1: no PDF that can be read \(it is encrypted: save it again without a password\)"),
        ("scan.pdf", pdf("", ""), r":1: no text in this PDF: if its pages are scanned, run text recognition \(OCR\) first; on_error=skip"),
        ("broken.pdf", b"%PDF-1.4 and then nothing", r":1: no PDF that can be read \(.+\); expected a complete one"),
        ("empty.pdf", b"", r":1: no PDF that can be read"),
        ("latin.txt", "eins\nZürich".encode("latin-1"), r":2: not UTF-8 \(byte 0xfc at place 2\); expected UTF-8: save the file as that"),
        ("declared.html", b"<p>eins<![zwei[", r":2: no HTML that can be read"),
        ("wide.html", "<p>eins".encode("utf-16"), r":1: not UTF-8 \(byte 0xff at place 1\)"),
    ],
)
def test_a_file_that_cannot_be_read_is_one_line_and_can_be_skipped(tmp_path, name, content, said):
    (tmp_path / name).write_bytes(content)
    (tmp_path / "good.txt").write_text("Good.")
    with pytest.raises(DataError, match=f"^{re.escape(str(tmp_path / name))}{said}") as refusal:
        read(tmp_path)
    assert "\n" not in str(refusal.value)
    reading = Reading(tmp_path, Documents())
    outcomes = [found for _, found in reading.outcomes([file for part in reading.parts() for file in part])]
    assert sum(isinstance(found, ValueError) for found in outcomes) == 1
    assert [found[0].text for found in outcomes if not isinstance(found, ValueError)] == ["Good."]


def test_a_broken_page_does_not_take_the_others_with_it(tmp_path):
    writer = pypdf.PdfWriter(clone_from=io.BytesIO(pdf("First.", "Second.", "Third.")))
    writer.pages[1]["/Contents"].get_object()[NameObject("/Filter")] = NameObject("/NoSuchFilter")
    writer.write(tmp_path / "a.pdf")
    reading = Reading(tmp_path / "a.pdf", Documents())
    (page, error), (document, passages) = reading.outcomes([tmp_path / "a.pdf"])
    assert (page, document) == (f"{tmp_path}/a.pdf:page 2", f"{tmp_path}/a.pdf:1")
    assert re.match("its text cannot be read \\(.+\\)", str(error))
    assert [(passage.id, passage.text) for passage in passages] == [("a.pdf#0", "First. Third.")]


def test_folders_below_are_read_and_the_rest_is_named(tmp_path):
    for name in ("b/c.txt", "a.txt", ".git/config.txt", "b/.hidden.md", "b/d.docx", "~$a.txt", "empty.txt"):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).write_text("" if name == "empty.txt" else "Words.")
    (tmp_path / "link").symlink_to(tmp_path / "b")
    (tmp_path / "lost.txt").symlink_to(tmp_path / "nowhere")
    assert [found[:2] for found in read(tmp_path)] == [("a.txt#0", "a"), ("b/c.txt#0", "c")]
    assert Documents().left_out(tmp_path) == [
        (".git", "hidden"),
        ("b/.hidden.md", "hidden"),
        ("b/d.docx", "not one of .txt, .md, .markdown, .html, .htm, .pdf"),
        ("link", "a link to a folder"),
        ("lost.txt", "no regular file"),
        ("~$a.txt", "hidden"),
    ]


def test_auto_reads_documents_and_leaves_passages_alone(tmp_path):
    (tmp_path / "a.txt").write_text("[1] A note.\n")
    (tmp_path / "b.pdf").write_bytes(pdf("Text."))
    (tmp_path / "config.json").write_text('{"version": 1}')
    assert all(find_source("auto", path) is Documents for path in (tmp_path, tmp_path / "a.txt", tmp_path / "b.pdf"))
    assert [passage.id for passage in read_source(tmp_path / "a.txt")] == ["a.txt#0"]
    (tmp_path / "a.txt").write_text('{"text": "A passage."}\n')
    assert find_source("auto", tmp_path / "a.txt").name == "passages"
    (tmp_path / "config.json").write_text('{"text": "A passage."}\n')
    assert find_source("auto", tmp_path).name == "passages"

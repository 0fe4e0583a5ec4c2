"""Documents: plain text, Markdown, HTML and PDF, cut into overlapping windows of words below their title and headings."""

import itertools
import logging
import re
import warnings
import zlib
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from retrieval_actors.records import Passage
from retrieval_actors.sources.data_files import Located, check_text, data_files, ending_of, one_line, open_text
from retrieval_actors.sources.source import FolderFiles, sort_out, word_windows

FRONT_MATTER = re.compile(r"\A---[ \t]*\n(.*?)\n---[ \t]*(?:\n|\Z)", re.DOTALL)
HEADING = re.compile(r" {0,3}(#{1,6})(?:[ \t]+(.*?))??(?:[ \t]+#+)?[ \t]*\n?")
UNDERLINE = re.compile(r" {0,3}(=+|-{3,})[ \t]*\n?")
FENCE = re.compile(r" {0,3}(`{3,}|~{3,})")
NO_PARAGRAPH = re.compile(r"\s*([-*+>|]|\d+[.)]|\Z)")  # a list, a quote, a table: a line below it is no heading
NOT_READ = ["script", "style", "noscript", "template", "svg", "nav", "[role=navigation]", "[role=menu]", "[hidden]"]
INLINE = set("a abbr b bdi bdo cite code del em font i ins kbd mark q s samp small span strong sub sup time u var wbr".split())
HEADINGS = ["h1", "h2", "h3", "h4", "h5", "h6"]

Section = tuple[int, str, list[str]]  # level of its heading (0: none), heading, parts of the text


@dataclass(frozen=True)
class Documents(FolderFiles):
    """A passage has the title "DOCUMENT - HEADING - HEADING BELOW IT" and the id FILE#NUMBER. The title of a document is HTML's <title>, the first
    heading, or the title that a PDF states; else the name of its file. Scripts, styles and navigation of HTML are left out."""

    name = "documents"
    form = "a text .txt, Markdown .md, a page .html or a .pdf, or a folder of them"
    endings = (".txt", ".md", ".markdown", ".html", ".htm", ".pdf")

    chunk_words: int = 150
    """Words in a window, at most. MiniLM reads about 190, title included."""
    chunk_stride: int = 110
    """Words from one window's start to the next's: the rest is overlap."""

    @classmethod
    def recognises(cls, path: Path, entry: dict[str, Any]) -> bool:
        """A folder that holds more documents than data files."""
        if path.is_dir():
            return len(sort_out(path, cls.endings)[0]) > len(data_files(path))
        return not entry and ending_of(path) in cls.endings

    def read(self, file: Path) -> Iterator[Located]:
        """One record, `title` and `sections`; before it, a ValueError for each page of a PDF that cannot be read."""
        if ending_of(file) == ".pdf":
            yield from _pdf(file)
            return
        lines: list[str] = []
        try:
            with open_text(file) as text:
                lines.extend(map(check_text, text))  # up to the first that is not UTF-8
            form = FORMS.get(ending_of(file))
            title, sections = form("".join(lines)) if form else ("", [(0, "", lines)])
            yield "1", {"title": " ".join(title.split()) or file.stem, "sections": sections}
        except (ValueError, OSError, EOFError, zlib.error) as error:
            yield str(len(lines) + 1), error if isinstance(error, ValueError) else ValueError(f"the file cannot be read ({error})")

    def passages(self, record: dict[str, Any], file: Path, default_id: str) -> Iterable[Passage]:
        name, numbers = default_id.rpartition(":")[0] or file.name, itertools.count()
        for title, text in titled(record["title"], record["sections"]):
            for window in word_windows(text, self.chunk_words, self.chunk_stride) if text else [""]:
                yield Passage(id=f"{name}#{next(numbers)}", title=title, text=window)


def titled(title: str, sections: list[Section]) -> Iterator[tuple[str, str]]:
    """(title of its passages, text) of each section. Headings in the title are not repeated; one without text or smaller headings is a passage."""
    above: list[tuple[int, str]] = []
    for (level, heading, parts), (following, _, _) in itertools.pairwise([*sections, (0, "", [])]):
        heading, text = " ".join(heading.split()), "".join(parts).strip()
        above = [*(pair for pair in above if pair[0] < level), (level, heading)]
        if text or (heading and following <= level):
            yield " - ".join([title, *(name for _, name in above if name and f" {name} " not in f" {title} ")]), text


def _markdown(text: str) -> tuple[str, list[Section]]:
    """Marks other than those of headings stay in the text."""
    sections: list[Section] = [(0, "", [])]
    title, fence = "", ""
    if front := FRONT_MATTER.match(text):
        sections[0][2].append(front[1] + "\n\n")
        text = text[front.end() :]
        title = next((line[6:].strip(" \"'") for line in front[1].splitlines() if line.startswith("title:")), "")
    for line in text.splitlines(keepends=True):
        lines, mark = sections[-1][2], FENCE.match(line)
        if mark and not fence:
            fence = mark[1]
        elif fence:
            fence = "" if mark and mark[1].startswith(fence) and not line.strip().strip(fence[0]) else fence
        elif found := HEADING.fullmatch(line):
            sections.append((len(found[1]), found[2] or "", []))
            continue
        elif UNDERLINE.fullmatch(line) and lines and not NO_PARAGRAPH.match(lines[-1]) and (len(lines) == 1 or not lines[-2].strip()):
            sections.append((1 if "=" in line else 2, lines.pop(), []))
            continue
        lines.append(line)
    return title or next((heading for _, heading, _ in sections if heading.strip()), ""), sections


def _html(text: str) -> tuple[str, list[Section]]:
    from bs4 import BeautifulSoup
    from bs4.exceptions import ParserRejectedMarkup

    try:
        with warnings.catch_warnings(action="ignore"):  # about texts that look like an address, or like XML
            soup = BeautifulSoup(text, "html.parser")
    except ParserRejectedMarkup:
        raise ValueError("no HTML that can be read; expected every <![ in it to end with ]>") from None
    for tag in soup.select(",".join(NOT_READ)):
        tag.decompose()
    for tag in soup.find_all(lambda tag: tag.name not in INLINE):  # what stands in blocks of its own is no part of a word
        tag.insert_before(" ")
        tag.insert_after(" ")
    title = soup.title.extract().get_text() if soup.title else ""
    sections: list[Section] = [(0, "", [])]
    current = None
    for part in soup.strings:
        heading = part.find_parent(HEADINGS)
        if heading is None:
            sections[-1][2].append(part)
        elif heading is not current:
            current = heading
            sections.append((int(heading.name[1]), heading.get_text(), []))
    first = next((heading for level, heading, _ in sections if level == 1 and heading.strip()), "")
    return title if title.strip() else first, sections


FORMS = {".md": _markdown, ".markdown": _markdown, ".html": _html, ".htm": _html}  # text -> (title, sections)


def _pdf(file: Path) -> Iterator[Located]:
    import pypdf

    logging.getLogger("pypdf").setLevel(logging.CRITICAL)  # it warns of each oddity that it gets over
    try:
        reader = pypdf.PdfReader(file)
        if reader.is_encrypted and not reader.decrypt(""):
            raise ValueError("it is encrypted: save it again without a password")
        title, pages = (reader.metadata and reader.metadata.title) or "", list(reader.pages)
    except Exception as error:  # damaged bytes make pypdf raise anything
        yield "1", ValueError(f"no PDF that can be read ({one_line(error)}); expected a complete one")
        return
    texts = []
    for number, page in enumerate(pages, 1):
        try:
            texts.append(page.extract_text().encode(errors="replace").decode() + "\n")  # halves of surrogate pairs become question marks
        except Exception as error:
            yield f"page {number}", ValueError(f"its text cannot be read ({one_line(error)})")
    if any(map(str.strip, texts)):
        yield "1", {"title": " ".join(str(title).split()) or file.stem, "sections": [(0, "", texts)]}
    elif len(texts) == len(pages):
        fix = "if its pages are scanned, run text recognition (OCR) first; on_error=skip leaves it out"
        yield "1", ValueError(f"no text in this PDF: {fix}")

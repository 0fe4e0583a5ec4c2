"""Reads zip, tar (packed or not) and 7z, and writes the files that a loader reads from the archives of sets that are published in other forms. Only
regular files come out, under names without folders: never outside the folder of the set."""

import io
import json
import tarfile
import tempfile
import zipfile
import zlib
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from fnmatch import fnmatchcase
from pathlib import Path, PurePosixPath
from typing import IO, Any
from urllib.parse import unquote

from experiments.config.reading import RunConfigError

ENDINGS = (".zip", ".tar.gz", ".tgz", ".tar", ".7z")
Record = dict[str, Any]
BROKEN = (tarfile.TarError, zipfile.BadZipFile, zlib.error, EOFError, OSError)  # of a damaged archive, or a full disk


def unpacked(archive: Path, wanted: Sequence[str], folder: Path, report: Callable[[str, int, int], None]) -> list[str]:
    """Writes the files of the archive with the `wanted` names into `folder`; returns their names. Raises RunConfigError, BROKEN."""
    if not (zipfile.is_zipfile(archive) or tarfile.is_tarfile(archive) or archive.name.endswith(ENDINGS)):
        return [archive.name]  # published as an archive once, and plain by now
    names = []
    for path, content, size in members(archive, lambda path: any(fnmatchcase(path.name, name) for name in wanted)):
        with written(folder / path.name) as file:
            while block := content.read(2**20):
                file.write(block)
                report(path.name, file.tell(), size)
        names.append(path.name)
    if missing := [name for name in wanted if not any(fnmatchcase(found, name) for found in names)]:
        raise RunConfigError(f"{archive} holds no {', '.join(missing)}: it is not the published archive, or a new version of it")
    return names


def members(archive: Path, wanted: Callable[[PurePosixPath], bool]) -> Iterator[tuple[PurePosixPath, IO[bytes], int]]:
    """(path, content, bytes) of the wanted regular files, to be read one after the other. Raises BROKEN, as reading does."""
    if zipfile.is_zipfile(archive):
        with zipfile.ZipFile(archive) as opened:
            for info in opened.infolist():
                if not info.is_dir() and wanted(path := PurePosixPath(info.filename)):
                    with opened.open(info) as content:
                        yield path, content, info.file_size
    elif archive.suffix == ".7z":
        yield from _members_of_7z(archive, wanted)
    else:
        with tarfile.open(archive, "r|*") as stream:
            for member in stream:
                if member.isreg() and wanted(path := PurePosixPath(member.name)) and (found := stream.extractfile(member)):
                    yield path, found, member.size


def _members_of_7z(archive: Path, wanted: Callable[[PurePosixPath], bool]) -> Iterator[tuple[PurePosixPath, IO[bytes], int]]:
    py7zr = seven_zip()
    with tempfile.TemporaryDirectory(dir=archive.parent, prefix=".7z-") as folder:
        try:
            with py7zr.SevenZipFile(archive) as opened:
                names = [name for name in opened.getnames() if wanted(PurePosixPath(name))]
                opened.extract(path=folder, targets=names)  # refuses paths and links that lead outside
        except py7zr.exceptions.ArchiveError as error:
            raise OSError(str(error)) from None
        for name in names:
            path = Path(folder, name)
            if path.is_file() and not path.is_symlink():
                with path.open("rb") as content:
                    yield PurePosixPath(name), content, path.stat().st_size


def seven_zip():
    """The library for .7z, which is no dependency. Raises RunConfigError where it is missing."""
    try:
        import py7zr
    except ImportError:
        raise RunConfigError("the set is published as .7z: pip install py7zr, then call again") from None
    return py7zr


@contextmanager
def written(file: Path) -> Iterator[IO[bytes]]:
    """A file that is there when it is complete."""
    part = file.with_name(f".{file.name}.writing")
    with part.open("wb") as opened:
        yield opened
    part.replace(file)


def ottqa(archive: Path, folder: Path) -> list[str]:
    """Development questions, all tables, the passages linked by gold tables. Gold passages, and whether a table answers, are those of the trace."""
    asked = [_ottqa_question(record) for record in _named(archive, "dev.traced.json")["dev.traced.json"]]
    gold = {record["gold_table_id"] for record in asked}
    tables = (_ottqa_table(table) for _, table in _json_files(archive, lambda path: path.parent.name == "traindev_tables_tok"))
    wanted = _json_files(archive, lambda path: path.parent.name == "traindev_request_tok" and path.stem in gold)
    passages = {link: text for _, linked in wanted for link, text in linked.items()}
    titles = {link: unquote(link.removeprefix("/wiki/")).replace("_", " ") for link in passages}
    return [
        _lines(folder / "questions_dev.jsonl", asked),
        _lines(folder / "tables.jsonl", (table for table in tables if table["header"])),
        _lines(folder / "passages.jsonl", ({"id": link, "title": titles[link], "text": text} for link, text in passages.items())),
    ]


def _ottqa_question(record: Record) -> Record:
    nodes = record["answer-node"]
    return {
        "id": record["question_id"],
        "question": record["question"],
        "answer": record["answer-text"],
        "gold_table_id": record["table_id"],
        "answer_nodes": nodes,
        "gold_passage_ids": sorted({link for _, _, link, where in nodes if where == "passage" and link}),
        "answer_in": "table" if any(where == "table" for *_, where in nodes) else "passage",
    }


def _ottqa_table(table: Record) -> Record:
    kept = {key: table[key] for key in ("title", "url", "section_title", "section_text", "intro")}
    header = [text for text, _ in table["header"]]
    rows = [[text for text, _ in row] for row in table["data"]]
    return {"table_id": table["uid"], **kept, "header": header, "rows": [row for row in rows if len(row) == len(header)]}


def webqa(archive: Path, folder: Path) -> list[str]:
    """The validation questions about pictures, with their first picture, in the form of the paper's file."""
    questions = _named(archive, "WebQA_train_val.json")["WebQA_train_val.json"].values()
    mine = [record for record in questions if record["split"] == "val" and record["img_posFacts"]]

    def asked(one: Record) -> Record:
        answers, picture = [text.strip('"') for text in one["A"]], one["img_posFacts"][0]["image_id"]
        return {"question": one["Q"].strip('"'), "answer": answers, "image_id": str(picture)}

    return [_lines(folder / "webqa_val.jsonl", map(asked, mine))]


def openwikitable(archive: Path, folder: Path) -> list[str]:
    """The validation questions in the form of the paper's file (several answers joined, as its own reader does), and the split tables."""
    found = _named(archive, "valid.json", "splitted_tables.json")
    asked = ({"question": one["question"], "answer": ", ".join(map(str, one["answer"]))} for one in _rows(found["valid.json"]))
    numbered = enumerate(_rows(found["splitted_tables.json"]), 1)
    kept = ("section_title", "header", "rows")
    tables = ({"table_id": str(n), "title": one["page_title"]} | {key: one[key] for key in kept} for n, one in numbered)
    return [_lines(folder / "openwikitqa_val.jsonl", asked), _lines(folder / "tables.jsonl", tables)]


def _rows(table: Any) -> list[Record]:
    """The records of a table as pandas writes it: a list of them, or {column: {row: value}}."""
    if isinstance(table, list):
        return table
    return [dict(zip(table, values, strict=True)) for values in zip(*(column.values() for column in table.values()), strict=True)]


def tabfact(archive: Path, folder: Path) -> list[str]:
    """The validation statements as the paper asks them ("is STATEMENT?", yes or no), and all tables, with their captions as titles."""
    parts = _named(archive, *(f"{part}_examples.json" for part in ("val", "train", "test")))
    captions = {table: caption for examples in parts.values() for table, (_, _, caption) in examples.items()}
    asked = (
        {"question": f"is {statement}?", "answer": "yes" if label else "no"}
        for statements, labels, _ in parts["val_examples.json"].values()
        for statement, label in zip(statements, labels, strict=True)
    )
    return [_lines(folder / "tabfact_val.jsonl", asked), _lines(folder / "tables.jsonl", _tabfact_tables(archive, captions))]


def _tabfact_tables(archive: Path, captions: dict[str, str]) -> Iterator[Record]:
    for path, content, _ in members(archive, lambda path: path.parent.name == "all_csv" and path.suffix == ".csv"):
        header, *rows = [line.split("#") for line in io.TextIOWrapper(content, "utf-8").read().splitlines() if line] or [[]]
        if header:
            kept = [row for row in rows if len(row) == len(header)]
            yield {"table_id": path.name, "title": captions.get(path.name, ""), "header": header, "rows": kept}


CONVERTERS: dict[str, Callable[[Path, Path], list[str]]] = {convert.__name__: convert for convert in (ottqa, webqa, openwikitable, tabfact)}
"""(archive, folder) -> names of the files that were written. Each raises RunConfigError, BROKEN, and what records in another form raise."""


def _json_files(archive: Path, wanted: Callable[[PurePosixPath], bool]) -> Iterator[tuple[str, Any]]:
    """(name, content) of the JSON files of an archive."""
    for path, content, _ in members(archive, lambda path: path.suffix == ".json" and wanted(path)):
        yield path.name, json.load(content)


def _named(archive: Path, *names: str) -> dict[str, Any]:
    """Name -> content. Raises RunConfigError where one is missing."""
    found = dict(_json_files(archive, lambda path: path.name in names))
    if missing := set(names) - found.keys():
        raise RunConfigError(f"{archive} holds no {', '.join(sorted(missing))}: it is not the published archive, or a new version of it")
    return found


def _lines(file: Path, records: Iterable[Record]) -> str:
    with written(file) as opened:
        for record in records:
            opened.write(json.dumps(record, ensure_ascii=False).encode() + b"\n")
    return file.name

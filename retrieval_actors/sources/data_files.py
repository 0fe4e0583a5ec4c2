"""The reader of data files: JSON Lines, a JSON array, Parquet, XLSX, TSV or CSV with a header; in UTF-8, plain or packed by gzip or bzip2. The
content decides, not the name (except for .tsv, .csv and .xlsx). At most one record, or one array, is in memory at a time."""

import bz2
import contextlib
import csv
import datetime
import decimal
import gzip
import itertools
import json
import re
import warnings
import zlib
from collections.abc import Iterator
from pathlib import Path
from typing import Any, TextIO, cast

import pyarrow as pa
import pyarrow.parquet as pq

SPREADSHEETS = (".csv", ".tsv", ".xlsx", ".parquet", ".pq")
ENDINGS = (".jsonl", ".ndjson", ".json", *SPREADSHEETS)  # files that are read from a folder
BLANKS = " \t\r\n\f\v\ufeff"  # with the byte order marks of concatenated files
BLANKS_AND_COMMAS = re.compile(r"[\s,]*")
HALF_PAIR = re.compile(r"\\u[dD][89a-fA-F]")
csv.field_size_limit(2**30)  # 128 KiB would refuse long articles
warnings.filterwarnings("ignore", module="openpyxl")  # about styles and menus that are not read

Located = tuple[str, Any]  # (place, record); the place is a line (`12`), a row (Parquet; XLSX: `Sheet!12`), or `12 (element 3)` of an array


class DataError(ValueError):
    """A file or record that cannot be used; the message is one line: FILE:LINE, what was found, what was expected."""


def read_records(file: str | Path) -> Iterator[tuple[str, dict[str, Any]]]:
    """(`FILE:LINE`, record), without keys whose value is null or NaN. Raises DataError for the first broken one."""
    for place, record in records(Path(file)):
        if isinstance(record, ValueError):
            raise DataError(f"{file}:{place}: {record}")
        yield f"{file}:{place}", _without_nulls(record)


def records(file: Path) -> Iterator[Located]:
    """(place, record as a dict, NaN as None, or a ValueError: a broken record, an unreadable rest of the file). Raises DataError without a file."""
    place = "1"
    try:
        if file.is_dir():
            raise DataError(f"{file}: a folder, expected a file; name one of the files in it")
        if not file.is_file():
            raise DataError(f"{file}: {'no regular file; save it to a disk first' if file.exists() else 'no such file; check the path'}")
        for place, record in _reader(file):
            yield place, record
    except (OSError, EOFError, zlib.error, csv.Error, pa.ArrowException, UnicodeDecodeError) as error:
        if isinstance(error, OSError) and error.errno:
            raise DataError(f"{file}: cannot be read ({error.strerror})") from None
        yield place, ValueError(f"the file cannot be read beyond this line ({one_line(error)}): is it complete?")


def _reader(file: Path) -> Iterator[Located]:
    with file.open("rb") as content:
        if content.read(4) == b"PAR1" or ending_of(file) in (".parquet", ".pq"):
            return _parquet_rows(file)
    if ending_of(file) == ".xlsx":
        return _workbook_rows(file)
    delimiter = {".tsv": "\t", ".csv": ","}.get(ending_of(file))
    return _table_rows(file, delimiter) if delimiter else _json_records(file)


def one_line(error: object) -> str:
    return " ".join(str(error).split()) or type(error).__name__


def data_files(folder: Path) -> list[Path]:
    """The data files of a folder, by their endings, in order."""
    return sorted(file for file in folder.iterdir() if ending_of(file) in ENDINGS and not is_hidden(file.name) and file.is_file())


def is_hidden(name: str) -> bool:
    """Also the lock file beside a document that is open in an office program."""
    return name.startswith((".", "~$"))


def open_text(file: Path, newline: str | None = None) -> TextIO:
    """The text of a file, unpacked, without byte order mark; bytes that are no UTF-8 become surrogates (see `check_text`)."""
    with file.open("rb") as plain:
        head = plain.read(3)
    open_file: Any = gzip.open if head.startswith(b"\x1f\x8b") else bz2.open if head == b"BZh" else open
    return cast("TextIO", open_file(file, "rt", encoding="utf-8-sig", errors="surrogateescape", newline=newline))


def check_text(text: str) -> str:
    """The text itself. Raises ValueError if bytes of it were no UTF-8."""
    try:
        text.encode()
    except UnicodeEncodeError as error:
        byte, place = ord(error.object[error.start]) & 0xFF, error.start + 1
        raise ValueError(f"not UTF-8 (byte {byte:#04x} at place {place}); expected UTF-8: save the file as that") from None
    return text


def _json_records(file: Path) -> Iterator[Located]:
    begun = False
    with open_text(file) as text:
        for number, line in enumerate(text, 1):
            content = line.lstrip(BLANKS)
            if content.startswith("[") and not begun:
                yield from array_records(content + text.read(), number)
                return
            if content:
                begun = True
                try:
                    yield str(number), _checked(DECODER.decode(check_text(line).strip(BLANKS)), line)
                except (ValueError, RecursionError) as error:
                    yield str(number), _not_json(error, "column {column}")


def array_records(text: str, line: int, whole: bool = True) -> Iterator[Located]:
    """The elements of the array that begins in `line`, up to the first that is no JSON. `whole`: the text has to end with the array."""
    at, number = 1, 0
    while True:
        end = cast("re.Match[str]", BLANKS_AND_COMMAS.match(text, at)).end()
        line, at, number = line + text.count("\n", at, end), end, number + 1
        place = f"{line} (element {number})"
        if at == len(text):
            yield place, ValueError("the array has no end: is the file complete?")
            return
        if text[at] == "]":
            if whole and (rest := text[at + 1 :].strip()):
                found = f"found {rest[:20]!r} after the end of the array"
                yield str(line), ValueError(f"{found}; expected one array, or one object on each line")
            return
        try:
            record, end = DECODER.raw_decode(text, at)
        except (ValueError, RecursionError) as error:
            found = str(_not_json(error, f"line {line + text.count(chr(10), at, getattr(error, 'pos', at))}"))
            yield place, ValueError(f"{found}; nothing after it is read")
            return
        try:
            yield place, _checked(record, check_text(text[at:end]))
        except ValueError as error:
            yield place, error
        line, at = line + text.count("\n", at, end), end


def _not_json(error: Exception, where: str) -> ValueError:
    if "int_max_str_digits" in str(error):
        return ValueError("holds a number of thousands of digits; write it in quotes, as text")
    if isinstance(error, json.JSONDecodeError):
        found = f"{error.msg.removesuffix(' at')} at {where.format(column=error.colno)}, found {error.doc[error.pos : error.pos + 30].strip()!r}"
        return ValueError(f"not JSON ({found}); expected one object on each line, or an array of objects")
    return ValueError("not JSON that can be read: nested too deeply") if isinstance(error, RecursionError) else cast("ValueError", error)


def _checked(record: Any, source: str) -> dict[str, Any]:
    """Raises ValueError for anything but an object, and for half of a surrogate pair, which is legal JSON but no text."""
    if not isinstance(record, dict):
        raise ValueError(f"found {type(record).__name__}, expected a JSON object")
    if HALF_PAIR.search(source):
        try:
            json.dumps(record, ensure_ascii=False).encode()
        except UnicodeEncodeError as error:
            half = f"\\u{ord(error.object[error.start]):04x}"
            raise ValueError(f"found {half}, half of a surrogate pair; expected whole characters: write both halves, or none") from None
    return record


def _refuse_repeated_keys(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    found = dict(pairs)
    if len(found) < len(pairs):
        keys = [key for key, _ in pairs]
        raise ValueError(f"key {next(key for key in keys if keys.count(key) > 1)!r} occurs twice in one object; expected every key once")
    return found


DECODER = json.JSONDecoder(object_pairs_hook=_refuse_repeated_keys, parse_constant=lambda name: None if name == "NaN" else float(name))


def _parquet_rows(file: Path) -> Iterator[Located]:
    """Rows from 1, without the index that pandas stores beside the columns."""
    try:
        table = pq.ParquetFile(file)
    except (pa.ArrowException, OSError) as error:
        raise DataError(f"{file}: not Parquet, or not complete ({str(error).splitlines()[0]}); write or download it again") from None
    with table:
        columns = [name for name in table.schema_arrow.names if not name.startswith("__index_level_")]
        if len(set(columns)) < len(columns):
            raise DataError(f"{file}: two columns have one name ({', '.join(columns)}); rename one")
        batches = (batch.select(columns) for batch in table.iter_batches(batch_size=256))  # rows may hold pictures
        for number, row in enumerate((batch.slice(place, 1) for batch in batches for place in range(batch.num_rows)), 1):
            try:
                yield str(number), _without_nan(row.to_pylist()[0])
            except UnicodeDecodeError as error:
                yield str(number), ValueError(f"a text is not UTF-8 (byte {error.object[error.start]:#04x}); expected UTF-8")


def _table_rows(file: Path, delimiter: str) -> Iterator[Located]:
    """Lines below the header; an empty field has no value. A CSV with semicolons is what some spreadsheet programs write."""
    with open_text(file) as text:
        first = text.readline()
    if delimiter == "," and ";" in first and "," not in first:
        delimiter = ";"
    with open_text(file, newline="") as text:
        rows = csv.reader(text, delimiter=delimiter, strict=True)
        header = [name.strip() for name in next(filter(None, rows), [])]
        if len(set(header)) < len(header):
            raise DataError(f"{file}:{rows.line_num}: two columns have one name ({', '.join(header)}); rename one")
        while True:
            place = str(rows.line_num + 1)
            try:
                row = next(rows, None)
                if row is None:
                    return
                if len(row) == len(header):
                    yield place, {name: check_text(value) or None for name, value in zip(header, row, strict=True) if name}
                elif any(map(str.strip, row)):
                    yield place, ValueError(f"{len(row)} fields, the header has {len(header)} ({', '.join(header)[:60]})")
            except csv.Error as error:
                yield place, ValueError(f"{error}; expected a quoted field to end with its quote, and quotes in it to be doubled")
            except ValueError as error:
                yield place, error


def _workbook_rows(file: Path) -> Iterator[Located]:
    """Rows below the first that is not empty, of each visible sheet; the place is `SHEET!ROW` where there are several. Empty rows are left out.
    A formula has the value that was saved with it. A column without a name is called by its letter."""
    import openpyxl
    from openpyxl.utils import get_column_letter

    try:
        with contextlib.closing(openpyxl.load_workbook(file, read_only=True, data_only=True)) as book:
            sheets = [sheet for sheet in book.worksheets if sheet.sheet_state == "visible"]
            for sheet in sheets:
                sheet.reset_dimensions()  # some programs write wrong ones
                rows = ((number, [plain_cell(cell) for cell in row]) for number, row in enumerate(sheet.iter_rows(values_only=True), 1))
                filled = ((f"{sheet.title}!{n}" if len(sheets) > 1 else str(n), row) for n, row in rows if any(c is not None for c in row))
                place, header = next(filled, ("1", []))
                names = ["" if name is None else str(name).strip() for name in header]
                if len(set(given := list(filter(None, names)))) < len(given):
                    yield place, ValueError(f"two columns have one name ({', '.join(given)}); rename one")
                    continue
                for place, row in filled:
                    pairs = enumerate(itertools.zip_longest(names, row), 1)
                    yield place, {name or get_column_letter(n): cell for n, (name, cell) in pairs if name or cell is not None}
    except Exception as error:  # damaged files make openpyxl raise anything
        expected = "expected a complete one without a password: save it again"
        yield "1", ValueError(f"no XLSX workbook that can be read ({one_line(error)}); {expected}")


def plain_cell(value: Any) -> Any:
    """Dates and times as ISO text, numbers with the 15 digits that a spreadsheet program shows, an empty text as None; the rest as it is."""
    if isinstance(value, datetime.datetime) and value.time() == datetime.time():
        return str(value.date())
    if isinstance(value, datetime.date | datetime.time | datetime.timedelta | decimal.Decimal):
        return str(value)
    return float(f"{value:.15g}") if isinstance(value, float) else None if value == "" else value


def ending_of(file: Path) -> str:
    """`.jsonl` of `a.jsonl.gz`."""
    ending = file.suffix.lower()
    return Path(file.stem).suffix.lower() if ending in (".gz", ".bz2") else ending


def _without_nan(value: Any) -> Any:
    if isinstance(value, dict):
        return {key: _without_nan(found) for key, found in value.items()}
    if isinstance(value, list):
        return [_without_nan(found) for found in value]
    return None if isinstance(value, float) and value != value else value


def _without_nulls(value: Any) -> Any:
    if isinstance(value, dict):
        return {key: _without_nulls(found) for key, found in value.items() if found is not None}
    return [_without_nulls(found) for found in value] if isinstance(value, list) else value

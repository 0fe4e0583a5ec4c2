"""Reads zip, tar (packed or not) and 7z. Only regular files come out, under names without folders: never outside the folder of the set."""

import tarfile
import tempfile
import zipfile
import zlib
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from fnmatch import fnmatchcase
from pathlib import Path, PurePosixPath
from typing import IO

from experiments.config.reading import RunConfigError

ENDINGS = (".zip", ".tar.gz", ".tgz", ".tar", ".7z")
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

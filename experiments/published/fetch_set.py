"""The published data sets of `sets.yaml`: downloads what is missing of one, checks it, unpacks it, and records all checksums in `fetched.lock`.

`fetched.lock` (JSON) has, for each published file, its address, bytes and SHA-256, and those of the files that came of it. Where no checksum is
published, that of the first download counts from then on: copied to another machine, the file tells whether that one gets the same."""

import json
import os
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path, PurePosixPath
from typing import Any
from urllib.parse import urlsplit

from rich.filesize import decimal

from experiments.config.reading import RunConfigError, check_keys, from_yaml, typed, wrong_value
from experiments.published.archives import BROKEN, CONVERTERS, seven_zip, unpacked
from experiments.published.download import NotFetched, Report, checksum, download

TABLE = Path(__file__).with_name("sets.yaml")
HUB = "https://huggingface.co"  # HF_ENDPOINT names a mirror of it
LOCK = "fetched.lock"
Lock = dict[str, dict[str, Any]]  # name of the published file -> address, bytes, sha256, files: {name: {bytes, sha256}}


@dataclass(frozen=True)
class PublishedFile:
    address: str = ""
    name: str = ""  # in the folder of the set; default: the end of the address
    bytes: int = 0  # 0: unknown
    sha256: str = ""  # empty: none is known, that of the first download is recorded
    unpack: list[str] = field(default_factory=list)  # names, or patterns of names, of what is taken out of the archive
    convert: str = ""  # a key of CONVERTERS
    by_hand: str = ""  # why no program can download it
    optional: bool = False


@dataclass(frozen=True)
class PublishedSet:
    title: str = ""
    licence: str = ""
    page: str = ""
    files: list[PublishedFile] = field(default_factory=list)
    use: list[str] = field(default_factory=list)  # settings or commands that use the set, with FOLDER for that folder
    notes: list[str] = field(default_factory=list)

    @property
    def bytes(self) -> int:
        """To download; 0 where the size of a file is unknown."""
        sizes = [file.bytes for file in self.files]
        return sum(sizes) if all(sizes) else 0


def published_sets(table: str = "") -> dict[str, PublishedSet]:
    """Name -> set, of `table` or, if empty, of ours. Raises RunConfigError that names the set and the key."""
    path = Path(table or TABLE)
    if not path.is_file():
        raise wrong_value("sets", table, f"a YAML file in the form of {TABLE}")
    tree = from_yaml(path.read_bytes(), str(path))
    if not isinstance(tree, dict) or not all(isinstance(entry, dict) for entry in tree.values()):
        raise RunConfigError(f"{path}: expected the name of a set with title, licence, page, files and use below it")
    return {name: _set(entry, f"{path}: {name}.") for name, entry in tree.items()}


def _set(entry: dict, where: str) -> PublishedSet:
    check_keys(entry, PublishedSet, where)
    for file in entry.get("files", ()):
        check_keys(file, PublishedFile, f"{where}files.")
        end = PurePosixPath(urlsplit(str(file.get("address", ""))).path).name
        file["name"] = name = file.get("name") or end
        if not name or PurePosixPath(name).name != name or name.startswith("."):
            raise RunConfigError(f"{where}files.name is {name!r}; expected the name of a file, without folders")
        if (convert := file.get("convert", "")) and convert not in CONVERTERS:
            raise wrong_value(f"{where}files.convert", convert, f"one of {', '.join(CONVERTERS)}", CONVERTERS)
    return typed(PublishedSet, entry, section=where)


def fetch_set(name: str, entry: PublishedSet, folder: Path, accept: bool, say: Callable[[str], None], report: Report) -> int:
    """How many files were fetched; 0: all were there and are unchanged. The caller holds the folder. `accept`: other checksums than the known ones
    are recorded instead of refused. Raises RunConfigError, one line, after it has said what to do by hand."""
    folder.mkdir(parents=True, exist_ok=True)
    lock = read_lock(folder)
    if lock:
        say("the files that are there are compared with their checksums")
    todo = [file for file in entry.files if not is_there(folder, lock.get(file.name), accept)]
    if accept:
        write_lock(folder, lock)
    if any(file.name.endswith(".7z") for file in todo):
        seven_zip()  # before the download
    left = list(todo)
    try:
        for file in todo:
            if fetch_file(file, folder, lock, accept, report):
                left.remove(file)
    except NotFetched as error:
        say("by hand, with a browser or on a machine with a network:")
        for missing in left:
            if not (folder / missing.name).exists():
                say(f"  {missing.address}  ->  {folder / missing.name}")
        again = f"then call r1-router fetch {name} again: it checks and unpacks them, and goes on where it stopped"
        raise RunConfigError(
            f"{name}: {file.address} was not fetched ({error}); save the files listed above in {folder}, {again}"
        ) from None
    except OSError as error:
        raise RunConfigError(f"{error.filename or folder}: cannot be read or written ({error.strerror})") from None
    for file in left:
        what = f"{file.address} has to be downloaded by hand ({file.by_hand}): save it as {folder / file.name}"
        if not file.optional:
            raise RunConfigError(f"{name}: {what}, and call r1-router fetch {name} again: it checks and unpacks it")
        say(f"left out: {what}")
    return len(todo) - len(left)


def fetch_file(file: PublishedFile, folder: Path, lock: Lock, accept: bool, report: Report) -> bool:
    """Whether it is there now: what has to be downloaded by hand may not be. Raises NotFetched, RunConfigError, OSError."""
    place, known = folder / file.name, file.sha256 or lock.get(file.name, {}).get("sha256", "")
    by_hand = place.exists()
    if not by_hand:
        if file.by_hand:
            return False
        download(file.address.replace(HUB, os.environ.get("HF_ENDPOINT", HUB).rstrip("/"), 1), place, known, report)
    found = checksum(place).hex()
    if known and found != known and not accept:
        if not by_hand:
            place.unlink()
        whose = "published" if file.sha256 else f"recorded in {folder / LOCK}"
        fix = "the file was damaged on the way, or there is a new version of it; try again, or take it as it is with accept=true"
        raise RunConfigError(f"{place}: its sha256 is {found}; the one {whose} is {known}: {fix}")
    size = place.stat().st_size
    try:
        if file.convert:
            names = CONVERTERS[file.convert](place, folder)
        else:
            names = unpacked(place, file.unpack, folder, report) if file.unpack else [file.name]
    except BROKEN as error:
        why = f"{place} cannot be unpacked ({' '.join(str(error).split())})"
        raise RunConfigError(f"{why}: remove it and call again if it is damaged, free space if the disk is full") from None
    except (KeyError, TypeError, ValueError, AttributeError) as error:
        if isinstance(error, RunConfigError):
            raise
        raise RunConfigError(f"{place}: not in the form in which {file.convert} was published ({type(error).__name__}: {error})") from None
    record = {"address": file.address, "bytes": size, "sha256": found, "checksum": "published" if found == file.sha256 else "of this file"}
    lock[file.name] = record | {"files": {each: _state(folder / each) for each in names}}
    write_lock(folder, lock)
    if file.name not in names and not by_hand:
        place.unlink()
    return True


def is_there(folder: Path, record: dict[str, Any] | None, accept: bool) -> bool:
    """Raises RunConfigError if a file is not the one that was fetched; with `accept`, `record` has the new one."""
    files = record["files"] if record else {}
    if not files or not all((folder / name).is_file() for name in files):
        return False
    for name, known in files.items():
        if (found := _state(folder / name)) == known:
            continue
        if not accept:
            fix = "it was changed afterwards; remove it, and call again to fetch it anew, or keep it with accept=true"
            raise RunConfigError(f"{folder / name}: its sha256 is {found['sha256']}; {LOCK} says {known['sha256']}: {fix}")
        files[name] = found
    return True


def _state(file: Path) -> dict[str, Any]:
    return {"bytes": file.stat().st_size, "sha256": checksum(file).hex()}


def read_lock(folder: Path) -> Lock:
    file = folder / LOCK
    try:
        found = json.loads(file.read_text(encoding="utf-8")) if file.exists() else {}
        return {name: {**record, "files": dict(record["files"])} for name, record in found.items()}
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        raise RunConfigError(f"{file}: cannot be read ({error}); remove it: the files are fetched and recorded anew") from None


def write_lock(folder: Path, lock: Lock) -> None:
    part = folder / f".{LOCK}.writing"
    part.write_text(json.dumps(lock, indent=1, sort_keys=True) + "\n", encoding="utf-8")
    part.replace(folder / LOCK)


def size_of(entry: PublishedSet) -> str:
    return decimal(entry.bytes) if entry.bytes else "size unknown"

"""The table of published data sets, `sets.yaml`: where each lies, its licence, its files, and how it is used."""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path, PurePosixPath
from urllib.parse import urlsplit

from experiments.config.reading import RunConfigError, check_keys, from_yaml, typed, wrong_value
from experiments.published.convert import CONVERTERS

TABLE = Path(__file__).with_name("sets.yaml")


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

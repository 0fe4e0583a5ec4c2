"""A folder of pictures: the caption of each is a text file beside it, or its own name."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from retrieval_actors.pictures import read_picture
from retrieval_actors.records import Passage
from retrieval_actors.sources.data_files import Located, check_text, data_files, ending_of, open_text
from retrieval_actors.sources.documents import Documents
from retrieval_actors.sources.folder_files import FolderFiles, sort_out

PICTURES = (".png", ".jpg", ".jpeg")


@dataclass(frozen=True)
class Pictures(FolderFiles):
    """`mont_saint-michel.jpg` has the caption in `mont_saint-michel.txt`; without such a file, or if it is empty, "mont saint-michel"."""

    name = "pictures"
    form = "a picture .png, .jpg or .jpeg, or a folder of them; the caption of a.png is in a.txt, or it is its name"
    modality = "text_image"
    endings = PICTURES

    @classmethod
    def recognises(cls, path: Path, entry: dict[str, Any]) -> bool:
        """A folder of nothing but pictures and their captions, as far as any source could read it."""
        if not path.is_dir():
            return ending_of(path) in PICTURES
        documents = sort_out(path, Documents.endings)[0]
        return not data_files(path) and bool(sort_out(path, PICTURES)[0]) and all(map(is_caption, documents))

    def parts(self, path: Path) -> list[list[Path]]:
        """With the captions: the plan of a build names all files that decide its passages."""
        parts = super().parts(path)
        return [[file for picture in part for file in (picture, picture.with_suffix(".txt")) if file.is_file()] for part in parts]

    def left_out(self, path: Path) -> list[tuple[str, str]]:
        return [(name, reason) for name, reason in super().left_out(path) if not is_caption(path / name)]

    def read(self, file: Path) -> Iterator[Located]:
        if ending_of(file) in PICTURES:
            yield "1", {}

    def passages(self, record: dict[str, Any], file: Path, default_id: str) -> Iterable[Passage]:
        beside, caption = file.with_suffix(".txt"), ""
        if beside.is_file():
            try:
                with open_text(beside) as opened:
                    caption = check_text(opened.read()).strip()
            except ValueError as error:
                raise ValueError(f"{beside.name} is {error}") from None
        text = caption or file.stem.replace("_", " ")
        yield Passage(id=default_id.rpartition(":")[0] or file.name, text=text, image=read_picture(file.parent, file.name))


def is_caption(file: Path) -> bool:
    """Whether a picture of the same name lies beside the file."""
    return ending_of(file) == ".txt" and any(file.with_suffix(ending).is_file() for ending in (*PICTURES, *map(str.upper, PICTURES)))

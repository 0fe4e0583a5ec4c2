"""Records that are a passage each: texts (Search-R1, DPR, BEIR), captioned pictures, candidates of M-BEIR, files of pictures."""

from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from retrieval_actors.pictures import read_picture
from retrieval_actors.records import Passage
from retrieval_actors.sources.data_files import DataError, Located, check_text, data_files, ending_of, open_text
from retrieval_actors.sources.documents import Documents
from retrieval_actors.sources.source import FolderFiles, Source, id_of, picture_of, sort_out, text_of

TEXT_KEYS = ("text", "contents")
ID_KEYS = ("id", "idx", "_id")
CAPTION_FILES = ("captions.jsonl", "metadata.jsonl")
PICTURE_KEYS = ("file", "file_name")
PICTURES = (".png", ".jpg", ".jpeg")
MBEIR_KEYS = {"text": ("txt",), "image": ("img_path",), "image,text": ("img_path", "txt")}  # modality of a candidate -> the keys it needs


@dataclass(frozen=True)
class PassageLines(Source):
    """DPR's corpus is a table with the columns `id`, `text`, `title`; in Search-R1's, `contents` is the quoted title, a line break, the text."""

    name = "passages"
    form = "records with 'text' (or 'contents') or 'title', and optionally 'id' and 'image' (a path, or bytes)"

    title_from: str = ""
    """Keys that the title is made of, with commas between them (`country,section,field`); empty: `title`."""
    text_from: str = ""
    """Key of the text; empty: `text`, or `contents`."""

    @classmethod
    def recognises(cls, path: Path, entry: dict[str, Any]) -> bool:
        return any(key in entry for key in (*TEXT_KEYS, "title"))

    def passages(self, record: dict[str, Any], file: Path, default_id: str) -> Iterable[Passage]:
        title = self._title(record)
        key = self.text_from or next((key for key in TEXT_KEYS if key in record), "")
        if self.text_from and key not in record:
            raise ValueError(f"text_from names {key!r}, found the keys {sorted(record)}")
        if not key and not title and "title" not in record:
            raise ValueError(f"expected 'text', 'contents' or 'title', found the keys {sorted(record)}; text_from=KEY names another")
        text = text_of(record, key, "")
        first, _, rest = text.partition("\n")
        if key == "contents" and not title and len(first) > 1 and first[0] == first[-1] == '"':
            title, text = first[1:-1], rest
        own_id = next((id_of(record, key) for key in ID_KEYS if record.get(key) is not None), default_id)
        yield Passage(id=own_id, title=title, text=text, image=picture_of(record, "image", file.parent))

    def _title(self, record: dict[str, Any]) -> str:
        keys = [key.strip() for key in (self.title_from or "title").split(",")]
        if self.title_from and (missing := [key for key in keys if key not in record]):
            raise ValueError(f"title_from names {missing[0]!r}, found the keys {sorted(record)}")
        return " | ".join(filter(None, (text_of(record, key, "") for key in keys)))


@dataclass(frozen=True)
class CaptionedPictures(Source):
    """`file` (or `file_name`) is the path of a PNG or JPEG, and the id of the passage if there is no `id`."""

    name = "captions"
    form = "an object with 'file' (a path) and 'caption' on each line, and optionally 'entity' and 'id'"
    modality = "text_image"

    images: str = ""
    """Folder of the pictures, relative to that of the captions; empty: the same folder."""

    @classmethod
    def recognises(cls, path: Path, entry: dict[str, Any]) -> bool:
        if path.is_dir():
            return any((path / name).is_file() for name in CAPTION_FILES)
        return any(key in entry for key in PICTURE_KEYS) and ("caption" in entry or "text" in entry)

    def parts(self, path: Path) -> list[list[Path]]:
        """Of a folder, the file of captions."""
        if not path.is_dir():
            return [[path]]
        if not (found := [path / name for name in CAPTION_FILES if (path / name).is_file()]):
            raise DataError(f"{path}: neither {' nor '.join(CAPTION_FILES)} in this folder; expected {self.form}")
        return [found[:1]]

    def passages(self, record: dict[str, Any], file: Path, default_id: str) -> Iterable[Passage]:
        picture = text_of(record, next((key for key in PICTURE_KEYS if key in record), PICTURE_KEYS[0]))
        caption = text_of(record, "caption" if "caption" in record else "text")
        entity = text_of(record, "entity", "")
        own_id = id_of(record, "id") if record.get("id") is not None else picture
        image = read_picture(file.parent / self.images, picture)
        yield Passage(id=own_id, title="" if entity in caption else entity, text=caption, image=image)


@dataclass(frozen=True)
class MbeirCandidates(Source):
    """JSON Lines of M-BEIR's `cand_pool/`, as published with UniIR (arXiv 2311.17136); paths are relative to the folder with `mbeir_images/`."""

    name = "mbeir"
    form = "a candidate of M-BEIR with 'did', 'modality' (text, image, or image,text), 'txt' and 'img_path' on each line"
    modality = "text_image"

    images: str = ""
    """Folder that `img_path` is relative to, itself relative to that of SOURCE; empty: the nearest one above SOURCE with `mbeir_images/`."""

    @classmethod
    def recognises(cls, path: Path, entry: dict[str, Any]) -> bool:
        return "did" in entry and "modality" in entry

    def passages(self, record: dict[str, Any], file: Path, default_id: str) -> Iterable[Passage]:
        modality = ",".join(sorted(text_of(record, "modality").split(",")))
        if modality not in MBEIR_KEYS:
            raise ValueError(f"'modality' is {record['modality']!r}, expected one of {'; '.join(MBEIR_KEYS)}")
        content = {key: text_of(record, key) for key in MBEIR_KEYS[modality]}
        image = read_picture(self._folder(file), content["img_path"]) if "img_path" in content else None
        yield Passage(id=id_of(record, "did"), text=content.get("txt", ""), image=image)

    def _folder(self, file: Path) -> Path:
        if self.images:
            return file.parent / self.images
        return next((folder for folder in file.absolute().parents if (folder / "mbeir_images").is_dir()), file.parent)


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

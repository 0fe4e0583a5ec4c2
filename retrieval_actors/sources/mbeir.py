"""M-BEIR's candidate pools: JSON Lines as TIGER-Lab publishes them with UniIR (arXiv 2311.17136), under `cand_pool/`.

    {"did": "9:1", "txt": null, "img_path": "mbeir_images/mscoco_images/val2014/1.jpg", "modality": "image", "src_content": null}

Paths of pictures are relative to the folder that `cand_pool/` lies in.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from retrieval_actors.records import Passage
from retrieval_actors.sources.picture_files import read_picture
from retrieval_actors.sources.source import JsonLines, Place, id_of, text_of

NEEDED = {"text": ("txt",), "image": ("img_path",), "image,text": ("img_path", "txt")}
"""What a candidate of each modality has."""


@dataclass(frozen=True)
class MbeirCandidates(JsonLines):
    name = "mbeir"
    form = "a candidate of M-BEIR with 'did', 'modality' (text, image, or image,text), 'txt' and 'img_path' on each line"
    modality = "text_image"

    images: str = ""
    """Folder that `img_path` is relative to, as seen from that of SOURCE; empty: the nearest one above SOURCE that has `mbeir_images/`."""

    @classmethod
    def recognises(cls, path: Path, entry: dict[str, Any]) -> bool:
        return "did" in entry and "modality" in entry

    def of_entry(self, entry: dict[str, Any], place: Place) -> Iterable[Passage]:
        modality = ",".join(sorted(text_of(entry, "modality").split(",")))
        if modality not in NEEDED:
            raise ValueError(f"'modality' is {entry['modality']!r}, expected one of {'; '.join(NEEDED)}")
        content = {key: text_of(entry, key) for key in NEEDED[modality]}
        yield Passage(
            id=id_of(entry, "did"),
            text=content.get("txt", ""),
            image=read_picture(self._folder(place.file), content["img_path"]) if "img_path" in content else None,
        )

    def _folder(self, file: Path) -> Path:
        if self.images:
            return file.parent / self.images
        return next((folder for folder in file.absolute().parents if (folder / "mbeir_images").is_dir()), file.parent)

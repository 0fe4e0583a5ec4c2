"""A knowledge base on disk: a folder that is whole, or refused.

    kb.json                 who it is, its embedder, and for every other file its size and sha256
    passages-00000.arrow    passages of the first shard (Arrow IPC: memory-mapped, so processes of a machine share the pages)
    vectors-00000.faiss     their vectors, in the same order (FAISS IndexFlatIP, memory-mapped): what every answer is scored by
    index-00000.faiss       only where the search is approximate: an index that proposes candidates
    lexical/                only where it can be searched by words too: BM25 over all passages

Shards are consecutive slices: the position of a passage in the whole knowledge base is the first position of its shard plus its row.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field, replace
from functools import cached_property
from pathlib import Path, PurePosixPath
from typing import Any

import faiss
import numpy as np
import pyarrow as pa

from retrieval_actors.approximate_index import proposed, set_effort
from retrieval_actors.exact_search import exact_top_k, rescored
from retrieval_actors.records import KnowledgeBaseCard, Passage

MANIFEST = "kb.json"
LEXICAL = "lexical"
FORMAT = 2
SCHEMA = pa.schema([("id", pa.string()), ("title", pa.string()), ("text", pa.large_string()), ("image", pa.large_binary())])
MANIFEST_KEYS = {
    "format": int,
    "name": str,
    "retriever_name": str,
    "description": str,
    "modality": str,
    "embedder": str,
    "dimension": int,
    "metric": str,
    "index": str,
    "passages": int,
    "shards": list,
    "files": dict,
}


class KnowledgeBaseError(ValueError):
    """A folder that is no whole knowledge base; the message is one line that names the file and the mend."""


@dataclass(frozen=True)
class KnowledgeBase:
    folder: Path
    manifest: dict[str, Any]

    @classmethod
    def open(cls, folder: str | Path, verify: bool = True) -> KnowledgeBase:
        """Reads the manifest and checks every file: there, of the right size and, with `verify`, with the right checksum.

        Raises KnowledgeBaseError for a folder that is not whole. Vectors and passages are not read before a shard is opened.
        """
        folder = Path(folder)
        manifest = _read_manifest(folder)
        for name, recorded in manifest["files"].items():
            path = folder / name
            if (
                PurePosixPath(name).is_absolute()
                or ".." in PurePosixPath(name).parts
                or not isinstance(recorded, dict)
                or {"bytes", "sha256"} - recorded.keys()
            ):
                raise _refusal(folder / MANIFEST, f"has a malformed entry for file {name!r}")
            if not path.is_file():
                raise _refusal(path, "is missing")
            if path.stat().st_size != recorded["bytes"]:
                raise _refusal(path, f"has {path.stat().st_size} bytes, {recorded['bytes']} were written")
        base = cls(folder, manifest)
        if verify:
            base.verify()
        return base

    def verify(self, progress: Callable[[int, int], None] | None = None) -> None:
        """Reads every file. Raises KnowledgeBaseError for one whose checksum is another; `progress` is told bytes done and in all."""
        total, done = sum(recorded["bytes"] for recorded in self.manifest["files"].values()), 0
        for name, recorded in self.manifest["files"].items():
            if sha256_of(self.folder / name) != recorded["sha256"]:
                raise _refusal(self.folder / name, "was altered: its sha256 is not the one in kb.json")
            done += recorded["bytes"]
            if progress:
                progress(done, total)

    @cached_property
    def card(self) -> KnowledgeBaseCard:
        kept = ("name", "retriever_name", "description", "modality", "passages", "embedder", "dimension")
        return KnowledgeBaseCard(
            **{key: self.manifest[key] for key in kept}, shards=len(self.manifest["shards"]), fingerprint=self.fingerprint
        )

    @cached_property
    def fingerprint(self) -> str:
        return hashlib.sha256(json.dumps(self.manifest, sort_keys=True).encode()).hexdigest()[:16]

    def same_as(self, fingerprint: str) -> KnowledgeBase:
        """Itself. Raises KnowledgeBaseError when its content is another."""
        if self.fingerprint != fingerprint:
            raise KnowledgeBaseError(
                f"{self.folder / MANIFEST} was replaced: its fingerprint is {self.fingerprint}, what was started has {fingerprint}; start again"
            )
        return self

    @property
    def lexical_folder(self) -> Path | None:
        """Where its words are; None: it was built without."""
        return self.folder / LEXICAL if self.manifest.get("lexical") else None

    def shard(self, number: int) -> Shard:
        """Memory-maps one shard. Raises KnowledgeBaseError when its files disagree with each other or with the manifest."""
        entry = self.manifest["shards"][number]
        vectors_path, passages_path = self.folder / entry["vectors_file"], self.folder / entry["passages_file"]
        vectors = self._index(vectors_path, entry)
        if not isinstance(vectors, faiss.IndexFlatIP):
            raise _refusal(vectors_path, f"is a {type(vectors).__name__}, not an IndexFlatIP")
        proposing = None
        if "index_file" in entry:
            proposing = self._index(self.folder / entry["index_file"], entry)
            set_effort(proposing, entry.get("search", {}))
        try:
            table = pa.ipc.open_file(pa.memory_map(str(passages_path))).read_all()
        except (pa.ArrowInvalid, OSError) as error:
            raise _refusal(passages_path, "is no Arrow file") from error
        if table.num_rows != entry["passages"]:
            raise _refusal(passages_path, f"has {table.num_rows} passages, kb.json says {entry['passages']}")
        if table.schema.names != SCHEMA.names:
            raise _refusal(passages_path, f"has columns {table.schema.names}, not {SCHEMA.names}")
        return Shard(first=entry["first"], vectors=vectors, table=table, proposing=proposing, settings=entry.get("search", {}))

    def _index(self, path: Path, entry: dict[str, Any]) -> faiss.Index:
        try:
            index = faiss.read_index(str(path), faiss.IO_FLAG_MMAP_IFC)
        except RuntimeError as error:
            raise _refusal(path, "is no FAISS index") from error
        if index.d != self.manifest["dimension"]:
            raise _refusal(path, f"has dimension {index.d}, kb.json says {self.manifest['dimension']}")
        if index.ntotal != entry["passages"]:
            raise _refusal(path, f"has {index.ntotal} vectors, kb.json says {entry['passages']} passages")
        return index

    def passages(self) -> Iterator[Passage]:
        """All passages in order, pictures included."""
        for number in range(len(self.manifest["shards"])):
            shard = self.shard(number)
            yield from (shard.passage(row, with_image=True) for row in range(shard.table.num_rows))


class _Mapped:
    """The vectors of a flat index in the form that numpy takes: an array of it keeps the index, and with it the mapped file, alive."""

    def __init__(self, index: faiss.IndexFlat):
        self._index = index
        numbers = faiss.rev_swig_ptr(index.get_xb(), index.ntotal * index.d).reshape(index.ntotal, index.d)
        described = numbers.__array_interface__
        self.__array_interface__ = described | {"data": (described["data"][0], True)}  # True: read-only


@dataclass(frozen=True)
class Shard:
    first: int
    """Position of its first passage in the whole knowledge base."""
    vectors: faiss.IndexFlat
    table: pa.Table
    """The passages, with the columns of SCHEMA."""
    proposing: faiss.Index | None = None
    """Approximate index over the same vectors; None: the search is exact."""
    settings: dict[str, float] = field(default_factory=dict)
    """How it was tuned: `nprobe` or `ef_search`, and `candidates`, how many it proposes for each query."""

    @cached_property
    def stored(self) -> np.ndarray:
        """(passages, dimension) float32 unit rows, memory-mapped, read-only."""
        return np.asarray(_Mapped(self.vectors))

    def search(self, queries: np.ndarray, k: int) -> tuple[np.ndarray, np.ndarray]:
        """(queries, k) float32 scores, descending, and int64 rows of this shard; with an approximate index its candidates, scored exactly:
        where it proposed fewer than k, the rest is (-inf, -1)."""
        if self.proposing is None:
            return exact_top_k(self.stored, queries, k)
        return rescored(self.stored, queries, *proposed(self.proposing, queries, max(k, int(self.settings.get("candidates", 4 * k)))), k)

    def on_gpu(self, float16: bool) -> Shard:
        """The same shard with candidates from the GPU of this process: of the approximate index, or of all vectors where there is none.

        They are scored again here, from the memory-mapped vectors. Raises KnowledgeBaseError where FAISS was built without GPUs.
        """
        if not hasattr(faiss, "StandardGpuResources"):
            raise KnowledgeBaseError(
                "retrieval.gpus_per_shard > 0, and this faiss has no GPU support: install the extra gpu, or set it to 0"
            )
        options = faiss.GpuClonerOptions()
        options.useFloat16 = float16
        if not self.vectors.ntotal:
            return self
        source = self.proposing or faiss.clone_index(self.vectors)
        lists = faiss.try_extract_index_ivf(source)
        if hasattr(faiss.downcast_index(source), "hnsw"):
            raise KnowledgeBaseError("retrieval.gpus_per_shard > 0, and FAISS has no HNSW on GPUs: build with index=exact, or set it to 0")
        options.allowCpuCoarseQuantizer = lists is not None
        moved = faiss.index_cpu_to_gpu(faiss.StandardGpuResources(), 0, source, options)
        return replace(self, proposing=moved)

    def passage(self, row: int, with_image: bool = False) -> Passage:
        columns = ("id", "title", "text", "image") if with_image else ("id", "title", "text")
        return Passage(**{column: self.table.column(column)[row].as_py() for column in columns})


def sha256_of(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def _read_manifest(folder: Path) -> dict[str, Any]:
    path = folder / MANIFEST
    if not folder.is_dir():
        raise _refusal(folder, "is no folder")
    if not path.is_file():
        raise _refusal(path, "is missing")
    try:
        manifest = json.loads(path.read_text(encoding="utf-8"))
    except ValueError as error:
        raise _refusal(path, f"is no JSON ({error})") from error
    for key, kind in MANIFEST_KEYS.items():
        if not isinstance(manifest, dict) or not isinstance(manifest.get(key), kind):
            raise _refusal(path, f"has no key {key!r} of type {kind.__name__}")
    if manifest["format"] != FORMAT:
        raise _refusal(path, f"has format {manifest['format']}, this program reads {FORMAT}")
    position = 0
    for number, shard in enumerate(manifest["shards"]):
        keys = {"first", "passages", "vectors_file", "passages_file"}
        if not isinstance(shard, dict) or keys - shard.keys() or shard["first"] != position:
            raise _refusal(path, f"has a malformed entry for shard {number}")
        if {name for key, name in shard.items() if key.endswith("_file")} - manifest["files"].keys():
            raise _refusal(path, f"names files for shard {number} that have no checksum")
        position += shard["passages"]
    if position != manifest["passages"]:
        raise _refusal(path, f"counts {manifest['passages']} passages, its shards {position}")
    return manifest


def _refusal(path: Path, finding: str) -> KnowledgeBaseError:
    return KnowledgeBaseError(f"{path} {finding}: not a whole knowledge base, build it again (python -m experiments.build_kb SOURCE OUT)")

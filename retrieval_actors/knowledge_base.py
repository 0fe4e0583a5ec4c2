"""A knowledge base on disk: a complete folder, or an error.

    kb.json                 name, embedder, ..., and for every other file its size and sha256
    passages-00000.arrow    passages of the first shard (Arrow IPC, memory-mapped: processes of a machine share the pages)
    vectors-00000.npy       their vectors (float32, memory-mapped); every score is computed from these
    index-00000.faiss       only for approximate search: an index that proposes candidates
    lexical/                only for hybrid search: BM25 over all passages

Shards are consecutive slices: the position of a passage in the knowledge base is the first position of its shard plus its row.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa

from retrieval_actors.index.exact import exact_top_k, rescored
from retrieval_actors.records import KnowledgeBaseCard, Passage

MANIFEST = "kb.json"
LEXICAL = "lexical"
FORMAT = 3
SCHEMA = pa.schema([("id", pa.string()), ("title", pa.string()), ("text", pa.large_string()), ("image", pa.large_binary())])
CARD_KEYS = ("name", "retriever_name", "description", "modality", "embedder")
MANIFEST_KEYS = dict.fromkeys(CARD_KEYS, str) | {"format": int, "dimension": int, "passages": int, "shards": list, "files": dict}


class KnowledgeBaseError(ValueError):
    """A folder that is no complete knowledge base; the message is one line: the file, what is wrong, what to do."""


@dataclass(frozen=True)
class KnowledgeBase:
    folder: Path
    manifest: dict[str, Any]

    @classmethod
    def open(cls, folder: str | Path, verify: bool = True, fingerprint: str = "") -> KnowledgeBase:
        """Checks that the files are there with the right sizes and, if wanted, checksums and fingerprint. Raises KnowledgeBaseError."""
        folder = Path(folder)
        manifest = _read_manifest(folder)
        for name, recorded in manifest["files"].items():
            path = folder / name
            if not path.is_file():
                raise _error(path, "is missing")
            if path.stat().st_size != recorded["bytes"]:
                raise _error(path, f"has {path.stat().st_size} bytes, {recorded['bytes']} were written")
        base = cls(folder, manifest)
        if fingerprint not in ("", base.fingerprint):
            found = f"its fingerprint is {base.fingerprint}, the running one has {fingerprint}"
            raise KnowledgeBaseError(f"{folder / MANIFEST} was replaced: {found}; start again")
        if verify:
            base.verify()
        return base

    def verify(self, progress: Callable[[int, int], None] | None = None) -> None:
        """Raises KnowledgeBaseError for a wrong checksum; `progress` gets (bytes read, bytes in all)."""
        total, done = sum(recorded["bytes"] for recorded in self.manifest["files"].values()), 0
        for name, recorded in self.manifest["files"].items():
            if sha256_of(self.folder / name) != recorded["sha256"]:
                raise _error(self.folder / name, "was altered: its sha256 is not the one in kb.json")
            done += recorded["bytes"]
            if progress:
                progress(done, total)

    @cached_property
    def card(self) -> KnowledgeBaseCard:
        own = {key: self.manifest[key] for key in (*CARD_KEYS, "passages", "dimension")}
        return KnowledgeBaseCard(**own, shards=len(self.manifest["shards"]), fingerprint=self.fingerprint)

    @cached_property
    def fingerprint(self) -> str:
        return hashlib.sha256(json.dumps(self.manifest, sort_keys=True).encode()).hexdigest()[:16]

    @property
    def lexical_folder(self) -> Path | None:
        """Folder of the BM25 index; None if there is none."""
        return self.folder / LEXICAL if self.manifest.get("lexical") else None

    def shard(self, number: int) -> Shard:
        """Memory-mapped. Raises KnowledgeBaseError for a file that cannot be read."""
        entry = self.manifest["shards"][number]
        paths = {key: self.folder / name for key, name in entry.items() if key.endswith("_file")}
        try:
            vectors = np.asarray(np.load(paths["vectors_file"], mmap_mode="r"))
            table = read_arrow(paths["passages_file"])
            proposing = None
            if "index_file" in paths:
                from retrieval_actors.index.approximate import open_index  # only this needs FAISS

                proposing = open_index(paths["index_file"], entry["search"])
        except (ValueError, OSError, RuntimeError) as error:
            raise _error(self.folder, f"has a file of shard {number} that cannot be read ({str(error).splitlines()[0]})") from error
        return Shard(entry["first"], vectors, table, proposing, entry.get("search", {}))

    def passages(self) -> Iterator[Passage]:
        """All passages in order, pictures included."""
        for number in range(len(self.manifest["shards"])):
            for batch in self.shard(number).table.to_batches(max_chunksize=64):
                yield from (Passage(**row) for row in batch.to_pylist())


@dataclass(frozen=True)
class Shard:
    first: int  # position of its first passage in the knowledge base
    vectors: np.ndarray  # (passages, dimension) float32 unit rows, memory-mapped, read-only
    table: pa.Table  # the passages, with the columns of SCHEMA
    proposing: Any = None  # approximate index over the same vectors; None: the search is exact
    settings: dict[str, float] = field(default_factory=dict)  # how it was tuned: `nprobe` or `ef_search`, and `candidates` for each query

    def search(self, queries: np.ndarray, k: int) -> tuple[np.ndarray, np.ndarray]:
        """(queries, columns) float32 scores, descending, and int64 rows of this shard; at most k columns, padded with (-inf, -1)."""
        if self.proposing is None:
            return exact_top_k(self.vectors, queries, k)
        from retrieval_actors.index.approximate import proposed

        return rescored(self.vectors, queries, *proposed(self.proposing, queries, max(k, int(self.settings.get("candidates", 4 * k)))), k)


def sha256_of(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def read_arrow(path: Path) -> pa.Table:
    """The table of an Arrow IPC file, memory-mapped."""
    return pa.ipc.open_file(pa.memory_map(str(path))).read_all()


def _read_manifest(folder: Path) -> dict[str, Any]:
    path = folder / MANIFEST
    if not path.is_file():
        raise _error(path, "is missing") if folder.is_dir() else _error(folder, "is no folder")
    try:
        manifest = json.loads(path.read_text(encoding="utf-8"))
    except ValueError as error:
        raise _error(path, f"is no JSON ({error})") from error
    for key, kind in MANIFEST_KEYS.items():
        if not isinstance(manifest, dict) or not isinstance(manifest.get(key), kind):
            raise _error(path, f"has no key {key!r} of type {kind.__name__}")
    if manifest["format"] != FORMAT:
        raise _error(path, f"has format {manifest['format']}, this program reads {FORMAT}")
    return manifest


def _error(path: Path, finding: str) -> KnowledgeBaseError:
    return KnowledgeBaseError(f"{path} {finding}: not a complete knowledge base, build it again (r1-router kb build SOURCE OUT)")

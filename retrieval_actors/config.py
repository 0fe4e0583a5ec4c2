"""Settings of the knowledge bases and of the actors that search them."""

from dataclasses import dataclass, field
from typing import Annotated

from pydantic import Field, NonNegativeFloat, PositiveFloat, PositiveInt


@dataclass
class RetrievalConfig:
    folders: dict[str, str] = field(default_factory=dict)
    """Knowledge base name -> its folder. The name must be the one in the folder's kb.json."""
    text_embedder: str = "minilm"
    """Embedder of `Retriever.embed`, which rewards compare queries with."""
    hybrid: bool = False
    """Fuse the ranking by vectors with a lexical one (BM25); needs knowledge bases built with lexical=true."""
    reranker: str = ""
    """Model that scores the best 20 passages of a search again, such as cross-encoder:NAME_OR_PATH; empty: none."""
    deadline_s: PositiveFloat = 60.0
    """Seconds a search may take, restarts of dead actors included; then its queries get an error passage."""
    embed_threads: PositiveInt = 1
    """CPU threads of each embedder actor."""
    replicas: PositiveInt = 1
    """Actors that hold the same shards: searches spread over them, and continue when one dies."""
    shared_mib: NonNegativeFloat = 32.0
    """MiB of vectors or index of small shards that share one actor, whichever knowledge bases they belong to; 0: an actor for each shard."""
    cpus_per_shard: NonNegativeFloat = 0.05
    """CPUs that Ray reserves for a shard actor: small, because shards are idle most of the time and share the cores of a laptop."""
    cpus_per_embedder: NonNegativeFloat = 0.05
    """CPUs that Ray reserves for an embedder or reranker actor."""
    gpus_per_embedder: Annotated[float, Field(ge=0, le=1)] = 0.0
    """GPUs for each embedder and for the reranker; 0: CPU."""
    resource: str = ""
    """Custom Ray resource of the nodes that retrieval should run on; empty: any node (in a run: those with `retrieval`, if there are any)."""
    gpu_resource: str = ""
    """The same for embedders and the reranker on GPUs; empty: `resource` (in a run: nodes with `rollout`, if there are any)."""

    @property
    def embedder_resource(self) -> str:
        return (self.gpu_resource if self.gpus_per_embedder else "") or self.resource

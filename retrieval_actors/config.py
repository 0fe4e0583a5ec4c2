"""Settings of the knowledge bases and of the actors that search them."""

from __future__ import annotations

from dataclasses import dataclass, field


@dataclass
class RetrievalConfig:
    folders: dict[str, str] = field(default_factory=dict)
    """Knowledge base name -> its folder. The name must be the one in the folder's kb.json."""
    text_embedder: str = "minilm"
    """Embedder of `Retriever.embed`, which rewards compare queries with; shared with the knowledge bases that use the same."""
    hybrid: bool = False
    """Search by words (BM25) beside the vectors and fuse the two rankings; needs knowledge bases built with lexical=true."""
    reranker: str = ""
    """Model that reads the best passages of a search again, such as cross-encoder:NAME_OR_PATH; empty: none."""
    rerank_candidates: int = 20
    """Passages of a query that the reranker reads."""
    deadline_s: float = 60.0
    """Seconds a search may take, restarts of dead actors included; then its queries get an error passage."""
    failures_to_open: int = 3
    """Failed searches in a row, seen by one process, after which it does not ask a knowledge base for a while."""
    cooldown_s: float = 30.0
    """How long it then does not, before one search is let through to see."""
    cache_size: int = 65536
    """Query embeddings that each embedder remembers, least recently used out first."""
    embed_threads: int = 1
    """CPU threads of each embedder actor."""
    search_threads: int = 1
    """CPU threads of each shard actor."""
    replicas: int = 1
    """Actors that hold the same shard: searches spread over them, and go on when one dies."""
    cpus_per_shard: float = 0.05
    """CPUs that Ray reserves for a shard actor: small, because shards rest most of the time and share the cores of a laptop."""
    cpus_per_embedder: float = 0.05
    """CPUs that Ray reserves for an embedder or reranker actor."""
    gpus_per_shard: float = 0.0
    """GPUs for each shard actor, which then holds its vectors or index there (needs the extra `gpu`); 0: CPU."""
    gpu_float16: bool = False
    """Hold them as 16-bit numbers: half the GPU memory. Scores stay exact, candidates become a little less so."""
    gpus_per_embedder: float = 0.0
    """GPUs for each embedder and for the reranker; 0: CPU."""
    resource: str = ""
    """Custom Ray resource of the nodes that retrieval should run on; empty: any node (in a run: those with `retrieval`, where there are any)."""
    gpu_resource: str = ""
    """The same for what has a GPU: embedders with `gpus_per_embedder`, shards with `gpus_per_shard`; empty: `resource` (in a run: nodes with
    `rollout`, where there are any)."""

    def resource_of(self, gpus: float) -> str:
        """Custom resource of the nodes of a process that uses so much of a GPU."""
        return self.gpu_resource if gpus and self.gpu_resource else self.resource

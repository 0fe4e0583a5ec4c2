"""Settings of the knowledge bases and of the actors that search them."""

from __future__ import annotations

from dataclasses import dataclass, field


@dataclass
class RetrievalConfig:
    folders: dict[str, str] = field(default_factory=dict)
    """Knowledge base name -> its folder. The name must be the one in the folder's kb.json."""
    text_embedder: str = "minilm"
    """Embedder of `Retriever.embed`, which rewards compare queries with; shared with the knowledge bases that use the same."""
    deadline_s: float = 60.0
    """Seconds a search may take, restarts of dead actors included; then its queries get an error passage."""
    cache_size: int = 65536
    """Query embeddings that each embedder remembers, least recently used out first."""
    embed_threads: int = 1
    """CPU threads of each embedder actor."""
    search_threads: int = 1
    """CPU threads of each shard actor."""
    cpus_per_shard: float = 0.05
    """CPUs that Ray reserves for a shard actor: small, because shards rest most of the time and share the cores of a laptop."""
    cpus_per_embedder: float = 0.05
    """CPUs that Ray reserves for an embedder actor."""
    resource: str = ""
    """Custom Ray resource of the nodes that retrieval should run on; empty: any node."""

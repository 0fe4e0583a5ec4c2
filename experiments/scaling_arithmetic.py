"""`python -m experiments.scaling_arithmetic docs/scaling.md`: write the tables of that page anew, from the numbers that stand here.

Every number is measured (and says on which page it stands), published (and says by whom), assumed (and says so), or computed from these by the
functions below. A table stands in the page between `<!-- table NAME -->` and `<!-- end -->`.
"""

from __future__ import annotations

import math
import re
import sys
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path


@dataclass(frozen=True)
class Given:
    """A number that the arithmetic starts from."""

    value: float
    what: str
    kind: str
    """`measured`, `published` or `assumed`."""
    source: str
    """Measured: `PAGE: TEXT`, which holds the number. Published: who says so. Assumed: why this much."""


KB = "docs/knowledge_bases.md"
GIVEN = {
    "driver_us": Given(3956, "driver, CPU of one trajectory, us", "measured", "docs/scaling.md: | 3,956 us |"),
    "push_us": Given(147.3, "driver, CPU of handing one bucket to one worker, us", "measured", "docs/scaling.md: | 147.3 us |"),
    "exact_qps": Given(958, "exact search, 100,000 x 384, batch 256, one core, queries/s", "measured", f"{KB}: | 958 queries/s | 126 |"),
    "ivf_qps": Given(8348, "IVF2048,SQ8, 1,000,000 x 384, batch 256, one core, queries/s", "measured", f"{KB}: | 8,348 queries/s |"),
    "build_s": Given(48.4, "writing, training, tuning 1,000,000 x 384 as IVF2048,SQ8, one core, s", "measured", f"{KB}: | 48.4 s |"),
    "embed_cpu": Given(53, "MiniLM in bfloat16, one core, passages/s", "measured", f"{KB}: | bfloat16 (`minilm@bf16`) | 53 |"),
    "empty_call_ms": Given(0.9, "an empty call of an actor, ms", "measured", f"{KB}: an empty call takes 0.9 ms"),
    "passage_bytes": Given(619, "bytes of a passage of 100 words on disk", "assumed", f"as {KB}: 21M of them are 13 GB"),
    "retrievals": Given(1.934, "searches of a question, before training", "measured", "README.md: | 1.934 [1.840, 2.027] |"),
    "parameters": Given(8292166656, "parameters of Qwen2.5-VL-7B", "published", "its config.json, counted (a test counts again)"),
    "peak_tflops": Given(989, "H100 SXM, dense bfloat16, TFLOP/s", "published", "NVIDIA's data sheet"),
    "embed_gpu": Given(5000, "a small embedder on a GPU, passages/s", "assumed", f"as {KB} does; not measured"),
    "sampled_per_s": Given(2500, "tokens sampled by one GPU, 7B, 1/s", "assumed", "put your engine's own figure here"),
    "mfu": Given(0.4, "share of the peak that learning reaches", "assumed", "usual for dense models of this size"),
    "prompt": Given(1500, "tokens of a prompt", "assumed", "instructions, three passages, a picture of 300 tokens"),
    "response": Given(100, "tokens of a response", "assumed", "a thought and a query"),
    "states": Given(5.5, "turns of an episode", "assumed", "as the default world's"),
    "siblings": Given(8, "responses to one state", "assumed", "rollout.group_size"),
    "node_gib": Given(256, "memory of a retrieval node, GiB", "assumed", "the r6i.8xlarge of ray_cluster.yaml"),
}
BUCKETS_7B = 92
"""Buckets of at most 256 MiB that hold `parameters` in bfloat16, tensor by tensor."""
GPUS = (8, 64, 256, 1000)
LINKS_GBIT = (10, 40, 100, 400)
DIMENSIONS = (384, 768, 1024)
PASSAGES = 10**9
SHARDS = 256


def of(name: str) -> float:
    return GIVEN[name].value


def sampled_tokens() -> float:
    """Of one trajectory."""
    return of("states") * of("siblings") * of("response")


def read_tokens() -> float:
    """Of one trajectory, when it is learned from: prompts once (shared prefix), responses."""
    return of("states") * of("prompt") + sampled_tokens()


def rolled_out_per_gpu() -> float:
    """Trajectories a second."""
    return of("sampled_per_s") / sampled_tokens()


def learned_per_gpu() -> float:
    """Trajectories a second: 6 FLOP a parameter and token, and 2 more where activations are computed again."""
    return of("mfu") * of("peak_tflops") * 1e12 / (8 * of("parameters") * read_tokens())


def split(gpus: int) -> tuple[int, int]:
    """(rollout, learner) GPUs between which neither waits for the other."""
    rollout = round(gpus * learned_per_gpu() / (learned_per_gpu() + rolled_out_per_gpu()))
    return rollout, gpus - rollout


def trajectory_bytes() -> float:
    """Worker to driver: ids and log-probabilities of responses, 4 bytes each, and ids of prompts."""
    return 8 * sampled_tokens() + 4 * of("states") * of("prompt")


def driver_share(gpus: int) -> float:
    """Of a second that one driver works for as many trajectories as these GPUs roll out."""
    return split(gpus)[0] * rolled_out_per_gpu() * of("driver_us") / 1e6


def one_driver_is_enough(gpus: int, busy: float = 0.7) -> bool:
    return driver_share(gpus) <= busy


def weight_bytes() -> float:
    return 2 * of("parameters")


def tree_times(receivers: int) -> int:
    """The time of a broadcast as gloo makes it (broadcast.cc), in times of all bytes over one link: a binomial tree, in which everybody sends
    to all of its children at the same time, so that they share its link."""
    size, ends = receivers + 1, {0: 0}
    for rank in range(size):
        children = [child for i in range(rank.bit_length(), size.bit_length()) if (child := rank | 1 << i) < size]
        ends |= {child: ends[rank] + len(children) for child in children}
    return max(ends.values())


def send_s(times: float, gbit_per_s: float) -> float:
    return times * weight_bytes() * 8 / (gbit_per_s * 1e9)


def index_bytes(kind: str, dimensions: int) -> float:
    """Of one passage in what every search reads: float32; one byte a number and an id of 8; codes of 64 bytes and an id."""
    return {"flat": 4.0 * dimensions, "SQ8": dimensions + 8.0, "PQ64": 64 + 8.0}[kind]


def nodes_for(total_bytes: float, use: float = 0.8) -> int:
    return math.ceil(total_bytes / (use * of("node_gib") * 2**30))


def search_qps(kind: str, dimensions: int, passages: float) -> float:
    """Queries/s of one core over so many passages: time grows with passages and numbers."""
    if kind == "flat":
        return of("exact_qps") * (100_000 / passages) * (384 / dimensions)
    return of("ivf_qps") * (1_000_000 / passages) * (384 / dimensions)


def needed_qps(gpus: int) -> float:
    return split(gpus)[0] * rolled_out_per_gpu() * of("retrievals")


def given_table() -> str:
    rows = [
        [f"{entry.value:,.10g}", entry.what, entry.kind, entry.source.replace(" | ", " ").replace("|", "").strip()]
        for entry in GIVEN.values()
    ]
    return table(["number", "what", "", "where from"], rows)


def rollout_table() -> str:
    rows = []
    for gpus in GPUS:
        rollout, learner = split(gpus)
        rate = rollout * rolled_out_per_gpu()
        up = rate * trajectory_bytes() / 1e6
        amounts = [f"{gpus:,}", f"{rollout} + {learner}", f"{rate:,.1f}", f"{rate * sampled_tokens():,.0f}", f"{up:,.1f} MB/s"]
        rows.append([*amounts, f"{driver_share(gpus):.2f}", "yes" if one_driver_is_enough(gpus) else "no", f"{needed_qps(gpus):,.0f}"])
    heads = [
        "GPUs",
        "rollout + learner",
        "trajectories/s",
        "tokens sampled/s",
        "trajectories up",
        "one driver is busy",
        "that is enough (0.7)",
        "searches/s",
    ]
    return table(heads, rows)


def weights_table() -> str:
    rows = []
    for nodes in (1, 8, 63, 125):
        calls = BUCKETS_7B * nodes * 8 * of("push_us") / 1e6
        for link in LINKS_GBIT:
            times = [send_s(nodes, link), send_s(tree_times(nodes), link), send_s(1, link)]
            rows.append([f"{nodes}", f"{link} Gbit/s", *(f"{seconds:,.1f} s" for seconds in times), f"{calls:,.1f} s"])
    return table(["rollout nodes", "link", "one after the other", "tree (gloo)", "pipelined (NCCL)", "driver's calls, object store"], rows)


def memory_table() -> str:
    rows = []
    for kind in ("flat", "SQ8", "PQ64"):
        for dimensions in DIMENSIONS:
            read = PASSAGES * index_bytes(kind, dimensions)
            vectors = PASSAGES * 4 * dimensions
            per_core = search_qps(kind, dimensions, PASSAGES / SHARDS)
            speed = "not measured" if kind == "PQ64" else f"{per_core:,.0f}"
            cores = "" if kind == "PQ64" else f"{SHARDS * needed_qps(1000) / per_core:,.0f}"
            rows.append([kind, f"{dimensions}", f"{read / 1e9:,.0f} GB", f"{nodes_for(read)}", f"{vectors / 1e12:.2f} TB", speed, cores])
    heads = [
        "index",
        "numbers",
        "read by every search",
        f"nodes of {of('node_gib'):.0f} GiB",
        "vectors on disk",
        f"queries/s of a core on one of {SHARDS} shards",
        "cores for 1,000 GPUs",
    ]
    return table(heads, rows)


def build_table() -> str:
    hours = {
        "cpu": PASSAGES / of("embed_cpu") / 3600,
        "gpu": PASSAGES / of("embed_gpu") / 3600,
        "index": PASSAGES / 1e6 * of("build_s") / 3600,
    }
    gigabytes = PASSAGES * of("passage_bytes") / 1e9
    rows = [
        ["embed, CPU (MiniLM, bfloat16)", f"{hours['cpu']:,.0f} core-hours", f"{hours['cpu'] / 24 / 1000:,.1f} days on 1,000 cores"],
        ["embed, GPU", f"{hours['gpu']:,.0f} GPU-hours", f"{hours['gpu'] / 64:,.1f} hours on 64 GPUs"],
        [
            "write, train, tune SQ8",
            f"{hours['index']:,.1f} core-hours",
            f"{60 * hours['index'] / SHARDS:,.1f} minutes, a core for each of {SHARDS} shards",
        ],
        ["passages of 100 words", f"{gigabytes:,.0f} GB", f"{gigabytes / SHARDS:,.1f} GB a shard"],
    ]
    return table(["", "in all", "that is"], rows)


def fan_out_table() -> str:
    rows = []
    for shards in (16, 64, SHARDS):
        calls = shards * of("empty_call_ms") / 1e3
        rows.append([f"{shards}", f"{needed_qps(1000) * shards:,.0f}", f"{1e3 * calls:,.0f} ms", f"{1 / calls:,.1f}"])
    return table(["shards", "shard queries/s", "a caller's calls for one batch, at most", "batches/s of a caller"], rows)


TABLES: dict[str, Callable[[], str]] = {
    "given": given_table,
    "rollout": rollout_table,
    "weights": weights_table,
    "memory": memory_table,
    "build": build_table,
    "fan-out": fan_out_table,
}


def table(heads: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    lines = [heads, ["---"] * len(heads), *rows]
    return "\n".join(f"| {' | '.join(line)} |" for line in lines)


def rendered(page: str) -> str:
    """The page with its tables written anew. Raises KeyError for a table that nobody knows."""
    return re.sub(
        r"<!-- table (\S+) -->\n.*?<!-- end -->",
        lambda found: f"<!-- table {found[1]} -->\n{TABLES[found[1]]()}\n<!-- end -->",
        page,
        flags=re.DOTALL,
    )


def main(arguments: list[str]) -> int:
    page = Path(arguments[0] if arguments else "docs/scaling.md")
    page.write_text(rendered(page.read_text(encoding="utf-8")), encoding="utf-8")
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))

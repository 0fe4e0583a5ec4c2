"""Building from a source, through real Ray Data: what comes out, what is refused, and what a kill costs."""

from __future__ import annotations

import contextlib
import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest

from experiments.kb import planned
from retrieval_actors.build.from_passages import build_knowledge_base
from retrieval_actors.build.from_source import build_from_source, read_parts, work_plan
from retrieval_actors.build.work_folder import Chunk, WorkFolder
from retrieval_actors.knowledge_base import KnowledgeBase
from retrieval_actors.sources.data_files import DataError
from retrieval_actors.sources.read_passages import read_source

ROOT = Path(__file__).parents[3]
ARGUMENTS = ["chunk_passages=16", "threads=1", "shards=3"]


@pytest.fixture(scope="module")
def lines(tmp_path_factory):
    path = tmp_path_factory.mktemp("source") / "facts.jsonl"
    facts = ({"title": f"River {n}", "text": f"It is {n} km long and flows through " + f"village {n} " * (n % 40)} for n in range(320))
    path.write_text("".join(json.dumps(fact) + "\n" for fact in facts))
    return path


def stored(base: KnowledgeBase) -> np.ndarray:
    shards = [base.shard(number) for number in range(base.card.shards)]  # what is mapped lives as long as its shard
    return np.concatenate([shard.vectors for shard in shards])


@pytest.fixture(scope="module")
def whole(ray_cluster, lines):
    """(a build that nothing interrupted, what its progress was told)"""
    told: list[tuple[str, int, int]] = []
    build = planned(lines, lines.parent / "whole", ARGUMENTS)
    return build_from_source(*build, lambda *progress: told.append(progress)), told


def test_a_build_from_a_source_equals_the_build_in_one_process(whole, lines, tmp_path):
    built, told = whole
    passages = list(read_source(lines))
    card = {"name": "text", "retriever_name": "Text Retriever", "description": "passages from facts.jsonl", "modality": "text"}
    other = build_knowledge_base(passages, tmp_path / "other", **card, embedder_name="minilm", shards=3)
    assert list(built.base.passages()) == list(other.passages()) == passages
    np.testing.assert_allclose(stored(built.base), stored(other), atol=1e-5)
    assert {key: built.base.manifest[key] for key in card} == card
    assert [entry["passages"] for entry in built.base.manifest["shards"]] == [106, 107, 107]
    assert (built.chunks, built.resumed_chunks, built.embedded) == (20, 0, 320)
    assert [done for what, done, _ in told if what == "reading"] == list(range(16, 321, 16))
    assert [done for what, done, _ in told if what == "embedding"] == list(range(0, 321, 16))
    assert told[-1] == ("shards", 3, 3)
    assert sorted(path.name for path in lines.parent.iterdir()) == ["facts.jsonl", "whole"]


def test_more_shards_than_passages_are_refused_before_anything_is_embedded(ray_cluster, tmp_path):
    source = tmp_path / "two.jsonl"
    source.write_text('{"text": "one"}\n{"text": "two"}\n')
    told: list[str] = []
    with pytest.raises(ValueError, match=r"shards=3: .*two\.jsonl has 2 passages; expected at most as many shards: shards=2"):
        build_from_source(*planned(source, tmp_path / "kb", ["shards=3"]), lambda what, *_: told.append(what))
    assert set(told) == {"reading"}
    assert not (tmp_path / "kb").exists()


@pytest.mark.slow
def test_a_build_that_is_killed_goes_on_and_gives_the_same_manifest(whole, lines, tmp_path):
    out, work = tmp_path / "kb", tmp_path / ".kb.building"
    command = [sys.executable, "-m", "experiments.cli", "kb", "build", str(lines), str(out), *ARGUMENTS]
    environment = os.environ | {"PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"}
    process = subprocess.Popen(command, cwd=ROOT, env=environment, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True)
    deadline = time.monotonic() + 120
    while len(list(work.glob("vectors-*.npy"))) < 3:
        assert process.poll() is None, process.communicate()[0]
        assert time.monotonic() < deadline, "nothing was embedded in two minutes"
        time.sleep(0.005)
    os.kill(process.pid, signal.SIGKILL)
    process.communicate()
    assert not out.exists()
    # Ray ends the killed driver's workers; one may finish the chunk it is at.
    before, settled = {}, time.monotonic()
    while time.monotonic() < settled + 2:
        found = {path.name: path.stat().st_mtime_ns for path in work.glob("vectors-*.npy")}
        if found != before:
            before, settled = found, time.monotonic()
        time.sleep(0.1)
    assert 3 <= len(before) < 20
    at_the_end = {}

    def told(what: str, done: int, total: int) -> None:
        if what == "shards" and not at_the_end:
            at_the_end.update({path.name: path.stat().st_mtime_ns for path in work.glob("vectors-*.npy")})

    said: list[str] = []
    resumed = build_from_source(*planned(lines, out, ARGUMENTS), told, said.append)
    assert said == [f"continuing the build in {work}"]
    assert len(at_the_end) == resumed.chunks == 20
    assert {name: at_the_end[name] for name in before} == before, "chunks that were embedded are not embedded again"
    assert (resumed.resumed_chunks, resumed.embedded) == (len(before), 320 - 16 * len(before))
    assert not work.exists()
    assert (out / "kb.json").read_bytes() == (whole[0].base.folder / "kb.json").read_bytes()
    KnowledgeBase.open(out)


def test_another_source_or_setting_starts_anew_and_says_what_changed(tmp_path):
    source, out = tmp_path / "facts.jsonl", tmp_path / "kb"
    source.write_text('{"text": "one"}\n{"text": "two"}\n')

    def found(*arguments: str) -> tuple[str, bool]:
        """What a build is told, and whether the vectors of an interrupted one are still there; then it is interrupted itself."""
        chunk = Chunk(0, 0, 2)
        reading, _, settings = planned(source, out, arguments)
        with contextlib.suppress(InterruptedError), WorkFolder.beside(out, work_plan(reading, settings)) as (work, said):
            told = (said.partition(" in ")[0], work.is_embedded(chunk))
            work.write_vectors(chunk, np.zeros((2, 3), np.float32))
            raise InterruptedError
        return told

    assert found() == ("", False)
    assert found() == ("continuing the build", True)
    assert found("shards=5", "name=other", "workers=2") == ("continuing the build", True)
    assert found("embedder=colour-layout+minilm") == ("starting again: embedder changed since the build", False)
    assert found("title_from=text", "limit=1") == ("starting again: embedder, limit, source changed since the build", False)
    source.write_text('{"text": "one"}\n')
    assert found("title_from=text", "limit=1") == ("starting again: files changed since the build", False)


def test_broken_records_are_refused_or_counted_and_listed(ray_cluster, tmp_path):
    source, out = tmp_path / "tables.jsonl", tmp_path / "kb"
    table = {"header": ["River", "Length"], "title": "Rivers"}
    source.write_text(
        "".join(f"broken {n}\n" if n % 5 == 2 else json.dumps(table | {"rows": [["Ill", n]]}) + "\n" for n in range(50)) + '{"title": ""}'
    )
    with pytest.raises(ValueError, match=r"tables\.jsonl:3: not JSON .*, found 'broken 2'\)"):
        build_from_source(*planned(source, out, []))
    assert [path.name for path in tmp_path.iterdir()] == ["tables.jsonl"], "nothing is left of a build that embedded nothing"
    with pytest.raises(ValueError, match="index 'IVFx': use auto, exact or a FAISS factory string"):
        build_from_source(*planned(source, out, ["on_error=skip", "index=IVFx"]))
    built = build_from_source(*planned(source, out, ["on_error=skip", "index=HNSW4"]))
    assert (built.resumed_chunks, built.embedded) == (1, 0), "another index needs no other vectors"
    listed = [json.loads(line) for line in (out / "skipped.jsonl").read_text().splitlines()]
    assert built.broken == listed
    assert len(listed) == 11
    assert [entry["place"] for entry in listed] == [f"{source}:{n + 1}" for n in [*range(2, 50, 5), 50]]
    assert (built.base.card.passages, built.base.card.modality) == (40, "table")
    assert "skipped.jsonl" in built.base.manifest["files"]
    assert [passage.id for passage in built.base.passages()][:4] == ["0#0", "1#0", "3#0", "4#0"]


def test_equal_ids_are_refused_with_both_places(ray_cluster, tmp_path):
    (tmp_path / "a.jsonl").write_text('{"id": "x", "text": "one"}\n{"id": "y", "text": "two"}\n')
    (tmp_path / "b.jsonl").write_text('{"id": "z", "text": "three"}\n{"id": "y", "text": "four"}\n')
    with pytest.raises(DataError, match=rf"{tmp_path}/b\.jsonl:2: id 'y' occurs before, at {tmp_path}/a\.jsonl:2: ids must be unique"):
        build_from_source(*planned(tmp_path, tmp_path / "kb", []))


def test_parts_that_are_read_side_by_side_keep_their_order(ray_cluster, tmp_path):
    for folder, pages in (("AA", range(30)), ("AB", range(30, 31)), ("AC", range(31, 60))):
        (tmp_path / "text" / folder).mkdir(parents=True)
        lines = (json.dumps({"id": n, "title": f"Page {n}", "text": f"About {n}."}) + "\n" for n in pages)
        (tmp_path / "text" / folder / "wiki_00").write_text("".join(lines))
    reading, out, settings = planned(tmp_path / "text", tmp_path / "kb", ["chunk_passages=20"])
    with WorkFolder.beside(out, work_plan(reading, settings)) as (work, _):
        chunks = read_parts(work, reading, settings, lambda *_: None)
        assert [(chunk.part, chunk.passages) for chunk in chunks] == [(0, 20), (0, 10), (1, 1), (2, 20), (2, 9)]
        read = [work.passages(chunk).to_pylist() for chunk in chunks]
        again: list[int] = []
        assert read_parts(work, reading, settings, lambda *told: again.append(1)) == chunks
        assert not again, "what was read is not read again"
    rows = [row for table in read for row in table]
    assert [row["id"] for row in rows] == [f"{n}#0" for n in range(60)]
    assert rows[31]["place"] == f"{tmp_path}/text/AC/wiki_00:1"


def test_one_folder_is_built_by_one_process_at_a_time(tmp_path):
    code = (
        "from pathlib import Path; from retrieval_actors.build.work_folder import WorkFolder; WorkFolder.beside(Path('kb'), {}).__enter__()"
    )
    with WorkFolder.beside(tmp_path / "kb", {}):
        second = subprocess.run(
            [sys.executable, "-c", code], cwd=tmp_path, env=os.environ | {"PYTHONPATH": str(ROOT)}, capture_output=True, text=True
        )
    assert f"kb is being written by process {os.getpid()} on " in second.stderr


def test_large_passages_end_a_chunk_early_and_windows_keep_the_id(tmp_path):
    source = tmp_path / "long.jsonl"
    source.write_text("".join(json.dumps({"id": f"p{n}", "text": "word " * (5 + 40 * n)}) + "\n" for n in range(3)))
    reading, out, _ = planned(source, tmp_path / "kb", ["window_words=50"])
    with WorkFolder.beside(out, {}) as (work, _):
        counts = list(work.read_part(0, [source], reading, False, 2048, chunk_bytes=300))
    assert counts == [2, 1, 1, 1]
    found = [passage for _, passages in reading.outcomes([source]) for passage in passages]
    assert [(passage.id, len(passage.text.split())) for passage in found] == [
        ("p0", 5),
        ("p1", 45),
        ("p2#0", 50),
        ("p2#1", 50),
        ("p2#2", 35),
    ]


@pytest.mark.parametrize(
    ("argument", "finding"),
    [
        ("shards=-1", "shards is '-1'; expected greater than or equal to 0"),
        ("modality=sound", "modality is 'sound'; expected .*'text_image' or 'table'"),
        ("embedder=bert", "unknown embedder 'bert'"),
        ("window_stride=5", "window_words=0 window_stride=5"),
        ("workers=99", "workers=99: expected 1 to 4"),
        ("embedder=sentence-transformers:no/such/model", "no/such/model"),
    ],
)
def test_a_setting_that_does_not_fit_is_one_line(ray_cluster, tmp_path, argument, finding):
    (tmp_path / "facts.jsonl").write_text('{"text": "fact"}\n')
    with pytest.raises(ValueError, match=finding) as refusal:
        build_from_source(*planned(tmp_path / "facts.jsonl", tmp_path / "kb", [argument]))
    assert "\n" not in str(refusal.value)

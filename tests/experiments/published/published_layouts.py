"""The published data sets in small, in the layouts in which they are published: name of the set -> file -> content."""

from __future__ import annotations

import gzip
import io
import json
import tarfile
import zipfile
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq


def packed(files: dict[str, bytes], kind: str) -> bytes:
    """A zip or tar.gz with these paths."""
    archive = io.BytesIO()
    if kind == "zip":
        with zipfile.ZipFile(archive, "w") as opened:
            for path, content in files.items():
                opened.writestr(path, content)
    else:
        with tarfile.open(fileobj=archive, mode="w:gz") as opened:
            for path, content in files.items():
                info = tarfile.TarInfo(path)
                info.size = len(content)
                opened.addfile(info, io.BytesIO(content))
    return archive.getvalue()


def as_json(content: Any) -> bytes:
    return json.dumps(content, indent=1).encode()


def as_lines(records: list[dict[str, Any]]) -> bytes:
    return "".join(json.dumps(record) + "\n" for record in records).encode()


def hotpot(part: str, **more: Any) -> list[dict[str, Any]]:
    context = [["Runo", ["Runo is a city.", " It lies by the river Onur."]], ["Tasla", ["Tasla is a city."]]]
    record = {"answer": "Onur", "type": "bridge", "supporting_facts": [["Runo", 1]], "context": context}
    return [{"_id": f"{part}{n}", "question": f"{part} {n}: by which river lies Runo?", **record, **more} for n in range(3)]


def musique(part: str) -> bytes:
    paragraph = {"idx": 0, "title": "Film", "paragraph_text": "Film was directed by Ann.", "is_supporting": True}
    step = {"id": 1, "question": "Film >> director", "answer": "Ann", "paragraph_support_idx": 0}
    more = {"answer": "Ann", "answer_aliases": [], "answerable": True, "paragraphs": [paragraph], "question_decomposition": [step]}
    return as_lines([{"id": f"2hop__{part}{n}", "question": f"{part} {n}: who directed Film?", **more} for n in range(3)])


def trivia(part: str) -> bytes:
    asked = [
        {"Question": f"{part} {n}: capital?", "QuestionId": f"tc_{n}", "Answer": {"Value": "Bern", "Aliases": ["Berne"]}} for n in range(3)
    ]
    return as_json({"Data": asked, "Domain": "unfiltered-web", "Version": 1.0})


def parquet(sources: list[str]) -> bytes:
    rows = [
        {"id": f"{source}_{n}", "question": f"{source} {n}?", "golden_answers": ["x"], "data_source": source}
        for source in sources
        for n in (0, 1, 2)
    ]
    file = io.BytesIO()
    pq.write_table(pa.Table.from_pylist(rows), file)
    return file.getvalue()


def ottqa() -> bytes:
    node = ["Ann", [0, 1], "/wiki/Ann_Runo", "passage"]
    asked = {
        "question_id": "q1",
        "question": "Where was the winner of 1951 born ?",
        "table_id": "Race_0",
        "answer-text": "Velmo",
        "answer-node": [node],
    }
    cells = [["1951", []], ["Ann", ["/wiki/Ann_Runo"]]]
    table = {"url": "u", "title": "Race", "header": [["Year", []], ["Winner", []]], "data": [cells, [["odd", []]]], "uid": "Race_0"}
    table |= {"section_title": "Winners", "section_text": "", "intro": "A race."}
    root = "OTT-QA-b289bcca691db21a5259c3420e6b9819a9be9ba3"
    files = {
        "released_data/dev.traced.json": [asked, asked | {"question_id": "q2"}],
        "data/traindev_tables_tok/Race_0.json": table,
        "data/traindev_tables_tok/Other_0.json": table | {"uid": "Other_0"},
        "data/traindev_request_tok/Race_0.json": {"/wiki/Ann_Runo": "Ann Runo was born in Velmo ."},
        "data/traindev_request_tok/Other_0.json": {"/wiki/Elsewhere": "Not linked from a gold table ."},
    }
    return packed({f"{root}/{path}": as_json(content) for path, content in files.items()}, "zip")


def open_wiki_table() -> bytes:
    asked = {"question_id": {"0": "a", "1": "b"}, "question": {"0": "Who won?", "1": "When?"}, "answer": {"0": ["Ann", "Bo"], "1": [1951]}}
    tables = {
        "page_title": {"0": "Race"},
        "section_title": {"0": "Winners"},
        "header": {"0": ["Year", "Winner"]},
        "rows": {"0": [["1951", "Ann"]]},
    }
    return packed({"train.json": as_json(asked), "valid.json": as_json(asked), "splitted_tables.json": as_json(tables)}, "tar")


def tabfact() -> bytes:
    examples = {"2-1.html.csv": [["ann win in 1951", "bo win in 1951"], [1, 0], "race"]}
    root = "Table-Fact-Checking-948b5560e2f7f8c9139bd91c7f093346a2bb56a8"
    files = {f"{root}/tokenized_data/{part}_examples.json": as_json(examples if part == "val" else {}) for part in ("train", "val", "test")}
    return packed(files | {f"{root}/data/all_csv/2-1.html.csv": b"year#winner\n1951#ann\n"}, "zip")


def seven_zip(path: str, content: bytes, folder: Path) -> bytes:
    import py7zr

    with py7zr.SevenZipFile(folder / "made.7z", "w") as archive:
        archive.writestr(content, path)
    return (folder / "made.7z").read_bytes()


WEBQA = {
    "d5c1": {"Q": '"Is the tower taller?"', "A": ['"The tower is taller."'], "split": "val", "img_posFacts": [{"image_id": 30037649}]},
    "d5c2": {"Q": '"A question about texts?"', "A": ["x"], "split": "val", "img_posFacts": []},
    "d5c3": {"Q": '"To train?"', "A": ["x"], "split": "train", "img_posFacts": [{"image_id": 3}]},
}
PAPER_FILES = "2wikimultihopqa_val openwikitqa_val tabfact_val webqa_val infoseek_val DynVQA_en.202412".split()
PICTURED = [{"data_id": "i1", "image_id": "oven_1", "question": "What is it?", "answer": ["x"], "answer_eval": ["x", "y"]}]
LAYOUTS: dict[str, dict[str, bytes]] = {
    "hotpotqa": {"hotpot_train_v1.1.json": as_json(hotpot("train")), "hotpot_dev_distractor_v1.json": as_json(hotpot("dev"))},
    "2wikimultihopqa": {
        "data_ids_april7.zip": packed(
            {f"{part}.json": as_json(hotpot(part, evidences=[["Runo", "river", "Onur"]])) for part in ("train", "dev", "test")}, "zip"
        )
    },
    "musique": {
        "musique_v1.0.zip": packed(
            {f"data/musique_ans_v1.0_{part}.jsonl": musique(part) for part in ("train", "dev")}
            | {"__MACOSX/data/._musique_ans_v1.0_dev.jsonl": b"\0junk"},
            "zip",
        )
    },
    "nq": {
        f"NQ-open.{part}.jsonl": as_lines([{"question": f"{part} {n}", "answer": ["x"]} for n in range(3)]) for part in ("train", "dev")
    },
    "triviaqa": {
        "triviaqa-unfiltered.tar.gz": packed(
            {f"triviaqa-unfiltered/unfiltered-web-{part}.json": trivia(part) for part in ("train", "dev", "test-without-answers")}, "tar"
        )
    },
    "search_r1": {"train.parquet": parquet(["nq", "hotpotqa"]), "test.parquet": parquet(["nq", "popqa"])},
    "infoseek": {"infoseek_val.jsonl": as_lines(PICTURED)},
    "ottqa": {"OTT-QA-b289bcca.zip": ottqa()},
    "openwikitable": {"data.tar.gz": open_wiki_table()},
    "tabfact": {"Table-Fact-Checking-948b5560.zip": tabfact()},
    "r1router": {f"{name}.jsonl": as_lines([{"question": "Who?", "answer": ["Ann"], "image_id": "1"}]) for name in PAPER_FILES},
    "dpr_wikipedia": {"psgs_w100.tsv.gz": gzip.compress(b'id\ttext\ttitle\n1\t"Aaron is a ""prophet""."\tAaron\n')},
    "wiki18": {
        "wiki-18.jsonl.gz": packed(
            {"data00/dpr/wiki_dump.jsonl": as_lines([{"id": "0", "contents": '"Aaron"\nAaron is a prophet.'}])}, "tar"
        )
    },
}

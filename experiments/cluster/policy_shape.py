"""The policy of a run without weights, on PyTorch's meta device; and checks of its tokenizer and chat template.
Shapes come from the `config.json` of the policy's folder or of the local hub cache; those of published Qwen2.5-VL models lie beside this file."""

import io
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import torch
from huggingface_hub import try_to_load_from_cache
from PIL import Image as PillowImage

from experiments.cluster.findings import Finding
from experiments.config import RunConfigError, find_policy
from learner.config import LearnerConfig
from learner.ranks.deepspeed_engine import prepare
from rollout.policies import Policy
from rollout.policies.load import kind_of, tokenizer_of
from rollout.policies.policy import PICTURE
from rollout.policies.vlm import VisionLanguagePolicy
from rollout.records import Image, Message

SHAPES = Path(__file__).parent / "policy_shapes"


@dataclass
class PolicyShape:
    name: str
    folder: Path | None  # None: only its shapes are known here
    policy: Policy  # on the meta device, with frozen parts and adapters as it will be trained; no tokenizer


def policy_shape(path: str, learner: LearnerConfig) -> PolicyShape:
    """Raises RunConfigError when neither its folder nor its shapes are here, or the architecture is not supported."""
    found = find_policy(path)
    folder = Path(found) if (Path(found) / "config.json").is_file() else None
    if not folder and isinstance(file := try_to_load_from_cache(found, "config.json"), str):
        folder = Path(file).parent
    published = SHAPES / found.rpartition("/")[2].lower()
    if not folder and not published.is_dir():
        known = ", ".join(sorted(shape.name for shape in SHAPES.iterdir()))
        why = f"not in the local cache, and its shapes are not known here (only those of {known})"
        raise RunConfigError(f"train.policy is {path!r}: {why}; run `hf download {found}` where there is a network, or name a folder")
    try:
        kind, config = kind_of(folder or published)
    except (ValueError, OSError) as error:
        raise RunConfigError(f"train.policy: {error}") from None
    with torch.device("meta"):
        policy = kind(kind.auto.from_config(config, dtype=getattr(torch, learner.dtype), attn_implementation="sdpa"))
        prepare(policy, learner)
    return PolicyShape(found, folder, policy)


def check_policy(shape: PolicyShape, context: int) -> Iterator[Finding]:
    """Checks of the files that are here: weights, tokenizer, chat template, pictures. `context`: tokens of the longest prompt and response."""
    longest = shape.policy.context
    fix = "" if context <= longest else "lower rollout.max_prompt_tokens or rollout.max_new_tokens"
    yield Finding("context", f"{context:,} of {longest:,} tokens", fix)
    if shape.folder is None:
        fix = f"run `hf download {shape.name}` where there is a network, or set train.policy to a folder with it"
        missing = "not here: tokenizer, chat template and picture tokens were not checked, shapes are the published ones"
        yield Finding("policy", f"{shape.name}, {missing}", fix, fatal=False)
        return
    try:
        kind = type(shape.policy)
        policy = kind(shape.policy.model, tokenizer_of(shape.folder), kind.read_image_processor(shape.folder))
    except (OSError, ValueError) as error:
        yield Finding("tokenizer", str(error).splitlines()[0], f"tokenizer and image processor belong in {shape.folder}")
        return
    weights = any((shape.folder / f"model.safetensors{end}").is_file() for end in ("", ".index.json"))
    fix = "" if weights else f"weights have to be safetensors: hf download {shape.name}"
    yield Finding("policy", f"{shape.folder}" + ("" if weights else ", without weights"), fix)
    yield _encoding(policy)


def _encoding(policy: Policy) -> Finding:
    """Encodes a question with a picture: all tokens are in the vocabulary, and a VLM has one placeholder per vector of its vision tower."""
    out, tokenizer = io.BytesIO(), policy.tokenizer
    PillowImage.new("RGB", (56, 56)).save(out, "PNG")
    picture, rows = Image.of(out.getvalue()), policy.model.config.get_text_config().vocab_size
    sizes = f"{len(tokenizer):,} tokens, the model has {rows:,}"
    pads = policy.image_token_id if isinstance(policy, VisionLanguagePolicy) else 0
    if len(tokenizer) > rows or pads not in tokenizer.get_vocab().values():
        fix = "use the tokenizer that came with the weights: it has more tokens than the model, or none for pictures"
        return Finding("tokenizer", sizes, fix)
    try:
        prompt = policy.encode(Message("SYSTEM", "USER", True), picture)
    except (ValueError, TypeError) as error:
        fix = "the folder needs chat_template.jinja, or chat_template in tokenizer_config.json"
        return Finding("chat template", str(error).splitlines()[0], fix)
    text = tokenizer.decode(prompt)
    if "USER" not in text.partition("SYSTEM")[2]:
        return Finding("chat template", f"loses a message: {text[:60]!r}", "use the chat template that came with the weights")
    if not isinstance(policy, VisionLanguagePolicy):
        return Finding("tokenizer, chat template", f"{sizes}; a text model: it reads {PICTURE} in place of a picture")
    vectors, found = policy.vectors(picture), int((prompt == policy.image_token_id).sum())
    placeholders = f"{found} placeholders for a picture of {vectors} vectors, 56 x 56 pixels"
    if found != vectors:
        fix = "image_token_id of config.json, the tokenizer and merge_size of preprocessor_config.json have to be of one model"
        return Finding("picture tokens", placeholders, fix)
    return Finding("tokenizer, chat template, picture tokens", f"{sizes}; {placeholders}")

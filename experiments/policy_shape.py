"""The policy of a run without its weights: the real classes with the real shapes, on the meta device, where tensors take no memory.

The shapes come from the `config.json` of the policy's folder or of the local hub cache; for the published Qwen2.5-VL models, from this repository.
"""

from __future__ import annotations

import json
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from huggingface_hub import try_to_load_from_cache
from transformers import AutoConfig, AutoModelForImageTextToText, AutoTokenizer, Qwen2_5_VLConfig, Qwen2VLImageProcessorPil

from experiments.config import RunConfigError, find_policy
from experiments.findings import Finding
from learner.config import LearnerConfig
from learner.engine import prepare
from rollout.message import Message
from rollout.policy import NEVER_SAMPLED, Policy

SHAPES = Path(__file__).parent / "policy_shapes"
PUBLISHED = {"qwen2.5-vl-3b-instruct": "qwen2_5_vl_3b.json", "qwen2.5-vl-7b-instruct": "qwen2_5_vl_7b.json"}
WEIGHTS = ("model.safetensors", "model.safetensors.index.json")


@dataclass
class PolicyShape:
    """What there is of a policy. It is a `Policy` as far as `learner.engine.prepare` and the like look at it."""

    name: str
    folder: Path | None
    """Where its files lie; None: nowhere here, only its shapes are known."""
    model: Any
    """On the meta device, as it will be trained: frozen parts frozen, adapters in place."""
    config: Any


def policy_shape(path: str, learner: LearnerConfig) -> PolicyShape:
    """Raises RunConfigError when neither its folder nor its shapes are here."""
    found = find_policy(path)
    folder = Path(found) if (Path(found) / "config.json").is_file() else cached(found)
    if folder:
        config = AutoConfig.from_pretrained(folder)
    elif found.rpartition("/")[2].lower() in PUBLISHED:
        content = json.loads((SHAPES / PUBLISHED[found.rpartition("/")[2].lower()]).read_text(encoding="utf-8"))
        config = Qwen2_5_VLConfig(**{key: value for key, value in content.items() if key not in ("source", "architectures", "model_type")})
    else:
        raise RunConfigError(
            f"train.policy is {path!r}: not in the local cache, and its shapes are not known here (only those of {', '.join(PUBLISHED)}); "
            f"run `hf download {found}` where there is a network, or name a folder"
        )
    config._attn_implementation = "sdpa"
    with torch.device("meta"):
        model = AutoModelForImageTextToText.from_config(config, dtype=getattr(torch, learner.dtype))
    shape = PolicyShape(found, folder, model, config)
    if not hasattr(model.model, "get_rope_index"):
        raise RunConfigError(
            f"train.policy is {path!r}: {type(model).__name__} has no M-RoPE positions; expected a model of the Qwen2-VL family"
        )
    with torch.device("meta"):
        prepare(shape, learner)  # type: ignore[arg-type]
    return shape


def examine_policy(shape: PolicyShape, context: int) -> Iterator[Finding]:
    """Tokenizer, chat template, picture tokens and weights, as far as they are here. `context`: tokens of the longest prompt and response."""
    longest = shape.config.get_text_config().max_position_embeddings
    mend = "" if context <= longest else "lower rollout.max_prompt_tokens or rollout.max_new_tokens"
    yield Finding("context", f"{context:,} of {longest:,} tokens", mend)
    if shape.folder is None:
        mend = f"run `hf download {shape.name}` where there is a network, or set train.policy to a folder with it"
        missing = "not here: tokenizer, chat template and picture tokens were not checked, shapes are the published ones"
        yield Finding("policy", f"{shape.name}, {missing}", mend, fatal=False)
        return
    weights = any((shape.folder / name).is_file() for name in WEIGHTS)
    mend = "" if weights else f"weights have to be safetensors: hf download {shape.name}"
    yield Finding("policy", f"{shape.folder}" + ("" if weights else ", without weights"), mend)
    try:
        tokenizer = AutoTokenizer.from_pretrained(shape.folder)
        processor = Qwen2VLImageProcessorPil.from_pretrained(shape.folder)
    except (OSError, ValueError) as error:
        yield Finding("tokenizer", str(error).splitlines()[0], f"tokenizer and image processor belong into {shape.folder}")
        return
    policy = Policy(shape.model, tokenizer, processor)
    yield _tokenizer(policy)
    yield (template := _chat_template(policy))
    if template.status == "ok":
        yield _picture_tokens(policy)


def _tokenizer(policy: Policy) -> Finding:
    words, rows = len(policy.tokenizer), policy.model.config.get_text_config().vocab_size
    unknown = [token for token in NEVER_SAMPLED if token not in policy.tokenizer.get_vocab()]
    if words > rows:
        return Finding("tokenizer", f"{words:,} tokens, the model has {rows:,}", "use the tokenizer that came with the weights")
    if policy.end_token_id is None or policy.pad_token_id is None:
        return Finding("tokenizer", "no end or no padding token", "set eos_token and pad_token in tokenizer_config.json")
    if "<|image_pad|>" in unknown:
        return Finding("tokenizer", f"does not know {', '.join(unknown)}", "use the tokenizer that came with the weights")
    return Finding("tokenizer", f"{words:,} tokens of {rows:,}, ends with {policy.tokenizer.eos_token}")


def _chat_template(policy: Policy) -> Finding:
    message = [{"role": "system", "content": "SYSTEM"}, {"role": "user", "content": [{"type": "text", "text": "USER"}]}]
    try:
        text = policy.tokenizer.apply_chat_template(message, tokenize=False, add_generation_prompt=True)
    except (ValueError, TypeError) as error:
        mend = "the folder needs chat_template.jinja, or chat_template in tokenizer_config.json"
        return Finding("chat template", str(error).splitlines()[0], mend)
    if not ("SYSTEM" in text and "USER" in text and text.index("SYSTEM") < text.index("USER")):
        return Finding("chat template", f"loses a message: {text[:60]!r}", "use the chat template that came with the weights")
    return Finding("chat template", f"{len(policy.tokenizer(text, add_special_tokens=False)['input_ids'])} tokens for an empty question")


def _picture_tokens(policy: Policy) -> Finding:
    """A picture of 56 x 56 pixels has to become as many placeholders as the vision tower will make vectors of it."""
    import io

    from PIL import Image as PillowImage

    from rollout.records import Image

    out = io.BytesIO()
    PillowImage.new("RGB", (56, 56)).save(out, "PNG")
    picture = Image.of(out.getvalue())
    ids = policy.encode(Message("", "USER", True), picture)
    expected = int(policy.patches(picture)[1].prod()) // policy.model.config.vision_config.spatial_merge_size**2
    found = int((ids == policy.image_token_id).sum())
    if found != expected:
        return Finding(
            "picture tokens",
            f"{found} placeholders for a picture of {expected} vectors",
            "image_token_id of config.json, the tokenizer and merge_size of preprocessor_config.json have to be of one model",
        )
    return Finding("picture tokens", f"{found} for 56 x 56 pixels")


def cached(name: str) -> Path | None:
    """The folder of a model in the local hub cache."""
    found = try_to_load_from_cache(name, "config.json") if name.count("/") == 1 else None
    return Path(found).parent if isinstance(found, str) else None

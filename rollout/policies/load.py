"""Loads a policy. Which architectures can be one, and as which class, is read from config.json, before the weights are."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import torch
from transformers import AutoConfig, AutoModelForImageTextToText, AutoTokenizer
from transformers.models.auto.modeling_auto import MODEL_FOR_CAUSAL_LM_MAPPING, MODEL_FOR_IMAGE_TEXT_TO_TEXT_MAPPING
from transformers.utils import cached_file

from rollout.nan_check import refuse_weights
from rollout.policies.chat import one_line
from rollout.policies.policy import EXPECTED, Policy
from rollout.policies.qwen_vl import QwenVLPolicy
from rollout.policies.smolvlm import SmolVLMPolicy

PROBE = "<think>Which country?</think>"


def load_policy(path: str | Path, *, dtype: str = "float32", device: str = "cpu") -> Policy:
    """From a folder or a hub name. Weights must be safetensors; no code of the model is run. Raises `FileNotFoundError` for a folder that does not
    exist or has no config, `ValueError` for an architecture, weights or a tokenizer that cannot be used, `NotFiniteError`."""
    kind, config = kind_of(path)
    options = {
        "dtype": getattr(torch, dtype),
        "use_safetensors": True,
        "attn_implementation": "sdpa",
        "trust_remote_code": False,
        "ignore_mismatched_sizes": True,
    }
    try:
        model, loaded = kind.auto.from_pretrained(path, config=config, output_loading_info=True, **options)
    except Exception as error:  # whatever the libraries raise for files that are damaged, or do not fit the config
        raise ValueError(f"policy {path}: its weights cannot be read: {one_line(error)}") from None
    if wrong := sorted(loaded["mismatched_keys"]):
        name, found, expected = wrong[0]
        raise ValueError(
            f"policy {path}: {name} is {tuple(found)} in the weights, and {tuple(expected)} by config.json; copy the folder again"
        )
    if missing := sorted(loaded["missing_keys"]):
        raise ValueError(f"policy {path}: the weights lack {missing[0]}{f' and {len(missing) - 1} more' * (len(missing) > 1)}")
    model.eval().to(device)
    refuse_weights(model.named_parameters(), f"policy {path}", "choose another policy")
    try:
        policy = kind(model, tokenizer_of(path), kind.read_image_processor(path))
        policy.check_forward()
        assert policy.chat  # Refuses a tokenizer without a template
        make_savable(model.generation_config)
    except (ValueError, OSError) as error:
        raise ValueError(f"policy {path}: {one_line(error)}") from None
    return policy


def kind_of(path: str | Path) -> tuple[type[Policy], Any]:
    """The class of a policy and its config, from the folder's config.json alone. Raises as `load_policy`."""
    where = f"policy {path}"
    if not Path(path).is_dir() and (str(path).startswith((".", "/")) or str(path).count("/") != 1):
        raise FileNotFoundError(f"{where}: no such folder, and not a hub name like Qwen/Qwen2.5-VL-3B-Instruct")
    if Path(path).is_dir() and not (Path(path) / "config.json").is_file():
        raise FileNotFoundError(f"{where}: no config.json; expected a model in Hugging Face format")
    try:
        config = AutoConfig.from_pretrained(path, trust_remote_code=False)
    except Exception as error:  # whatever the libraries raise for what is no config
        raise ValueError(f"{where}: {one_line(error)}") from None
    if why := unsupported(config):
        raise ValueError(f"{where}: {why}; expected {EXPECTED}")
    if type(config) not in MODEL_FOR_IMAGE_TEXT_TO_TEXT_MAPPING:
        return Policy, config
    try:
        with torch.device("meta"):
            base = AutoModelForImageTextToText.from_config(config).base_model
    except (ValueError, AttributeError) as error:
        raise ValueError(f"{where}: its config.json does not fit together: {one_line(error)}") from None
    for kind in (QwenVLPolicy, SmolVLMPolicy):
        if kind.fits(base):
            return kind, config
    raise ValueError(f"{where}: pictures of {type(base).__name__} are not supported; expected {EXPECTED}")


def tokenizer_of(path: str | Path) -> Any:
    """With the template of the processor, where VLMs have none beside the tokenizer. Raises `ValueError` for one that cannot be read, or that loses
    text: of some families the library makes an empty one when its files are missing."""
    try:
        tokenizer = AutoTokenizer.from_pretrained(path, trust_remote_code=False)
        if not tokenizer.chat_template and (file := cached_file(path, "chat_template.json", _raise_exceptions_for_missing_entries=False)):
            tokenizer.chat_template = json.loads(Path(file).read_text(encoding="utf-8"))["chat_template"]
        found = tokenizer.decode(tokenizer(PROBE, add_special_tokens=False)["input_ids"]).strip()
    except Exception as error:  # whatever the libraries raise for files that are damaged
        raise ValueError(f"its tokenizer cannot be read: {one_line(error)}") from None
    if found != PROBE:
        raise ValueError(f"its tokenizer makes {found!r} of {PROBE!r}; are tokenizer.json or the vocabulary missing?")
    return tokenizer


def make_savable(generation: Any) -> None:
    """The library refuses to save a temperature that it would not use, and would do so after the training."""
    try:
        generation.validate(strict=True)
    except ValueError:
        generation.do_sample = True
        generation.validate(strict=True)


def unsupported(config: Any) -> str:
    """Why this architecture cannot be a policy; empty if it can."""
    text, name = config.get_text_config(decoder=True), type(config).__name__.removesuffix("Config")
    if config.is_encoder_decoder:
        return f"{name} is an encoder-decoder"
    mapping = MODEL_FOR_IMAGE_TEXT_TO_TEXT_MAPPING if type(config) in MODEL_FOR_IMAGE_TEXT_TO_TEXT_MAPPING else MODEL_FOR_CAUSAL_LM_MAPPING
    if type(config) not in mapping:
        return f"{name} is not a causal language model"
    if not mapping[type(config)]._supports_attention_backend:
        return f"{name} brings its own attention"
    kinds = set(getattr(text, "layer_types", None) or ())
    window = getattr(text, "sliding_window", None) if not kinds else None
    if kinds - {"full_attention"}:
        return f"{name} has layers with {sorted(kinds - {'full_attention'})[0].replace('_', ' ')}"
    if window and window < text.max_position_embeddings:
        return f"{name} has a sliding window of {window} tokens"
    return ""

"""Loads a policy. Which architectures can be one, and as which class, is read from config.json, before the weights are."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
from transformers import AutoConfig, AutoModelForImageTextToText, AutoTokenizer
from transformers.models.auto.modeling_auto import MODEL_FOR_CAUSAL_LM_MAPPING, MODEL_FOR_IMAGE_TEXT_TO_TEXT_MAPPING

from rollout.nan_check import refuse_weights
from rollout.policies.policy import EXPECTED, Policy
from rollout.policies.qwen_vl import QwenVLPolicy
from rollout.policies.smolvlm import SmolVLMPolicy


def load_policy(path: str | Path, *, dtype: str = "float32", device: str = "cpu") -> Policy:
    """From a folder or a hub name. Weights must be safetensors; no code of the model is run. Raises `FileNotFoundError` for a folder that does not
    exist or has no config, `ValueError` for an architecture, weights or a tokenizer that cannot be used, `NotFiniteError`."""
    kind, config = kind_of(path)
    options = {"dtype": getattr(torch, dtype), "use_safetensors": True, "attn_implementation": "sdpa", "trust_remote_code": False}
    model, loaded = kind.auto.from_pretrained(path, config=config, output_loading_info=True, **options)
    if missing := sorted(loaded["missing_keys"]):
        raise ValueError(f"policy {path}: the weights lack {missing[0]}{f' and {len(missing) - 1} more' * (len(missing) > 1)}")
    model.eval().to(device)
    refuse_weights(model.named_parameters(), f"policy {path}", "choose another policy")
    try:
        policy = kind(model, AutoTokenizer.from_pretrained(path, trust_remote_code=False), kind.read_image_processor(path))
        policy.check_forward()
        assert policy.chat  # Refuses a tokenizer without a template
    except (ValueError, OSError) as error:
        raise ValueError(f"policy {path}: {str(error).splitlines()[0]}") from None
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
    except (ValueError, OSError) as error:
        raise ValueError(f"{where}: {str(error).splitlines()[0]}") from None
    if why := unsupported(config):
        raise ValueError(f"{where}: {why}; expected {EXPECTED}")
    if type(config) not in MODEL_FOR_IMAGE_TEXT_TO_TEXT_MAPPING:
        return Policy, config
    try:
        with torch.device("meta"):
            base = AutoModelForImageTextToText.from_config(config).base_model
    except (ValueError, AttributeError) as error:
        raise ValueError(f"{where}: its config.json does not fit together: {str(error).splitlines()[0]}") from None
    for kind in (QwenVLPolicy, SmolVLMPolicy):
        if kind.fits(base):
            return kind, config
    raise ValueError(f"{where}: pictures of {type(base).__name__} are not supported; expected {EXPECTED}")


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

"""Checks of a policy's files that need no model: done before anything starts."""

import json
from pathlib import Path

from experiments.config.reading import RunConfigError, wrong_value
from rollout.config import RolloutConfig


def check_policy_files(folder: str, rollout: RolloutConfig) -> None:
    """Raises RunConfigError, one line: no weights, no chat template, or a context too short for `rollout`. A hub name is checked when it loads."""
    path = Path(folder)
    if not path.is_dir():
        return
    try:
        config, tokenizer = (json.loads((path / name).read_text()) for name in ("config.json", "tokenizer_config.json"))
    except (OSError, ValueError) as error:
        raise RunConfigError(f"policy {folder}: {error}; expected a model in Hugging Face format with its tokenizer") from None
    if not isinstance(config, dict) or not isinstance(tokenizer, dict):
        raise RunConfigError(f"policy {folder}: config.json or tokenizer_config.json holds no keys and values; copy the folder again")
    if not any(path.glob("model*.safetensors")):
        raise RunConfigError(f"policy {folder}: no weights; expected model.safetensors, or several with an index")
    if not tokenizer.get("chat_template") and not any(path.glob("chat_template.*")):
        fix = "put its chat_template.jinja beside it, or set chat_template in tokenizer_config.json"
        raise RunConfigError(f"policy {folder}: the tokenizer has no chat template: {fix}")
    text = found if isinstance(found := config.get("text_config"), dict) else config
    context = text.get("max_position_embeddings") or text.get("n_positions")
    if isinstance(context, int) and context < rollout.max_prompt_tokens + rollout.max_new_tokens:
        most = f"at most {context - rollout.max_new_tokens}: {folder} has a context of {context} tokens, with the response"
        raise wrong_value("rollout.max_prompt_tokens", rollout.max_prompt_tokens, most)

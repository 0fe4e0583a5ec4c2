"""Where models come from, and where they run."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

if TYPE_CHECKING:
    import torch

Loaded = TypeVar("Loaded")
HUB_SECONDS = 10


def device() -> torch.device:
    """The GPU, if this process sees one: Ray shows an actor only those that it reserved."""
    import torch

    return torch.device("cuda" if torch.cuda.is_available() else "cpu")


def dtype_of(precision: str) -> torch.dtype:
    import torch

    return {"fp32": torch.float32, "bf16": torch.bfloat16}[precision]


def load(whose: str, name_or_path: str, loader: Callable[..., Loaded], **options: Any) -> Loaded:
    """`loader(name_or_path, ...)`: from a folder, else from the local cache, else from the hub; the first two ask the network for nothing.

    What is cached is what is used, whatever the hub has by now: equal names are equal vectors. No code that comes with a model is run.
    Raises ValueError, one line, for a model that can not be had; `whose` is the name to blame.
    """
    from huggingface_hub import HfApi, try_to_load_from_cache
    from transformers.utils import logging

    logging.disable_progress_bar()
    local = Path(name_or_path).is_dir()
    if local or isinstance(try_to_load_from_cache(name_or_path, "config.json"), str):
        try:
            return loader(name_or_path, local_files_only=True, trust_remote_code=False, **options)
        except OSError as error:
            if local:
                raise ValueError(f"{whose}: folder {name_or_path} holds no whole model ({str(error).splitlines()[0]})") from error
    try:
        # The loaders try for most of a minute before they give up; one question is enough.
        HfApi().model_info(name_or_path, timeout=HUB_SECONDS)
    except Exception as error:  # which class says that there is no network, or no such model, depends on the client's version
        mend = f"run `hf download {name_or_path}` once where there is a network, or name a folder with the model"
        found = f"{name_or_path} is not in the local cache and can not be downloaded from here ({type(error).__name__})"
        raise ValueError(f"{whose}: {found}: {mend}") from error
    return loader(name_or_path, trust_remote_code=False, **options)


def model_type(whose: str, name_or_path: str) -> str:
    """What its config.json says it is: `clip`, `siglip`, `siglip2`, `qwen3_vl`. Raises ValueError for another one."""
    from transformers import AutoConfig

    known = ("clip", "siglip", "siglip2", "qwen3_vl")
    found = load(whose, name_or_path, AutoConfig.from_pretrained).model_type
    if found not in known:
        raise ValueError(f"embedder {whose!r}: a {found} model, expected one of {', '.join(known)}; for text use sentence-transformers:")
    return found

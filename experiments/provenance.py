"""Where figures come from: the commit and the machine."""

from __future__ import annotations

import os
import platform
import subprocess
from typing import Any

from experiments.config import REPOSITORY


def git_commit() -> str | None:
    """Of the repository that this file lies in, with `+changes` where files differ from it; None without git."""

    def git(*arguments: str) -> str:
        return subprocess.run(["git", *arguments], cwd=REPOSITORY, capture_output=True, text=True, check=True, timeout=30).stdout.strip()

    try:
        return git("rev-parse", "HEAD") + ("+changes" if git("status", "--porcelain") else "")
    except (OSError, subprocess.SubprocessError):
        return None


def machine() -> dict[str, Any]:
    """What figures of speed depend on; nothing that names the machine."""
    import psutil
    import torch

    return {
        "cpus": os.cpu_count(),
        "processor": platform.processor() or platform.machine(),
        "memory_gib": round(psutil.virtual_memory().total / 2**30),
        "gpus": [torch.cuda.get_device_name(i) for i in range(torch.cuda.device_count())],
        "python": platform.python_version(),
        "torch": torch.__version__,
    }

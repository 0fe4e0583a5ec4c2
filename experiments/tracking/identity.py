"""`tracking.json` in a run folder: which run of MLflow belongs to it, and how the run ended.

The key is made once and travels with the folder: however often, and from wherever, a folder is uploaded, it is one run in MLflow.
"""

from __future__ import annotations

import json
import uuid
from pathlib import Path
from typing import Any

FILE = "tracking.json"


def identity(folder: Path) -> dict[str, Any]:
    """`key`, and as far as they are known `uri`, `experiment`, `run_id` and `outcome` (FINISHED, FAILED, KILLED). Empty without the file."""
    file = folder / FILE
    return json.loads(file.read_text(encoding="utf-8")) if file.is_file() else {}


def note(folder: Path, **facts: Any) -> dict[str, Any]:
    """Add facts, and the key where there is none yet; what it then holds. Raises OSError when the folder cannot be written to."""
    known = identity(folder)
    new = {"key": uuid.uuid4().hex} | known | facts
    if new != known:
        aside = folder / f"{FILE}.new"
        aside.write_text(json.dumps(new, indent=1) + "\n", encoding="utf-8")
        aside.replace(folder / FILE)
    return new

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from experiments.cluster.supervisor import FOLDER


def read_failures(run_folder: Path) -> list[dict[str, Any]]:
    """What the supervisor wrote of each failure, in their order."""
    return [json.loads(file.read_text(encoding="utf-8")) for file in sorted((run_folder / FOLDER).glob("*.json"))]

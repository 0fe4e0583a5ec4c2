"""A line of JSON for each request: who asked what kind of thing, how it ended, how long it took. No questions, no pictures, no keys."""

from __future__ import annotations

import json
import sys
from datetime import UTC, datetime
from pathlib import Path
from typing import Any


class RequestLog:
    def __init__(self, file: str = ""):
        self._file = Path(file).open("a", encoding="utf-8", buffering=1) if file else sys.stderr  # noqa: SIM115

    def write(self, **fields: Any) -> None:
        print(json.dumps({"time": datetime.now(UTC).isoformat(timespec="milliseconds"), **fields}), file=self._file, flush=True)

"""The trajectory browser: its data, packed small, and the script that unpacks it in the page."""

from __future__ import annotations

import base64
import hashlib
import json
import zlib
from collections.abc import Mapping
from pathlib import Path
from typing import Any

PAGE = Path(__file__).parent / "page"
SCRIPT = (PAGE / "browser.js").read_text(encoding="utf-8")
STYLE = (PAGE / "browser.css").read_text(encoding="utf-8")
MARKUP = (PAGE / "browser.html").read_text(encoding="utf-8")


def browser_section(data: Mapping[str, Any]) -> str:
    """Empty without trajectories. The data stands in the page in base64, which cannot end a script element whatever it holds."""
    if not data["trajectories"]:
        return ""
    return f'{MARKUP}<script type="application/octet-stream" id="trajectories">{packed(data)}</script><script>{SCRIPT}</script>'


def packed(data: Mapping[str, Any]) -> str:
    """JSON, raw deflate, base64: what browsers unpack with `DecompressionStream('deflate-raw')`."""
    deflate = zlib.compressobj(9, zlib.DEFLATED, -zlib.MAX_WBITS)
    plain = json.dumps(data, ensure_ascii=False, separators=(",", ":")).encode()
    return base64.b64encode(deflate.compress(plain) + deflate.flush()).decode()


def security_policy() -> str:
    """For the page: no script runs but the browser's own, and nothing is fetched from anywhere."""
    script = base64.b64encode(hashlib.sha256(SCRIPT.encode()).digest()).decode()
    return (
        f"default-src 'none'; script-src 'sha256-{script}'; style-src 'unsafe-inline'; img-src data:; base-uri 'none'; form-action 'none'"
    )

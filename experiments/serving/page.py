"""The page at `/`: one file, sent with a policy that lets nothing but its own style and script run."""

from __future__ import annotations

import base64
import hashlib
import re
from pathlib import Path

FILE = Path(__file__).parent / "page" / "index.html"


def load_page() -> tuple[str, dict[str, str]]:
    """(HTML, headers)."""
    html = FILE.read_text(encoding="utf-8")
    style, script = (_hash_of(html, tag) for tag in ("style", "script"))
    policy = {
        "default-src": "'none'",
        "script-src": script,
        "style-src": style,
        "img-src": "data: blob:",
        "connect-src": "'self'",
        "base-uri": "'none'",
        "form-action": "'none'",
        "frame-ancestors": "'none'",
    }
    headers = {
        "content-security-policy": "; ".join(f"{name} {value}" for name, value in policy.items()),
        "referrer-policy": "no-referrer",
        "x-frame-options": "DENY",
    }
    return html, headers


def _hash_of(html: str, tag: str) -> str:
    found = re.findall(rf"<{tag}>(.*?)</{tag}>", html, re.S)
    if len(found) != 1:
        raise ValueError(f"{FILE}: {len(found)} <{tag}> elements; expected one, which the content security policy names by its hash")
    return f"'sha256-{base64.b64encode(hashlib.sha256(found[0].encode()).digest()).decode()}'"

"""What `r1-router gate` found about a policy, in its folder."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import yaml

GATE, CARD = "gate.yaml", "README.md"  # the result; the model card, which has it as a table


def gate_of(folder: str | Path) -> dict[str, Any]:
    """Contents of gate.yaml; empty for a policy that was never tested."""
    file = Path(folder) / GATE
    return yaml.safe_load(file.read_text(encoding="utf-8")) if file.is_file() else {}


def gate_warning(folder: str | Path) -> str:
    """What whoever asks the policy should know, in a line; empty for one that passed."""
    faults = gate_of(folder).get("faults", {})
    failed = ", ".join(name for name, found in faults.items() if not found["passed"])
    how = f"failed the test with broken knowledge bases ({failed})" if faults else "was never tested with broken knowledge bases"
    return f"This policy {how}: check its answers against the passages." if failed or not faults else ""

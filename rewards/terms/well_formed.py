"""`format`: 1 for a well-formed turn, 0 for any other."""

from __future__ import annotations

from rewards.terms.term import Term

FORMAT = Term("format", lambda turn: 1.0, frozenset({"plan", "answer", "final"}), "R1-Router (arXiv 2505.22095): format reward")

"""Runs side by side: what differs, how surely, and what cannot be compared."""

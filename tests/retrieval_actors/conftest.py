"""Puts this folder on the path, for `tiny_models`."""

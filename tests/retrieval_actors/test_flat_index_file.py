"""Vectors that stream into a file become the file that FAISS itself would have written."""

from __future__ import annotations

import faiss
import numpy as np
import pytest

from retrieval_actors.flat_index_file import FlatIndexFile


@pytest.mark.parametrize("blocks", [[], [0], [5], [3, 0, 4], [1] * 7])
def test_a_streamed_index_has_the_bytes_that_faiss_writes(tmp_path, blocks):
    rng = np.random.default_rng(0)
    drawn = [rng.standard_normal((rows, 6)).astype(np.float32) for rows in blocks]
    parts = [rows / np.linalg.norm(rows, axis=1, keepdims=True) for rows in drawn]
    whole = faiss.IndexFlatIP(6)
    with FlatIndexFile.create(tmp_path / "streamed.faiss", 6) as file:
        for part in parts:
            file.add(part[::-1])  # not contiguous
            whole.add(np.ascontiguousarray(part[::-1]))
    faiss.write_index(whole, str(tmp_path / "whole.faiss"))
    assert (tmp_path / "streamed.faiss").read_bytes() == (tmp_path / "whole.faiss").read_bytes()
    assert faiss.read_index(str(tmp_path / "streamed.faiss"), faiss.IO_FLAG_MMAP_IFC).ntotal == sum(blocks)


@pytest.mark.parametrize("wrong", [np.nan, 2.0, 0.5])
def test_what_is_no_unit_vector_is_refused(tmp_path, wrong):
    rows = np.eye(6, dtype=np.float32)
    rows[3] *= wrong
    with pytest.raises(ValueError, match="must be unit rows"), FlatIndexFile.create(tmp_path / "x", 6) as file:
        file.add(rows)


def test_vectors_of_another_dimension_are_refused(tmp_path):
    with pytest.raises(ValueError, match=r"shape \(2, 5\), expected \(rows, 6\)"), FlatIndexFile.create(tmp_path / "x", 6) as file:
        file.add(np.zeros((2, 5), np.float32))

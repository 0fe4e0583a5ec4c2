"""Python's search for cyclic garbage, put off while the records of an iteration come and go."""

from __future__ import annotations

import gc
from collections.abc import Iterator
from contextlib import contextmanager


@contextmanager
def no_search_for_cycles() -> Iterator[None]:
    """Trajectories and scored turns are hundreds of small objects each, without a cycle. Python's collector would search all of them again and
    again as they come in: at thousands of trajectories that costs the driver more than unpickling them. What there is of cycles is found
    afterwards."""
    searched = gc.isenabled()
    gc.disable()
    try:
        yield
    finally:
        if searched:
            gc.enable()

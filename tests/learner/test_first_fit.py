"""The tree finds the bins that a search from the first one on finds."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from learner.first_fit import FirstFit


@given(size=st.integers(1, 40), lengths=st.lists(st.integers(0, 50), max_size=120))
def test_every_piece_goes_where_a_search_from_the_first_bin_on_would_put_it(size, lengths):
    bins, room, found, expected = FirstFit(size), [], [], []
    for length in lengths:
        found.append(bins.put(length))
        place = next((i for i, left in enumerate(room) if length <= left), len(room))
        if place == len(room):
            room.append(size)
        room[place] -= length
        expected.append(place)
    assert found == expected
    assert bins.count == len(room)

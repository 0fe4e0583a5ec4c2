"""First fit in logarithmic time: which of many bins, from the first on, has room."""

from __future__ import annotations

NONE = -(2**62)
"""Room of a bin that is not open: not even a piece without length goes there."""


class FirstFit:
    """Bins of one size, opened one after the other; a tournament tree over their room (Johnson 1973) finds the first that takes a piece."""

    def __init__(self, size: int):
        self._size = size
        self._leaves = 1
        self._most = [NONE, NONE]
        """Node -> the most room of a bin below it; node 1 is the root, node i has the children 2i and 2i + 1."""
        self.count = 0

    def put(self, length: int) -> int:
        """Number of the first bin with room for a piece of this length, which then has so much less; a piece that is longer than a bin gets one
        of its own."""
        place = self._first_with(length)
        if place == self.count:
            self._open()
        self._set(place, self._most[self._leaves + place] - length)
        return place

    def _first_with(self, length: int) -> int:
        node = 1
        if self.count == 0 or self._most[1] < length:
            return self.count
        while node < self._leaves:
            node = 2 * node if self._most[2 * node] >= length else 2 * node + 1
        return node - self._leaves

    def _open(self) -> None:
        if self.count == self._leaves:
            room = self._most[self._leaves : self._leaves + self.count]
            self._leaves *= 2
            self._most = [NONE] * (2 * self._leaves)
            self._most[self._leaves : self._leaves + self.count] = room
            for node in range(self._leaves - 1, 0, -1):
                self._most[node] = max(self._most[2 * node], self._most[2 * node + 1])
        self.count += 1
        self._set(self.count - 1, self._size)

    def _set(self, place: int, room: int) -> None:
        node = self._leaves + place
        self._most[node] = room
        while node > 1:
            node //= 2
            self._most[node] = max(self._most[2 * node], self._most[2 * node + 1])

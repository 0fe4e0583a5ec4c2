"""Keys and values in one tensor: places of equal length, taken and given back one by one."""

from __future__ import annotations

import heapq
from dataclasses import dataclass

import torch


@dataclass(frozen=True)
class CacheShape:
    """What the cache has to know of a model."""

    layers: int
    heads: int
    """Of keys and values."""
    size: int
    """Of one head."""
    dtype: torch.dtype
    device: torch.device

    @property
    def bytes_per_token(self) -> int:
        return 2 * self.layers * self.heads * self.size * self.dtype.itemsize


class Slab:
    """`places` x `length` tokens. It starts as zeros and never holds anything but finite numbers: masked products with it are exactly 0."""

    def __init__(self, shape: CacheShape, length: int):
        self.shape, self.length, self.places = shape, length, 0
        self.tensor = self._empty(0, length)

    def _empty(self, places: int, length: int) -> torch.Tensor:
        shape = self.shape
        return torch.zeros(shape.layers, 2, places, shape.heads, length, shape.size, dtype=shape.dtype, device=shape.device)

    @property
    def tokens(self) -> int:
        return self.places * self.length

    def keys(self, layer: int) -> torch.Tensor:
        """(places, heads, length, head size), a view."""
        return self.tensor[layer, 0]

    def values(self, layer: int) -> torch.Tensor:
        return self.tensor[layer, 1]

    def resize(self, places: int, length: int) -> None:
        """Make it larger; what is in it stays where it is."""
        larger = self._empty(places, length)
        larger[:, :, : self.places, :, : self.length] = self.tensor
        self.tensor, self.places, self.length = larger, places, length


class Shelf(Slab):
    """Prompts of up to `length` tokens. Every place holds one prompt once, for up to `lanes` siblings that read it together."""

    def __init__(self, shape: CacheShape, length: int, lanes: int):
        super().__init__(shape, length)
        self.lanes = lanes
        self.free: list[int] = []
        self.mask = torch.zeros(0, length, dtype=shape.dtype, device=shape.device)
        """(places, length): 0 where a prompt has a token, -inf behind its end."""

    @property
    def used(self) -> int:
        return self.places - len(self.free)

    def grow(self, places: int) -> None:
        self.free += range(self.places, places)
        heapq.heapify(self.free)
        self.resize(places, self.length)
        self.mask = torch.cat([self.mask, self.mask.new_zeros(places - len(self.mask), self.length)])

    def take(self, prompt_tokens: int) -> int:
        """The lowest free place: those in use stay close together, and all up to the highest are computed."""
        place = heapq.heappop(self.free)
        self.mask[place, :prompt_tokens] = 0
        self.mask[place, prompt_tokens:] = -torch.inf
        return place

    def give_back(self, place: int) -> None:
        heapq.heappush(self.free, place)

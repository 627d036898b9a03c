"""Random numbers as a function of keys: any step can be replayed, and resuming needs no generator state."""

import hashlib
import math

import torch
from torch import Tensor


class Rng:
    """Seeded random tensors on one device. `Rng(seed, "pretext", step)` is a pure function of its keys.

    With `shard=(rank, world)` the first dimension of a draw is this process's part of the global batch: numbers are
    drawn for all processes, and this process's rows are returned. Puzzles therefore do not depend on the number of
    processes. `unsharded` is the same generator without sharding, for draws that have no batch dimension.
    """

    def __init__(self, *keys: int | str, device: torch.device | str = "cpu", shard: tuple[int, int] = (0, 1)):
        digest = hashlib.blake2b(repr(keys).encode(), digest_size=8).digest()
        self.keys, self.shard = keys, shard
        self.device = torch.device(device)
        self.generator = torch.Generator(self.device).manual_seed(int.from_bytes(digest, "big") >> 1)

    def child(self, *keys: int | str) -> "Rng":
        """An independent stream with further keys."""
        return Rng(*self.keys, *keys, device=self.device, shard=self.shard)

    @property
    def unsharded(self) -> "Rng":
        """For draws that must agree in all processes: projection directions, permutation sets, orders."""
        return Rng(*self.keys, "whole", device=self.device)

    def _global_shape(self, shape: tuple[int, ...]) -> tuple[int, ...]:
        return (shape[0] * self.shard[1], *shape[1:]) if shape else shape

    def _local_rows(self, drawn: Tensor) -> Tensor:
        rank, world = self.shard
        if world == 1 or drawn.ndim == 0:
            return drawn
        rows = len(drawn) // world
        return drawn[rank * rows : (rank + 1) * rows]

    def uniform(self, *shape: int, low: float = 0.0, high: float = 1.0) -> Tensor:
        u = torch.rand(self._global_shape(shape), generator=self.generator, device=self.device)
        return self._local_rows(low + (high - low) * u)

    def normal(self, *shape: int) -> Tensor:
        return self._local_rows(
            torch.randn(self._global_shape(shape), generator=self.generator, device=self.device)
        )

    def integers(self, *shape: int, high: int) -> Tensor:
        """Integers in [0, high)."""
        return self._local_rows(
            torch.randint(high, self._global_shape(shape), generator=self.generator, device=self.device)
        )

    def coin(self, *shape: int, p: float) -> Tensor:
        """True with probability p."""
        return self.uniform(*shape) < p

    def orders(self, *shape: int) -> Tensor:
        """(…, n): each row of the last dimension is a random permutation of 0 … n-1."""
        return self.uniform(*shape).argsort(-1)

    def permutation(self, n: int) -> Tensor:
        return torch.randperm(n, generator=self.generator, device=self.device)

    def choice(self, n: int, weights: Tensor) -> Tensor:
        """(n,) positions sampled with replacement, with probability proportional to `weights` (N,), for any N."""
        ends = weights.double().cumsum(0)
        u = torch.rand(n, generator=self.generator, device=self.device, dtype=torch.float64)
        return torch.searchsorted(ends, u * ends[-1], right=True).clamp(max=len(weights) - 1)


class RowRng(Rng):
    """Random numbers that belong to each row's own key, so that a view of an image is the same in any batch and process.

    `key` (B,) int64: draws have B rows; equal keys get equal rows.
    """

    def __init__(self, key: Tensor, *keys: int | str):
        super().__init__(*keys, device=key.device)
        self.key, self.drawn = key, 0
        self.base = int(torch.randint(2**62, (), generator=self.generator, device=self.device))

    def child(self, *keys: int | str) -> "RowRng":
        return RowRng(self.key, *self.keys, *keys)

    def uniform(self, *shape: int, low: float = 0.0, high: float = 1.0) -> Tensor:
        count = math.prod(shape[1:])
        place = torch.arange(self.drawn, self.drawn + count, device=self.device)
        self.drawn += count
        mixed = scrambled(scrambled(self.key + self.base)[:, None] + place)  # (B, count)
        return low + (high - low) * unit(mixed).view(shape)

    def normal(self, *shape: int) -> Tensor:
        return torch.special.ndtri(self.uniform(*shape, low=2**-25, high=1 - 2**-25))

    def integers(self, *shape: int, high: int) -> Tensor:
        return (self.uniform(*shape) * high).long()


def scrambled(x: Tensor) -> Tensor:
    """int64 -> int64, each bit of the result depending on all bits: SplitMix64 (Steele, Lea, Flood 2014); products wrap around."""
    x = x * -0x61C8864680B583EB
    x = (x ^ (x >> 30 & 0x3FFFFFFFF)) * -0x40A7B892E31B1A47
    x = (x ^ (x >> 27 & 0x1FFFFFFFFF)) * -0x6B2FB644ECCEEE15
    return x ^ (x >> 31 & 0x1FFFFFFFF)


def unit(x: Tensor) -> Tensor:
    """Scrambled int64 -> numbers in [0, 1), from their upper 24 bits."""
    return (x >> 40 & 0xFFFFFF) / 2**24

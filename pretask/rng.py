"""Random numbers as a function of keys: any step can be replayed, and resuming needs no generator state."""

import hashlib

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

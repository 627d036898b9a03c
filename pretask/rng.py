"""Randomness as a function of its keys: any step can be replayed, so a resume needs no generator state."""

import hashlib

import torch
from torch import Tensor


class Rng:
    """Seeded random tensors on one device. `Rng(seed, "pretext", step)` is a pure function of its keys.

    With `share=(rank, world)` the first dimension of a draw is this process's part of the batch: the numbers are
    drawn for the batches of all processes and the own rows are returned, so that the puzzles do not depend on how
    many processes make them. `whole` is the same generator without the share, for draws that have no batch.
    """

    def __init__(self, *keys: int | str, device: torch.device | str = "cpu", share: tuple[int, int] = (0, 1)):
        digest = hashlib.blake2b(repr(keys).encode(), digest_size=8).digest()
        self.keys, self.share = keys, share
        self.device = torch.device(device)
        self.generator = torch.Generator(self.device).manual_seed(int.from_bytes(digest, "big") >> 1)

    def child(self, *keys: int | str) -> "Rng":
        """An independent stream of its own name."""
        return Rng(*self.keys, *keys, device=self.device, share=self.share)

    @property
    def whole(self) -> "Rng":
        """For draws that every process must agree on: directions, permutation sets, orders."""
        return Rng(*self.keys, "whole", device=self.device)

    def _all(self, shape: tuple[int, ...]) -> tuple[int, ...]:
        return (shape[0] * self.share[1], *shape[1:]) if shape else shape

    def _own(self, drawn: Tensor) -> Tensor:
        rank, world = self.share
        if world == 1 or drawn.ndim == 0:
            return drawn
        rows = len(drawn) // world
        return drawn[rank * rows : (rank + 1) * rows]

    def uniform(self, *shape: int, low: float = 0.0, high: float = 1.0) -> Tensor:
        u = torch.rand(self._all(shape), generator=self.generator, device=self.device)
        return self._own(low + (high - low) * u)

    def normal(self, *shape: int) -> Tensor:
        return self._own(torch.randn(self._all(shape), generator=self.generator, device=self.device))

    def integers(self, *shape: int, high: int) -> Tensor:
        """In [0, high)."""
        return self._own(torch.randint(high, self._all(shape), generator=self.generator, device=self.device))

    def coin(self, *shape: int, p: float) -> Tensor:
        """True with probability p."""
        return self.uniform(*shape) < p

    def orders(self, *shape: int) -> Tensor:
        """(…, n) -> in each row of the last dimension, a random order of 0 … n-1."""
        return self.uniform(*shape).argsort(-1)

    def permutation(self, n: int) -> Tensor:
        return torch.randperm(n, generator=self.generator, device=self.device)

    def choice(self, n: int, weights: Tensor) -> Tensor:
        """n positions drawn with replacement, in proportion to `weights` (N,), N of any length."""
        ends = weights.double().cumsum(0)
        u = torch.rand(n, generator=self.generator, device=self.device, dtype=torch.float64)
        return torch.searchsorted(ends, u * ends[-1], right=True).clamp(max=len(weights) - 1)

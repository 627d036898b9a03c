"""What a method may ask of the run between epochs, and how it may end it."""

from dataclasses import dataclass, field

import torch
from torch import Tensor, nn
from torch.optim import Optimizer

from pretask.encoders import Encoder, pooled
from pretask.rng import Rng
from pretask.types import Progress, Source


class Finished(Exception):
    """Raised by `begin_epoch` when a method has nothing left to learn."""


@dataclass(frozen=True)
class Context:
    """The source as a whole, the optimisers' memory, the epoch's own randomness."""

    source: Source
    optimizers: list[Optimizer]
    progress: Progress
    rng: Rng
    files: dict[str, bytes] = field(default_factory=dict)
    """what was learned that is no part of a network: name -> content of a file in the run's folder"""

    def embed(self, encoder: Encoder, size: int = 1024) -> Tensor:
        """(N, D): pooled features of every sample, in source order, in evaluation mode, without augmentation."""
        parts = torch.arange(len(self.source)).split(size)
        rows = [pooled(encoder, self.source.__getitems__(index).image) for index in parts]
        return torch.cat(rows).to(self.rng.device)

    def gather(self, name: str) -> Tensor:
        """(N, …): one aux field of every sample, in source order."""
        parts = [
            self.source.__getitems__(index).aux[name] for index in torch.arange(len(self.source)).split(1024)
        ]
        return torch.cat(parts).to(self.rng.device)

    def forget(self, module: nn.Module) -> None:
        """Drop the optimisers' memory of a module that was just re-initialised."""
        for optimizer in self.optimizers:
            for parameter in module.parameters():
                optimizer.state.pop(parameter, None)

"""What the trainer passes to a method between epochs, and how a method ends its run."""

from dataclasses import dataclass, field

import torch
from torch import Tensor, nn
from torch.optim import Optimizer

from pretask.encoders import Encoder, pooled
from pretask.rng import Rng
from pretask.types import Progress, Source


class Finished(Exception):
    """Raised by `begin_epoch` to end the run: the method has nothing left to learn."""


@dataclass(frozen=True)
class Context:
    """The whole source, the optimizers and a random stream of the epoch."""

    source: Source
    optimizers: list[Optimizer]
    progress: Progress
    rng: Rng
    files: dict[str, bytes] = field(default_factory=dict)
    """results that are not network weights: file name -> content, written to the run's folder"""

    def embed(self, encoder: Encoder, size: int = 1024) -> Tensor:
        """(N, D) pooled features of every sample, in source order, in evaluation mode, not augmented."""
        parts = torch.arange(len(self.source)).split(size)
        rows = [pooled(encoder, self.source.__getitems__(index).image) for index in parts]
        return torch.cat(rows).to(self.rng.device)

    def gather(self, name: str) -> Tensor:
        """(N, …) one aux field of every sample, in source order."""
        parts = [
            self.source.__getitems__(index).aux[name] for index in torch.arange(len(self.source)).split(1024)
        ]
        return torch.cat(parts).to(self.rng.device)

    def forget(self, module: nn.Module) -> None:
        """Drop the optimizer state of a module that was just re-initialized."""
        for optimizer in self.optimizers:
            for parameter in module.parameters():
                optimizer.state.pop(parameter, None)

"""What a method may ask of the run between epochs, and how it may end it."""

from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor, nn
from torch.optim import Optimizer

from pretask import images
from pretask.rng import Rng
from pretask.types import Progress, Source


class Finished(Exception):
    """Raised by `begin_epoch` when a method has nothing left to learn."""


@dataclass(frozen=True)
class Context:
    """The source as a whole, the optimisers' memory, the epoch's own randomness, the run's folder."""

    source: Source
    optimizers: list[Optimizer]
    progress: Progress
    rng: Rng
    folder: Path

    @torch.no_grad()
    def embed(self, encoder: nn.Module, size: int = 256) -> Tensor:
        """(N, D): pooled features of every sample, in source order, in evaluation mode, without augmentation."""
        was_training = encoder.training
        encoder.eval()
        rows = [
            encoder(images.to_float(self.source.__getitems__(index).image.to(self.rng.device)))[
                "pool"
            ].float()
            for index in torch.arange(len(self.source)).split(size)
        ]
        encoder.train(was_training)
        return torch.cat(rows)

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

"""LightlySSL's SimCLR, as in the PyTorch example of its documentation.

https://docs.lightly.ai/self-supervised-learning/examples/simclr.html: SimCLRTransform on PIL images in the workers of
a DataLoader, one pass of the network per view, NTXentLoss, SGD; single precision in the default memory layout. The
encoder is the same as ours, also without blur, and the workers persist between epochs, which is faster.
"""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from lightly.data import LightlyDataset
from lightly.loss import NTXentLoss
from lightly.models.modules import SimCLRProjectionHead
from lightly.transforms.simclr_transform import SimCLRTransform
from PIL import Image
from torch import Tensor, nn
from torch.utils.data import DataLoader, Dataset, Subset

from pretask.data.encoded import cores
from pretask.encoders import Encoder
from pretask.runtime.device import find_device


class Model(nn.Module):
    def __init__(self, encoder: Encoder):
        super().__init__()
        self.backbone = encoder
        self.projection_head = SimCLRProjectionHead(encoder.dim, encoder.dim, 128)

    def forward(self, x: Tensor) -> Tensor:
        return self.projection_head(self.backbone.stages(x)["pool"])  # the transform has normalized x


class Pictures(Dataset[Any]):
    """(N, C, H, W) uint8 in memory as PIL images, as torchvision's CIFAR10 returns them."""

    def __init__(self, image: Tensor, transform: Callable[[Image.Image], Any]):
        self.rows, self.transform = image.permute(0, 2, 3, 1).contiguous().numpy(), transform

    def __len__(self) -> int:
        return len(self.rows)

    def __getitem__(self, i: int) -> tuple[Any, int]:
        return self.transform(Image.fromarray(self.rows[i])), 0


def lightly(images: Tensor | Path, encoder: Encoder, order: Tensor, batch: int) -> Callable[[], object]:
    """A function that trains one epoch on the images of `order`, from an array or a folder."""
    transform: Any = SimCLRTransform(input_size=encoder.size, gaussian_blur=0.0)
    dataset: Any = (
        LightlyDataset(str(images), transform=transform)
        if isinstance(images, Path)
        else Pictures(images, transform)
    )
    loader = DataLoader(
        Subset(dataset, order.tolist()),
        batch_size=batch,
        shuffle=True,
        drop_last=True,
        num_workers=cores(),
        persistent_workers=True,
    )
    device = find_device()
    model = Model(encoder).to(device)
    criterion = NTXentLoss()
    optimizer = torch.optim.SGD(model.parameters(), lr=0.06)

    def epoch() -> None:
        for views, *_ in loader:
            view1, view2 = (view.to(device) for view in views)
            loss = criterion(model(view1), model(view2))
            loss.backward()
            optimizer.step()
            optimizer.zero_grad()

    return epoch

"""Decoded images in memory or in a memory map."""

from collections.abc import Mapping

import torch
from torch import Tensor

from pretask.data import fingerprint
from pretask.data.base import SAMPLE, Texts, is_constant, warn_constant
from pretask.data.dense_maps import Planes
from pretask.data.fingerprint import Fingerprint
from pretask.data.ledger import Ledger
from pretask.transforms.ranges import UNKNOWN, Range
from pretask.types import Batch


class Arrays:
    """(N, C, H, W) uint8 images; with `planes`, dense maps follow the image channels.

    `mapped`: the images are on disk. `origin` is the fingerprint of the files that they were decoded from.
    """

    def __init__(
        self,
        name: str,
        image: Tensor,
        names: Texts | None = None,
        ledger: Ledger | None = None,
        aux: Mapping[str, Tensor] | None = None,
        mapped: bool = False,
        planes: Planes | None = None,
        origin: Fingerprint | None = None,
        range: Range = UNKNOWN,
    ):
        self.name, self.image, self.names = name, image, names
        self.ledger, self.aux = ledger or Ledger(), dict(aux or {})
        self.ledger.set_size(len(image))
        self.planes = planes or Planes(image.shape[1])
        self.channels, self.size = self.planes.channels, image.shape[2]
        self.provides = frozenset(self.aux).union(self.planes.maps)
        self.mapped, self.origin, self.range = mapped, origin, range

    def __len__(self) -> int:
        return len(self.image)

    def __getitems__(self, index: Tensor) -> Batch:
        image, maps = self.planes.unpack(self.image[index])
        return Batch(index, image, {k: v[index] for k, v in self.aux.items()} | maps)

    def warn_if_constant(self) -> None:
        """Warn if many images of a sample are constant."""
        sampled = self.image[torch.linspace(0, len(self) - 1, min(len(self), SAMPLE)).round().long()]
        warn_constant(
            self.name, [is_constant(each) for each in sampled[:, : self.channels].numpy()], self.range
        )

    def files(self, index: Tensor) -> list[str]:
        """The name of each image; its position if it has none."""
        return [self.names[i] if self.names else str(i) for i in index.tolist()]

    def readable(self, index: Tensor) -> Tensor:
        return self.ledger.readable(index)

    def fingerprint(self) -> Fingerprint:
        """Of the encoded files if known: decoder versions may differ in the pixels they produce."""
        fields = {"image": self.image, **self.aux}
        return self.origin or fingerprint.of_arrays(self.names, fields, self.mapped)

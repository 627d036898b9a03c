"""Images that lie decoded in memory or in a memory map."""

from collections.abc import Mapping

from torch import Tensor

from pretask.data.base import Texts
from pretask.data.dense_maps import Planes
from pretask.data.ledger import Ledger
from pretask.types import Batch


class Arrays:
    """(N, C, H, W) uint8, sliced by position; with `planes`, those of maps follow the channels of the image."""

    def __init__(
        self,
        name: str,
        image: Tensor,
        names: Texts | None = None,
        ledger: Ledger | None = None,
        aux: Mapping[str, Tensor] | None = None,
        mapped: bool = False,
        planes: Planes | None = None,
    ):
        self.name, self.image, self.names = name, image, names
        self.ledger, self.aux = ledger or Ledger(), dict(aux or {})
        self.ledger.opened(len(image))
        self.planes = planes or Planes(image.shape[1])
        self.channels, self.size = self.planes.channels, image.shape[2]
        self.provides = frozenset(self.aux).union(self.planes.maps)
        self.mapped = mapped

    def __len__(self) -> int:
        return len(self.image)

    def __getitems__(self, index: Tensor) -> Batch:
        image, maps = self.planes.unpack(self.image[index])
        return Batch(index, image, {k: v[index] for k, v in self.aux.items()} | maps)

    def files(self, index: Tensor) -> list[str]:
        """The name of each sample; its number where it has none."""
        return [self.names[i] if self.names else str(i) for i in index.tolist()]

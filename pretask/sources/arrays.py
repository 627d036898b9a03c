"""Images that lie decoded in memory or in a memory map."""

from collections.abc import Mapping

from torch import Tensor

from pretask.sources.common import Texts
from pretask.types import Batch


class Arrays:
    """(N, C, H, W) uint8, sliced by position."""

    def __init__(
        self,
        name: str,
        image: Tensor,
        names: Texts | None = None,
        bad: dict[str, str] | None = None,
        aux: Mapping[str, Tensor] | None = None,
        mapped: bool = False,
    ):
        self.name, self.image, self.names = name, image, names
        self.bad, self.aux = dict(bad or {}), dict(aux or {})
        self.channels, self.size = image.shape[1], image.shape[2]
        self.provides = frozenset(self.aux)
        self.mapped = mapped

    def __len__(self) -> int:
        return len(self.image)

    def __getitems__(self, index: Tensor) -> Batch:
        return Batch(index, self.image[index], {k: v[index] for k, v in self.aux.items()})

    def files(self, index: Tensor) -> list[str]:
        """The name of each sample; its number where it has none."""
        return [self.names[i] if self.names else str(i) for i in index.tolist()]

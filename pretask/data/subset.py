"""Subsets of a source, such as a random fraction drawn by seed. A subset is a source too, numbered from 0."""

from torch import Tensor

from pretask.data.base import Images
from pretask.data.encoded import Encoded
from pretask.data.fingerprint import Fingerprint
from pretask.data.stream import Stream
from pretask.rng import Rng
from pretask.types import Batch, LabeledSource, UserError


class Subset:
    """The images of `whole` at `index` (M,)."""

    def __init__(self, whole: Images, index: Tensor):
        self.whole, self.index, self.name = whole, index, whole.name
        self.channels, self.size = whole.channels, whole.size
        self.provides, self.ledger, self.range = whole.provides, whole.ledger, whole.range

    def __len__(self) -> int:
        return len(self.index)

    def __getitems__(self, index: Tensor) -> Batch:
        found = self.whole.__getitems__(self.index[index])
        return Batch(index, found.image, found.aux)

    def files(self, index: Tensor) -> list[str]:
        return self.whole.files(self.index[index])

    def readable(self, index: Tensor) -> Tensor:
        return self.whole.readable(self.index[index])

    def fingerprint(self) -> Fingerprint:
        return self.whole.fingerprint()


class LabeledSubset:
    """The images and labels of `whole` at `index` (M,), for evaluation."""

    def __init__(self, whole: LabeledSource, index: Tensor, name: str):
        self.whole, self.index, self.name = whole, index, name
        self.label, self.classes = whole.label[index], whole.classes
        self.channels, self.size = whole.channels, whole.size
        self.provides, self.ledger = whole.provides, whole.ledger

    @property
    def multi_label(self) -> bool:
        return self.label.ndim == 2

    def __len__(self) -> int:
        return len(self.index)

    def __getitems__(self, index: Tensor) -> Batch:
        return Batch(index, self.whole.__getitems__(self.index[index]).image)


def draw_subset(source: Images, fraction: float, seed: int) -> Images:
    """A random fraction of the images, in the order of the source. For the same seed, smaller fractions are nested in larger."""
    if fraction == 1:
        return source
    if isinstance(source, Stream):
        raise UserError(
            f"{source.name} is a stream and has no subsets; write it to disk first with pretask prepare"
        )
    index = subset_index(len(source), fraction, seed)
    return source.subset(index) if isinstance(source, Encoded) else Subset(source, index)


def subset_index(n: int, fraction: float, seed: int) -> Tensor:
    """(M,) sorted positions of a random fraction of n images."""
    return Rng(seed, "share").permutation(n)[: subset_size(n, fraction)].sort().values


def subset_size(n: int, fraction: float) -> int:
    """Number of images in a fraction of n."""
    if not 0 < fraction <= 1:
        raise UserError(f"got --fraction {fraction:g}; expected a number above 0 and at most 1")
    if not round(fraction * n):
        raise UserError(f"--fraction {fraction:g} of {n} images is no image; use at least {1 / n:.2g}")
    return round(fraction * n)

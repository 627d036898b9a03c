"""A share of a source: some of its images, drawn at random by seed, as a source of their own that is numbered from 0."""

from torch import Tensor

from pretask.data.base import Images
from pretask.data.encoded import Encoded
from pretask.data.stream import Stream
from pretask.rng import Rng
from pretask.types import Batch, UserError


class Some:
    """The images of `whole` at `index` (M,)."""

    def __init__(self, whole: Images, index: Tensor):
        self.whole, self.index, self.name = whole, index, whole.name
        self.channels, self.size = whole.channels, whole.size
        self.provides, self.ledger = whole.provides, whole.ledger

    def __len__(self) -> int:
        return len(self.index)

    def __getitems__(self, index: Tensor) -> Batch:
        found = self.whole.__getitems__(self.index[index])
        return Batch(index, found.image, found.aux)

    def files(self, index: Tensor) -> list[str]:
        return self.whole.files(self.index[index])


def drawn(source: Images, share: float, seed: int) -> Images:
    """That share of the images, in the order of the source; of one seed a smaller share lies within a larger one."""
    if share == 1:
        return source
    if isinstance(source, Stream):
        raise UserError(
            f"{source.name} is a stream, of which no share can be drawn; write it to disk first with pretask prepare"
        )
    index = chosen(len(source), share, seed)
    return source.some(index) if isinstance(source, Encoded) else Some(source, index)


def chosen(n: int, share: float, seed: int) -> Tensor:
    """(M,): the positions of that share of n images."""
    return Rng(seed, "share").permutation(n)[: count(n, share)].sort().values


def count(n: int, share: float) -> int:
    """How many of n images that share is."""
    if not 0 < share <= 1:
        raise UserError(f"--share {share:g} is no share; give a number above 0, and 1 for all images")
    if not round(share * n):
        raise UserError(f"--share {share:g} of {n} images is none of them; give {1 / n:.2g} or more")
    return round(share * n)

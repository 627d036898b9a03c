"""The stored images behind a source: at their own size, before they become canvases for an encoder."""

from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import TypeVar

import torch
from PIL import Image

from pretask.data import decode
from pretask.data.base import Images
from pretask.data.encoded import Encoded, ItemSubset, cores
from pretask.data.folder import Files
from pretask.data.subset import Subset

T = TypeVar("T")


def stored(source: Images, i: int) -> decode.Encoded:
    """Image i as it is stored: a file or its bytes; of arrays, its pixels. Raises decode.Unreadable."""
    if isinstance(source, Subset):
        return stored(source.whole, int(source.index[i]))
    if isinstance(source, Encoded):
        return source.reader.items.read(i)
    pixels = source.__getitems__(torch.tensor([i])).image[0].permute(1, 2, 0).numpy()
    return Image.fromarray(pixels[:, :, 0] if pixels.shape[2] == 1 else pixels)


def picture(source: Images, i: int) -> Image.Image:
    """Image i, upright, with 8 bits. Raises decode.Unreadable."""
    with decode.readable():
        return decode.to_pil(stored(source, i), source.channels, source.range)


def root(source: Images) -> Path | None:
    """The folder that names are relative to, for images that are files."""
    if isinstance(source, Subset):
        return root(source.whole)
    items = source.reader.items if isinstance(source, Encoded) else None
    while isinstance(items, ItemSubset):
        items = items.items
    return Path(items.root) if isinstance(items, Files) else None


def each(work: Callable[[int], T], index: Iterable[int]) -> Iterator[T]:
    """`work` on each position, in order, by as many threads as there are cores: decoders release the interpreter."""
    with ThreadPoolExecutor(cores()) as threads:
        yield from threads.map(work, index)

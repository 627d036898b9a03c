"""Fingerprints of datasets, to detect whether the images of a run have changed: names, sizes, and the content of a sample.

Names are relative to the root of the data and times are ignored, so that a copy elsewhere counts as the same data. A run
stores its fingerprint in data.npz and the digest of it in run.json.
"""

import hashlib
import os
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any, BinaryIO

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from pretask.data import decode
from pretask.data.base import Texts
from pretask.data.deep import Deep

if TYPE_CHECKING:
    from pretask.data.base import Images
    from pretask.data.encoded import Items

FILE, KEY = "data.npz", "fingerprint"
"""file in a run's folder, and key in its card"""
SAMPLE = 48
"""evenly spaced images whose content is compared"""
END = 2**21
"""bytes at either end that represent a file of more than twice as many"""
SHOWN = 3
"""names listed per kind of difference"""
WIDTH = 16
"""bytes of a hash"""


@dataclass(frozen=True)
class Fingerprint:
    names: Texts  # (N,) in the order of the source
    sizes: np.ndarray  # (N,) int64, bytes; -1 if unknown
    sampled: np.ndarray  # (S,) int64, positions of the sample
    sums: np.ndarray  # (S, WIDTH) uint8, hashes of its content
    whole: np.ndarray  # (WIDTH,) uint8, hash of all pixels and texts in memory

    @cached_property
    def digest(self) -> str:
        """Hash of the whole fingerprint."""
        parts = (self.names.blob, self.names.ends, self.sizes, self.sampled, self.sums, self.whole)
        return digest_of(part.reshape(-1) for part in parts).tobytes().hex()

    def write(self, file: BinaryIO) -> None:
        np.savez_compressed(
            file,
            names=self.names.blob,
            lengths=np.diff(self.names.ends),
            sizes=self.sizes,
            sampled=self.sampled,
            sums=self.sums,
            whole=self.whole,
        )

    def contents(self) -> dict[str, bytes]:
        """Name -> content hash, of the sample."""
        return {self.names[i]: x.tobytes() for i, x in zip(self.sampled.tolist(), self.sums, strict=True)}


def read(folder: Path) -> Fingerprint | None:
    """The fingerprint in a run's folder; None if it cannot be read."""
    try:
        with np.load(folder / FILE, allow_pickle=False) as kept:
            ends = np.concatenate([[0], np.cumsum(kept["lengths"])]).astype(np.int64)
            names = Texts(kept["names"], ends)
            return Fingerprint(names, *(kept[key] for key in ("sizes", "sampled", "sums", "whole")))
    except Exception:  # the zip, its compression and the array headers can all be damaged
        return None


# ---- computing


def of_items(items: "Items", aux: Mapping[str, Tensor]) -> Fingerprint:
    """Of encoded images and their auxiliary fields (N, …)."""
    sampled = sample_positions(len(items))
    return Fingerprint(
        relative([items.name(i) for i in range(len(items))]),
        sizes(items),
        sampled,
        stacked([digest_of(content(items, i)) for i in sampled.tolist()]),
        digest_of(map(as_bytes, in_order(aux))),
    )


def of_arrays(names: Texts | None, fields: Mapping[str, Tensor], mapped: bool) -> Fingerprint:
    """Of pixels and auxiliary fields, (N, …) each: all of them if in memory, else only the sample."""
    arrays = in_order(fields)
    n = len(arrays[0])
    sampled = sample_positions(n)
    return Fingerprint(
        names or Texts.of(map(str, range(n))),
        np.full(n, -1),
        sampled,
        stacked([digest_of(x[i].numpy().tobytes() for x in arrays) for i in sampled.tolist()]),
        digest_of([] if mapped else map(as_bytes, arrays)),
    )


def of_card(name: str, info: Any) -> Fingerprint:
    """Of a hub dataset without local files: its version and size as stated by `datasets`."""
    known = [info.config_name, str(info.version), info.dataset_size, info.download_checksums, info.splits]
    nothing = np.zeros(0, np.int64)
    return Fingerprint(
        Texts.of([name]), np.full(1, -1), nothing, stacked([]), digest_of([repr(known).encode()])
    )


def of_parts(*parts: Fingerprint) -> Fingerprint:
    """Of several sources, concatenated."""
    starts = np.cumsum([0, *(len(part.names) for part in parts[:-1])])
    return Fingerprint(
        Texts.of(part.names[i] for part in parts for i in range(len(part.names))),
        np.concatenate([part.sizes for part in parts]),
        np.concatenate([part.sampled + start for part, start in zip(parts, starts, strict=True)]),
        np.concatenate([part.sums for part in parts]),
        digest_of(part.whole for part in parts),
    )


def sizes(items: "Items") -> np.ndarray:
    """(N,) int64 sizes in bytes; -1 if unknown."""
    known = getattr(items, "sizes", None)
    return np.full(len(items), -1) if known is None else np.ascontiguousarray(known(), np.int64)


def stamps(source: "Images") -> np.ndarray:
    """(N, 2) int64 size and time of change, in nanoseconds, of each image's file; -1 for images that are no files."""
    items = getattr(getattr(source, "reader", None), "items", None)
    return np.full((len(source), 2), -1) if items is None else stamps_of(items)


def stamps_of(items: "Items") -> np.ndarray:
    known = getattr(items, "stamps", None)
    return np.full((len(items), 2), -1) if known is None else known()


def sample_positions(n: int) -> np.ndarray:
    """(S,) at most SAMPLE of n positions, evenly spaced."""
    return np.unique(np.linspace(0, n - 1, SAMPLE).round().astype(np.int64)) if n else np.zeros(0, np.int64)


def in_order(fields: Mapping[str, Tensor]) -> list[Tensor]:
    return [fields[name] for name in sorted(fields)]


def as_bytes(x: Tensor) -> np.ndarray:
    """The bytes of a tensor as a flat array; a view if it is contiguous."""
    return x.contiguous().view(-1).view(torch.uint8).numpy()


def relative(names: Sequence[str]) -> Texts:
    """Names; if all are absolute paths, relative to their common folder."""
    if names and all(map(os.path.isabs, names)):
        root = os.path.commonpath([os.path.dirname(name) for name in names])
        return Texts.of(name.removeprefix(root + os.sep) for name in names)
    return Texts.of(names)


def content(items: "Items", i: int) -> Iterable[bytes]:
    """The stored bytes of an image; empty if it cannot be read."""
    try:
        with decode.readable():
            stored = items.read(i)
            if isinstance(stored, Path):
                return head_and_tail(stored)
            if isinstance(stored, Image.Image):
                return [repr((stored.mode, stored.size)).encode(), stored.tobytes()]
            if isinstance(stored, Deep):
                return [stored.numbers().tobytes()]
            return [stored]
    except decode.Unreadable:
        return []


def head_and_tail(path: Path) -> list[bytes]:
    with path.open("rb") as file:
        first = file.read(2 * END)
        if os.fstat(file.fileno()).st_size > 2 * END:
            file.seek(-END, os.SEEK_END)
            return [first[:END], file.read()]
        return [first]


def digest_of(parts: Iterable[Any]) -> np.ndarray:
    """(WIDTH,) uint8 hash of bytes."""
    made = hashlib.blake2b(digest_size=WIDTH)
    for part in parts:
        made.update(part)
    return np.frombuffer(made.digest(), np.uint8)


def of_pixels(image: Tensor) -> np.ndarray:
    """(B, C, H, W) uint8 -> (B, WIDTH) uint8, equal for equal pixels."""
    return stacked([digest_of([pixels.tobytes()]) for pixels in image.cpu().numpy()])


def stacked(sums: Sequence[np.ndarray]) -> np.ndarray:
    return np.stack(sums) if sums else np.zeros((0, WIDTH), np.uint8)


# ---- comparing


def describe_changes(folder: Path, card: Mapping[str, Any], source: "Images") -> str:
    """How the images of `source` differ from those that a run was trained on; "" if they don't, or if unknown."""
    if not card.get(KEY):
        return ""
    now = source.fingerprint()
    if now.digest == card[KEY]:
        return ""
    then = read(folder)
    return differences(then, now) if then else f"differences unknown, as {folder / FILE} cannot be read"


def differences(then: Fingerprint, now: Fingerprint) -> str:
    """Differences in words, with some names; "" if there are none."""
    old, new = ({x.names[i]: size for i, size in enumerate(x.sizes.tolist())} for x in (then, now))
    sums = then.contents(), now.contents()
    other = {name for name in sums[0].keys() & sums[1].keys() if sums[0][name] != sums[1][name]}
    found = {
        "added": [name for name in new if name not in old],
        "removed": [name for name in old if name not in new],
        "changed": [
            name
            for name, size in new.items()
            if name in other or (name in old and size != old[name] and -1 not in (size, old[name]))
        ],
    }
    parts = [f"{len(names):,} {what} ({listed(names)})" for what, names in found.items() if names]
    if parts:
        return ", ".join(parts)
    if not all(np.array_equal(getattr(then.names, x), getattr(now.names, x)) for x in ("blob", "ends")):
        return "different order or duplicates"
    return "" if np.array_equal(then.whole, now.whole) else "some pixels or texts changed"


def listed(names: Sequence[str]) -> str:
    return ", ".join(names[:SHOWN]) + (", …" if len(names) > SHOWN else "")

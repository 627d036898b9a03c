"""WebDataset shards: tar files whose members of one stem are one sample, `0001.jpg` beside `0001.cls`.

A shard is read in place: its index of members is built once at opening, images are then fetched by offset. A
path may be a pattern, `shards/train-*.tar`.
"""

import glob
import os
import tarfile
from pathlib import Path

import numpy as np

from pretask.data import decode
from pretask.data.base import Asked, Opened, Texts, bar, settle
from pretask.data.encoded import collect
from pretask.data.folder import SUFFIXES
from pretask.data.ledger import Ledger
from pretask.types import UserError


def understands(spec: str) -> bool:
    return spec.endswith(".tar") and bool(glob.glob(os.path.expanduser(spec)))


class Members:
    """Images inside shards: which shard, where in it, how long."""

    def __init__(self, shards: list[str], place: np.ndarray, names: Texts):
        self.shards, self.place, self.names = shards, place, names  # (N, 3) int64: shard, offset, length

    def __len__(self) -> int:
        return len(self.place)

    def name(self, i: int) -> str:
        return self.names[i]

    def read(self, i: int) -> bytes:
        shard, offset, length = self.place[i].tolist()
        with open(self.shards[shard], "rb") as file:
            file.seek(offset)
            return file.read(length)


def load(spec: str, asked: Asked) -> Opened:
    shards = sorted(glob.glob(os.path.expanduser(spec)))
    place, names, labels = [], [], []
    with bar(asked.progress) as progress:
        for number, shard in enumerate(progress.track(shards, description="reading shards")):
            images, classes = index(shard)
            for key, (member, offset, length) in images.items():
                place.append((number, offset, length))
                names.append(f"{Path(shard).name}/{member}")
                labels.append(classes.get(key))
    if not place:
        raise UserError(f"{spec} holds no images; expected members such as 0001.jpg")
    ledger = Ledger()
    settled = settle(labels, asked, ledger, names.__getitem__)
    if asked.labels == "all" and settled.label is None:
        raise UserError(f"{spec} has no label for {names[0]}; expected a .cls member beside each image")
    kept = settled.kept
    items = Members(shards, np.array(place, np.int64)[kept], Texts.of(names[i] for i in kept))
    return collect(Path(spec).stem, items, asked, settled.label, settled.classes, ledger)


def index(shard: str) -> tuple[dict[str, tuple[str, int, int]], dict[str, str]]:
    """Of one shard: key -> (member, offset, length) of its image; key -> content of its .cls."""
    images, classes = {}, {}
    try:
        with tarfile.open(shard, "r:") as tar:
            for member in tar:
                folder, _, file = member.name.rpartition("/")
                stem, _, suffix = file.partition(".")
                if not member.isfile() or not stem:  # hidden files have no stem
                    continue
                key, kind = f"{folder}/{stem}", suffix.lower().rpartition(".")[2]
                if kind.encode() in SUFFIXES:
                    images[key] = (member.name, member.offset_data, member.size)
                elif suffix == "cls":
                    content = tar.extractfile(member)
                    classes[key] = content.read().decode(errors="replace").strip() if content else ""
            if following(shard, tar.offset).strip(b"\0"):
                raise tarfile.ReadError(f"damaged after byte {tar.offset}")
    except (tarfile.TarError, OSError, EOFError) as error:
        raise UserError(f"{shard} cannot be read as tar: {decode.reason(error)}") from None
    return images, classes


def following(shard: str, offset: int) -> bytes:
    """What stands where tarfile saw the end: zeros or nothing, or else a header it could not read."""
    with open(shard, "rb") as file:
        file.seek(offset)
        return file.read(tarfile.BLOCKSIZE)

"""Features of a collection on disk. Interrupted work goes on, and later only new and changed images are computed.

A folder holds `state.json` and, for the current generation of rows, four files that only grow: features, names, and for each image a
hash of its pixels and the size and time of its file. Rows are counted in `state.json` after they are on the disk, so that a kill at any
moment loses at most the last batch. Rows of images that are gone or have changed are removed by writing a new generation.
"""

import json
from collections.abc import Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from pretask.data import fingerprint, loader
from pretask.data.base import Images, Texts, bar
from pretask.encoders.readout import Readout
from pretask.runtime import files
from pretask.runtime.device import find_device
from pretask.types import UserError

STATE = "state.json"
SCHEMA = 1
BATCH = 256
"""images computed and written at a time"""


@dataclass(frozen=True)
class State:
    """What the rows on disk are."""

    key: str
    """of encoder, stage and grid"""
    readout: str
    """in words"""
    width: int
    source: str = ""
    """fingerprint of images that are no files, whose changes are not seen one by one"""
    generation: int = 0
    rows: int = 0
    schema: int = SCHEMA


@dataclass(frozen=True)
class Collection:
    """The features of N images."""

    folder: Path
    names: Sequence[str]
    """as the source names them"""
    features: np.ndarray  # (N, D) float32, mapped from the disk
    sums: np.ndarray  # (N, fingerprint.WIDTH) uint8, hashes of the pixels that the encoder saw
    stamps: np.ndarray  # (N, 2) int64, size and time of change of the files; -1 for images that are no files

    def __len__(self) -> int:
        return len(self.names)

    def rows(self) -> Tensor:
        """(N, D) in memory."""
        return torch.from_numpy(np.array(self.features))

    def positions(self, source: Images) -> Tensor:
        """(N,) positions of the images in the source that they were collected from."""
        position = {name: i for i, name in enumerate(names_of(source))}
        return torch.tensor([position[name] for name in self.names])


def key_of(readout: Readout) -> str:
    """Differs between encoders with other weights, input, stage or grid."""
    encoder = readout.encoder
    about = [readout.stage, readout.grid, encoder.size, encoder.channels, encoder.sees, str(encoder.range)]
    parts: list[Any] = [json.dumps(about).encode()]
    for name, value in [*encoder.state_dict().items(), ("mean", encoder.mean), ("std", encoder.std)]:
        parts += [name.encode(), fingerprint.as_bytes(value.detach().cpu())]
    return fingerprint.digest_of(parts).tobytes().hex()


def collect(folder: Path, readout: Readout, source: Images, progress: bool = True) -> Collection:
    """The features of all readable images: those that are in the folder already, and others, which are computed and kept there.

    Raises UserError if the folder holds features of another encoder, stage or grid, and for a stream.
    """
    source.__getitems__(torch.arange(1))  # a stream has no positions and raises here
    folder.mkdir(parents=True, exist_ok=True)
    with files.locked(folder):
        store = Store.opened(folder, readout)
        missing = store.update(source)
        store.compute(readout, source, missing, progress)
        return store.collection()


def opened(folder: Path) -> Collection:
    """The features in a folder, without their images. Raises UserError if there are none."""
    if (state := read_state(folder)) is None:
        raise UserError(f"{folder} holds no features")
    return Store(folder, state).collection()


class Store:
    """The files of a folder."""

    def __init__(self, folder: Path, state: State):
        self.folder, self.state = folder, state

    # ---- opening

    @classmethod
    def opened(cls, folder: Path, readout: Readout) -> "Store":
        new = State(key_of(readout), str(readout), readout.width)
        if (found := read_state(folder)) is None:
            return cls(folder, new)
        if found.key != new.key:
            raise UserError(
                f"{folder} holds features of another encoder or stage ({found.readout}; now {new.readout}); choose another --out"
            )
        return cls(folder, found)

    def path(self, what: str) -> Path:
        return self.folder / f"{what}-{self.state.generation}.bin"

    def write_state(self, **changes: object) -> None:
        self.state = replace(self.state, **changes)  # pyright: ignore[reportArgumentType]
        files.write_text(self.folder / STATE, json.dumps(asdict(self.state), indent=2) + "\n")

    def read(self, what: str, dtype: type, width: int) -> np.ndarray:
        """(rows, width), mapped from the disk; bytes beyond the counted rows were written by a process that was killed."""
        shape = (self.state.rows, width)
        return (
            np.memmap(self.path(what), dtype, "r", shape=shape) if self.state.rows else np.empty(shape, dtype)
        )

    def names(self) -> Texts:
        """Names are stored one after the other, each with a NUL, which no name has."""
        if not self.state.rows:
            return Texts.of([])
        blob = np.fromfile(self.path("names"), np.uint8)
        ends = np.flatnonzero(blob == 0)[: self.state.rows]
        lengths = np.diff(ends, prepend=-1) - 1
        return Texts(blob[: ends[-1]][blob[: ends[-1]] != 0], np.concatenate([[0], np.cumsum(lengths)]))

    # ---- which rows are still right

    def update(self, source: Images) -> np.ndarray:
        """Removes the rows of images that are gone or have changed. Returns the positions (M,) of images without a row."""
        now, stamps = names_of(source), fingerprint.stamps(source)
        if (stamps < 0).all() and self.state.source != (digest := source.fingerprint().digest):
            self.rewrite(np.zeros(0, np.int64))
            self.write_state(source=digest)
        position = {name: i for i, name in enumerate(now)}
        stored = self.names()
        at = np.array([position.get(stored[row], -1) for row in range(self.state.rows)], np.int64)
        same = at >= 0
        same[same] = (stamps[at[same]] == self.read("stamps", np.int64, 2)[same]).all(1)
        if not same.all():
            self.rewrite(np.flatnonzero(same))
        missing = np.ones(len(now), bool)
        missing[at[same]] = False
        return np.flatnonzero(missing)

    def rewrite(self, kept: np.ndarray) -> None:
        """A new generation with only some rows."""
        if not self.state.rows:
            return
        names = self.names()
        old = {what: self.path(what) for what in ("features", "names", "sums", "stamps")}
        parts = {
            "features": self.read("features", np.float32, self.state.width),
            "sums": self.read("sums", np.uint8, fingerprint.WIDTH),
            "stamps": self.read("stamps", np.int64, 2),
        }
        next_state = replace(self.state, generation=self.state.generation + 1, rows=len(kept))
        following = Store(self.folder, next_state)
        for what, rows in parts.items():
            files.write(
                following.path(what),
                lambda file, rows=rows: [file.write(rows[some].tobytes()) for some in chunks(kept)],
            )
        files.write(
            following.path("names"),
            lambda file: [file.write(as_names([names[int(i)] for i in some])) for some in chunks(kept)],
        )
        self.write_state(**asdict(next_state))
        for path in old.values():
            files.remove(path)

    # ---- new rows

    def compute(self, readout: Readout, source: Images, positions: np.ndarray, progress: bool) -> None:
        """Appends the rows of the images at these positions."""
        if not len(positions):
            return
        names, stamps = names_of(source), fingerprint.stamps(source)
        home = readout.encoder.mean.device
        readout.to(find_device())
        self.truncate()
        try:
            with bar(progress) as shown:
                task = shown.add_task(f"embedding {source.name}", total=len(positions))
                for each in loader.epoch(source, torch.from_numpy(positions), BATCH):
                    rows = readout.rows(each.image).numpy()
                    good = source.readable(each.index).numpy()
                    if not np.isfinite(rows[good]).all():
                        raise UserError(
                            f"the features of {source.name} contain NaN or infinite values: the run has diverged"
                        )
                    index = each.index.numpy()[good]
                    image = each.image[torch.from_numpy(good)]
                    self.append([names[i] for i in index], rows[good], image, stamps[index])
                    shown.advance(task, len(each))
        finally:
            readout.to(home)

    def truncate(self) -> None:
        """Cuts off what a killed process wrote after the last counted row."""
        names = self.names()
        ends = {
            "features": 4 * self.state.rows * self.state.width, "sums": fingerprint.WIDTH * self.state.rows, "stamps": 16 * self.state.rows,
            "names": len(names.blob) + self.state.rows,
        }  # fmt: skip
        for what, end in ends.items():
            with self.path(what).open("ab") as file:
                file.truncate(end)

    def append(self, names: Sequence[str], rows: np.ndarray, image: Tensor, stamps: np.ndarray) -> None:
        parts = {
            "features": rows.astype(np.float32).tobytes(),
            "sums": fingerprint.of_pixels(image).tobytes(),
            "stamps": stamps.astype(np.int64).tobytes(),
            "names": as_names(names),
        }
        for what, content in parts.items():
            try:
                with self.path(what).open("ab") as file:
                    file.write(content)
            except OSError as failure:
                raise files.Unwritable(self.path(what), failure) from None
        self.write_state(rows=self.state.rows + len(names))

    def collection(self) -> Collection:
        stored = self.names()
        return Collection(
            self.folder,
            [stored[row] for row in range(self.state.rows)],
            self.read("features", np.float32, self.state.width),
            self.read("sums", np.uint8, fingerprint.WIDTH),
            self.read("stamps", np.int64, 2),
        )


def read_state(folder: Path) -> State | None:
    """The state of a folder; None if it has none. Raises UserError if it cannot be read."""
    if not (folder / STATE).is_file():
        return None
    try:
        found = State(**json.loads((folder / STATE).read_text()))
    except (OSError, ValueError, TypeError):
        raise UserError(f"{folder / STATE} cannot be read; remove {folder} and start again") from None
    return found


def names_of(source: Images) -> list[str]:
    """Names of all images; a repeated one gets a number."""
    names, seen = source.files(torch.arange(len(source))), dict[str, int]()
    for i, name in enumerate(names):
        seen[name] = seen.get(name, 0) + 1
        if seen[name] > 1:
            names[i] = f"{name} ({seen[name]})"
    return names


def chunks(index: np.ndarray) -> list[np.ndarray]:
    return np.split(index, range(4096, len(index), 4096))


def as_names(names: Sequence[str]) -> bytes:
    return b"".join(name.encode(errors="surrogateescape") + b"\0" for name in names)

"""From a folder of clips to a store of pairs: tracking.py on every clip, several at a time, each once.

What a clip gave is kept in OUT.parts until all are done, so that an interrupted command goes on where it was. The
store (sources/store.py) has the first patch of each track as its image, the last as `tracked`, the number of its `clip`,
and the `span` of frames. Beside it lie tracks.jsonl with every box, bad.csv with clips that gave nothing or broke
off, and some tracks to look at, as tracks.png and tracks.gif.
"""

import hashlib
import json
import os
import time
from collections.abc import Iterator, Sequence
from concurrent.futures import ProcessPoolExecutor, as_completed
from concurrent.futures.process import BrokenProcessPool
from dataclasses import dataclass
from multiprocessing import get_context
from pathlib import Path

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from pretask.data import store
from pretask.data.base import bar
from pretask.data.encoded import cores
from pretask.data.ledger import Ledger
from pretask.datagen import tracking
from pretask.datagen import video as clips
from pretask.runtime import accounts
from pretask.runtime import files as checkpoint
from pretask.types import Batch, UserError
from pretask.viz import puzzle as sheet

SHOWN, PICTURES, PAUSE = 6, 6, 150
"""tracks in the pictures, frames of each on the sheet, milliseconds between two of the film"""
FILM = "tracks.gif"


@dataclass(frozen=True)
class Summary:
    """What was made: `frames` were looked at in `seconds`, by this command and not by one before it."""

    out: Path
    clips: int
    tracks: int
    rejected: dict[str, str]
    frames: int
    seconds: float


@dataclass(frozen=True)
class Part:
    """What is kept of one clip."""

    name: str
    path: Path

    @property
    def card(self) -> dict:
        with np.load(self.path) as kept:
            return json.loads(str(kept["card"]))


def mine(
    path: Path, out: Path, s: tracking.Settings, workers: int | None = None, progress: bool = True
) -> Summary:
    """Tracks of all clips at `path`, as a store at `out`. UserError if there is no clip, or no track in any."""
    clips.check_installed()
    store.check_out(out)
    found, began = clips.find(path), time.monotonic()
    folder = out.with_name(f"{out.name}.parts")
    parts = [Part(named(clip, path), folder / f"{key(clip, s)}.npz") for clip in found]
    todo = [(clip, part) for clip, part in zip(found, parts, strict=True) if not part.path.exists()]
    folder.mkdir(parents=True, exist_ok=True)
    with bar(progress) as shown:
        task = shown.add_task("tracking", total=len(parts), completed=len(parts) - len(todo))
        for _ in mined(todo, s, min(workers or cores(), len(todo)), folder):
            shown.advance(task)
    seconds = time.monotonic() - began
    pairs = Pairs(path.resolve().name, parts)
    if not len(pairs):
        raise UserError(
            f"no track in {len(parts)} clips at {path} ({pairs.ledger.some()}); expected clips in which things move"
        )
    accounts.enter(pairs.name, pairs.ledger)
    checkpoint.write_folder(out, lambda inside: write(pairs, inside, progress, out))
    checkpoint.remove(folder)
    new = {part.name for _, part in todo}
    frames = sum(card["frames"] for card in pairs.cards if card["name"] in new)
    return Summary(out, len(parts), len(pairs), pairs.ledger.bad, frames, seconds)


def mined(
    todo: Sequence[tuple[Path, Part]], s: tracking.Settings, workers: int, folder: Path
) -> Iterator[None]:
    """Mine clips, `workers` at a time, each in a process of its own; a single one at a time in this process."""
    if workers <= 1:
        for clip, part in todo:
            yield keep(clip, part, s)
        return
    context = get_context("forkserver" if os.name == "posix" else "spawn")
    context.set_forkserver_preload([__name__])
    with ProcessPoolExecutor(workers, context) as pool:
        running = [pool.submit(keep, clip, part, s) for clip, part in todo]
        try:
            for done in as_completed(running):
                yield done.result()
        except BrokenProcessPool:
            raise UserError(
                f"a process that tracked was killed, perhaps for want of memory; {folder} keeps what is done: give "
                "the same command again, with fewer --workers"
            ) from None
        finally:
            pool.shutdown(cancel_futures=True)


def named(clip: Path, root: Path) -> str:
    return root.name if clip == root else str(clip.relative_to(root))


def key(clip: Path, s: tracking.Settings) -> str:
    """Another one for a clip that has changed, and for other settings."""
    about = clip.stat()
    return hashlib.sha256(f"{clip.resolve()} {about.st_size} {about.st_mtime_ns} {s}".encode()).hexdigest()[
        :24
    ]


def keep(clip: Path, part: Part, s: tracking.Settings) -> None:
    """Mine one clip and write its part; what a process of its own does."""
    found = tracking.mine(clip, s)
    card = {
        "name": part.name,
        "frames": found.frames,
        "why": found.why_not() or found.broken,
        "dropped": dict(found.dropped),
    }
    tracks = found.tracks
    none = np.empty((0, s.size, s.size, 3), np.uint8)
    fields = {
        "first": np.stack([t.first for t in tracks]) if tracks else none,
        "last": np.stack([t.last for t in tracks]) if tracks else none,
        "start": np.array([t.start for t in tracks], int),
        "boxes": np.stack([t.boxes for t in tracks]) if tracks else np.empty((0, 0, 4)),
        "moved": np.array([t.moved for t in tracks]),
        **{f"film{i}": np.stack(t.film) for i, t in enumerate(tracks[: tracking.FILMS])},
    }
    checkpoint.write(part.path, lambda file: np.savez_compressed(file, card=json.dumps(card), **fields))


class Pairs:
    """The tracks of all parts as a source, read part by part."""

    provides = frozenset({"tracked", "clip", "span"})
    channels = 3

    def __init__(self, name: str, parts: Sequence[Part]):
        self.name, self.parts = name, parts
        self.cards = [part.card for part in parts]
        self.ledger = Ledger({card["name"]: card["why"] for card in self.cards if card["why"]})
        self.ledger.found = len(parts)  # clips
        self.start, self.size = [], 0
        for part in parts:
            with np.load(part.path) as kept:
                self.start.append(kept["start"])
                self.size = self.size or kept["first"].shape[1]
        self.ends = np.cumsum([0, *map(len, self.start)])

    def __len__(self) -> int:
        return int(self.ends[-1])

    def place(self, i: int) -> tuple[int, int]:
        """Of a track: its clip, and its number there."""
        clip = int(np.searchsorted(self.ends, i, side="right")) - 1
        return clip, i - int(self.ends[clip])

    def __getitems__(self, index: Tensor) -> Batch:
        image, tracked, clip, span = [], [], [], []
        opened: dict[int, tuple[np.ndarray, np.ndarray, int]] = {}
        for i in index.tolist():
            number, row = self.place(i)
            if number not in opened:
                with np.load(self.parts[number].path) as kept:
                    opened = {number: (kept["first"], kept["last"], kept["boxes"].shape[1] - 1)}
            begins, (firsts, lasts, length) = int(self.start[number][row]), opened[number]
            image.append(firsts[row])
            tracked.append(lasts[row])
            clip.append(number)
            span.append((begins, begins + length))
        first, last = (
            torch.from_numpy(np.stack(x)).permute(0, 3, 1, 2).contiguous() for x in (image, tracked)
        )
        return Batch(index, first, {"tracked": last, "clip": torch.tensor(clip), "span": torch.tensor(span)})

    def files(self, index: Tensor) -> list[str]:
        """CLIP@FRAME that the track begins with."""
        places = [self.place(i) for i in index.tolist()]
        return [f"{self.cards[clip]['name']}@{self.start[clip][row]}" for clip, row in places]


# ---- what is written


def write(pairs: Pairs, folder: Path, progress: bool, out: Path) -> None:
    """The store, and what lies beside it, into a folder that will be moved to `out`."""
    store.write(pairs, folder, progress, out)
    (folder / "tracks.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows(pairs)))
    films = chosen(pairs)
    sheet_of(films).save(folder / "tracks.png")
    moving = film_of(films)
    moving[0].save(folder / FILM, save_all=True, append_images=moving[1:], duration=PAUSE, loop=0)
    for path in folder.iterdir():
        checkpoint.sync(path)


def rows(pairs: Pairs) -> list[dict]:
    """Of each track: its clip, the frame it begins with, its box in every frame, the share of points that move in it."""
    found = []
    for card, part in zip(pairs.cards, pairs.parts, strict=True):
        with np.load(part.path) as kept:
            for start, boxes, moved in zip(kept["start"], kept["boxes"], kept["moved"], strict=True):
                row = {"clip": card["name"], "start": int(start), "moved": round(float(moved), 3)}
                found.append(row | {"boxes": boxes.round(1).tolist()})
    return found


def chosen(pairs: Pairs) -> list[tuple[str, np.ndarray]]:
    """Tracks to look at, of as many clips as possible: a name, and pictures (F, h, w, 3)."""
    found = []
    for i in range(tracking.FILMS):
        for card, part in zip(pairs.cards, pairs.parts, strict=True):
            with np.load(part.path) as kept:
                if f"film{i}" in kept:
                    found.append((f"{card['name']}@{kept['start'][i]}", kept[f"film{i}"]))
    return found[:SHOWN]


def sheet_of(films: Sequence[tuple[str, np.ndarray]]) -> Image.Image:
    """A line for each track, from its first frame to its last."""
    cells = []
    for name, pictures in films:
        some = np.linspace(0, len(pictures) - 1, PICTURES).round().astype(int)
        shown = tuple((f"{k / (PICTURES - 1):.0%}", Image.fromarray(pictures[j])) for k, j in enumerate(some))
        cells.append(sheet.Cell(shown, (sheet.Note("", name),)))
    return sheet.paint(cells, title="tracks over frames", columns=1)


def film_of(films: Sequence[tuple[str, np.ndarray]]) -> list[Image.Image]:
    """All tracks side by side, three in a line, as they go."""
    high = max(pictures.shape[1] for _, pictures in films)
    wide = max(pictures.shape[2] for _, pictures in films)
    across = min(3, len(films))
    moving = []
    for k in range(max(len(pictures) for _, pictures in films)):
        frame = Image.new("RGB", (across * wide, -(-len(films) // across) * high), "white")
        for i, (_, pictures) in enumerate(films):
            now = Image.fromarray(pictures[min(k, len(pictures) - 1)])
            frame.paste(now, (i % across * wide, i // across * high))
        moving.append(frame)
    return moving

"""Mine a folder of clips into a store of pairs: runs tracking.py once on every clip, several in parallel.

The result of each clip is kept in OUT.parts until all are done, so that an interrupted command can continue. In the
store (data/store.py) the first patch of each track is the image, the last is `tracked`, and `clip` and `span` hold its
clip's number and its range of frames. Next to it are tracks.jsonl with all boxes, bad.csv with clips without tracks or
with read errors, and previews of some tracks as tracks.png and tracks.gif.
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
from pretask.datagen import tracking, video
from pretask.limits import PositiveInt, checked
from pretask.runtime import accounts, files
from pretask.transforms.ranges import UNKNOWN
from pretask.types import Batch, UserError
from pretask.viz import sheet
from pretask.viz.puzzle import Caption

SHOWN, PICTURES, PAUSE = 6, 6, 150
"""number of tracks in previews, frames of each on the contact sheet, milliseconds per frame of the animation"""
ANIMATION = "tracks.gif"
FORMAT = 3
"""format version of a part; increase it when the format or the tracking changes"""


@dataclass(frozen=True)
class Summary:
    """Result of the command; `frames` and `seconds` leave out clips mined by an interrupted earlier command."""

    out: Path
    clips: int
    tracks: int
    rejected: dict[str, str]
    frames: int
    seconds: float


@dataclass(frozen=True)
class Part:
    """The stored result of one clip."""

    name: str
    path: Path

    @property
    def card(self) -> dict:
        with np.load(self.path) as part_file:
            return json.loads(str(part_file["card"]))


@checked
def mine(
    path: Path,
    out: Path,
    config: tracking.TrackConfig,
    workers: PositiveInt | None = None,
    progress: bool = True,
) -> Summary:
    """Write the tracks of all clips at `path` to a store at `out`. UserError if there are no clips or no tracks."""
    video.check_installed()
    store.check_out(out)
    (found, ledger), began = video.find(path), time.monotonic()
    folder = out.with_name(f"{out.name}.parts")
    parts = [Part(clip_name(clip, path), folder / f"{cache_key(clip, config)}.npz") for clip in found]
    todo = [(clip, part) for clip, part in zip(found, parts, strict=True) if not part.path.exists()]
    folder.mkdir(parents=True, exist_ok=True)
    with bar(progress) as shown:
        task = shown.add_task("tracking", total=len(parts), completed=len(parts) - len(todo))
        for _ in mine_all(todo, config, min(workers or cores(), len(todo)), folder):
            shown.advance(task)
    seconds = time.monotonic() - began
    pairs = Pairs(path.resolve().name, parts, ledger)
    if not len(pairs):
        raise UserError(
            f"no track in {len(parts)} clips at {path} ({pairs.ledger.first_bad()}); expected clips with moving objects"
        )
    accounts.add(pairs.name, pairs.ledger, str(path))
    files.write_folder(out, lambda inside: write(pairs, inside, progress, out))
    files.remove(folder)
    new = {part.name for _, part in todo}
    frames = sum(card["frames"] for card in pairs.cards if card["name"] in new)
    return Summary(out, len(parts), len(pairs), pairs.ledger.bad, frames, seconds)


def mine_all(
    todo: Sequence[tuple[Path, Part]], config: tracking.TrackConfig, workers: int, folder: Path
) -> Iterator[None]:
    """Mine clips in `workers` processes; with one worker, in this process."""
    if workers <= 1:
        for clip, part in todo:
            yield mine_part(clip, part, config)
        return
    context = get_context("forkserver" if os.name == "posix" else "spawn")
    context.set_forkserver_preload([__name__])
    with ProcessPoolExecutor(workers, context) as pool:
        running = [pool.submit(mine_part, clip, part, config) for clip, part in todo]
        try:
            for done in as_completed(running):
                yield done.result()
        except BrokenProcessPool:
            raise UserError(
                f"a tracking process was killed, perhaps because memory ran out; {folder} keeps finished clips: run "
                "the same command again with fewer --workers"
            ) from None
        finally:
            pool.shutdown(cancel_futures=True)


def clip_name(clip: Path, root: Path) -> str:
    return root.name if clip == root else str(clip.relative_to(root))


def cache_key(clip: Path, config: tracking.TrackConfig) -> str:
    """A key that changes with the clip file and with the config."""
    stat = clip.stat()
    text = f"{FORMAT} {clip.resolve()} {stat.st_size} {stat.st_mtime_ns} {config}"
    return hashlib.sha256(os.fsencode(text)).hexdigest()[:24]


def mine_part(clip: Path, part: Part, config: tracking.TrackConfig) -> None:
    """Mine one clip and write its part."""
    found = tracking.mine(clip, config)
    card = {
        "name": part.name,
        "frames": found.frames,
        "why": found.failure() or found.read_error,
        "dropped": dict(found.dropped),
    }
    tracks = found.tracks
    none = np.empty((0, config.size, config.size, 3), np.uint8)
    fields = {
        "first": np.stack([t.first for t in tracks]) if tracks else none,
        "last": np.stack([t.last for t in tracks]) if tracks else none,
        "start": np.array([t.start for t in tracks], int),
        "boxes": np.concatenate([t.boxes for t in tracks]) if tracks else np.empty((0, 4)),
        "ends": np.cumsum([len(t.boxes) for t in tracks], dtype=int),
        "seconds": np.array([t.seconds for t in tracks]),
        "moved": np.array([t.moved for t in tracks]),
        **{f"preview{i}": np.stack(t.preview) for i, t in enumerate(tracks[: tracking.PREVIEWS])},
    }
    files.write(part.path, lambda file: np.savez_compressed(file, card=json.dumps(card), **fields))


class Pairs:
    """The tracks of all parts as a source, read part by part."""

    provides = frozenset({"tracked", "clip", "span"})
    channels, range = 3, UNKNOWN

    def __init__(self, name: str, parts: Sequence[Part], ledger: Ledger):
        self.name, self.parts = name, parts
        self.cards = [part.card for part in parts]
        self.ledger = ledger  # of clips
        for card in self.cards:
            if card["why"]:
                ledger.skip(card["name"], card["why"])
        ledger.set_size(sum(1 for card in self.cards if not card["why"]))
        self.start, self.size = [], 0
        for part in parts:
            with np.load(part.path) as part_file:
                self.start.append(part_file["start"])
                self.size = self.size or part_file["first"].shape[1]
        self.ends = np.cumsum([0, *map(len, self.start)])

    def __len__(self) -> int:
        return int(self.ends[-1])

    def locate(self, i: int) -> tuple[int, int]:
        """Clip number of a track, and its index within the clip."""
        clip = int(np.searchsorted(self.ends, i, side="right")) - 1
        return clip, i - int(self.ends[clip])

    def __getitems__(self, index: Tensor) -> Batch:
        image, tracked, clip, span = [], [], [], []
        opened: dict[int, tuple[np.ndarray, np.ndarray, np.ndarray]] = {}
        for i in index.tolist():
            number, row = self.locate(i)
            if number not in opened:
                with np.load(self.parts[number].path) as part_file:
                    lengths = np.diff(part_file["ends"], prepend=0) - 1
                    opened = {number: (part_file["first"], part_file["last"], lengths)}
            begins, (firsts, lasts, lengths) = int(self.start[number][row]), opened[number]
            image.append(firsts[row])
            tracked.append(lasts[row])
            clip.append(number)
            span.append((begins, begins + int(lengths[row])))
        first, last = (
            torch.from_numpy(np.stack(x)).permute(0, 3, 1, 2).contiguous() for x in (image, tracked)
        )
        return Batch(index, first, {"tracked": last, "clip": torch.tensor(clip), "span": torch.tensor(span)})

    def files(self, index: Tensor) -> list[str]:
        """CLIP@FRAME of the first frame of each track."""
        places = [self.locate(i) for i in index.tolist()]
        return [f"{self.cards[clip]['name']}@{self.start[clip][row]}" for clip, row in places]

    def readable(self, index: Tensor) -> Tensor:
        return torch.ones(len(index), dtype=torch.bool)  # every stored track is readable


# ---- output


def write(pairs: Pairs, folder: Path, progress: bool, out: Path) -> None:
    """Write the store and the files next to it into a folder that will be moved to `out`."""
    store.write(pairs, folder, progress, out)
    (folder / "tracks.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows(pairs)))
    clips = previews(pairs)
    contact_sheet(clips).save(folder / "tracks.png")
    moving = animation(clips)
    moving[0].save(folder / ANIMATION, save_all=True, append_images=moving[1:], duration=PAUSE, loop=0)
    for path in folder.iterdir():
        files.sync(path)


def rows(pairs: Pairs) -> list[dict]:
    """Rows of tracks.jsonl: clip, first frame, length in seconds, mean fraction of moving points, box in every frame."""
    found = []
    for card, part in zip(pairs.cards, pairs.parts, strict=True):
        with np.load(part.path) as part_file:
            boxes = np.split(part_file["boxes"], part_file["ends"][:-1])
            for i, start in enumerate(part_file["start"].tolist()):
                about = {name: round(float(part_file[name][i]), 3) for name in ("seconds", "moved")}
                found.append(
                    {"clip": card["name"], "start": start, **about, "boxes": boxes[i].round(1).tolist()}
                )
    return found


def previews(pairs: Pairs) -> list[tuple[str, np.ndarray]]:
    """Names and preview frames (F, h, w, 3) of some tracks, from as many clips as possible."""
    found = []
    for i in range(tracking.PREVIEWS):
        for card, part in zip(pairs.cards, pairs.parts, strict=True):
            with np.load(part.path) as part_file:
                if f"preview{i}" in part_file:
                    found.append((f"{card['name']}@{part_file['start'][i]}", part_file[f"preview{i}"]))
    return found[:SHOWN]


def contact_sheet(clips: Sequence[tuple[str, np.ndarray]]) -> Image.Image:
    """Contact sheet with one row per track, from its first frame to its last."""
    cells = []
    for name, pictures in clips:
        some = np.linspace(0, len(pictures) - 1, PICTURES).round().astype(int)
        shown = tuple((f"{k / (PICTURES - 1):.0%}", Image.fromarray(pictures[j])) for k, j in enumerate(some))
        cells.append(sheet.Cell(shown, (Caption("", name),)))
    return sheet.paint(cells, title="tracks over frames", columns=1)


def animation(clips: Sequence[tuple[str, np.ndarray]]) -> list[Image.Image]:
    """Animation of all tracks, three per row."""
    height = max(pictures.shape[1] for _, pictures in clips)
    width = max(pictures.shape[2] for _, pictures in clips)
    across = min(3, len(clips))
    moving = []
    for k in range(max(len(pictures) for _, pictures in clips)):
        frame = Image.new("RGB", (across * width, -(-len(clips) // across) * height), "white")
        for i, (_, pictures) in enumerate(clips):
            now = Image.fromarray(pictures[min(k, len(pictures) - 1)])
            frame.paste(now, (i % across * width, i // across * height))
        moving.append(frame)
    return moving

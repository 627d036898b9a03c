"""Frames of video clips: any file that PyAV reads, or a folder of numbered images."""

import math
import os
import re
from collections.abc import Iterator
from contextlib import contextmanager
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from pretask.data import decode
from pretask.data.folder import SUFFIXES, VIDEOS, why_no_file
from pretask.data.ledger import Ledger
from pretask.errors import install_command
from pretask.transforms.ranges import UNIT, Range
from pretask.types import UserError

MIN_FRAMES = 8
"""minimum number of images in a folder that counts as a clip"""
DEFAULT_FPS = 30.0
"""frames per second of a clip without a stated rate"""
FPS_RANGE = 1.0, 240.0
"""plausible rates in frames per second; other stated rates are ignored"""


def is_video(path: Path) -> bool:
    return path.suffix[1:].lower().encode() in VIDEOS


def is_image(path: Path) -> bool:
    return path.suffix[1:].lower().encode() in SUFFIXES


def find(path: Path) -> tuple[list[Path], Ledger]:
    """The clips at `path`: itself, or all videos and folders of frames below it, sorted by name; and a ledger of all
    other files there.

    UserError if there is no clip.
    """
    ledger = Ledger()
    if path.is_file() and is_video(path):
        return [path], ledger
    if not path.is_dir():
        raise UserError(
            f"{path} is neither a video nor a folder; expected clips ending in .mp4, .mkv, .webm, …"
        )
    visible = {path}  # folders that are searched
    below = []
    for p in sorted(path.rglob("*")):
        if p.parent not in visible:
            continue
        if p.name.startswith("."):
            ledger.other["hidden"] += 1
            continue
        below.append(p)
        if p.is_dir():
            visible.add(p)
    frame_folders = {p for p in (path, *below) if p.is_dir() and len(images(p)) >= MIN_FRAMES}
    found = [*frame_folders]
    for p in below:
        if p.is_dir() or (p.parent in frame_folders and is_image(p) and p.is_file()):
            continue
        if not is_video(p):
            ledger.other[p.suffix.lower() or "without suffix"] += 1
        elif p.is_file():
            found.append(p)
        else:
            ledger.skip(str(p.relative_to(path)), why_no_file(os.fsencode(p)))
    if not found:
        raise UserError(
            f"{path} contains no clips; expected videos ending in .mp4, .mkv, .webm, … or folders of at least "
            f"{MIN_FRAMES} frames"
        )
    return sorted(found), ledger


def images(folder: Path) -> list[Path]:
    """The frames in a folder in natural order: 9.jpg before 10.jpg."""
    return sorted((p for p in folder.iterdir() if is_image(p) and p.is_file()), key=natural_key)


def natural_key(path: Path) -> list[tuple[int, str]]:
    """Sort key that compares numbers in a name by value and the rest as text."""
    return [(int(part), "") if part.isdecimal() else (-1, part) for part in re.split(r"(\d+)", path.stem)]


def frames(clip: Path, side: int) -> Iterator[tuple[float, np.ndarray]]:
    """Time of each frame in seconds, and the frame (H, W, 3) uint8, upright, with a short side of at most `side`.

    All frames have one size, and times increase. Raises decode.Unreadable.
    """
    size: tuple[int, int] | None = None
    with decode.readable():
        for time, frame in folder_frames(clip) if clip.is_dir() else video_frames(clip, side):
            size = size or fit_short_side(frame.width, frame.height, side)
            yield time, np.asarray(frame.resize(size, Image.Resampling.BILINEAR, reducing_gap=2.0))


def fit_short_side(width: int, height: int, side: int) -> tuple[int, int]:
    """Width and height scaled to a short side of at most `side`."""
    scale = min(1.0, side / min(width, height))
    return round(width * scale), round(height * scale)


@contextmanager
def open_video(path: Path) -> Iterator[Any]:
    """A PyAV container with a video stream. Errors within the block become decode.Unreadable."""
    import av
    from av.error import FFmpegError

    with decode.readable():
        try:
            with av.open(str(path)) as container:
                if not container.streams.video:
                    raise decode.Unreadable("has no pictures")
                yield container
        except FFmpegError as error:
            raise decode.Unreadable((error.strerror or str(error)).lower()) from None


FRAME_RANGE = Range((0.0, 65535.0), UNIT)
"""value range of frames that are not 8-bit: all 16 bits, or floats in 0 … 1"""


def folder_frames(folder: Path) -> Iterator[tuple[float, Image.Image]]:
    for k, path in enumerate(images(folder)):
        yield k / DEFAULT_FPS, decode.to_pil(path, 3, FRAME_RANGE)


def video_frames(path: Path, side: int) -> Iterator[tuple[float, Image.Image]]:
    with open_video(path) as container:
        fps = float(container.streams.video[0].average_rate or DEFAULT_FPS)
        clock = FrameClock(fps if FPS_RANGE[0] <= fps <= FPS_RANGE[1] else DEFAULT_FPS)
        for frame in container.decode(video=0):
            width, height = fit_short_side(frame.width, frame.height, side)
            image = frame.to_image(width=width, height=height, interpolation="AREA")
            yield (
                clock.read(frame.time),
                image.rotate(frame.rotation, expand=True) if frame.rotation else image,
            )


class FrameClock:
    """Frame times from timestamps, which may be missing, repeat, or restart where clips were joined.

    The stated frame rate counts only until two timestamps are known, since screen recorders state 1,000 frames per second.
    """

    def __init__(self, rate: float):
        self.gap, self.shift, self.now = 1 / rate, 0.0, -math.inf

    def read(self, timestamp: float | None) -> float:
        if self.now == -math.inf:
            self.shift, self.now = -(timestamp or 0.0), 0.0
            return self.now
        time = self.now if timestamp is None else timestamp + self.shift
        if time > self.now:
            self.gap = time - self.now
        else:  # the same gap as before
            time = self.now + self.gap
            self.shift += 0.0 if timestamp is None else time - (timestamp + self.shift)
        self.now = time
        return time


def check_installed() -> None:
    """UserError with the install command if a package for reading or tracking is missing."""
    missing = [
        name
        for name, module in (("av", "av"), ("opencv-contrib-python-headless", "cv2"))
        if find_spec(module) is None
    ]
    if missing:
        raise UserError(f"clips need {' and '.join(missing)}: {install_command('video')}")

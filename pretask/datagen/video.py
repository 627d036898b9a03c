"""Frames of video clips: any file that PyAV reads, or a folder of images in the order of their numbers."""

import re
from collections.abc import Iterator
from contextlib import contextmanager
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from pretask.data import decode
from pretask.data.folder import SUFFIXES, VIDEOS
from pretask.types import UserError

FEWEST = 8
"""images in a folder that make it a clip"""
RATE = 30.0
"""frames a second of a clip that does not tell"""


def is_video(path: Path) -> bool:
    return path.suffix[1:].lower().encode() in VIDEOS


def is_image(path: Path) -> bool:
    return path.suffix[1:].lower().encode() in SUFFIXES


def find(path: Path) -> list[Path]:
    """The clips at `path`: itself, or all videos and folders of frames below it, in order of their names.

    UserError if there is none.
    """
    if path.is_file() and is_video(path):
        return [path]
    if not path.is_dir():
        raise UserError(f"{path} is no video and no folder; expected clips ending in .mp4, .mkv, .webm, …")
    below = [p for p in path.rglob("*") if not any(x.startswith(".") for x in p.relative_to(path).parts)]
    found = [p for p in below if p.is_file() and is_video(p)]
    found += [p for p in (path, *below) if p.is_dir() and len(images(p)) >= FEWEST]
    if not found:
        raise UserError(
            f"{path} holds no clips; expected videos ending in .mp4, .mkv, .webm, … or folders of at least "
            f"{FEWEST} frames"
        )
    return sorted(found)


def images(folder: Path) -> list[Path]:
    """The frames in a folder, 9.jpg before 10.jpg."""
    return sorted((p for p in folder.iterdir() if is_image(p)), key=by_number)


def by_number(path: Path) -> list[tuple[int, str]]:
    """Numbers count as such: what is between them as text."""
    return [(int(part), "") if part.isdecimal() else (-1, part) for part in re.split(r"(\d+)", path.stem)]


def frames(clip: Path, side: int) -> Iterator[np.ndarray]:
    """(H, W, 3) uint8, upright and of one size, the short side at most `side`. Raises decode.Unreadable."""
    size: tuple[int, int] | None = None
    with decode.readable():
        for frame in of_folder(clip) if clip.is_dir() else of_video(clip, side):
            size = size or fitting(frame.width, frame.height, side)
            yield np.asarray(frame.resize(size, Image.Resampling.BILINEAR, reducing_gap=2.0))


def fitting(width: int, height: int, side: int) -> tuple[int, int]:
    """The same shape with a short side of at most `side`."""
    scale = min(1.0, side / min(width, height))
    return round(width * scale), round(height * scale)


def rate(clip: Path) -> float:
    """Frames a second; of a folder RATE. Raises decode.Unreadable."""
    if clip.is_dir():
        return RATE
    with opened(clip) as container:
        return float(container.streams.video[0].average_rate or RATE)


@contextmanager
def opened(path: Path) -> Iterator[Any]:
    """A PyAV container that has pictures; what goes wrong in here is decode.Unreadable."""
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


def of_folder(folder: Path) -> Iterator[Image.Image]:
    for path in images(folder):
        yield decode.plain(decode.upright(decode.opened(path)), 3)


def of_video(path: Path, side: int) -> Iterator[Image.Image]:
    with opened(path) as container:
        for frame in container.decode(video=0):
            width, height = fitting(frame.width, frame.height, side)
            image = frame.to_image(width=width, height=height, interpolation="AREA")
            yield image.rotate(frame.rotation, expand=True) if frame.rotation else image


def check_installed() -> None:
    """UserError with the command that installs what reading and tracking need."""
    missing = [
        name
        for name, module in (("av", "av"), ("opencv-contrib-python-headless", "cv2"))
        if find_spec(module) is None
    ]
    if missing:
        raise UserError(f"clips need {' and '.join(missing)}: pip install 'pretask[video]'")

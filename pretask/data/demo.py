"""`demo`, `demo:test`: letters of many typefaces on photographs, made on the spot from what is installed.

Where a letter lies, its size, colour, typeface and background vary, so that comparing pixels says little of
which letter it is; and letters have an upper side, so that turning them is a puzzle whose answer takes
knowing them. With each comes a text, in a primer's words for its letter. The handwritten digits that come with scikit-learn would not do: on them plain pixels already
classify 98 %. Typefaces are matplotlib's, photographs scikit-learn's.
"""

from functools import cache
from importlib.util import find_spec
from pathlib import Path

import numpy as np
import torch
from PIL import Image, ImageDraw, ImageFont

from pretask.data.arrays import Arrays
from pretask.data.base import Asked, Opened, bar
from pretask.data.synthetic import tell
from pretask.rng import Rng
from pretask.text import words as text
from pretask.types import UserError

LETTERS = "AEFGJKPRTY"  # none that looks the same upside down, or like another one turned
TOLD = [
    ["apple", "anchor", "arrow", "acorn", "angel", "arch", "apron", "armour"],
    ["eagle", "ember", "engine", "easel", "emerald", "envelope", "elbow", "elephant"],
    ["feather", "fiddle", "flame", "forest", "fountain", "fox", "flute", "fern"],
    ["garden", "goose", "guitar", "grape", "gate", "glove", "ghost", "giraffe"],
    ["jacket", "jelly", "jungle", "jewel", "juggler", "jaguar", "judge", "jasmine"],
    ["kettle", "kite", "kitten", "kernel", "knight", "kangaroo", "keyhole", "koala"],
    ["pebble", "piano", "pigeon", "pillow", "pirate", "planet", "pumpkin", "puppet"],
    ["rabbit", "raven", "river", "robin", "rocket", "ribbon", "radish", "rooster"],
    ["table", "teapot", "tiger", "tractor", "trumpet", "tulip", "turtle", "thimble"],
    ["yacht", "yarn", "yeast", "yodel", "yogurt", "yolk", "youth", "yellow"],
]
"""a primer's words for each letter"""
COUNTS = {"train": 6000, "test": 2000}
SIZE = 32


def understands(spec: str) -> bool:
    return spec.split(":")[0] == "demo"


def load(spec: str, asked: Asked) -> Opened:
    split = asked.split or spec.partition(":")[2] or "train"
    if split not in COUNTS:
        raise UserError(f"demo has no split {split!r}; it has {' and '.join(COUNTS)}")
    n, size, rng = COUNTS[split], asked.size or SIZE, Rng(0, "demo", split)
    label = rng.integers(n, high=len(LETTERS))
    faces, photos = typefaces(), photographs()
    draws = rng.uniform(n, 12).tolist()
    image = torch.empty(n, 3, size, size, dtype=torch.uint8)
    with bar(asked.progress) as progress:
        for i in progress.track(range(n), description="drawing letters"):
            scene = drawn(LETTERS[int(label[i])], draws[i], faces, photos, size)
            image[i] = torch.from_numpy(np.asarray(scene).copy()).permute(2, 0, 1)
    if asked.channels == 1:
        image = image.float().mean(1, keepdim=True).to(torch.uint8)
    words = text.pack(tell(label, TOLD, Rng(0, "demo", split, "words")))
    return Opened(Arrays("demo", image, aux={"words": words}), label, list(LETTERS))


def typefaces() -> list[str]:
    """Upright and slanted, with and without serifs; files of one font each."""
    folder = installed("matplotlib") / "mpl-data" / "fonts" / "ttf"
    families = ("DejaVu", "STIXGeneral", "cmr", "cmss", "cmtt")
    faces = sorted(str(p) for p in folder.glob("*.ttf") if p.name.startswith(families))
    return [face for face in faces if "Display" not in face]  # those hold symbols only


font = cache(ImageFont.truetype)


def photographs() -> list[Image.Image]:
    """Reduced to half: 320 x 213 pixels."""
    folder = installed("sklearn") / "datasets" / "images"
    return [Image.open(p).convert("RGB").reduce(2) for p in sorted(folder.glob("*.jpg"))]


def installed(package: str) -> Path:
    """Where it lies, without the seconds of importing it."""
    spec = find_spec(package)
    if spec is None or not spec.submodule_search_locations:
        raise UserError(f"demo needs {package}; install pretask again")
    return Path(spec.submodule_search_locations[0])


def drawn(letter: str, u: list[float], faces: list[str], photos: list[Image.Image], size: int) -> Image.Image:
    """One picture, from twelve numbers in [0, 1)."""
    photo = photos[int(u[0] * len(photos))]
    side = int(32 + u[1] * 96)
    left, top = int(u[2] * (photo.width - side)), int(u[3] * (photo.height - side))
    scene = photo.resize((size, size), Image.Resampling.BILINEAR, box=(left, top, left + side, top + side))
    face = font(faces[int(u[4] * len(faces))], round(size * (0.5 + 0.5 * u[5])))
    x0, y0, x1, y1 = face.getbbox(letter)
    at = (u[6] * max(0, size - (x1 - x0)) - x0, u[7] * max(0, size - (y1 - y0)) - y0)
    dark = np.asarray(scene).mean() > 128
    ink = tuple(int(60 * c if dark else 255 - 60 * c) for c in u[8:11])
    ImageDraw.Draw(scene).text(at, letter, fill=ink, font=face)
    return scene

"""Pages on which a person labels images, offline: each image by keyboard or mouse, answers kept in the browser and saved as CSV."""

import base64
import hashlib
import io
import json
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

from PIL import Image

from pretask.runtime import files
from pretask.viz.page import load_template

SIDE = 320
"""longer side of an image on a page, pixels"""
MOST_BYTES = 50 * 2**20
"""of a page"""
QUALITY = 85


@dataclass(frozen=True)
class Item:
    """An image to label."""

    path: str
    rank: int
    reason: str
    cluster: int
    src: str
    """data URI"""


def picture(image: Image.Image) -> str:
    """An image as a data URI."""
    small = image.convert("RGB")
    small.thumbnail((SIDE, SIDE), Image.Resampling.LANCZOS)
    buffer = io.BytesIO()
    small.save(buffer, "JPEG", quality=QUALITY)
    return f"data:image/jpeg;base64,{base64.b64encode(buffer.getvalue()).decode()}"


def pages(items: Iterable[Item]) -> Iterator[list[Item]]:
    """The items in parts of at most MOST_BYTES."""
    part, total = [], 0
    for item in items:
        if part and total + len(item.src) > MOST_BYTES:
            yield part
            part, total = [], 0
        part.append(item)
        total += len(item.src)
    if part:
        yield part


def write(out: Path, items: Iterable[Item], classes: Sequence[str], multi: bool, title: str) -> list[Path]:
    """One page, or several: label.html, label-2.html … Each saves its own CSV."""
    made = []
    for number, part in enumerate(pages(items), 1):
        path = out if number == 1 else out.with_name(f"{out.stem}-{number}{out.suffix}")
        key = hashlib.blake2b(
            json.dumps([(x.rank, x.path) for x in part]).encode(), digest_size=8
        ).hexdigest()
        page = load_template("pretask.viz", "labeling.html.j2").render(
            title=title, key=f"pretask-label-{key}", items=[asdict(x) for x in part], classes=list(classes), multi=multi,
            saved=f"{path.stem}.csv",
        )  # fmt: skip
        files.write_text(path, page)
        made.append(path)
    return made

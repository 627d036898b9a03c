"""The picture at the top of README.md, drawn by `pretask preview` itself: `python docs/poster.py`."""

from pathlib import Path

from PIL import Image

from pretask import methods
from pretask.workflows import preview as selfhelp

HERE = Path(__file__).parent / "assets" / "puzzles.png"
PUZZLES, SIZE = 2, 96
"""of each method; pixels of the images that they are made of"""
COLOURS = 128
"""of the palette, which keeps the file small"""


def poster() -> Image.Image:
    """A sheet for each kind of puzzle, under the names of all methods that ask it, in two columns, each below the shorter."""
    kinds: dict[bytes, list[str]] = {}
    for name in methods.names():
        kinds.setdefault(drawn(name, "").tobytes(), []).append(name)
    sheets = [drawn(names[0], ", ".join(names)) for names in kinds.values()]
    wide, ends = max(sheet.width for sheet in sheets), [0, 0]
    made = Image.new("RGB", (2 * wide, sum(sheet.height for sheet in sheets)), "white")
    for sheet in sheets:
        column = ends.index(min(ends))
        made.paste(sheet, (column * wide, ends[column]))
        ends[column] += sheet.height
    return made.crop((0, 0, made.width, max(ends)))


def drawn(name: str, title: str) -> Image.Image:
    config = methods.recipe(name)()
    return selfhelp.preview(selfhelp.made_up(config), config, title, PUZZLES, SIZE)


if __name__ == "__main__":
    poster().quantize(COLOURS).save(HERE, optimize=True)
    print(f"wrote {HERE} ({HERE.stat().st_size / 1000:.0f} kB)")

"""The picture at the top of README.md, drawn by `pretask preview` itself: `python docs/poster.py`."""

from pathlib import Path

from PIL import Image

from pretask import methods, selfhelp

HERE = Path(__file__).parent / "assets" / "puzzles.png"
PUZZLES = 4
"""of each method"""
WIDTH = 1400
"""pixels"""
COLOURS = 128
"""of the palette, which keeps the file small"""


def poster() -> Image.Image:
    """A sheet for each method, narrow ones first, as many beside each other as there is room for."""
    sheets = [
        selfhelp.preview("demo:test", methods.recipe(name)(), name, PUZZLES) for name in methods.names()
    ]
    made = Image.new("RGB", (WIDTH, sum(sheet.height for sheet in sheets)), "white")
    left = top = bottom = 0
    for sheet in sorted(sheets, key=lambda sheet: sheet.width):
        if left + sheet.width > WIDTH:
            left, top = 0, bottom
        made.paste(sheet, (left, top))
        left, bottom = left + sheet.width, max(bottom, top + sheet.height)
    return made.crop((0, 0, WIDTH, bottom))


if __name__ == "__main__":
    poster().quantize(COLOURS).save(HERE, optimize=True)
    print(f"wrote {HERE} ({HERE.stat().st_size / 1000:.0f} kB)")

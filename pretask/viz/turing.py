"""The colorization Turing test: an HTML page that shows pairs of a real and a colorized image and counts wrong guesses.

Zhang, Isola, Efros, ECCV 2016, arXiv:1603.08511, sec. 3.1. Perfect colorization fools a visitor in 50 % of the pairs. The
page is self-contained.
"""

from collections.abc import Sequence
from pathlib import Path

from PIL import Image

from pretask.rng import Rng
from pretask.runtime import files
from pretask.viz import page

SIDE = 320
"""maximum side of the images, pixels"""


def write(path: Path, pairs: Sequence[tuple[Image.Image, Image.Image]], about: str, seed: int) -> Path:
    """Write the page for `pairs` of (real, colorized) images of the same size, left and right in random order."""
    swapped = Rng(seed, "turing").coin(len(pairs), p=0.5).tolist()
    shuffled = [
        {
            "images": [page.data_uri(one, SIDE) for one in (pair[::-1] if swap else pair)],
            "colorized": 0 if swap else 1,
        }
        for pair, swap in zip(pairs, swapped, strict=True)
    ]
    files.write_text(
        path, page.load_template("pretask.viz", "turing.html.j2").render(about=about, pairs=shuffled)
    )
    return path

"""Which of two images is real? One page that needs no network: pairs, a visitor's guesses, the tally.

The colorization "Turing test" (Zhang et al. 2016, arXiv:1603.08511, sec. 3.1): a method that paints as well as nature
is taken for real every second time.
"""

from collections.abc import Sequence
from pathlib import Path

from PIL import Image

from pretask.rng import Rng
from pretask.runtime import files
from pretask.viz import page

SIDE = 320
"""pixels at which the images are shown, at most"""


def write(path: Path, pairs: Sequence[tuple[Image.Image, Image.Image]], about: str, seed: int) -> Path:
    """`pairs` of (real, painted), of one size each; which is on the left is drawn for each."""
    swapped = Rng(seed, "turing").coin(len(pairs), p=0.5).tolist()
    shown = [
        {
            "sides": [page.uri(one, SIDE) for one in (pair[::-1] if swap else pair)],
            "painted": 0 if swap else 1,
        }
        for pair, swap in zip(pairs, swapped, strict=True)
    ]
    files.write_text(path, page.template("pretask.viz", "turing.html.j2").render(about=about, pairs=shown))
    return path

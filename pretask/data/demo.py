"""`demo`, `demo:test`: generated drawings of ten kinds of objects, each with a short text; `demo:lens`: those of `demo` through a lens
with chromatic aberration, a shortcut (Doersch et al. 2015, arXiv:1505.05192, sec. 3.1).

scikit-learn's digits are unsuitable, since raw pixels already classify 98 % of them.
"""

from functools import cache

import torch
import torch.nn.functional as F
from torch import Tensor

from pretask.data.arrays import Arrays
from pretask.data.base import Opened, OpenOptions
from pretask.data.drawings import KINDS, drawings
from pretask.data.synthetic import random_texts
from pretask.rng import Rng
from pretask.text import words as text
from pretask.types import UserError

VOCABULARY = {
    "boat": ["sail", "mast", "harbor", "hull", "wind", "anchor", "sea", "crew"],
    "car": ["wheel", "engine", "road", "driver", "garage", "tire", "traffic", "brake"],
    "cup": ["tea", "coffee", "saucer", "handle", "kitchen", "sugar", "spoon", "breakfast"],
    "fish": ["fin", "scale", "river", "gill", "net", "pond", "bait", "reef"],
    "flower": ["petal", "stem", "bee", "garden", "pollen", "bouquet", "rose", "spring"],
    "house": ["roof", "door", "window", "chimney", "brick", "porch", "attic", "family"],
    "person": ["head", "arm", "leg", "friend", "coat", "smile", "voice", "walk"],
    "rocket": ["launch", "orbit", "moon", "fuel", "astronaut", "planet", "flame", "space"],
    "tree": ["trunk", "leaf", "branch", "forest", "root", "bark", "acorn", "shade"],
    "umbrella": ["rain", "cloud", "storm", "puddle", "weather", "drop", "shelter", "grip"],
}
"""words for the texts of each kind"""
COUNTS = {"train": 6000, "test": 2000, "lens": 6000}
SIZE = 32
GREEN = 1.06
"""magnification of the green channel by the lens"""


def understands(spec: str) -> bool:
    return spec.split(":")[0] == "demo"


def load(spec: str, options: OpenOptions) -> Opened:
    split = options.split or spec.partition(":")[2] or "train"
    drawn = "train" if split == "lens" else split
    if split not in COUNTS:
        raise UserError(f"demo has no split {split!r}; it has {' and '.join(COUNTS)}")
    image, label = made(drawn, COUNTS[split], options.size or SIZE)
    image = through_lens(image) if split == "lens" else image
    if options.channels == 1:
        image = image.float().mean(1, keepdim=True).to(torch.uint8)
    words = text.pack(random_texts(label, list(VOCABULARY.values()), Rng(0, "demo", drawn, "words")))
    return Opened(Arrays("demo", image, aux={"words": words}), label, list(KINDS))


@cache
def made(split: str, count: int, size: int) -> tuple[Tensor, Tensor]:
    """Images (N, 3, size, size) uint8 and labels (N,), generated once per process."""
    rng = Rng(0, "demo", split)
    label = rng.integers(count, high=len(KINDS))
    return drawings(label, size, rng), label


def through_lens(image: Tensor) -> Tensor:
    """(N, 3, H, W) uint8 with the green channel magnified about the center, so that edges away from it have colored fringes."""
    theta = torch.tensor([[1 / GREEN, 0, 0], [0, 1 / GREEN, 0]])
    green = image[:, 1:2].float()
    grid = F.affine_grid(theta.expand(len(green), 2, 3), list(green.shape), align_corners=False)
    seen = F.grid_sample(green, grid, padding_mode="reflection", align_corners=False)
    return torch.cat([image[:, :1], seen.round().to(torch.uint8), image[:, 2:]], 1)

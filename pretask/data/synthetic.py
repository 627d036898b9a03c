"""Small synthetic images for tests: objects that stand on the ground, lit from above, in front of a sky.

`synthetic`, `synthetic:256`, `synthetic:256:32` (number, size). An image has an up and a down (the sky is brighter, the
ground is textured, objects are lit from above), so its rotation can be predicted. Its class is the shape of the object,
whose position, size and color vary. Each image comes with a text, mostly of words of its class; the image a moment later,
when the object has moved; depth, normals and instances for a camera that looks at the horizon; and a pseudo-photograph:
another such image in other colors, noisy and blurred.
"""

import torch
import torch.nn.functional as F
from torch import Tensor

from pretask.data.arrays import Arrays
from pretask.data.base import Opened, OpenOptions
from pretask.rng import Rng
from pretask.text import words as text
from pretask.types import UserError

CLASSES = ["ball", "tower", "tent", "tree"]
TOPIC_WORDS = [
    [
        "bounce",
        "catch",
        "game",
        "goal",
        "kick",
        "leather",
        "match",
        "pitch",
        "player",
        "round",
        "score",
        "team",
        "throw",
    ],
    [
        "brick",
        "castle",
        "climb",
        "floor",
        "guard",
        "high",
        "roof",
        "stair",
        "stone",
        "storey",
        "view",
        "wall",
        "window",
    ],
    [
        "camp",
        "canvas",
        "fire",
        "night",
        "peg",
        "pole",
        "rope",
        "sleep",
        "stove",
        "summer",
        "trip",
        "valley",
        "zip",
    ],
    [
        "bark",
        "bird",
        "branch",
        "forest",
        "fruit",
        "leaf",
        "nest",
        "oak",
        "root",
        "seed",
        "shade",
        "timber",
        "wood",
    ],
]
"""words for the texts of each class"""
LENGTH, STRAY = 30, 0.2
"""words per text, and the fraction of them drawn from any class"""
EYE, WALL = 1.5, 40.0
"""height of the camera above the ground and distance of the sky in meters; the focal length is the side of the image"""
SKY, GROUND, OBJECT = 1, 2, 3
"""ids in `instances`"""

SHIFT, CLIP_LENGTH = 0.1, 4
"""movement of the object as a fraction of the side; images per clip"""


def understands(spec: str) -> bool:
    return spec.split(":")[0] == "synthetic"


def load(spec: str, options: OpenOptions) -> Opened:
    try:
        n, size = [int(given) if given else 0 for given in [*spec.split(":")[1:], "", ""]][:2]
    except ValueError:
        raise UserError(f"{spec}: expected synthetic[:N[:SIZE]], for example synthetic:256:32") from None
    n, size = n or 256, options.size or size or 32
    image, label, maps = draw(n, size, Rng(0, "synthetic"))
    later = draw(n, size, Rng(0, "synthetic"), moved=SHIFT)[0]
    words = text.pack(random_texts(label, TOPIC_WORDS, Rng(0, "synthetic", "words")))
    other = Rng(0, "synthetic", "photographs")
    photographs = degraded(draw(n, size, other)[0], other)
    if options.channels == 1:
        image, later, photographs = (
            x.float().mean(1, keepdim=True).to(torch.uint8) for x in (image, later, photographs)
        )
    known = {
        "words": words,
        "tracked": later,
        "clip": torch.arange(n) // CLIP_LENGTH,
        "photographs": photographs,
    }
    return Opened(Arrays(spec, image, aux=known | maps), label, CLASSES)


def draw(n: int, size: int, rng: Rng, moved: float = 0.0) -> tuple[Tensor, Tensor, dict[str, Tensor]]:
    """N random images (N, 3, size, size) uint8, their classes (N,), and depth, normals and instances as in a batch.

    Objects are shifted to the right by `moved`, a fraction of the side.
    """
    label = rng.integers(n, high=len(CLASSES))
    y, x = torch.meshgrid(
        *[(torch.arange(size) + 0.5) / size] * 2, indexing="ij"
    )  # (H, W) in 0 … 1, downwards

    def each(low: float, high: float) -> Tensor:
        return rng.uniform(n, 1, 1, low=low, high=high)

    horizon, middle, foot = each(0.5, 0.7), each(0.3, 0.7) + moved, each(0.75, 0.95)
    height, width = each(0.35, 0.6), each(0.12, 0.2)
    across, up = (
        (x - middle).abs() / width,
        (foot - y) / height,
    )  # across: 0 at the axis of the object; up: 0 at its foot, 1 at its top
    crown = (across * 0.6) ** 2 + ((up - 0.7) / 0.3) ** 2 < 1
    mask = torch.stack(
        [
            across**2 + (2 * up - 1) ** 2 < 1,
            (across < 0.6) & (up > 0) & (up < 1),
            (across < 1 - up) & (up > 0),
            crown | ((across < 0.25) & (up > 0) & (up < 0.7)),
        ],
        1,
    )  # (N, shapes, H, W)
    mask = mask[torch.arange(n), label]

    sky = rng.uniform(n, 3, 1, 1, low=0.55, high=0.9) * (1 - 0.4 * y)
    ground = rng.uniform(n, 3, 1, 1, low=0.15, high=0.45) * rng.uniform(n, 1, size, size, low=0.7, high=1.3)
    scene = torch.where((y < horizon)[:, None], sky, ground)
    paint = rng.uniform(n, 3, 1, 1, low=0.1, high=0.9) * (0.6 + 0.6 * up.clamp(0, 1))[:, None]
    scene = torch.where(mask[:, None], paint, scene)
    noisy = scene + 0.02 * rng.normal(n, 3, size, size)
    maps = geometry(y - horizon, foot - horizon, mask, label == 0, (x - middle) / width, up, width, height)
    return (noisy.clamp(0, 1) * 255).to(torch.uint8), label, maps


def geometry(
    below: Tensor,
    foot: Tensor,
    mask: Tensor,
    round: Tensor,
    right: Tensor,
    up: Tensor,
    width: Tensor,
    height: Tensor,
) -> dict[str, Tensor]:
    """Depth, normals and instances. Pixels (N, H, W): distance `below` the horizon, `mask` of the object, position on it.

    Objects stand upright where their foot, (N, 1, 1) below the horizon, touches the ground. The `round` ones (N,) are
    ellipsoids as deep as they are wide, in orthographic projection; the others are flat.
    """
    ground = EYE / below.clamp(min=EYE / WALL)  # the plane y = EYE, up to the wall
    distance = EYE / foot
    a, b = right, 1 - 2 * up  # -1 … 1 across and down a round object
    c = (1 - a**2 - b**2).clamp(min=0).sqrt() * round[:, None, None]
    bulge = torch.stack([a / width, b / (height / 2), -c / width], 1)
    flat = torch.tensor([0.0, 0.0, -1.0]).view(1, 3, 1, 1)
    facing = torch.where(round.view(-1, 1, 1, 1), F.normalize(bulge, dim=1), flat)
    depth = torch.where(mask, distance * (1 - c * width), torch.where(below > 0, ground, WALL))
    level = torch.tensor([0.0, -1.0, 0.0]).view(1, 3, 1, 1)
    normals = torch.where((below > 0)[:, None], level, flat)
    instances = torch.where(mask, OBJECT, torch.where(below > 0, GROUND, SKY))
    return {
        "depth": depth[:, None],
        "normals": torch.where(mask[:, None], facing, normals),
        "instances": instances[:, None].int(),
    }


def degraded(image: Tensor, rng: Rng) -> Tensor:
    """(N, 3, H, W) uint8 with swapped colors, lower contrast, noise and blur."""
    # in double precision, so that processors that add in another order give the same bytes
    x = 0.2 + 0.7 * image.flip(1).double() / 255 + 0.1 * rng.normal(len(image), 1, *image.shape[2:]).double()
    blurred = F.avg_pool2d(F.pad(x, (1, 1, 1, 1), "replicate"), 3, 1)
    return (blurred.clamp(0, 1) * 255).to(torch.uint8)


def random_texts(label: Tensor, vocabulary: list[list[str]], rng: Rng) -> list[str]:
    """A text for each label (N,), mostly of words of its class; all classes have equally many words."""
    shape = len(label), LENGTH
    stray = rng.coin(*shape, p=STRAY)
    topic = torch.where(stray, rng.integers(*shape, high=len(vocabulary)), label[:, None])
    word = rng.integers(*shape, high=len(vocabulary[0]))
    return [
        " ".join(vocabulary[t][w] for t, w in zip(ts, ws, strict=True))
        for ts, ws in zip(topic.tolist(), word.tolist(), strict=True)
    ]

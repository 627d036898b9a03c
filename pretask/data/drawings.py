"""Drawings of ten kinds of simple upright objects, made of polygons.

Colors, proportions, position, size, slant, mirroring, light and background vary between images independently of the kind;
only the arrangement of the parts determines it. So neighbors in pixels or local patches are poor, and predicting a rotation
requires the shape of the object.
"""

import math
from collections.abc import Callable, Mapping

import numpy as np
import torch
import torch.nn.functional as F
from PIL import Image, ImageDraw
from torch import Tensor

from pretask.rng import Rng

SUPERSAMPLING = 3
"""drawn pixels per image pixel, along each side"""
PAINTS = 3
"""colors of an object"""
CONTRAST = 0.2
"""minimum mean absolute difference between the background and each paint"""
NOISE = 0.016
"""standard deviation of the noise, as a fraction of the full range"""
CHUNK = 256
"""images colored at once"""

Points = list[tuple[float, float]]
Part = tuple[Points, int]  # a polygon in [-1, 1]², y down, and its color: 0 the background, 1 to PAINTS


def box(left: float, top: float, right: float, bottom: float) -> Points:
    return [(left, top), (right, top), (right, bottom), (left, bottom)]


def disc(x: float, y: float, rx: float, ry: float, start: float = 0.0, stop: float = 1.0) -> Points:
    """An ellipse, or its sector from `start` to `stop`, in turns."""
    angles = np.linspace(2 * math.pi * start, 2 * math.pi * stop, 28)
    return list(zip(x + rx * np.cos(angles), y + ry * np.sin(angles), strict=True))


# ---- the kinds: each takes four proportions in [-1, 1]


def boat(a: float, b: float, c: float, d: float) -> list[Part]:
    bow = 0.6 - 0.1 * a
    return [
        ([(-0.9, 0.4), (0.9, 0.4), (bow, 0.85), (-bow, 0.85)], 1),
        (box(-0.04, -0.95, 0.04, 0.4), 2),
        ([(0.1, -0.85 + 0.1 * b), (0.1, 0.25), (0.75 + 0.1 * c, 0.25)], 3),
        ([(-0.1, -0.6 + 0.1 * d), (-0.1, 0.25), (-0.6, 0.25)], 3),
    ]


def car(a: float, b: float, c: float, d: float) -> list[Part]:
    roof, wheel = -0.55 + 0.12 * a, 0.24 + 0.04 * d
    pane = roof + 0.13
    return [
        ([(-0.55, -0.1), (-0.35 - 0.1 * b, roof), (0.3 + 0.1 * c, roof), (0.55, -0.1)], 1),
        (box(-0.95, -0.12, 0.95, 0.4), 1),
        ([(-0.38, -0.12), (-0.27, pane), (-0.03, pane), (-0.03, -0.12)], 3),
        ([(0.05, -0.12), (0.05, pane), (0.22, pane), (0.36, -0.12)], 3),
        (disc(-0.5, 0.42, wheel, wheel), 2),
        (disc(0.5, 0.42, wheel, wheel), 2),
    ]


def cup(a: float, b: float, c: float, d: float) -> list[Part]:
    half, taper = 0.5 + 0.08 * a, 0.15 - 0.1 * c
    return [
        (disc(half, 0.05, 0.35, 0.35 + 0.06 * b), 1),
        (disc(half, 0.05, 0.2, 0.2 + 0.06 * b), 0),
        (
            [
                (-half - 0.1, -0.6),
                (half + 0.1, -0.6),
                (half + 0.1 - taper, 0.75),
                (-half - 0.1 + taper, 0.75),
            ],
            1,
        ),
        (disc(0, -0.6, half + 0.1, 0.12 + 0.02 * d), 2),
        (box(-0.75, 0.75, 0.75, 0.85), 3),
    ]


def fish(a: float, b: float, c: float, d: float) -> list[Part]:
    return [
        ([(0.35, 0), (0.95, -0.45 - 0.1 * b), (0.95, 0.45 + 0.1 * b)], 2),
        ([(-0.1, -0.25), (0.3, -0.75 + 0.1 * c), (0.4, -0.2)], 2),
        (disc(-0.2, 0, 0.7, 0.42 + 0.08 * a), 1),
        (disc(-0.55, -0.1, 0.09, 0.09), 3),
        (disc(0.05, 0.08, 0.12, 0.2 + 0.05 * d), 2),
    ]


def flower(a: float, b: float, c: float, d: float) -> list[Part]:
    petal, count = 0.24 + 0.03 * b, 6 + round(a)
    around = (2 * math.pi * k / count for k in range(count))
    return [
        (box(-0.05, -0.3, 0.05, 1), 2),
        (disc(0.3, 0.55 + 0.1 * c, 0.3, 0.12), 2),
        (disc(-0.3, 0.7 + 0.1 * d, 0.3, 0.12), 2),
        *((disc(0.38 * math.cos(t), -0.4 + 0.38 * math.sin(t), petal, petal), 1) for t in around),
        (disc(0, -0.4, 0.24, 0.24), 3),
    ]


def house(a: float, b: float, c: float, d: float) -> list[Part]:
    half, eaves = 0.7 + 0.15 * a, -0.1 + 0.15 * b
    door, window = 0.3 * d, -0.55 * math.copysign(half, d)
    return [
        (box(-half, eaves, half, 1), 1),
        ([(-half - 0.15, eaves), (0, -0.95 + 0.1 * c), (half + 0.15, eaves)], 2),
        (box(door - 0.15, 0.35, door + 0.2, 1), 3),
        (box(window - 0.17, 0.1, window + 0.17, 0.4), 3),
    ]


def person(a: float, b: float, c: float, d: float) -> list[Part]:
    left, right, head = -0.35 * b, 0.35 * b, 0.23 + 0.03 * a  # one arm up, one down
    return [
        (disc(0, -0.72, head, head), 1),
        ([(-0.3, -0.45), (0.3, -0.45), (0.24, 0.3), (-0.24, 0.3)], 2),
        ([(-0.28, -0.42), (-0.72, left - 0.1), (-0.64, left + 0.02), (-0.24, -0.22)], 1),
        ([(0.28, -0.42), (0.72, right - 0.1), (0.64, right + 0.02), (0.24, -0.22)], 1),
        ([(-0.24, 0.28), (0.02, 0.28), (-0.12 - 0.1 * c, 1), (-0.32 - 0.1 * c, 1)], 3),
        ([(-0.02, 0.28), (0.24, 0.28), (0.32 + 0.1 * d, 1), (0.12 + 0.1 * d, 1)], 3),
    ]


def rocket(a: float, b: float, c: float, d: float) -> list[Part]:
    half, fin, pane = 0.28 + 0.05 * a, 0.75 + 0.1 * b, 0.15 + 0.03 * d
    return [
        ([(-half, 0.2), (-half - 0.35, fin), (-half, 0.7)], 2),
        ([(half, 0.2), (half + 0.35, fin), (half, 0.7)], 2),
        ([(-0.18, 0.7), (0, 0.95 + 0.05 * c), (0.18, 0.7)], 3),
        (box(-half, -0.4, half, 0.7), 1),
        ([(-half, -0.4), (0, -1), (half, -0.4)], 2),
        (disc(0, -0.1, pane, pane), 3),
    ]


def tree(a: float, b: float, c: float, d: float) -> list[Part]:
    half, trunk = 0.6 + 0.12 * a, 0.12 + 0.05 * d
    if c > 0:
        crown = [(disc(0, -0.3, half, 0.6 + 0.1 * b), 1)]
    else:
        crown = [([(-half, y + 0.55), (0, y - 0.25), (half, y + 0.55)], 1) for y in (0.0, -0.35, -0.7)]
    return [(box(-trunk, 0, trunk, 1), 2), *crown]


def umbrella(a: float, b: float, c: float, d: float) -> list[Part]:
    half, height, grip = 0.85 + 0.08 * a, 0.7 + 0.1 * b, 0.18 + 0.03 * c
    return [
        (box(-0.04, -0.3, 0.04, 0.8), 2),
        (disc(grip - 0.04, 0.78, grip, 0.18, 0.0, 0.5), 2),
        (disc(grip - 0.04, 0.76, grip - 0.08, 0.1, 0.0, 0.5), 0),
        (disc(0, -0.1, half, height, 0.5, 1.0), 1),
        (disc(0, -0.1, half * (0.36 + 0.05 * d), height, 0.5, 1.0), 3),
    ]


KINDS: Mapping[str, Callable[[float, float, float, float], list[Part]]] = {
    kind.__name__: kind for kind in (boat, car, cup, fish, flower, house, person, rocket, tree, umbrella)
}


# ---- images


def draw(kind: str, u: list[float], side: int) -> np.ndarray:
    """Random numbers u in [0, 1) -> (side, side) uint8: the color index of every pixel."""
    angle, shear, scale = math.radians(30 * (u[0] - 0.5)), 0.4 * (u[1] - 0.5), (0.28 + 0.2 * u[2]) * side
    stretch, mirror = 1 + 0.3 * (u[3] - 0.5), -1 if u[4] < 0.5 else 1
    turn = np.array([[math.cos(angle), -math.sin(angle)], [math.sin(angle), math.cos(angle)]])
    pose = scale * turn @ np.array([[mirror * stretch, shear], [0, 1 / stretch]])
    room = side / 2 - 0.95 * scale
    center = side / 2 + room * (2 * np.array(u[5:7]) - 1)
    picture = Image.new("L", (side, side))
    pen = ImageDraw.Draw(picture)
    for points, color in KINDS[kind](*(2 * v - 1 for v in u[7:11])):
        pen.polygon([(x, y) for x, y in (np.array(points) @ pose.T + center).tolist()], fill=color)
    return np.array(picture)


def palettes(n: int, rng: Rng) -> Tensor:
    """(n, 1 + PAINTS, 3) in [0, 1]: a background and paints that contrast with it."""
    color = rng.uniform(n, 1 + PAINTS, 3)
    ground, paint = 0.12 + 0.76 * color[:, :1], color[:, 1:]
    away = torch.where(ground.mean(2, keepdim=True) < 0.5, 1.0, 0.0)
    for _ in range(4):
        close = (paint - ground).abs().mean(2, keepdim=True) < CONTRAST
        paint = torch.where(close, (paint + away) / 2, paint)
    return torch.cat([ground, paint], 1)


def ramp(side: int, turns: Tensor) -> Tensor:
    """(B,) directions in turns -> linear gradients (B, 1, side, side) from about -½ to ½."""
    at = torch.linspace(-0.5, 0.5, side)
    x, y = (f(2 * math.pi * turns)[:, None, None, None] for f in (torch.cos, torch.sin))
    return x * at + y * at[:, None]


def drawings(label: Tensor, size: int, rng: Rng) -> Tensor:
    """(N,) indices into KINDS -> random drawings (N, 3, size, size) uint8."""
    n, side, kinds = len(label), SUPERSAMPLING * size, list(KINDS)
    shape = rng.child("shape").uniform(n, 11).tolist()
    palette, light = palettes(n, rng.child("palette")), rng.child("light").uniform(n, 5)
    grain = NOISE * rng.child("grain").normal(n, 1, size, size)
    image = torch.empty(n, 3, size, size, dtype=torch.uint8)
    for some in torch.arange(n).split(CHUNK):
        drawn = [
            draw(kinds[k], shape[i], side) for i, k in zip(some.tolist(), label[some].tolist(), strict=True)
        ]
        index = torch.from_numpy(np.stack(drawn)).long().flatten(1)
        colors = palette[some].gather(1, index[:, :, None].expand(-1, -1, 3)).mT.unflatten(2, (side, side))
        turns, strength = light[some, 0], (light[some, 1] - 0.5)[:, None, None, None]
        behind = (index == 0).unflatten(1, (1, side, side))
        colors = colors + 0.7 * strength * ramp(side, turns) * behind
        x = F.avg_pool2d(colors, SUPERSAMPLING)
        turns, slope, level = light[some, 2], light[some, 3], light[some, 4]
        shade = 1 + 0.7 * slope[:, None, None, None] * ramp(size, turns)
        x = x * shade * (0.7 + 0.5 * level)[:, None, None, None] + grain[some]
        image[some] = (255 * x.clamp(0, 1)).round().to(torch.uint8)
    return image

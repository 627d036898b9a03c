"""Rooms that nobody built: walls, furniture of simple solids, light and a camera, each drawn from a seed.

`room(mi, rng)` describes one for Mitsuba. Metres; x right, y up, z into the room. A thing, a chair or a floor, is all
the shapes whose names begin with its number, so that its outline is that of the whole and not of its parts.
"""

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from numpy.random import Generator

Shape = dict[str, Any]
Parts = list[Shape]

TEXELS = 64
"""side of a texture that is painted here"""
TRIES = 30
"""places that are tried for a thing before the room does without it"""
CLEAR = 0.35
"""metres between the camera and the nearest thing, at least"""
NEAR = 0.5
"""share of the cameras that look at something close by, the others at the whole room"""
ROLL = 10.0
"""degrees that a camera is held askew, at most"""


@dataclass
class Room:
    """What Mitsuba is given, and where its camera stands."""

    mi: Any
    rng: Generator
    width: float
    height: float
    depth: float
    origin: np.ndarray  # (3,) the camera
    target: np.ndarray  # (3,) what it looks at
    view: float  # degrees, across and down
    roll: float = 0.0  # degrees that the camera is turned about its axis
    shapes: dict[str, Shape] = field(default_factory=dict)
    things: int = 0
    taken: list[tuple[float, float, float]] = field(
        default_factory=list
    )  # x, z and radius of what stands on the floor

    def add(self, parts: Parts, x: float = 0, y: float = 0, z: float = 0, turn: float = 0) -> None:
        """One thing, made of parts around its own foot, set down and turned by degrees."""
        self.things += 1
        place = self.mi.ScalarTransform4f().translate([x, y, z]).rotate([0, 1, 0], turn)
        for k, part in enumerate(parts):
            self.shapes[f"{self.things:05d}_{k:02d}"] = part | {"to_world": place @ part["to_world"]}

    def between(self, low: float, high: float) -> float:
        return float(self.rng.uniform(low, high))

    def chance(self, p: float) -> bool:
        return bool(self.rng.random() < p)

    @property
    def axes(self) -> np.ndarray:
        """(3, 3): right, down and forward of the camera, a column each."""
        forward = (self.target - self.origin) / np.linalg.norm(self.target - self.origin)
        level = np.cross(forward, [0, 1, 0])
        level /= np.linalg.norm(level)
        a = np.radians(self.roll)
        right = np.cos(a) * level + np.sin(a) * np.cross(forward, level)
        return np.stack([right, np.cross(forward, right), forward], 1)

    def free(self, radius: float, drawn: "Place") -> tuple[float, float, float] | None:
        """A place on the floor, and how a thing turns there, out of those that are drawn of a kind."""
        for _ in range(TRIES):
            x, z, turn = drawn(self, radius)
            far = np.hypot(x - self.origin[0], z - self.origin[2]) > radius + CLEAR
            if far and all(np.hypot(x - a, z - b) > radius + r for a, b, r in self.taken):
                self.taken.append((x, z, radius))
                return x, z, turn
        return None

    def across(self, radius: float) -> tuple[float, float]:
        """Where the middle of a thing can stand between the walls at the sides."""
        return radius - self.width / 2, self.width / 2 - radius


# ---- where things stand, and how they turn there


Place = Callable[[Room, float], tuple[float, float, float]]
"""of a thing with this radius: x, z, and degrees"""


def on_floor(at: Room, radius: float) -> tuple[float, float, float]:
    return at.between(*at.across(radius)), at.between(radius, at.depth - radius), at.between(0, 360)


def at_wall(at: Room, radius: float) -> tuple[float, float, float]:
    """Its back to the wall. Things look to -z before they are turned; the wall behind the camera stays free."""
    along, gap = at.between(radius, at.depth - radius), radius * 0.75
    side = at.rng.integers(3)
    if side == 0:
        return at.between(*at.across(radius)), at.depth - gap, 0
    return (gap - at.width / 2, along, -90) if side == 1 else (at.width / 2 - gap, along, 90)


def looked_at(at: Room, radius: float) -> tuple[float, float, float]:
    """About where the camera looks."""
    x, z = (at.target[axis] + at.between(-radius, radius) for axis in (0, 2))
    return float(np.clip(x, *at.across(radius))), min(z, at.depth - radius), at.between(0, 360)


def view(rng: Generator) -> float:
    """The first that is drawn of a room: the camera's field of view in degrees, across and down."""
    return float(rng.uniform(48, 78))


def stance(rng: Generator, width: float, depth: float, near: bool) -> tuple[np.ndarray, np.ndarray]:
    """Where the camera is, and what it looks at: something close by, or the far end of the room."""
    back = 0.5 * depth if near else 0.9
    origin = np.array([rng.uniform(-0.35, 0.35) * width, rng.uniform(1.1, 1.7), rng.uniform(0.15, back)])
    if not near:
        x, z = rng.uniform(-0.4, 0.4) * width, rng.uniform(0.6, 0.95) * depth
        return origin, np.array([x, rng.uniform(0.5, 1.2), z])
    ahead, aside = rng.uniform(1.0, 2.4), np.radians(rng.uniform(-50, 50))
    x, z = origin[0] + ahead * np.sin(aside), origin[2] + ahead * np.cos(aside)
    within = np.clip(x, -0.4 * width, 0.4 * width)
    return origin, np.array([within, rng.uniform(0.2, 1.2), min(z, 0.9 * depth)])


def room(mi: Any, rng: Generator) -> Room:
    across = view(rng)
    width, depth, height = rng.uniform(3.0, 5.5), rng.uniform(3.8, 6.5), rng.uniform(2.4, 3.2)
    near = rng.random() < NEAR
    origin, target = stance(rng, width, depth, near)
    made = Room(mi, rng, width, height, depth, origin, target, across, rng.uniform(-ROLL, ROLL))
    shell(made)
    if near:
        stand(made, rng.choice(FLOOR_THINGS), looked_at)
    for kind in rng.permutation(WALL_THINGS)[: rng.integers(3, 7)]:
        stand(made, kind, at_wall)
    for kind in rng.permutation(FLOOR_THINGS)[: rng.integers(4, 10)]:
        stand(made, kind, on_floor)
    lights(made)
    return made


def stand(at: Room, kind: str, drawn: Place) -> None:
    """A thing of this kind, with what stands on it, where there is room."""
    parts, radius, tops = MAKERS[kind](at)
    place = at.free(radius, drawn)
    if place is None:
        return
    x, z, turn = place
    at.add(parts, x, 0, z, turn)
    for right, top, back, spread in tops:
        if at.chance(0.75):
            a = np.radians(turn)
            px, pz = x + right * np.cos(a) + back * np.sin(a), z - right * np.sin(a) + back * np.cos(a)
            small = ("ball", "vase", "box", "books", "bowl")[at.rng.integers(5)]
            at.add(SMALL[small](at, spread), px, top, pz, at.between(0, 360) if small != "books" else turn)


# ---- what things are made of


def paint(at: Room, low: float = 0.05, high: float = 0.85, dye: float = 0.8) -> list[float]:
    """A colour; `dye` is how far from grey it may be. What is large should be dull, or it colours the whole room."""
    grey, color = at.between(low, high), at.rng.uniform(low, high, 3)
    return [float(c) for c in grey + (color - grey) * at.between(0.05, dye)]


def flat(at: Room, color: list[float]) -> Shape:
    return {"type": "rgb", "value": color}


def bitmap(at: Room, pixels: np.ndarray, repeat: float) -> Shape:
    """(h, w, 3) reflectances -> a texture that is repeated so many times."""
    image = at.mi.Bitmap(np.ascontiguousarray(pixels, np.float32))
    scaled = at.mi.ScalarTransform4f().scale([repeat, repeat, 1])
    return {"type": "bitmap", "bitmap": image, "raw": True, "to_uv": scaled}


def texture(at: Room, repeat: float = 1.0, dye: float = 0.8) -> Shape:
    """Plain, checks, stripes, mottle, or something like wood."""
    one, other = (np.array(paint(at, 0.15, dye=dye)) for _ in range(2))
    kind = at.rng.choice(["plain", "checks", "stripes", "mottle", "wood"], p=[0.35, 0.12, 0.13, 0.2, 0.2])
    if kind == "plain":
        return flat(at, [float(c) for c in one])
    if kind == "checks":
        count = repeat * at.rng.integers(2, 6)
        scaled = at.mi.ScalarTransform4f().scale([float(count), float(count), 1])
        return {"type": "checkerboard", "color0": flat(at, list(map(float, one))), "color1": flat(at, list(map(float, other))), "to_uv": scaled}  # fmt: skip
    across, down = np.meshgrid(np.arange(TEXELS) / TEXELS, np.arange(TEXELS) / TEXELS)
    if kind == "stripes":
        share = np.sin(2 * np.pi * at.rng.integers(2, 8) * (across if at.chance(0.5) else down)) > 0
    elif kind == "mottle":
        share = noise(at, 4) * 0.5 + noise(at, 16) * 0.5
    else:
        one, other = (
            np.array([0.55, 0.35, 0.2]) * at.between(0.4, 1.3) * at.rng.uniform(0.8, 1.1, 3) for _ in "ab"
        )
        share = (noise(at, 3) * 3 + across * at.rng.integers(3, 9)) % 1
    mixed = one + share[..., None] * (other - one)
    return bitmap(at, mixed.clip(0.02, 0.9), repeat)


def noise(at: Room, cells: int) -> np.ndarray:
    """(TEXELS, TEXELS) in 0 … 1, smooth, and without a seam where it is repeated."""
    coarse = at.rng.random((cells, cells))
    place = np.arange(TEXELS) * cells / TEXELS
    low, share = place.astype(int), place % 1
    share = share * share * (3 - 2 * share)

    def along(x: np.ndarray) -> np.ndarray:
        return x[low] + (x[(low + 1) % cells] - x[low]) * share[:, None]

    return along(along(coarse).T).T


def material(at: Room, repeat: float = 1.0, shiny: float = 0.3, dye: float = 0.8) -> Any:
    """Diffuse, or plastic, or now and then a rough metal; all solids that are given it share it."""
    kind = at.rng.random()
    if kind < 0.15 * shiny:
        metal = {"type": "roughconductor", "alpha": at.between(0.2, 0.45), "distribution": "ggx"}
        return both_sides(at, metal | {"specular_reflectance": flat(at, paint(at, 0.5, 0.95))})
    if kind < shiny:
        return both_sides(at, {"type": "plastic", "diffuse_reflectance": texture(at, repeat, dye)})
    return matte(at, texture(at, repeat, dye))


def matte(at: Room, reflectance: Shape) -> Any:
    return both_sides(at, {"type": "diffuse", "reflectance": reflectance})


def both_sides(at: Room, of: Shape) -> Any:
    """Made once for all solids that share it, and not in the description of each."""
    return at.mi.load_dict({"type": "twosided", "bsdf": of})


# ---- solids, around their foot


def box(
    at: Room, of: Any, size: tuple[float, float, float], x: float = 0, y: float = 0, z: float = 0
) -> Shape:
    """Width, height and depth; (x, y, z) is the middle of its underside."""
    half = [size[0] / 2, size[1] / 2, size[2] / 2]
    place = at.mi.ScalarTransform4f().translate([x, y + half[1], z]).scale(half)
    return {"type": "cube", "to_world": place, "bsdf": of}


def ball(at: Room, of: Any, radius: float, x: float = 0, y: float = 0, z: float = 0) -> Shape:
    """(x, y, z) is its middle."""
    place = at.mi.ScalarTransform4f().translate([x, y, z]).scale(radius)
    return {"type": "sphere", "to_world": place, "bsdf": of}


def column(
    at: Room,
    of: Any,
    radius: float,
    height: float,
    x: float = 0,
    y: float = 0,
    z: float = 0,
    lid: bool = True,
) -> Parts:
    """An upright cylinder with its lid."""
    t = at.mi.ScalarTransform4f
    foot = t().translate([x, y, z])
    side = foot @ t().rotate([1, 0, 0], -90) @ t().scale([radius, radius, height])
    parts: Parts = [{"type": "cylinder", "to_world": side, "bsdf": of}]
    if lid:
        top = foot @ t().translate([0, height, 0]) @ t().rotate([1, 0, 0], -90) @ t().scale(radius)
        parts.append({"type": "disk", "to_world": top, "bsdf": of})
    return parts


def legs(at: Room, of: Any, width: float, depth: float, height: float, thick: float) -> Parts:
    x, z = width / 2 - thick, depth / 2 - thick
    return [box(at, of, (thick, height, thick), a * x, 0, b * z) for a in (-1, 1) for b in (-1, 1)]


# ---- furniture: parts, the radius it takes up, and the places on it (right, up, back, how much room is there)

Top = tuple[float, float, float, float]
Made = tuple[Parts, float, list[Top]]


def table(at: Room) -> Made:
    width, depth, height = at.between(0.8, 1.6), at.between(0.6, 0.95), at.between(0.42, 0.78)
    top, under = material(at, shiny=0.4), material(at, shiny=0.4)
    if at.chance(0.3):  # a round one on a pole
        parts = [
            *column(at, top, depth / 1.6, 0.04, y=height - 0.04),
            *column(at, under, 0.05, height - 0.04),
        ]
        parts += column(at, under, 0.25, 0.03)
        return parts, depth / 1.5, [(0.0, height, 0.0, 0.16), (0.25, height, 0.1, 0.1)]
    parts = [
        box(at, top, (width, 0.04, depth), y=height - 0.04),
        *legs(at, under, width, depth, height - 0.04, 0.06),
    ]
    places = [(side * width / 4, height, at.between(-0.15, 0.15), 0.15) for side in (-1, 0, 1)]
    return parts, np.hypot(width, depth) / 2, places


def chair(at: Room) -> Made:
    width, seat, back = at.between(0.4, 0.5), at.between(0.4, 0.48), at.between(0.4, 0.6)
    frame, cushion = material(at), material(at, shiny=0.1)
    parts = [box(at, cushion, (width, 0.06, width), y=seat), *legs(at, frame, width, width, seat, 0.04)]
    if at.chance(0.5):
        parts.append(box(at, cushion, (width, back, 0.05), y=seat + 0.06, z=width / 2 - 0.03))
    else:  # a back of bars
        parts += [box(at, frame, (0.03, back, 0.03), x * width / 2.3, seat + 0.06, width / 2 - 0.03) for x in (-1, -0.33, 0.33, 1)]  # fmt: skip
        parts.append(box(at, frame, (width, 0.08, 0.04), y=seat + back, z=width / 2 - 0.03))
    return parts, 0.38, []


def sofa(at: Room) -> Made:
    width, depth, arm = at.between(1.3, 2.1), at.between(0.75, 0.9), at.between(0.12, 0.22)
    cloth, seats = material(at, 2, 0.05), material(at, 1, 0.05)
    parts = [
        box(at, cloth, (width, 0.25, depth), y=0.08),
        box(at, cloth, (width, 0.5, 0.2), y=0.3, z=depth / 2 - 0.1),
    ]
    parts += [box(at, cloth, (arm, 0.5, depth), side * (width - arm) / 2, 0.08) for side in (-1, 1)]
    count, inner = int(at.rng.integers(2, 4)), width - 2 * arm
    for k in range(count):
        x = (k + 0.5) / count * inner - inner / 2
        parts.append(box(at, seats, (inner / count * 0.97, 0.14, depth - 0.25), x, 0.33, -0.1))
    return parts, width / 2 + 0.1, []


def shelf(at: Room) -> Made:
    width, height, depth = at.between(0.7, 1.2), at.between(1.2, 2.0), at.between(0.28, 0.38)
    wood, count = material(at, shiny=0.2), int(at.rng.integers(3, 6))
    parts = [box(at, wood, (0.03, height, depth), side * width / 2) for side in (-1, 1)]
    parts.append(box(at, wood, (width, height, 0.02), z=depth / 2))
    levels = [k * (height - 0.03) / count for k in range(count + 1)]
    parts += [box(at, wood, (width, 0.03, depth), y=level) for level in levels]
    places = [(side * width / 4, level + 0.03, 0.0, 0.11) for level in levels for side in (-1, 1)]
    return parts, width / 2, places


def cabinet(at: Room) -> Made:
    width, height, depth = at.between(0.7, 1.5), at.between(0.6, 1.1), at.between(0.4, 0.5)
    body, door, knob = material(at, shiny=0.3), material(at, shiny=0.3), material(at, shiny=1.0)
    parts, doors = [box(at, body, (width, height, depth))], int(at.rng.integers(2, 4))
    for k in range(doors):
        x = (k + 0.5) / doors * width - width / 2
        parts.append(
            box(at, door, (width / doors * 0.92, height * 0.9, 0.02), x, height * 0.05, -depth / 2 - 0.01)
        )
        parts.append(ball(at, knob, 0.025, x + width / doors * 0.35, height * 0.6, -depth / 2 - 0.04))
    return parts, width / 2 + 0.05, [(side * width / 3, height, 0.0, 0.17) for side in (-1, 0, 1)]


def bed(at: Room) -> Made:
    width, length = at.between(0.9, 1.6), at.between(1.9, 2.1)
    frame, sheet, cover = material(at), material(at, 1, 0.0), material(at, 2, 0.0)
    parts = [
        box(at, frame, (width, 0.25, length)),
        box(at, sheet, (width * 0.97, 0.2, length * 0.97), y=0.25),
    ]
    parts += [box(at, frame, (width, at.between(0.7, 1.1), 0.06), z=length / 2)]
    parts += [box(at, cover, (width, 0.06, length * 0.6), y=0.43, z=-length * 0.19)]
    parts += [box(at, sheet, (width * 0.6, 0.1, 0.35), y=0.45, z=length * 0.36)]
    return parts, length / 2, []


def plant(at: Room) -> Made:
    pot, leaf = material(at), matte(at, flat(at, [0.08, at.between(0.2, 0.4), 0.06]))  # fmt: skip
    height, radius = at.between(0.25, 0.4), at.between(0.12, 0.2)
    parts = [*column(at, pot, radius, height), *column(at, material(at), 0.02, height + 0.3)]
    for _ in range(int(at.rng.integers(7, 14))):
        r, a = at.between(0, 0.25), at.between(0, 2 * np.pi)
        parts.append(
            ball(
                at, leaf, at.between(0.05, 0.1), r * np.cos(a), height + at.between(0.25, 0.8), r * np.sin(a)
            )
        )
    return parts, 0.4, []


def lamp(at: Room) -> Made:
    height, radius = at.between(1.3, 1.7), at.between(0.14, 0.22)
    metal = material(at, shiny=1.0)
    glow = light(warm(at), at.between(3, 7), 4 * np.pi * radius**2)
    shade = matte(at, flat(at, [0.8, 0.75, 0.65]))
    parts = [*column(at, metal, 0.16, 0.03), *column(at, metal, 0.018, height)]
    parts.append(ball(at, shade, radius, y=height + radius * 0.8) | {"emitter": glow})
    return parts, 0.3, []


def stool(at: Room) -> Made:
    height, radius = at.between(0.35, 0.7), at.between(0.15, 0.22)
    top = material(at)
    return [*column(at, top, radius, 0.06, y=height), *legs(at, material(at), radius * 1.6, radius * 1.6, height, 0.035)], 0.3, [(0.0, height + 0.06, 0.0, 0.12)]  # fmt: skip


def crates(at: Room) -> Made:
    size = at.between(0.3, 0.55)
    return SMALL["box"](at, size / 1.2), size * 0.75, [(0.0, size, 0.0, 0.12)]


def toy(at: Room) -> Made:
    radius = at.between(0.12, 0.35)
    return [ball(at, material(at, 3, 0.6), radius, y=radius)], radius, []


def urn(at: Room) -> Made:
    return SMALL["vase"](at, at.between(0.3, 0.45)), 0.3, []


WALL_THINGS = ["sofa", "shelf", "shelf", "cabinet", "cabinet", "bed", "table", "lamp", "plant"]
FLOOR_THINGS = [
    "table",
    "table",
    "chair",
    "chair",
    "chair",
    "stool",
    "crates",
    "toy",
    "toy",
    "urn",
    "plant",
    "lamp",
]
MAKERS = {
    f.__name__: f
    for f in (table, chair, sofa, shelf, cabinet, bed, plant, lamp, stool, crates, toy, urn)
}  # fmt: skip


# ---- small things, of about a size


def small_ball(at: Room, size: float) -> Parts:
    radius = size * at.between(0.4, 0.8)
    return [ball(at, material(at, 3, 0.6), radius, y=radius)]


def small_box(at: Room, size: float) -> Parts:
    return [
        box(
            at,
            material(at),
            (size * at.between(0.8, 1.4), size * at.between(0.6, 1.3), size * at.between(0.8, 1.2)),
        )
    ]


def vase(at: Room, size: float) -> Parts:
    glaze, belly = material(at, 2, 0.7), size * at.between(0.45, 0.65)
    neck = belly * at.between(0.3, 0.6)
    parts = [ball(at, glaze, belly, y=belly * 0.9), ball(at, glaze, belly * 0.75, y=belly * 1.8)]
    parts += column(at, glaze, neck, belly * at.between(0.7, 1.4), y=belly * 2.2, lid=False)
    return [*parts, *column(at, glaze, belly * 0.6, belly * 0.15)]


def books(at: Room, size: float) -> Parts:
    parts, x = [], -size
    while x < size:
        thick = at.between(0.02, 0.05)
        tall = size * at.between(1.2, 1.9)
        parts.append(box(at, material(at, 1, 0.1), (thick, tall, size * 1.3), x + thick / 2))
        x += thick
    return parts


def bowl(at: Room, size: float) -> Parts:
    glaze, fruit = material(at, 1, 0.6), material(at, 1, 0.5)
    parts = column(at, glaze, size * 0.8, size * 0.4)
    return [*parts, *(ball(at, fruit, size * 0.3, size * 0.35 * np.cos(a), size * 0.55, size * 0.35 * np.sin(a)) for a in (0.3, 2.4, 4.5))]  # fmt: skip


SMALL = {"ball": small_ball, "vase": vase, "box": small_box, "books": books, "bowl": bowl}


# ---- the room itself


def shell(at: Room) -> None:
    """Floor, ceiling, four walls, each a thing; a skirting, and on the walls pictures and perhaps a door; a rug."""
    w, h, d, thick = at.width, at.height, at.depth, 0.1
    walls = material(at, 3, 0.0, 0.25)
    if at.chance(0.6):  # one light colour, as most rooms have
        shade = [float(c) for c in 0.7 + at.rng.uniform(-0.12, 0.12, 3) * at.between(0, 1.2)]
        walls = matte(at, flat(at, shade))
    white = matte(at, flat(at, [at.between(0.6, 0.85)] * 3))
    at.add([box(at, material(at, 4, 0.3, 0.4), (w, thick, d), 0, -thick, d / 2)])
    at.add([box(at, white, (w, thick, d), 0, h, d / 2)])
    at.add([box(at, walls, (w, h, thick), 0, 0, d + thick / 2)])
    at.add([box(at, walls, (w, h, thick), 0, 0, -thick / 2)])
    for side in (-1, 1):
        at.add([box(at, walls, (thick, h, d), side * (w + thick) / 2, 0, d / 2)])
    for _ in range(int(at.rng.integers(1, 4))):
        on_wall(at, picture(at), at.between(1.3, 1.8))
    if at.chance(0.4):
        on_wall(at, door(at), 0)
    if at.chance(0.5):
        rug = box(at, material(at, 2, 0.0), (at.between(1.2, 2.2), 0.015, at.between(1.0, 2.0)))
        at.add([rug], at.between(-0.2, 0.2) * w, 0, d * at.between(0.4, 0.6), at.between(-15, 15))


def on_wall(at: Room, parts: Parts, y: float) -> None:
    """On one of the three walls that can be seen, anywhere along it."""
    x, z, turn = at_wall(at, 0.6)
    gap = 0.6 * 0.75
    a = np.radians(turn)
    at.add(parts, x + gap * np.sin(a), y, z + gap * np.cos(a), turn)


def picture(at: Room) -> Parts:
    width, height = at.between(0.3, 0.9), at.between(0.3, 0.7)
    frame, canvas = material(at), matte(at, texture(at))
    return [
        box(at, frame, (width, height, 0.03), z=-0.015),
        box(at, canvas, (width * 0.85, height * 0.85, 0.01), y=height * 0.075, z=-0.035),
    ]


def door(at: Room) -> Parts:
    wood = material(at, 1, 0.2)
    parts = [box(at, material(at), (1.0, 2.05, 0.04), z=-0.02), box(at, wood, (0.86, 1.98, 0.03), z=-0.05)]
    return [*parts, ball(at, material(at, shiny=1.0), 0.035, 0.34, 1.0, -0.1)]


def warm(at: Room) -> list[float]:
    """The colour of a lamp, between that of a candle and that of an overcast sky."""
    share = at.between(0, 1)
    return [1.0, 0.7 + 0.3 * share, 0.4 + 0.65 * share]


def light(color: list[float], power: float, area: float) -> Shape:
    """An emitter; the renderer aims at each as often as it is bright."""
    radiance = {"type": "rgb", "value": [power * c for c in color]}
    return {"type": "area", "radiance": radiance, "sampling_weight": power * area}


def lights(at: Room) -> None:
    """A lamp or two under the ceiling, and often a window in a side wall."""
    color, t = warm(at), at.mi.ScalarTransform4f
    for _ in range(int(at.rng.integers(1, 3))):
        size, power = at.between(0.15, 0.5), at.between(5, 12)
        x, z = at.between(-0.3, 0.3) * at.width, at.between(0.25, 0.75) * at.depth
        down = t().rotate([1, 0, 0], 90).scale([size, size * at.between(0.4, 1), 1])
        glow = light(color, power / size, 4 * size**2)
        at.add(
            [{"type": "rectangle", "to_world": down, "emitter": glow, "bsdf": {"type": "diffuse"}}],
            x,
            at.height - 0.02,
            z,
        )
    if not at.chance(0.6):
        return
    width, height, side = at.between(0.5, 1.0), at.between(0.5, 0.8), -1 if at.chance(0.5) else 1
    pane = t().rotate([0, 1, 0], -90 * side).scale([width, height, 1])
    frame = matte(at, flat(at, [0.75] * 3))
    y, z = at.between(1.3, 1.5), at.between(0.35, 0.7) * at.depth
    glass: Shape = {"type": "rectangle", "to_world": pane, "bsdf": {"type": "diffuse"}}
    glass["emitter"] = light([0.8, 0.95, 1.1], at.between(3, 14), 4 * width * height)
    bars = [
        box(at, frame, (0.04, 2 * height, 0.04), -side * 0.01, -height, 0.0),
        box(at, frame, (0.04, 0.04, 2 * width), -side * 0.01),
    ]
    edge = [
        box(at, frame, (0.06, 2 * height + 0.12, 0.06), 0, -height - 0.06, end * (width + 0.03))
        for end in (-1, 1)
    ]
    edge += [box(at, frame, (0.06, 0.06, 2 * width), 0, y - 0.03) for y in (-height - 0.03, height + 0.03)]
    at.add([glass, *bars, *edge], side * (at.width / 2 - 0.02), y, z)

"""Rooms that nobody built: walls, furniture of simple solids, light and a camera, each drawn from a seed.

`room(mi, rng)` describes one for Mitsuba. Metres; x right, y up, z into the room. A thing, a chair or a floor, is all
the shapes whose names begin with its number, so that its outline is that of the whole and not of its parts.
"""

from typing import Any

import numpy as np
from numpy.random import Generator

from pretask.datagen.rooms.furniture import FLOOR_THINGS, MAKERS, SMALL, WALL_THINGS
from pretask.datagen.rooms.place import Parts, Place, Room, Shape, at_wall, looked_at, on_floor
from pretask.datagen.rooms.solids import ball, box, flat, light, material, matte, texture, warm

NEAR = 0.5
"""share of the cameras that look at something close by, the others at the whole room"""
ROLL = 10.0
"""degrees that a camera is held askew, at most"""


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

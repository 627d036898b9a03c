"""Furniture and small things, of simple solids, each drawn anew."""

import numpy as np

from pretask.datagen.rooms.place import Parts, Room
from pretask.datagen.rooms.solids import ball, box, column, flat, legs, light, material, matte, warm

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

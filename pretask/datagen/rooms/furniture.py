"""Furniture and small objects made of simple solids, with random dimensions and materials."""

import numpy as np

from pretask.datagen.rooms.place import Parts, Room
from pretask.datagen.rooms.solids import (
    ball,
    box,
    column,
    emitter,
    lamp_color,
    legs,
    matte,
    random_material,
    rgb,
)

# ---- furniture: parts, radius, and spots for small objects (right, up, back, size of the spot)

Top = tuple[float, float, float, float]
Furniture = tuple[Parts, float, list[Top]]


def table(room: Room) -> Furniture:
    width, depth, height = room.between(0.8, 1.6), room.between(0.6, 0.95), room.between(0.42, 0.78)
    top, under = random_material(room, shiny=0.4), random_material(room, shiny=0.4)
    if room.chance(0.3):  # a round table on a pole
        parts = [
            *column(room, top, depth / 1.6, 0.04, y=height - 0.04),
            *column(room, under, 0.05, height - 0.04),
        ]
        parts += column(room, under, 0.25, 0.03)
        return parts, depth / 1.5, [(0.0, height, 0.0, 0.16), (0.25, height, 0.1, 0.1)]
    parts = [
        box(room, top, (width, 0.04, depth), y=height - 0.04),
        *legs(room, under, width, depth, height - 0.04, 0.06),
    ]
    places = [(side * width / 4, height, room.between(-0.15, 0.15), 0.15) for side in (-1, 0, 1)]
    return parts, np.hypot(width, depth) / 2, places


def chair(room: Room) -> Furniture:
    width, seat, back = room.between(0.4, 0.5), room.between(0.4, 0.48), room.between(0.4, 0.6)
    frame, cushion = random_material(room), random_material(room, shiny=0.1)
    parts = [box(room, cushion, (width, 0.06, width), y=seat), *legs(room, frame, width, width, seat, 0.04)]
    if room.chance(0.5):
        parts.append(box(room, cushion, (width, back, 0.05), y=seat + 0.06, z=width / 2 - 0.03))
    else:  # a backrest of bars
        parts += [box(room, frame, (0.03, back, 0.03), x * width / 2.3, seat + 0.06, width / 2 - 0.03) for x in (-1, -0.33, 0.33, 1)]  # fmt: skip
        parts.append(box(room, frame, (width, 0.08, 0.04), y=seat + back, z=width / 2 - 0.03))
    return parts, 0.38, []


def sofa(room: Room) -> Furniture:
    width, depth, arm = room.between(1.3, 2.1), room.between(0.75, 0.9), room.between(0.12, 0.22)
    cloth, seats = random_material(room, 2, 0.05), random_material(room, 1, 0.05)
    parts = [
        box(room, cloth, (width, 0.25, depth), y=0.08),
        box(room, cloth, (width, 0.5, 0.2), y=0.3, z=depth / 2 - 0.1),
    ]
    parts += [box(room, cloth, (arm, 0.5, depth), side * (width - arm) / 2, 0.08) for side in (-1, 1)]
    count, inner = int(room.rng.integers(2, 4)), width - 2 * arm
    for k in range(count):
        x = (k + 0.5) / count * inner - inner / 2
        parts.append(box(room, seats, (inner / count * 0.97, 0.14, depth - 0.25), x, 0.33, -0.1))
    return parts, width / 2 + 0.1, []


def shelf(room: Room) -> Furniture:
    width, height, depth = room.between(0.7, 1.2), room.between(1.2, 2.0), room.between(0.28, 0.38)
    wood, count = random_material(room, shiny=0.2), int(room.rng.integers(3, 6))
    parts = [box(room, wood, (0.03, height, depth), side * width / 2) for side in (-1, 1)]
    parts.append(box(room, wood, (width, height, 0.02), z=depth / 2))
    levels = [k * (height - 0.03) / count for k in range(count + 1)]
    parts += [box(room, wood, (width, 0.03, depth), y=level) for level in levels]
    places = [(side * width / 4, level + 0.03, 0.0, 0.11) for level in levels for side in (-1, 1)]
    return parts, width / 2, places


def cabinet(room: Room) -> Furniture:
    width, height, depth = room.between(0.7, 1.5), room.between(0.6, 1.1), room.between(0.4, 0.5)
    body, door, handle = (
        random_material(room, shiny=0.3),
        random_material(room, shiny=0.3),
        random_material(room, shiny=1.0),
    )
    parts, doors = [box(room, body, (width, height, depth))], int(room.rng.integers(2, 4))
    for k in range(doors):
        x = (k + 0.5) / doors * width - width / 2
        parts.append(
            box(room, door, (width / doors * 0.92, height * 0.9, 0.02), x, height * 0.05, -depth / 2 - 0.01)
        )
        parts.append(ball(room, handle, 0.025, x + width / doors * 0.35, height * 0.6, -depth / 2 - 0.04))
    return parts, width / 2 + 0.05, [(side * width / 3, height, 0.0, 0.17) for side in (-1, 0, 1)]


def bed(room: Room) -> Furniture:
    width, length = room.between(0.9, 1.6), room.between(1.9, 2.1)
    frame, sheet, cover = random_material(room), random_material(room, 1, 0.0), random_material(room, 2, 0.0)
    parts = [
        box(room, frame, (width, 0.25, length)),
        box(room, sheet, (width * 0.97, 0.2, length * 0.97), y=0.25),
    ]
    parts += [box(room, frame, (width, room.between(0.7, 1.1), 0.06), z=length / 2)]
    parts += [box(room, cover, (width, 0.06, length * 0.6), y=0.43, z=-length * 0.19)]
    parts += [box(room, sheet, (width * 0.6, 0.1, 0.35), y=0.45, z=length * 0.36)]
    return parts, length / 2, []


def plant(room: Room) -> Furniture:
    pot, leaf = random_material(room), matte(room, rgb(room, [0.08, room.between(0.2, 0.4), 0.06]))  # fmt: skip
    height, radius = room.between(0.25, 0.4), room.between(0.12, 0.2)
    parts = [*column(room, pot, radius, height), *column(room, random_material(room), 0.02, height + 0.3)]
    for _ in range(int(room.rng.integers(7, 14))):
        r, a = room.between(0, 0.25), room.between(0, 2 * np.pi)
        parts.append(
            ball(
                room,
                leaf,
                room.between(0.05, 0.1),
                r * np.cos(a),
                height + room.between(0.25, 0.8),
                r * np.sin(a),
            )
        )
    return parts, 0.4, []


def lamp(room: Room) -> Furniture:
    height, radius = room.between(1.3, 1.7), room.between(0.14, 0.22)
    metal = random_material(room, shiny=1.0)
    glow = emitter(lamp_color(room), room.between(3, 7), 4 * np.pi * radius**2)
    shade = matte(room, rgb(room, [0.8, 0.75, 0.65]))
    parts = [*column(room, metal, 0.16, 0.03), *column(room, metal, 0.018, height)]
    parts.append(ball(room, shade, radius, y=height + radius * 0.8) | {"emitter": glow})
    return parts, 0.3, []


def stool(room: Room) -> Furniture:
    height, radius = room.between(0.35, 0.7), room.between(0.15, 0.22)
    top = random_material(room)
    return [*column(room, top, radius, 0.06, y=height), *legs(room, random_material(room), radius * 1.6, radius * 1.6, height, 0.035)], 0.3, [(0.0, height + 0.06, 0.0, 0.12)]  # fmt: skip


def crates(room: Room) -> Furniture:
    size = room.between(0.3, 0.55)
    return SMALL_OBJECTS["box"](room, size / 1.2), size * 0.75, [(0.0, size, 0.0, 0.12)]


def toy(room: Room) -> Furniture:
    radius = room.between(0.12, 0.35)
    return [ball(room, random_material(room, 3, 0.6), radius, y=radius)], radius, []


def urn(room: Room) -> Furniture:
    return SMALL_OBJECTS["vase"](room, room.between(0.3, 0.45)), 0.3, []


WALL_FURNITURE = ["sofa", "shelf", "shelf", "cabinet", "cabinet", "bed", "table", "lamp", "plant"]
FLOOR_FURNITURE = [
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
FURNITURE = {
    f.__name__: f
    for f in (table, chair, sofa, shelf, cabinet, bed, plant, lamp, stool, crates, toy, urn)
}  # fmt: skip


# ---- small objects of about a given size


def small_ball(room: Room, size: float) -> Parts:
    radius = size * room.between(0.4, 0.8)
    return [ball(room, random_material(room, 3, 0.6), radius, y=radius)]


def small_box(room: Room, size: float) -> Parts:
    return [
        box(
            room,
            random_material(room),
            (size * room.between(0.8, 1.4), size * room.between(0.6, 1.3), size * room.between(0.8, 1.2)),
        )
    ]


def vase(room: Room, size: float) -> Parts:
    glaze, belly = random_material(room, 2, 0.7), size * room.between(0.45, 0.65)
    neck = belly * room.between(0.3, 0.6)
    parts = [ball(room, glaze, belly, y=belly * 0.9), ball(room, glaze, belly * 0.75, y=belly * 1.8)]
    parts += column(room, glaze, neck, belly * room.between(0.7, 1.4), y=belly * 2.2, lid=False)
    return [*parts, *column(room, glaze, belly * 0.6, belly * 0.15)]


def books(room: Room, size: float) -> Parts:
    parts, x = [], -size
    while x < size:
        thick = room.between(0.02, 0.05)
        tall = size * room.between(1.2, 1.9)
        parts.append(box(room, random_material(room, 1, 0.1), (thick, tall, size * 1.3), x + thick / 2))
        x += thick
    return parts


def bowl(room: Room, size: float) -> Parts:
    glaze, fruit = random_material(room, 1, 0.6), random_material(room, 1, 0.5)
    parts = column(room, glaze, size * 0.8, size * 0.4)
    return [*parts, *(ball(room, fruit, size * 0.3, size * 0.35 * np.cos(a), size * 0.55, size * 0.35 * np.sin(a)) for a in (0.3, 2.4, 4.5))]  # fmt: skip


SMALL_OBJECTS = {"ball": small_ball, "vase": vase, "box": small_box, "books": books, "bowl": bowl}

"""Random rooms: walls, furniture of simple solids, lights and a camera, each drawn from a seed.

`make_room(mi, rng)` describes one for Mitsuba. Units are meters; x points right, y up, z into the room. An object, such as
a chair or the floor, consists of all shapes whose names begin with its number, so instance maps show whole objects.
"""

from typing import Any

import numpy as np
from numpy.random import Generator

from pretask.datagen.rooms.furniture import FLOOR_FURNITURE, FURNITURE, SMALL_OBJECTS, WALL_FURNITURE
from pretask.datagen.rooms.place import Parts, Placement, Room, Shape, at_wall, near_target, on_floor
from pretask.datagen.rooms.solids import (
    ball,
    box,
    emitter,
    lamp_color,
    matte,
    random_material,
    random_texture,
    rgb,
)

CLOSE_UP = 0.5
"""fraction of cameras aimed at a nearby object; the others show the whole room"""
MAX_ROLL = 10.0
"""maximum camera roll in degrees"""


def field_of_view(rng: Generator) -> float:
    """The camera's field of view in degrees, horizontally and vertically; the first draw of a room."""
    return float(rng.uniform(48, 78))


def camera_pose(rng: Generator, width: float, depth: float, near: bool) -> tuple[np.ndarray, np.ndarray]:
    """Position and target of the camera: a nearby object, or the far end of the room."""
    back = 0.5 * depth if near else 0.9
    origin = np.array([rng.uniform(-0.35, 0.35) * width, rng.uniform(1.1, 1.7), rng.uniform(0.15, back)])
    if not near:
        x, z = rng.uniform(-0.4, 0.4) * width, rng.uniform(0.6, 0.95) * depth
        return origin, np.array([x, rng.uniform(0.5, 1.2), z])
    ahead, aside = rng.uniform(1.0, 2.4), np.radians(rng.uniform(-50, 50))
    x, z = origin[0] + ahead * np.sin(aside), origin[2] + ahead * np.cos(aside)
    within = np.clip(x, -0.4 * width, 0.4 * width)
    return origin, np.array([within, rng.uniform(0.2, 1.2), min(z, 0.9 * depth)])


def make_room(mi: Any, rng: Generator) -> Room:
    fov = field_of_view(rng)
    width, depth, height = rng.uniform(3.0, 5.5), rng.uniform(3.8, 6.5), rng.uniform(2.4, 3.2)
    near = rng.random() < CLOSE_UP
    origin, target = camera_pose(rng, width, depth, near)
    room = Room(mi, rng, width, height, depth, origin, target, fov, rng.uniform(-MAX_ROLL, MAX_ROLL))
    build_shell(room)
    if near:
        furnish(room, rng.choice(FLOOR_FURNITURE), near_target)
    for kind in rng.permutation(WALL_FURNITURE)[: rng.integers(3, 7)]:
        furnish(room, kind, at_wall)
    for kind in rng.permutation(FLOOR_FURNITURE)[: rng.integers(4, 10)]:
        furnish(room, kind, on_floor)
    add_lights(room)
    return room


def furnish(room: Room, kind: str, placement: Placement) -> None:
    """Place a piece of furniture, with small objects on it, if there is space."""
    parts, radius, tops = FURNITURE[kind](room)
    spot = room.find_floor_spot(radius, placement)
    if spot is None:
        return
    x, z, turn = spot
    room.add(parts, x, 0, z, turn)
    for right, top, back, spread in tops:
        if room.chance(0.75):
            a = np.radians(turn)
            px, pz = x + right * np.cos(a) + back * np.sin(a), z - right * np.sin(a) + back * np.cos(a)
            small = ("ball", "vase", "box", "books", "bowl")[room.rng.integers(5)]
            room.add(
                SMALL_OBJECTS[small](room, spread),
                px,
                top,
                pz,
                room.between(0, 360) if small != "books" else turn,
            )


# ---- the room itself


def build_shell(room: Room) -> None:
    """Floor, ceiling and four walls, each an object; pictures and perhaps a door on the walls; perhaps a rug."""
    w, h, d, thick = room.width, room.height, room.depth, 0.1
    walls = random_material(room, 3, 0.0, 0.25)
    if room.chance(0.6):  # one light color, as most rooms have
        shade = [float(c) for c in 0.7 + room.rng.uniform(-0.12, 0.12, 3) * room.between(0, 1.2)]
        walls = matte(room, rgb(room, shade))
    white = matte(room, rgb(room, [room.between(0.6, 0.85)] * 3))
    room.add([box(room, random_material(room, 4, 0.3, 0.4), (w, thick, d), 0, -thick, d / 2)])
    room.add([box(room, white, (w, thick, d), 0, h, d / 2)])
    room.add([box(room, walls, (w, h, thick), 0, 0, d + thick / 2)])
    room.add([box(room, walls, (w, h, thick), 0, 0, -thick / 2)])
    for side in (-1, 1):
        room.add([box(room, walls, (thick, h, d), side * (w + thick) / 2, 0, d / 2)])
    for _ in range(int(room.rng.integers(1, 4))):
        hang_on_wall(room, picture(room), room.between(1.3, 1.8))
    if room.chance(0.4):
        hang_on_wall(room, door(room), 0)
    if room.chance(0.5):
        rug = box(
            room, random_material(room, 2, 0.0), (room.between(1.2, 2.2), 0.015, room.between(1.0, 2.0))
        )
        room.add([rug], room.between(-0.2, 0.2) * w, 0, d * room.between(0.4, 0.6), room.between(-15, 15))


def hang_on_wall(room: Room, parts: Parts, y: float) -> None:
    """Hang parts on one of the three visible walls, anywhere along it."""
    x, z, turn = at_wall(room, 0.6)
    gap = 0.6 * 0.75
    a = np.radians(turn)
    room.add(parts, x + gap * np.sin(a), y, z + gap * np.cos(a), turn)


def picture(room: Room) -> Parts:
    width, height = room.between(0.3, 0.9), room.between(0.3, 0.7)
    frame, canvas = random_material(room), matte(room, random_texture(room))
    return [
        box(room, frame, (width, height, 0.03), z=-0.015),
        box(room, canvas, (width * 0.85, height * 0.85, 0.01), y=height * 0.075, z=-0.035),
    ]


def door(room: Room) -> Parts:
    wood = random_material(room, 1, 0.2)
    parts = [
        box(room, random_material(room), (1.0, 2.05, 0.04), z=-0.02),
        box(room, wood, (0.86, 1.98, 0.03), z=-0.05),
    ]
    return [*parts, ball(room, random_material(room, shiny=1.0), 0.035, 0.34, 1.0, -0.1)]


def add_lights(room: Room) -> None:
    """One or two ceiling lamps, and often a window in a side wall."""
    color, t = lamp_color(room), room.mi.ScalarTransform4f
    for _ in range(int(room.rng.integers(1, 3))):
        size, power = room.between(0.15, 0.5), room.between(5, 12)
        x, z = room.between(-0.3, 0.3) * room.width, room.between(0.25, 0.75) * room.depth
        down = t().rotate([1, 0, 0], 90).scale([size, size * room.between(0.4, 1), 1])
        glow = emitter(color, power / size, 4 * size**2)
        room.add(
            [{"type": "rectangle", "to_world": down, "emitter": glow, "bsdf": {"type": "diffuse"}}],
            x,
            room.height - 0.02,
            z,
        )
    if not room.chance(0.6):
        return
    width, height, side = room.between(0.5, 1.0), room.between(0.5, 0.8), -1 if room.chance(0.5) else 1
    pane = t().rotate([0, 1, 0], -90 * side).scale([width, height, 1])
    frame = matte(room, rgb(room, [0.75] * 3))
    y, z = room.between(1.3, 1.5), room.between(0.35, 0.7) * room.depth
    glass: Shape = {"type": "rectangle", "to_world": pane, "bsdf": {"type": "diffuse"}}
    glass["emitter"] = emitter([0.8, 0.95, 1.1], room.between(3, 14), 4 * width * height)
    bars = [
        box(room, frame, (0.04, 2 * height, 0.04), -side * 0.01, -height, 0.0),
        box(room, frame, (0.04, 0.04, 2 * width), -side * 0.01),
    ]
    edge = [
        box(room, frame, (0.06, 2 * height + 0.12, 0.06), 0, -height - 0.06, end * (width + 0.03))
        for end in (-1, 1)
    ]
    edge += [box(room, frame, (0.06, 0.06, 2 * width), 0, y - 0.03) for y in (-height - 0.03, height + 0.03)]
    room.add([glass, *bars, *edge], side * (room.width / 2 - 0.02), y, z)

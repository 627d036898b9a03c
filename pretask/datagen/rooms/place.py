"""A room as passed to the renderer, and the placement of furniture in it."""

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from numpy.random import Generator

Shape = dict[str, Any]
Parts = list[Shape]

TRIES = 30
"""attempts to place an object before it is left out"""
CLEARANCE = 0.35
"""minimum distance in meters between the camera and furniture"""


@dataclass
class Room:
    """Scene description for Mitsuba, and its camera."""

    mi: Any
    rng: Generator
    width: float
    height: float
    depth: float
    origin: np.ndarray  # (3,) camera position
    target: np.ndarray  # (3,) point that the camera is aimed at
    field_of_view: float  # degrees, horizontally and vertically
    roll: float = 0.0  # rotation of the camera about its axis, degrees
    shapes: dict[str, Shape] = field(default_factory=dict)
    objects: int = 0
    occupied: list[tuple[float, float, float]] = field(default_factory=list)  # x, z, radius on the floor

    def add(self, parts: Parts, x: float = 0, y: float = 0, z: float = 0, turn: float = 0) -> None:
        """Add one object, made of parts around its base, at a position and rotated by `turn` degrees."""
        self.objects += 1
        transform = self.mi.ScalarTransform4f().translate([x, y, z]).rotate([0, 1, 0], turn)
        for k, part in enumerate(parts):
            self.shapes[f"{self.objects:05d}_{k:02d}"] = part | {"to_world": transform @ part["to_world"]}

    def between(self, low: float, high: float) -> float:
        return float(self.rng.uniform(low, high))

    def chance(self, p: float) -> bool:
        return bool(self.rng.random() < p)

    @property
    def axes(self) -> np.ndarray:
        """(3, 3): right, down and forward of the camera as columns."""
        forward = (self.target - self.origin) / np.linalg.norm(self.target - self.origin)
        level = np.cross(forward, [0, 1, 0])
        level /= np.linalg.norm(level)
        a = np.radians(self.roll)
        right = np.cos(a) * level + np.sin(a) * np.cross(forward, level)
        return np.stack([right, np.cross(forward, right), forward], 1)

    def find_floor_spot(self, radius: float, placement: "Placement") -> tuple[float, float, float] | None:
        """A free spot on the floor, x, z and rotation in degrees, drawn by `placement`; None if there is none."""
        for _ in range(TRIES):
            x, z, turn = placement(self, radius)
            far = np.hypot(x - self.origin[0], z - self.origin[2]) > radius + CLEARANCE
            if far and all(np.hypot(x - a, z - b) > radius + r for a, b, r in self.occupied):
                self.occupied.append((x, z, radius))
                return x, z, turn
        return None

    def x_range(self, radius: float) -> tuple[float, float]:
        """Range of x for the center of an object between the side walls."""
        return radius - self.width / 2, self.width / 2 - radius


# ---- placement of furniture


Placement = Callable[[Room, float], tuple[float, float, float]]
"""draws x, z and rotation in degrees for an object of a given radius"""


def on_floor(room: Room, radius: float) -> tuple[float, float, float]:
    return (
        room.between(*room.x_range(radius)),
        room.between(radius, room.depth - radius),
        room.between(0, 360),
    )


def at_wall(room: Room, radius: float) -> tuple[float, float, float]:
    """With its back to a wall. Objects face -z before rotation; the wall behind the camera stays free."""
    along, gap = room.between(radius, room.depth - radius), radius * 0.75
    side = room.rng.integers(3)
    if side == 0:
        return room.between(*room.x_range(radius)), room.depth - gap, 0
    return (gap - room.width / 2, along, -90) if side == 1 else (room.width / 2 - gap, along, 90)


def near_target(room: Room, radius: float) -> tuple[float, float, float]:
    """Close to the camera's target."""
    x, z = (room.target[axis] + room.between(-radius, radius) for axis in (0, 2))
    return float(np.clip(x, *room.x_range(radius))), min(z, room.depth - radius), room.between(0, 360)

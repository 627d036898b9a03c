"""A room as the renderer is given it, and where in it things stand."""

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from numpy.random import Generator

Shape = dict[str, Any]
Parts = list[Shape]

TRIES = 30
"""places that are tried for a thing before the room does without it"""
CLEAR = 0.35
"""metres between the camera and the nearest thing, at least"""


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

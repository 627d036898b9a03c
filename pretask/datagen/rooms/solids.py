"""Colors, textures, materials, lights, and solids positioned relative to their base."""

from typing import Any

import numpy as np

from pretask.datagen.rooms.place import Parts, Room, Shape

TEXELS = 64
"""side of a generated texture, pixels"""


# ---- materials


def random_color(room: Room, low: float = 0.05, high: float = 0.85, dye: float = 0.8) -> list[float]:
    """A random color at most `dye` away from gray. Large surfaces should be dull, or they color the whole room."""
    gray, color = room.between(low, high), room.rng.uniform(low, high, 3)
    return [float(c) for c in gray + (color - gray) * room.between(0.05, dye)]


def rgb(room: Room, color: list[float]) -> Shape:
    return {"type": "rgb", "value": color}


def bitmap(room: Room, pixels: np.ndarray, repeat: float) -> Shape:
    """(h, w, 3) reflectances -> a texture repeated `repeat` times."""
    image = room.mi.Bitmap(np.ascontiguousarray(pixels, np.float32))
    scaled = room.mi.ScalarTransform4f().scale([repeat, repeat, 1])
    return {"type": "bitmap", "bitmap": image, "raw": True, "to_uv": scaled}


def random_texture(room: Room, repeat: float = 1.0, dye: float = 0.8) -> Shape:
    """Plain, checks, stripes, mottle, or wood grain."""
    one, other = (np.array(random_color(room, 0.15, dye=dye)) for _ in range(2))
    kind = room.rng.choice(["plain", "checks", "stripes", "mottle", "wood"], p=[0.35, 0.12, 0.13, 0.2, 0.2])
    if kind == "plain":
        return rgb(room, [float(c) for c in one])
    if kind == "checks":
        count = repeat * room.rng.integers(2, 6)
        scaled = room.mi.ScalarTransform4f().scale([float(count), float(count), 1])
        return {"type": "checkerboard", "color0": rgb(room, list(map(float, one))), "color1": rgb(room, list(map(float, other))), "to_uv": scaled}  # fmt: skip
    across, down = np.meshgrid(np.arange(TEXELS) / TEXELS, np.arange(TEXELS) / TEXELS)
    if kind == "stripes":
        weight = np.sin(2 * np.pi * room.rng.integers(2, 8) * (across if room.chance(0.5) else down)) > 0
    elif kind == "mottle":
        weight = noise(room, 4) * 0.5 + noise(room, 16) * 0.5
    else:
        one, other = (
            np.array([0.55, 0.35, 0.2]) * room.between(0.4, 1.3) * room.rng.uniform(0.8, 1.1, 3) for _ in "ab"
        )
        weight = (noise(room, 3) * 3 + across * room.rng.integers(3, 9)) % 1
    mixed = one + weight[..., None] * (other - one)
    return bitmap(room, mixed.clip(0.02, 0.9), repeat)


def noise(room: Room, cells: int) -> np.ndarray:
    """(TEXELS, TEXELS) smooth noise in 0 … 1 that tiles without seams."""
    coarse = room.rng.random((cells, cells))
    place = np.arange(TEXELS) * cells / TEXELS
    low, weight = place.astype(int), place % 1
    weight = weight * weight * (3 - 2 * weight)

    def along(x: np.ndarray) -> np.ndarray:
        return x[low] + (x[(low + 1) % cells] - x[low]) * weight[:, None]

    return along(along(coarse).T).T


def random_material(room: Room, repeat: float = 1.0, shiny: float = 0.3, dye: float = 0.8) -> Any:
    """A diffuse material, plastic, or occasionally rough metal. Solids may share it."""
    kind = room.rng.random()
    if kind < 0.15 * shiny:
        metal = {"type": "roughconductor", "alpha": room.between(0.2, 0.45), "distribution": "ggx"}
        return two_sided(room, metal | {"specular_reflectance": rgb(room, random_color(room, 0.5, 0.95))})
    if kind < shiny:
        return two_sided(room, {"type": "plastic", "diffuse_reflectance": random_texture(room, repeat, dye)})
    return matte(room, random_texture(room, repeat, dye))


def matte(room: Room, reflectance: Shape) -> Any:
    return two_sided(room, {"type": "diffuse", "reflectance": reflectance})


def two_sided(room: Room, bsdf: Shape) -> Any:
    """A two-sided material, created once so that solids can share it."""
    return room.mi.load_dict({"type": "twosided", "bsdf": bsdf})


def lamp_color(room: Room) -> list[float]:
    """The color of a lamp, between candlelight and an overcast sky."""
    weight = room.between(0, 1)
    return [1.0, 0.7 + 0.3 * weight, 0.4 + 0.65 * weight]


def emitter(color: list[float], power: float, area: float) -> Shape:
    """An area light; the renderer samples lights in proportion to their power."""
    radiance = {"type": "rgb", "value": [power * c for c in color]}
    return {"type": "area", "radiance": radiance, "sampling_weight": power * area}


# ---- solids, relative to their base


def box(
    room: Room, bsdf: Any, size: tuple[float, float, float], x: float = 0, y: float = 0, z: float = 0
) -> Shape:
    """A box of width, height and depth; (x, y, z) is the center of its underside."""
    half = [size[0] / 2, size[1] / 2, size[2] / 2]
    place = room.mi.ScalarTransform4f().translate([x, y + half[1], z]).scale(half)
    return {"type": "cube", "to_world": place, "bsdf": bsdf}


def ball(room: Room, bsdf: Any, radius: float, x: float = 0, y: float = 0, z: float = 0) -> Shape:
    """A sphere with center (x, y, z)."""
    place = room.mi.ScalarTransform4f().translate([x, y, z]).scale(radius)
    return {"type": "sphere", "to_world": place, "bsdf": bsdf}


def column(
    room: Room,
    bsdf: Any,
    radius: float,
    height: float,
    x: float = 0,
    y: float = 0,
    z: float = 0,
    lid: bool = True,
) -> Parts:
    """An upright cylinder, closed at the top if `lid`."""
    t = room.mi.ScalarTransform4f
    base = t().translate([x, y, z])
    side = base @ t().rotate([1, 0, 0], -90) @ t().scale([radius, radius, height])
    parts: Parts = [{"type": "cylinder", "to_world": side, "bsdf": bsdf}]
    if lid:
        top = base @ t().translate([0, height, 0]) @ t().rotate([1, 0, 0], -90) @ t().scale(radius)
        parts.append({"type": "disk", "to_world": top, "bsdf": bsdf})
    return parts


def legs(room: Room, bsdf: Any, width: float, depth: float, height: float, thick: float) -> Parts:
    x, z = width / 2 - thick, depth / 2 - thick
    return [box(room, bsdf, (thick, height, thick), a * x, 0, b * z) for a in (-1, 1) for b in (-1, 1)]

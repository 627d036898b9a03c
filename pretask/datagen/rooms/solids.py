"""What things in a room are made of: colours, textures, materials and lights, and solids around their own foot."""

from typing import Any

import numpy as np

from pretask.datagen.rooms.place import Parts, Room, Shape

TEXELS = 64
"""side of a texture that is painted here"""


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


def warm(at: Room) -> list[float]:
    """The colour of a lamp, between that of a candle and that of an overcast sky."""
    share = at.between(0, 1)
    return [1.0, 0.7 + 0.3 * share, 0.4 + 0.65 * share]


def light(color: list[float], power: float, area: float) -> Shape:
    """An emitter; the renderer aims at each as often as it is bright."""
    radiance = {"type": "rgb", "value": [power * c for c in color]}
    return {"type": "area", "radiance": radiance, "sampling_weight": power * area}


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

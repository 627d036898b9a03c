"""Rendered scenes: the rooms of rooms/ by Mitsuba 3, with exact depth, normals and instances (`pretask render`).

Light is traced with many rays a pixel; the maps are what the one ray through a pixel's middle meets, since the mean of
two depths, or of the numbers of two things, belongs to neither. Scene i is a function of seed and i alone. Files are in
the layout that sources/scenes.py reads; a scene's colours are written last, so whoever has colours is complete.
"""

import io
import json
import signal
import time
from collections.abc import Iterator
from concurrent.futures import ProcessPoolExecutor, as_completed
from concurrent.futures.process import BrokenProcessPool
from dataclasses import asdict, dataclass
from importlib.util import find_spec
from multiprocessing import get_context
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from pretask.data import dense_maps as maps
from pretask.data import normals as surfaces
from pretask.data.base import bar
from pretask.data.encoded import cores
from pretask.data.scenes import CARD
from pretask.datagen import rooms
from pretask.runtime import files as checkpoint
from pretask.types import UserError

BOUNCES = 4
"""surfaces that light meets, at most"""
BLOCK = 16
"""side in pixels of what one thread renders; fixed, since each block has random numbers of its own"""
REACH = 3
"""pixels over which light is averaged"""
BRIGHTNESS = 0.22, 0.45
"""of the middle of an image, between these, as a camera that exposes by itself would have it"""
BALANCE = 0.4
"""share of the light's colour that the camera takes out"""
SHEET = "scenes.png"
SHOWN = 6


@dataclass(frozen=True)
class Settings:
    """What decides about every pixel of scene i."""

    size: int = 128
    samples: int = 8
    seed: int = 0


@dataclass(frozen=True)
class Made:
    folder: Path
    scenes: int
    new: int
    seconds: float


def render(
    folder: Path, scenes: int, settings: Settings, workers: int | None = None, progress: bool = True
) -> Made:
    """Make the scenes that `folder` does not have yet. Raises UserError if those it has were made otherwise."""
    for name, value, least in [
        ("scenes", scenes, 1),
        ("size", settings.size, 16),
        ("samples", settings.samples, 1),
    ]:
        if value < least:
            raise UserError(f"--{name} {value} is too few; give {least} or more")
    if find_spec("mitsuba") is None:
        raise UserError("rendering needs the package `mitsuba`: pip install 'pretask[scenes]'")
    begin(folder, scenes, settings)
    todo = [i for i in range(scenes) if not color(folder, i).is_file()]
    began = time.perf_counter()
    with bar(progress) as shown:
        task = shown.add_task("rendering", total=scenes, completed=scenes - len(todo))
        for _ in drawn(folder, todo, settings, min(workers or cores(), len(todo))):
            shown.advance(task)
    seconds = time.perf_counter() - began
    cameras = np.stack([intrinsics(settings, i) for i in range(scenes)])
    checkpoint.write(folder / "cameras.npz", lambda file: np.savez(file, intrinsics=cameras))
    checkpoint.write(folder / SHEET, lambda file: sheet(folder, min(scenes, SHOWN)).save(file, "PNG"))
    return Made(folder, scenes, len(todo), seconds)


def begin(folder: Path, scenes: int, settings: Settings) -> None:
    """Write the card of a new folder; an old one must have been made with the same settings."""
    card = folder / CARD
    if card.is_file():
        try:
            known = json.loads(card.read_text())
            found = {name: known[name] for name in asdict(settings)}
            scenes = max(scenes, known["scenes"])
        except (ValueError, KeyError, TypeError):
            raise UserError(f"{card} is damaged; remove {folder}, or give another --out") from None
        if unlike := [f"--{name} {old}" for name, old in found.items() if old != getattr(settings, name)]:
            raise UserError(f"{folder} was made with {' '.join(unlike)}; give the same, or another --out")
    elif folder.exists() and any(folder.iterdir()):
        raise UserError(f"{folder} holds other things; give another --out")
    for kind in ("color", *maps.BYTES):
        (folder / kind).mkdir(parents=True, exist_ok=True)
    checkpoint.write_text(card, json.dumps({"scenes": scenes, **asdict(settings)}, indent=1))


def color(folder: Path, i: int) -> Path:
    return folder / "color" / f"{i:06d}.png"


def drawn(folder: Path, todo: list[int], settings: Settings, workers: int) -> Iterator[int]:
    """Numbers of scenes as they are finished, by one thread in each of so many processes."""
    if workers <= 1:
        yield from (draw(folder, i, settings) for i in todo)
        return
    pool = ProcessPoolExecutor(workers, get_context("spawn"), deaf)
    try:
        for done in as_completed([pool.submit(draw, folder, i, settings) for i in todo]):
            yield done.result()
    except BrokenProcessPool:
        raise UserError(
            "a rendering process was killed; the same command goes on with what is missing"
        ) from None
    finally:
        pool.shutdown(cancel_futures=True)


def deaf() -> None:
    """An interrupt is the business of the process that asked."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)


def draw(folder: Path, i: int, settings: Settings) -> int:
    made = scene(settings, i)
    for kind in (*maps.BYTES, "color"):
        file = io.BytesIO()
        Image.fromarray(made[kind]).save(file, "PNG")
        checkpoint.write(
            folder / kind / color(folder, i).name, lambda out, file=file: out.write(file.getbuffer())
        )
    return i


# ---- one scene


def scene(settings: Settings, i: int) -> dict[str, np.ndarray]:
    """Scene i as its files have it: color (S, S, 3), depth (S, S) uint16, normals (S, S, 3), instances (S, S) uint16."""
    mi, rng = mitsuba(), random(settings, i)
    room = rooms.room(mi, rng)
    light, met = traced(mi, room, settings, i)
    return {
        "color": exposed(smoothed(*light, met), rng.uniform(*BRIGHTNESS)),
        "depth": maps.millimetres(met.depth).astype(np.uint16),
        "normals": maps.encode(met.normal),
        "instances": met.thing.astype(np.uint16),
    }


def random(settings: Settings, i: int) -> np.random.Generator:
    return np.random.default_rng([settings.seed, i])


def intrinsics(settings: Settings, i: int) -> np.ndarray:
    """(3, 3), pixels."""
    return surfaces.camera((settings.size, settings.size), np.radians(rooms.view(random(settings, i))))


@dataclass(frozen=True)
class Met:
    """What the ray through the middle of each pixel meets."""

    depth: np.ndarray  # (S, S) metres along the optical axis, 0 where it meets nothing
    normal: np.ndarray  # (S, S, 3) to the camera, in its axes
    solid: np.ndarray  # (S, S) number of a single solid
    thing: np.ndarray  # (S, S) number of the thing that it is a part of


def mitsuba() -> Any:
    """The renderer, one thread of it. The scalar variant runs anywhere; those on LLVM need a library that few have,
    and one that does not fit ends the process."""
    import drjit
    import mitsuba

    mitsuba.set_variant("scalar_rgb")
    mitsuba.set_log_level(mitsuba.LogLevel.Error)
    drjit.set_thread_count(1)
    return mitsuba


def traced(
    mi: Any, room: rooms.Room, settings: Settings, i: int
) -> tuple[tuple[np.ndarray, np.ndarray], Met]:
    """Light and albedo (S, S, 3) of each pixel, and what its middle meets."""
    path = {"type": "path", "max_depth": BOUNCES}
    seeing = {"type": "aov", "aovs": "albedo:albedo", "image": path, "block_size": BLOCK}
    meeting = {"type": "aov", "aovs": "p:position,n:sh_normal,i:shape_index", "block_size": BLOCK}
    camera = sensor(mi, room, settings.size)
    many = camera | {"sampler": {"type": "multijitter", "sample_count": settings.samples}}
    middle = camera | {"sampler": {"type": "stratified", "sample_count": 1, "jitter": False}}
    described = {"type": "scene", "camera": many, **room.shapes}
    scene = mi.load_dict(described, optimize=False)  # or solids of one material become one, without a name
    seed = int(random(settings, i).integers(1 << 31))
    seen = np.array(mi.render(scene, integrator=mi.load_dict(seeing), seed=seed))
    met = np.array(mi.render(scene, sensor=mi.load_dict(middle), integrator=mi.load_dict(meeting)))
    names = [shape.id() for shape in scene.shapes()]
    return (seen[..., :3], seen[..., 3:]), in_camera(met, names, room)


def sensor(mi: Any, room: rooms.Room, size: int) -> dict[str, Any]:
    place = mi.ScalarTransform4f().look_at(
        room.origin.tolist(), room.target.tolist(), (-room.axes[:, 1]).tolist()
    )
    film = {"type": "hdrfilm", "width": size, "height": size, "pixel_format": "rgb"}
    film |= {"component_format": "float32", "rfilter": {"type": "box"}}
    return {"type": "perspective", "fov": room.view, "to_world": place, "film": film, "near_clip": 0.02}


def in_camera(met: np.ndarray, names: list[str], room: rooms.Room) -> Met:
    """Mitsuba's position, normal and shape number from 1 (S, S, 7) in the axes of the camera: x right, y down."""
    ray = (met[..., :3] - room.origin) @ room.axes
    normal, solid = met[..., 3:6] @ room.axes, met[..., 6].round().astype(int)
    away = (ray * normal).sum(2, keepdims=True) > 0
    things = np.array([0] + [int(name.partition("_")[0]) for name in names])
    known = solid > 0
    return Met(ray[..., 2] * known, np.where(away, -normal, normal) * known[..., None], solid, things[solid])


# ---- from light to colours


def smoothed(light: np.ndarray, albedo: np.ndarray, met: Met) -> np.ndarray:
    """(S, S, 3), with the noise of few samples averaged out where that blurs neither texture nor outline.

    What falls onto a surface varies less than what the surface makes of it: light / albedo is averaged over near
    pixels of the same solid that face the same way. Stray bright ones count little.
    """
    dark = 0.02  # of a surface so black that the quotient is noise
    shade = light / (albedo + dark)
    total, weights, usual = np.zeros_like(shade), np.zeros(shade.shape[:2]), np.median(shade)
    for down in range(-REACH, REACH + 1):
        for right in range(-REACH, REACH + 1):
            by = (down, right)
            near = np.exp(-(down**2 + right**2) / REACH**2)
            alike = (np.roll(met.normal, by, (0, 1)) * met.normal).sum(2).clip(0) ** 16
            other = np.roll(shade, by, (0, 1))
            weight = near * alike * (np.roll(met.solid, by, (0, 1)) == met.solid) / (usual + other.mean(2))
            total += weight[..., None] * other
            weights += weight
    return total / weights.clip(min=1e-6)[..., None] * (albedo + dark)


def exposed(light: np.ndarray, brightness: float) -> np.ndarray:
    """(S, S, 3) -> 8-bit colours: balanced, exposed by the median, highlights rolled off, sRGB's gamma."""
    light = light / (light.mean((0, 1)) / light.mean()) ** BALANCE
    shown = 1 - np.exp(-light * brightness / np.median(light.mean(2)))
    return (255 * shown.clip(0, 1) ** (1 / 2.2)).round().astype(np.uint8)


# ---- a look at them


def sheet(folder: Path, count: int) -> Image.Image:
    """Colours, depth, normals and instances of the first scenes."""
    from pretask.viz import puzzle as sheet

    cells = []
    for i in range(count):
        files = {kind: folder / kind / color(folder, i).name for kind in ("color", *maps.BYTES)}
        pictures = {"image": Image.open(files["color"]), "depth": shaded(files["depth"])}
        pictures |= {"normals": Image.open(files["normals"]), "instances": dyed(files["instances"])}
        cells.append(sheet.Cell(tuple(pictures.items())))
    return sheet.paint(cells, title="rendered scenes", subtitle=f"the first {count} of {folder.name}")


def shaded(depth: Path) -> Image.Image:
    """Near is bright."""
    z = np.asarray(Image.open(depth)).astype(float)
    return Image.fromarray((255 * (1 - z / z.max().clip(min=1)) ** 0.7).astype(np.uint8)).convert("RGB")


def dyed(instances: Path) -> Image.Image:
    """Each thing in a colour of its own."""
    dyes = np.random.default_rng(0).integers(60, 255, (4096, 3)).astype(np.uint8)
    return Image.fromarray(dyes[np.asarray(Image.open(instances)) % len(dyes)])

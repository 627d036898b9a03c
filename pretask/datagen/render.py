"""Render the rooms of rooms/ with Mitsuba 3, with exact depth, normals and instances (`pretask render`).

Colors use many rays per pixel. Maps use only the ray through a pixel's center, since the mean of two depths or two
instance numbers would be wrong. Scene i depends only on the seed and i. Files have the layout that data/scenes.py reads;
a scene's color image is written last, so a scene with a color image is complete.
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
from typing import Annotated, Any

import numpy as np
from PIL import Image

from pretask.data import dense_maps, normals
from pretask.data.base import bar
from pretask.data.encoded import cores
from pretask.data.scenes import CARD
from pretask.datagen import rooms
from pretask.errors import install_command
from pretask.limits import PositiveInt, Seed, between, checked
from pretask.runtime import files
from pretask.types import UserError

BOUNCES = 4
"""maximum path length"""
BLOCK = 16
"""side of a rendering block, pixels; fixed, since each block has its own random numbers"""
FILTER_RADIUS = 3
"""radius of the denoising filter, pixels"""
EXPOSURE = 0.22, 0.45
"""range of the median brightness of an image, as with automatic exposure"""
WHITE_BALANCE = 0.4
"""fraction of the light's color removed by white balance"""
SHEET = "scenes.png"
SHOWN = 6


@dataclass(frozen=True)
class RenderConfig:
    """Everything that determines the pixels of scene i."""

    size: Annotated[int, *between(16, 8192)] = 128
    samples: PositiveInt = 8
    seed: Seed = 0


@dataclass(frozen=True)
class Summary:
    folder: Path
    scenes: int
    new: int
    seconds: float


@checked
def render(
    folder: Path,
    scenes: PositiveInt,
    config: RenderConfig,
    workers: PositiveInt | None = None,
    progress: bool = True,
) -> Summary:
    """Render the scenes that `folder` lacks. UserError if its scenes were rendered with another config."""
    if find_spec("mitsuba") is None:
        raise UserError(f"rendering needs the package `mitsuba`: {install_command('scenes')}")
    prepare_folder(folder, scenes, config)
    todo = [i for i in range(scenes) if not color(folder, i).is_file()]
    began = time.perf_counter()
    with bar(progress) as shown:
        task = shown.add_task("rendering", total=scenes, completed=scenes - len(todo))
        for _ in render_all(folder, todo, config, min(workers or cores(), len(todo))):
            shown.advance(task)
    seconds = time.perf_counter() - began
    cameras = np.stack([intrinsics(config, i) for i in range(scenes)])
    files.write(folder / "cameras.npz", lambda file: np.savez(file, intrinsics=cameras))
    files.write(folder / SHEET, lambda file: sheet(folder, min(scenes, SHOWN)).save(file, "PNG"))
    return Summary(folder, scenes, len(todo), seconds)


def prepare_folder(folder: Path, scenes: int, config: RenderConfig) -> None:
    """Write the card of a new folder; an existing folder must have the same config."""
    card = folder / CARD
    if card.is_file():
        try:
            known = json.loads(card.read_text())
            found = {name: known[name] for name in asdict(config)}
            scenes = max(scenes, known["scenes"])
        except (ValueError, KeyError, TypeError):
            raise UserError(f"{card} is damaged; remove {folder}, or give another --out") from None
        if different := [f"--{name} {old}" for name, old in found.items() if old != getattr(config, name)]:
            raise UserError(f"{folder} was made with {' '.join(different)}; give the same, or another --out")
    elif folder.exists() and any(folder.iterdir()):
        raise UserError(f"{folder} contains other files; give another --out")
    folder.mkdir(parents=True, exist_ok=True)
    files.write_text(card, json.dumps({"scenes": scenes, **asdict(config)}, indent=1))
    for kind in ("color", *dense_maps.BYTES):
        (folder / kind).mkdir(exist_ok=True)


def color(folder: Path, i: int) -> Path:
    return folder / "color" / f"{i:06d}.png"


def render_all(folder: Path, todo: list[int], config: RenderConfig, workers: int) -> Iterator[int]:
    """Render scenes in `workers` processes of one thread each; yields the number of each finished scene."""
    if workers <= 1:
        yield from (render_scene(folder, i, config) for i in todo)
        return
    pool = ProcessPoolExecutor(workers, get_context("spawn"), ignore_interrupt)
    try:
        for done in as_completed([pool.submit(render_scene, folder, i, config) for i in todo]):
            yield done.result()
    except BrokenProcessPool:
        raise UserError(
            "a rendering process was killed; run the same command again to render the rest"
        ) from None
    finally:
        pool.shutdown(cancel_futures=True)


def ignore_interrupt() -> None:
    """Interrupts are handled by the parent process."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)


def render_scene(folder: Path, i: int, config: RenderConfig) -> int:
    made = scene(config, i)
    for kind in (*dense_maps.BYTES, "color"):
        file = io.BytesIO()
        Image.fromarray(made[kind]).save(file, "PNG")
        files.write(folder / kind / color(folder, i).name, lambda out, file=file: out.write(file.getbuffer()))
    return i


# ---- one scene


def scene(config: RenderConfig, i: int) -> dict[str, np.ndarray]:
    """Scene i as stored: color (S, S, 3), depth (S, S) uint16, normals (S, S, 3), instances (S, S) uint16."""
    mi, rng = mitsuba(), scene_rng(config, i)
    room = rooms.make_room(mi, rng)
    light, hits = trace(mi, room, config, i)
    return {
        "color": tone_map(denoise(*light, hits), rng.uniform(*EXPOSURE)),
        "depth": dense_maps.millimeters(hits.depth).astype(np.uint16),
        "normals": dense_maps.encode(hits.normal),
        "instances": hits.instance.astype(np.uint16),
    }


def scene_rng(config: RenderConfig, i: int) -> np.random.Generator:
    return np.random.default_rng([config.seed, i])


def intrinsics(config: RenderConfig, i: int) -> np.ndarray:
    """(3, 3) camera intrinsics of scene i, in pixels."""
    return normals.camera((config.size, config.size), np.radians(rooms.field_of_view(scene_rng(config, i))))


@dataclass(frozen=True)
class RayHits:
    """What the ray through the center of each pixel hits."""

    depth: np.ndarray  # (S, S) meters along the optical axis, 0 where the ray hits nothing
    normal: np.ndarray  # (S, S, 3) facing the camera, in camera axes
    solid: np.ndarray  # (S, S) index of the solid
    instance: np.ndarray  # (S, S) index of the object that the solid belongs to


def mitsuba() -> Any:
    """The renderer, with one thread.

    The scalar variant runs everywhere. LLVM variants need a library that is often missing, and an incompatible one crashes
    the process.
    """
    import drjit
    import mitsuba

    mitsuba.set_variant("scalar_rgb")
    mitsuba.set_log_level(mitsuba.LogLevel.Error)
    drjit.set_thread_count(1)
    return mitsuba


def trace(
    mi: Any, room: rooms.Room, config: RenderConfig, i: int
) -> tuple[tuple[np.ndarray, np.ndarray], RayHits]:
    """Light and albedo (S, S, 3) of each pixel, and what the ray through its center hits."""
    path = {"type": "path", "max_depth": BOUNCES}
    path_tracer = {"type": "aov", "aovs": "albedo:albedo", "image": path, "block_size": BLOCK}
    geometry = {"type": "aov", "aovs": "p:position,n:sh_normal,i:shape_index", "block_size": BLOCK}
    camera = sensor(mi, room, config.size)
    many = camera | {"sampler": {"type": "multijitter", "sample_count": config.samples}}
    middle = camera | {"sampler": {"type": "stratified", "sample_count": 1, "jitter": False}}
    described = {"type": "scene", "camera": many, **room.shapes}
    scene = mi.load_dict(
        described, optimize=False
    )  # optimizing would merge solids of one material and drop their names
    seed = int(scene_rng(config, i).integers(1 << 31))
    seen = np.array(mi.render(scene, integrator=mi.load_dict(path_tracer), seed=seed))
    hits = np.array(mi.render(scene, sensor=mi.load_dict(middle), integrator=mi.load_dict(geometry)))
    names = [shape.id() for shape in scene.shapes()]
    return (seen[..., :3], seen[..., 3:]), to_camera_axes(hits, names, room)


def sensor(mi: Any, room: rooms.Room, size: int) -> dict[str, Any]:
    place = mi.ScalarTransform4f().look_at(
        room.origin.tolist(), room.target.tolist(), (-room.axes[:, 1]).tolist()
    )
    film = {"type": "hdrfilm", "width": size, "height": size, "pixel_format": "rgb"}
    film |= {"component_format": "float32", "rfilter": {"type": "box"}}
    return {
        "type": "perspective",
        "fov": room.field_of_view,
        "to_world": place,
        "film": film,
        "near_clip": 0.02,
    }


def to_camera_axes(hits: np.ndarray, names: list[str], room: rooms.Room) -> RayHits:
    """Convert Mitsuba's position, normal and shape index from 1 (S, S, 7) to camera axes: x right, y down."""
    ray = (hits[..., :3] - room.origin) @ room.axes
    normal, solid = hits[..., 3:6] @ room.axes, hits[..., 6].round().astype(int)
    away = (ray * normal).sum(2, keepdims=True) > 0
    instance_of = np.array([0] + [int(name.partition("_")[0]) for name in names])
    known = solid > 0
    return RayHits(
        ray[..., 2] * known, np.where(away, -normal, normal) * known[..., None], solid, instance_of[solid]
    )


# ---- from light to color images


def denoise(light: np.ndarray, albedo: np.ndarray, hits: RayHits) -> np.ndarray:
    """(S, S, 3) light with sampling noise averaged out, without blurring textures or outlines.

    Incoming light varies less than reflected light: light / albedo is averaged over near pixels of the same solid that
    face the same direction. Bright outliers get a small weight.
    """
    dark = 0.02  # avoids noise in the quotient on black surfaces
    shade = light / (albedo + dark)
    total, weights, usual = np.zeros_like(shade), np.zeros(shade.shape[:2]), np.median(shade)
    for down in range(-FILTER_RADIUS, FILTER_RADIUS + 1):
        for right in range(-FILTER_RADIUS, FILTER_RADIUS + 1):
            by = (down, right)
            near = np.exp(-(down**2 + right**2) / FILTER_RADIUS**2)
            alike = (np.roll(hits.normal, by, (0, 1)) * hits.normal).sum(2).clip(0) ** 16
            other = np.roll(shade, by, (0, 1))
            weight = near * alike * (np.roll(hits.solid, by, (0, 1)) == hits.solid) / (usual + other.mean(2))
            total += weight[..., None] * other
            weights += weight
    return total / weights.clip(min=1e-6)[..., None] * (albedo + dark)


def tone_map(light: np.ndarray, brightness: float) -> np.ndarray:
    """(S, S, 3) -> 8-bit colors: white balance, exposure by the median, highlight roll-off, sRGB gamma."""
    light = light / (light.mean((0, 1)) / light.mean()) ** WHITE_BALANCE
    shown = 1 - np.exp(-light * brightness / np.median(light.mean(2)))
    return (255 * shown.clip(0, 1) ** (1 / 2.2)).round().astype(np.uint8)


# ---- contact sheet


def sheet(folder: Path, count: int) -> Image.Image:
    """Contact sheet with color, depth, normals and instances of the first scenes."""
    from pretask.viz import sheet

    cells = []
    for i in range(count):
        files = {kind: folder / kind / color(folder, i).name for kind in ("color", *dense_maps.BYTES)}
        pictures = {"image": Image.open(files["color"]), "depth": depth_image(files["depth"])}
        pictures |= {"normals": Image.open(files["normals"]), "instances": instance_image(files["instances"])}
        cells.append(sheet.Cell(tuple(pictures.items())))
    return sheet.paint(cells, title="rendered scenes", subtitle=f"the first {count} of {folder.name}")


def depth_image(depth: Path) -> Image.Image:
    """Depth as a gray image; near is bright."""
    z = np.asarray(Image.open(depth)).astype(float)
    return Image.fromarray((255 * (1 - z / z.max().clip(min=1)) ** 0.7).astype(np.uint8)).convert("RGB")


def instance_image(instances: Path) -> Image.Image:
    """Instances in random colors."""
    colors = np.random.default_rng(0).integers(60, 255, (4096, 3)).astype(np.uint8)
    return Image.fromarray(colors[np.asarray(Image.open(instances)) % len(colors)])

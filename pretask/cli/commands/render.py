"""pretask render --scenes N --out FOLDER: render rooms with depth, normals and instances."""

from dataclasses import dataclass
from pathlib import Path
from shlex import quote

from pretask.cli.flags import parse
from pretask.limits import PositiveInt, Seed
from pretask.runtime.console import say


@dataclass(frozen=True)
class Flags:
    """Render random rooms with exact depth, surface normals and instance contours, to train cross_domain on. Scene i depends
    only on the seed and i; run an interrupted command again to render the missing scenes. Needs the `scenes` extra."""

    scenes: PositiveInt
    """number of scenes"""
    out: Path
    """folder of the scenes; existing scenes with the same settings are kept"""
    size: PositiveInt = 128
    """image side in pixels"""
    samples: PositiveInt = 8
    """rays per pixel; more rays take longer and give less noise"""
    seed: Seed = 0
    """random seed of the rooms"""
    workers: PositiveInt | None = None
    """number of processes (default: one per core)"""


def run(words: list[str]) -> None:
    chosen = parse(Flags, words, "render")
    from pretask.datagen import render

    settings = render.RenderConfig(chosen.size, chosen.samples, chosen.seed)
    made = render.render(chosen.out, chosen.scenes, settings, chosen.workers)
    kept = f", {made.scenes - made.new} existed" if made.new < made.scenes else ""
    speed = f", {made.new / made.seconds:.2f} scenes/s" if made.new else ""
    say(
        f"wrote {made.folder} ({made.scenes} scenes of {chosen.size} px{kept}{speed}); look at "
        f"{made.folder / render.SHEET}. Next: pretask preview cross_domain --data {quote(f'scenes:{made.folder}+PHOTOGRAPHS')}"
    )

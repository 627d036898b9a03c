"""pretask render --scenes N --out FOLDER: rendered rooms with depth, normals and instances."""

from dataclasses import dataclass
from pathlib import Path
from shlex import quote

from pretask.cli.flags import parse
from pretask.limits import Count, Seed
from pretask.train.progress import say


@dataclass(frozen=True)
class Flags:
    """Render rooms that nobody built, with exact depth, normals and instances: what methods that learn from scenes, such
    as cross_domain, are trained on. Scene i depends on the seed and i alone; an interrupted command goes on with what is
    missing. Needs pip install 'pretask[scenes]'."""

    scenes: Count
    """how many"""
    out: Path
    """the folder; if it has scenes of the same settings, they are kept"""
    size: Count = 128
    """side of the images, pixels"""
    samples: Count = 8
    """rays a pixel; more take longer and make less noise"""
    seed: Seed = 0
    """of the rooms"""
    workers: Count | None = None
    """processes (one per core)"""


def run(words: list[str]) -> None:
    chosen = parse(Flags, words, "render")
    from pretask.datagen import render as rendering

    settings = rendering.Settings(chosen.size, chosen.samples, chosen.seed)
    made = rendering.render(chosen.out, chosen.scenes, settings, chosen.workers)
    kept = f", {made.scenes - made.new} were there" if made.new < made.scenes else ""
    speed = f", {made.new / made.seconds:.2f} scenes/s" if made.new else ""
    say(
        f"wrote {made.folder} ({made.scenes} scenes of {chosen.size} px{kept}{speed}); look at "
        f"{made.folder / rendering.SHEET}. Next: pretask preview cross_domain --data {quote(f'scenes:{made.folder}+PHOTOGRAPHS')}"
    )

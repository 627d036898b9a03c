"""Colorize images with a colorization run: `pretask colorize RUN --data PATH`

Colors are predicted at the run's image size and combined with each image's own lightness at its own size. If images have
colors, predictions are scored against them (Zhang et al. 2016, arXiv:1603.08511, sec. 3.1).
"""

import json
import os
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
import torch.nn.functional as F
from PIL import Image
from torch import Tensor

from pretask.data import decode
from pretask.data.base import Images, bar
from pretask.data.encoded import Encoded
from pretask.data.ledger import BAD
from pretask.evals.confidence import RESAMPLES, Interval, quantiles
from pretask.limits import PositiveFloat, checked
from pretask.methods.colorization import BINS, GRAY, smooth, soft_encode
from pretask.runtime import files
from pretask.runtime.device import find_device
from pretask.train.run import Run, title
from pretask.transforms import augment
from pretask.transforms.color import lab_to_rgb, rgb_to_lab
from pretask.types import UserError
from pretask.viz import sheet, turing
from pretask.workflows.embed import batches

SCHEMA = 2
LONGEST = 200
"""maximum bytes of a file name; file systems allow 255"""
LARGEST = 1600
"""maximum longer side in pixels; larger images are downscaled"""
SHOWN = 32
"""images on the contact sheet, and maximum number of pairs on the page"""
SCORED_SIDE = 224
"""approximate number of scored positions along the shorter side (less than twice as many)"""
LONG = 4
"""maximum aspect ratio of the network's input; longer images are squeezed"""
FURTHEST = 150.0
"""distance in ab at which the area under the curve ends (sec. 3.1)"""

Paint = Callable[[Tensor, float | None], Tensor]
"""lightness (1, 1, H, W) from 0 to 100, of any size, and a temperature -> ab (1, 2, H, W)"""


@dataclass(frozen=True)
class Score:
    """Accuracy of colors, % (sec. 3.1): the fraction of positions within a threshold in ab, averaged over thresholds from 0 to 150.

    `balanced` weights all colors equally, by their frequency in these images. `chroma` is the mean distance from gray in ab.
    """

    colors: str
    raw: Interval
    balanced: Interval
    chroma: Interval


@dataclass(frozen=True)
class Colored:
    """The result: images in `folder`, and scores of those with colors."""

    folder: Path
    n: int
    skipped: int
    scored: int
    scores: Sequence[Score]

    def to_json(self) -> str:
        return json.dumps({"schema": SCHEMA} | asdict(self) | {"folder": str(self.folder)}, indent=2)


@checked
def colorize(
    run: Run | Path | str,
    source: Images,
    out: Path,
    temperature: PositiveFloat | None = None,
    *,
    progress: bool = True,
) -> Colored:
    """Colorize every image of `source` to a PNG in the folder `out`, with sheet.png, turing.html and scores.json.

    Open `source` with `cache_mb=0`, so that files keep their own size. `temperature` None: the method's own. Raises UserError
    if the run's method does not predict colors.
    """
    run = run if isinstance(run, Run) else Run(run)
    paint = painter(run)
    if out.exists():
        raise UserError(f"{out} exists; choose another --out")
    made: list[Colored] = []

    def fill(inside: Path) -> None:
        made.append(write(run, source, paint, inside, out, temperature, progress))

    files.write_folder(out, fill)
    return made[0]


def write(
    run: Run,
    source: Images,
    paint: Paint,
    folder: Path,
    final: Path,
    temperature: float | None,
    progress: bool,
) -> Colored:
    """Write images and scores into a folder that will be moved to `final`."""
    scorer, cells, pairs, names, n = Scorer(), [], [], Names(), 0
    with bar(progress) as shown:
        for name, image in shown.track(originals(source), total=len(source), description="colorizing"):
            with torch.inference_mode():
                light = rgb_to_lab(image)[:, :1]
                ab = paint(light, temperature)
                painted = sheet.pictures(lab_to_rgb(torch.cat([light, ab], 1)))[0]
            path = folder / names.png(name)
            n += 1
            path.parent.mkdir(parents=True, exist_ok=True)
            files.write(path, lambda file, picture=painted: picture.save(file, format="PNG"))
            colored = scorer.add(ab, rgb_to_lab(image)[:, 1:])
            if len(cells) < SHOWN:
                true = sheet.pictures(image)[0]
                gray = sheet.pictures(light / 100)[0]
                cells.append(cell({"lightness": gray, "colorized": painted, "original": true}))
                pairs += [(true, painted)] if colored else []
    if not cells:
        raise UserError(f"none of the images of {source.name} can be read")
    about = f"{run.folder.resolve().name} on {source.name}"
    picture = sheet.paint(cells, title=about, subtitle="")
    files.write(folder / "sheet.png", lambda file: picture.save(file, format="PNG"))
    if pairs:
        turing.write(folder / "turing.html", pairs, about, run.card["seed"])
    source.ledger.write(folder / BAD, final / BAD)
    made = Colored(final, n, len(source.ledger.bad), len(scorer.sums), scorer.scores(run.card["seed"]))
    files.write_text(folder / "scores.json", made.to_json() + "\n")
    return made


def painter(run: Run) -> Paint:
    """Color prediction by the run's method at its image size."""
    method: Any = run.method
    if not hasattr(method, "predict_ab"):
        raise UserError(
            f"{title(run.card)} does not predict colors; give a run of colorization or color_proxy"
        )
    device = find_device()
    method.to(device)
    size = run.card["size"]
    any_form = method.export().side(0.5) < size

    def paint(light: Tensor, temperature: float | None) -> Tensor:
        gray = lab_to_rgb(F.pad(light, (0, 0, 0, 0, 0, 2)))
        h, w = gray.shape[2:]
        short = min(h, w)
        sides = (min(LONG * size, round(size * side / short)) for side in (h, w))
        form = tuple(sides) if any_form else (size, size)
        small = F.interpolate(gray.to(device), size=form, mode="bilinear", antialias=True)
        return F.interpolate(method.predict_ab(small, temperature), size=(h, w), mode="bilinear").cpu()

    return paint


def originals(source: Images) -> Iterator[tuple[str, Tensor]]:
    """Name and pixels (1, 3, H, W) in [0, 1] of every readable image; files and records keep their own size."""
    if not isinstance(source, Encoded):
        for each in batches(source, 64):
            for i in source.readable(each.index).nonzero()[:, 0].tolist():
                yield source.files(each.index[i : i + 1])[0], augment.to_float(each.image[i : i + 1])
        return
    for i in range(len(source)):
        name = source.reader.items.name(i)
        try:
            with decode.readable():
                image = decode.to_pil(source.reader.items.read(i), 3, source.range)
                image.thumbnail((LARGEST, LARGEST))
                pixels = torch.from_numpy(np.array(image))
        except decode.Unreadable as error:
            source.note({i: str(error)})
            continue
        source.ledger.mark_read(source.entries([i]))
        yield name, augment.to_float(pixels.permute(2, 0, 1)[None])


class Names:
    """Output names, unique and inside the folder: the image's name with suffix .png, or with .png appended if taken."""

    def __init__(self) -> None:
        # lowercase, since some file systems ignore case
        self.files, self.folders = {"sheet.png"}, set[str]()

    def png(self, name: str) -> Path:
        path = Path(name)
        inside = Path(*(part for part in path.parts if part not in ("..", path.anchor)))
        if any(self.key(folder) in self.files for folder in inside.parents):
            inside = Path("-".join(inside.parts))
        plain = inside.with_name(clipped(inside.name)) if inside.name else Path("image")
        path = plain.with_suffix(".png")
        while self.key(path) in self.files | self.folders:
            path = plain = plain.with_name(f"{plain.name}.png")
        self.files.add(self.key(path))
        self.folders.update(map(self.key, path.parents))
        return path

    @staticmethod
    def key(path: Path) -> str:
        return str(path).casefold()


def clipped(name: str) -> str:
    """The name, shortened to leave room for suffixes."""
    whole = os.fsencode(name)
    return name if len(whole) <= LONGEST else whole[:LONGEST].decode(errors="ignore")


def cell(looks: Mapping[str, Image.Image]) -> sheet.Cell:
    return sheet.Cell(
        tuple((name, decode.center_crop(picture, sheet.TARGET_SIDE)) for name, picture in looks.items())
    )


class Scorer:
    """Accumulates the closeness of colors to the true ones, per image and true color."""

    COLORS = ("predicted", "gray", "true")

    def __init__(self) -> None:
        self.sums: list[Sums] = []

    def add(self, ab: Tensor, true: Tensor) -> bool:
        """Add predicted and true ab (1, 2, H, W). Returns False, and adds nothing, if the image has no color."""
        if true.abs().amax() <= GRAY:
            return False
        every = max(1, min(true.shape[2:]) // SCORED_SIDE)
        ab, true = ab[..., ::every, ::every], true[..., ::every, ::every]
        kind, scored = soft_encode(true, 1)[0].flatten(), torch.cat([ab, 0 * ab, true])
        near = (1 - (scored - true).norm(dim=1).flatten(1) / FURTHEST).clamp(min=0)  # (3, H·W)
        summed = torch.zeros(len(scored), len(BINS)).index_add_(1, kind, near)
        chroma = scored.norm(dim=1).sum((1, 2))
        self.sums.append(Sums(kind.bincount(minlength=len(BINS)).float(), summed, chroma))
        return True

    def scores(self, seed: int) -> list[Score]:
        """Scores of the predicted colors, of gray, and of the true colors, with intervals over images."""
        if not self.sums:
            return []
        count, near, chroma = (torch.stack(x).double() for x in zip(*self.sums, strict=True))
        prior = smooth(count.sum(0).float()).double()
        uniform = torch.ones(len(BINS), dtype=torch.float64)
        balanced = torch.where(count.sum(0) > 0, 1 / prior, 0)  # λ = 0 in eq. 4
        draws = np.random.default_rng(seed).multinomial(
            len(count), np.full(len(count), 1 / len(count)), RESAMPLES
        )
        whole = np.vstack([np.ones(len(count)), draws])  # (1 + R, N): the sample, then its resamples

        def ratio(above: Tensor, below: Tensor) -> Interval:
            """Ratio of sums over images, (N,) each, with its interval."""
            means = (whole @ above.numpy()) / (whole @ below.numpy())
            return Interval(float(means[0]), *quantiles(means[1:]))

        return [
            Score(
                name,
                ratio(100 * near[:, i] @ uniform, count @ uniform),
                ratio(100 * near[:, i] @ balanced, count @ balanced),
                ratio(chroma[:, i], count @ uniform),
            )
            for i, name in enumerate(self.COLORS)
        ]


class Sums(NamedTuple):
    positions: Tensor  # (313,) number of positions of each true color
    near: Tensor  # (3, 313) summed closeness at these positions, 0 to 1 each
    chroma: Tensor  # (3,) summed distance from gray

"""Grey photographs in colour, by a run that learned to colour: `pretask colorize RUN --data PATH`

Colours are found at the size that the run was trained at and laid over each image's own lightness, at its own size.
Where images have colours, the answers are scored against them (Zhang et al. 2016, arXiv:1603.08511, sec. 3.1).
"""

import json
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
from pretask.methods.colorization import BINS, GREY, encode, smoothed
from pretask.runtime import files as checkpoint
from pretask.runtime.device import find_device
from pretask.train.run import Run, title
from pretask.transforms import augment as images
from pretask.types import UserError
from pretask.viz import puzzle as sheet
from pretask.viz import turing
from pretask.workflows.embed import batches

SCHEMA = 1
LARGEST = 1600
"""pixels of the longer side; larger images are reduced"""
SHOWN = 32
"""images on the sheet and, at most, pairs of the page"""
PLACES = 224
"""of an image, along its shorter side, at which its colours are judged, at most twice as many"""
LONG = 4
"""times its shorter side that an image is looked at; longer ones are shortened"""
FURTHEST = 150.0
"""distance in ab at which the area under the curve ends (sec. 3.1)"""


@dataclass(frozen=True)
class Score:
    """How near the painted colours are to the true ones, % (sec. 3.1): the share of places within a distance in ab,
    averaged over distances from 0 to 150. `balanced`: every colour counts alike, by its share in these images.
    And how colourful they are: `chroma`, the mean distance from grey in ab."""

    colours: str
    raw: Interval
    balanced: Interval
    chroma: Interval


@dataclass(frozen=True)
class Coloured:
    """What was made: pictures in `folder`, and the scores of the images that have colours."""

    folder: Path
    n: int
    skipped: int
    judged: int
    scores: Sequence[Score]

    def to_json(self) -> str:
        return json.dumps({"schema": SCHEMA} | asdict(self) | {"folder": str(self.folder)}, indent=2)


def colorize(
    run: Run | Path | str,
    source: Images,
    out: Path,
    temperature: float | None = None,
    *,
    progress: bool = True,
) -> Coloured:
    """Every image of `source` in colour, as PNG in `out`, with sheet.png, turing.html and scores.json beside them.

    `source` is opened with `cache_mb=0`, so that files keep their own size. `temperature` is that of the method's
    answer; None: its own. UserError if the run's method paints no colours.
    """
    run = run if isinstance(run, Run) else Run(run)
    if temperature is not None and not temperature > 0:
        raise UserError(f"--temperature {temperature:g} is not above 0; the paper paints with 0.38")
    paint = painter(run)
    if out.exists():
        raise UserError(f"{out} exists; choose another --out")
    judge, cells, pairs, taken = Judge(), [], [], {Path("sheet.png")}
    with bar(progress) as shown:
        for name, image in shown.track(originals(source), total=len(source), description="colouring"):
            with torch.inference_mode():
                light = images.lab(image)[:, :1]
                ab = paint(light, temperature)
                painted = sheet.pictures(images.from_lab(torch.cat([light, ab], 1)))[0]
            path = out / png(name, taken)
            path.parent.mkdir(parents=True, exist_ok=True)
            checkpoint.write(path, lambda file, picture=painted: picture.save(file, format="PNG"))
            coloured = judge.see(ab, images.lab(image)[:, 1:])
            if len(cells) < SHOWN:
                true = sheet.pictures(image)[0]
                grey = sheet.pictures(light / 100)[0]
                cells.append(cell({"lightness": grey, "painted": painted, "as it was": true}))
                pairs += [(true, painted)] if coloured else []
    if not cells:
        raise UserError(f"none of the images of {source.name} can be read")
    about = f"{run.folder.resolve().name} on {source.name}"
    picture = sheet.paint(cells, title=about, subtitle="")
    checkpoint.write(out / "sheet.png", lambda file: picture.save(file, format="PNG"))
    if pairs:
        turing.write(out / "turing.html", pairs, about, run.card["seed"])
    source.ledger.write(out / BAD)
    made = Coloured(
        out, len(taken) - 1, len(source.ledger.bad), len(judge.seen), judge.scores(run.card["seed"])
    )
    checkpoint.write_text(out / "scores.json", made.to_json() + "\n")
    return made


def painter(run: Run) -> Callable[[Tensor, float | None], Tensor]:
    """Lightness (1, 1, H, W), 0 … 100, of any size -> ab (1, 2, H, W), by the run's method at the size that it knows."""
    method: Any = run.method
    if not hasattr(method, "colours"):
        raise UserError(f"{title(run.card)} paints no colours; runs of colorization and color_proxy do")
    device = find_device()
    method.to(device)
    size = run.card["size"]
    any_form = method.export().side(0.5) < size

    def paint(light: Tensor, temperature: float | None) -> Tensor:
        grey = images.from_lab(F.pad(light, (0, 0, 0, 0, 0, 2)))
        h, w = grey.shape[2:]
        short = min(h, w)
        sides = (min(LONG * size, round(size * side / short)) for side in (h, w))
        form = tuple(sides) if any_form else (size, size)
        small = F.interpolate(grey.to(device), size=form, mode="bilinear", antialias=True)
        return F.interpolate(method.colours(small, temperature), size=(h, w), mode="bilinear").cpu()

    return paint


def originals(source: Images) -> Iterator[tuple[str, Tensor]]:
    """Name and pixels (1, 3, H, W) in [0, 1] of every readable image: of files and records at their own size."""
    if not isinstance(source, Encoded):
        for each in batches(source, 64):
            for name, image in zip(source.files(each.index), images.to_float(each.image), strict=True):
                if name not in source.ledger.bad:
                    yield name, image[None]
        return
    for i in range(len(source)):
        name = source.reader.items.name(i)
        try:
            with decode.readable():
                image = decode.plain(decode.upright(decode.opened(source.reader.items.read(i))), 3)
                image.thumbnail((LARGEST, LARGEST))
                pixels = torch.from_numpy(np.array(image))
        except decode.Unreadable as error:
            source.note({name: str(error)})
            continue
        yield name, images.to_float(pixels.permute(2, 0, 1)[None])


def png(name: str, taken: set[Path]) -> Path:
    """Where an image goes, never out of the folder: its own name, ending in .png; beside its own ending if taken."""
    plain = Path(*(part for part in Path(name).parts if part not in ("..", Path(name).anchor)))
    path = plain.with_suffix(".png")
    while path in taken:
        path = plain = plain.with_name(f"{plain.name}.png")
    taken.add(path)
    return path


def cell(looks: Mapping[str, Image.Image]) -> sheet.Cell:
    return sheet.Cell(tuple((name, decode.square(picture, sheet.TILE)) for name, picture in looks.items()))


class Judge:
    """Sums of how near colours are to the true ones, image by image and true colour by true colour."""

    JUDGED = ("painted", "none", "true")

    def __init__(self) -> None:
        self.seen: list[Sums] = []

    def see(self, ab: Tensor, true: Tensor) -> bool:
        """Painted and true (1, 2, H, W); an image without colour is not judged. Whether it was."""
        if true.abs().amax() <= GREY:
            return False
        every = max(1, min(true.shape[2:]) // PLACES)
        ab, true = ab[..., ::every, ::every], true[..., ::every, ::every]
        kind, judged = encode(true, 1)[0].flatten(), torch.cat([ab, 0 * ab, true])
        near = (1 - (judged - true).norm(dim=1).flatten(1) / FURTHEST).clamp(min=0)  # (3, H·W)
        summed = torch.zeros(len(judged), len(BINS)).index_add_(1, kind, near)
        chroma = judged.norm(dim=1).sum((1, 2))
        self.seen.append(Sums(kind.bincount(minlength=len(BINS)).float(), summed, chroma))
        return True

    def scores(self, seed: int) -> list[Score]:
        """Of the painted images, of the same without any colour, and of the true ones; intervals over images."""
        if not self.seen:
            return []
        count, near, chroma = (torch.stack(x).double() for x in zip(*self.seen, strict=True))
        share = smoothed(count.sum(0).float()).double()
        alike = torch.ones(len(BINS), dtype=torch.float64)
        even = torch.where(count.sum(0) > 0, 1 / share, 0)  # λ = 0 in eq. 4
        draws = np.random.default_rng(seed).multinomial(
            len(count), np.full(len(count), 1 / len(count)), RESAMPLES
        )
        whole = np.vstack([np.ones(len(count)), draws])  # (1 + R, N): as it is, then drawn anew

        def ratio(above: Tensor, below: Tensor) -> Interval:
            """Of sums over all places, (N,) each."""
            means = (whole @ above.numpy()) / (whole @ below.numpy())
            return Interval(float(means[0]), *quantiles(means[1:]))

        return [
            Score(
                name,
                ratio(100 * near[:, i] @ alike, count @ alike),
                ratio(100 * near[:, i] @ even, count @ even),
                ratio(chroma[:, i], count @ alike),
            )
            for i, name in enumerate(self.JUDGED)
        ]


class Sums(NamedTuple):
    places: Tensor  # (313,) places of each true colour
    near: Tensor  # (3, 313) how near the judged colours of these places are, 0 … 1, summed
    chroma: Tensor  # (3,) how far from grey they are, summed over all places

"""Puzzles as plain data: a method describes what to show, `viz/draw.py` renders it.

    Puzzle(
        question=[Panel("rotated", image)],
        answer=[Panel("up", image, (Arrow(90),))],
        captions=[choice("Which way is up?", names, true, predicted)],
    )

Images are (C, H, W) in [0, 1], on any device. `generic_puzzles` describes the puzzles of a method without a `show` of
its own, from the shapes of their fields.
"""

import itertools
import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, fields
from typing import Any, Literal

import torch
from torch import Tensor

Names = Mapping[str, Sequence[str]]
Box = tuple[float, float, float, float]
"""left, top, right and bottom, as fractions of the picture"""
WHOLE: Box = (0.0, 0.0, 1.0, 1.0)
MAX_PRINTED = 12
"""longest row of numbers that is printed: a permutation of nine tiles, not a bag of words"""


# ---- marks on a picture


@dataclass(frozen=True)
class Arrow:
    """An arrow from the center of the picture."""

    angle: float
    """degrees counterclockwise from straight up"""


@dataclass(frozen=True)
class Frame:
    """A rectangle around a part of the picture."""

    box: Box
    label: str = ""
    role: Literal["first", "second", "other"] = "first"


@dataclass(frozen=True)
class Points:
    """Dots on the picture."""

    positions: Tensor  # (N, 2) row and column, as fractions of the picture


@dataclass(frozen=True)
class Mask:
    """Masked patches, painted over."""

    masked: Tensor  # (h, w) bool
    opacity: float = 1.0


@dataclass(frozen=True)
class Contours:
    """Contour lines over the picture, which is faded."""

    strength: Tensor  # (H, W) in [0, 1]


Mark = Arrow | Frame | Points | Mask | Contours


# ---- contents of a panel


@dataclass(frozen=True)
class Tile:
    """One cell of a board; empty if it has no image."""

    image: Tensor | None = None  # (C, h, w)
    label: str = ""
    correct: bool | None = None


@dataclass(frozen=True)
class Board:
    """A grid of tiles, in row-major order."""

    tiles: Sequence[Tile]
    columns: int = 3


@dataclass(frozen=True)
class Depth:
    """A depth map; 0 where the depth is unknown."""

    meters: Tensor  # (1, H, W)
    span: tuple[float, float]
    """smallest and largest depth on the color scale"""


@dataclass(frozen=True)
class Normals:
    """A map of surface normals; 0 where they are unknown."""

    vectors: Tensor  # (3, H, W)


@dataclass(frozen=True)
class Text:
    """A text on a card."""

    text: str


@dataclass(frozen=True)
class Bars:
    """A bar chart of fractions in [0, 1]."""

    fractions: Mapping[str, float]


@dataclass(frozen=True)
class Panel:
    """One picture of a puzzle."""

    title: str
    content: Tensor | Board | Depth | Normals | Text | Bars
    marks: Sequence[Mark] = ()
    correct: bool | None = None
    """whether the network's answer is correct; None: it is not an answer, or has no exact solution"""


@dataclass(frozen=True)
class Caption:
    """A line below a puzzle: the question, its answer, and the network's answer."""

    question: str
    answer: str = ""
    predicted: str = ""
    parts_correct: tuple[bool, ...] = ()
    """whether each part of the network's answer is correct; empty: it has no exact solution"""

    @property
    def correct(self) -> bool | None:
        """Whether all parts are correct; None: there is no exact solution."""
        return all(self.parts_correct) if self.parts_correct else None

    @property
    def mark(self) -> str:
        """A check mark or a cross, with the number of correct parts if there are several."""
        sign = {True: "✓", False: "✗", None: ""}[self.correct]
        return (
            f"{sign} ({sum(self.parts_correct)} of {len(self.parts_correct)})"
            if len(self.parts_correct) > 1
            else sign
        )


@dataclass(frozen=True)
class Puzzle:
    """One puzzle: panels of the question, of its answer and of the network's answer; usually one caption."""

    question: Sequence[Panel]
    answer: Sequence[Panel] = ()
    predicted: Sequence[Panel] = ()
    captions: Sequence[Caption] = ()


def choice(
    question: str, names: Sequence[str], true: Tensor | int, predicted: Tensor | int | None
) -> Caption:
    """The caption of a classification puzzle; `true` and `predicted` are indices into `names`."""
    if predicted is None:
        return Caption(question, names[int(true)])
    return Caption(question, names[int(true)], names[int(predicted)], (int(true) == int(predicted),))


def reconstruction(question: str, answer: str, true: Tensor, predicted: Tensor | None = None) -> Caption:
    """The caption of an image that the network reconstructs: its PSNR, since no reconstruction is exact."""
    if predicted is None:
        return Caption(question, answer)
    error = (true.float() - predicted.float()).square().mean().clamp(min=1e-10)
    return Caption(question, answer, f"≈ {-10 * error.log10():.1f} dB PSNR")


# ---- puzzles of methods without `show`


def generic_puzzles(pretext: Any, answers: Mapping[str, Tensor], names: Names) -> Iterator[Puzzle]:
    """Puzzles from the fields of `pretext`, a frozen dataclass of tensors whose rows are samples.

    (B, 1 or 3, H, W) is a picture, (B, T, C, h, w) its tiles, bool (B, h, w) a mask; (B,) and (B, k) with small k are numbers.
    Other fields are not shown. `names` maps a field to the names of its values 0, 1, …
    """
    given = tensor_fields(pretext)
    visible = [x for x in given.values() if to_pixels(x[:1]) is not None]
    total = max((len(x) for x in visible or given.values()), default=0)  # samples, not constants of the task
    given = {name: x for name, x in given.items() if len(x) == total}
    answered = {name: x.detach().cpu() for name, x in answers.items() if len(x) == total}
    captions: list[list[Caption]] = []
    for name in {**given, **answered}:
        true, predicted = given.get(name), answered.get(name)
        if true is not None and predicted is not None and is_selection(predicted, true):
            correct = (true == predicted).flatten(1).all(1).tolist()
            texts = ["its own" if right else "another's" for right in correct]
            captions.append(
                [
                    Caption(readable_name(name), "", text, (right,))
                    for text, right in zip(texts, correct, strict=True)
                ]
            )
        elif all(x is None or is_printable(x) for x in (true, predicted)):
            captions.append(number_captions(readable_name(name), true, predicted, names.get(name, ())))
    pictures, reconstructions = (
        {readable_name(name): shown for name, x in of.items() if (shown := to_pixels(x)) is not None}
        for of in (given, answered)
    )
    for i in range(total):
        yield Puzzle(
            [Panel(name, x[i]) for name, x in pictures.items()],
            predicted=[Panel(f"{name}, network", x[i]) for name, x in reconstructions.items()],
            captions=[lines[i] for lines in captions],
        )


def readable_name(name: str) -> str:
    """The name of a field without underscores: left_hidden -> left hidden."""
    return name.strip("_").replace("_", " ")


def tensor_fields(pretext: Any) -> dict[str, Tensor]:
    """Fields that are tensors with at least one dimension, by name; members of a tuple are numbered from 1."""
    found: dict[str, Any] = {}
    for field in fields(pretext):
        value = getattr(pretext, field.name)
        is_tuple = isinstance(value, tuple | list)
        found |= (
            {f"{field.name} {i + 1}": v for i, v in enumerate(value)} if is_tuple else {field.name: value}
        )
    return {name: x.detach().cpu() for name, x in found.items() if isinstance(x, Tensor) and x.ndim}


def to_pixels(x: Tensor) -> Tensor | None:
    """(B, …) -> (B, 1 or 3, H, W) in [0, 1]; None if these are not pictures."""
    if x.dtype == torch.bool:
        return mask_to_pixels(x)
    if not (x.is_floating_point() or x.dtype == torch.uint8):
        return None
    if x.ndim == 5 and x.shape[2] in (1, 3):
        x = join_tiles(x)
    if x.ndim != 4 or x.shape[1] not in (1, 3):
        return None
    x = x.float().nan_to_num() / (255 if x.dtype == torch.uint8 else 1)
    low, high = (x.amin(), x.amax()) if x.numel() else (0, 1)
    if low < -0.1 or high > 1.1:  # not plain pixels: stretched to the full range
        x = (x - low) / (high - low)
    return x.clamp(0, 1)


def mask_to_pixels(x: Tensor) -> Tensor | None:
    """Bool (B, h, w), (B, 1, h, w) or long (B, h·w) -> (B, 1, h, w), white where true; None for other shapes."""
    side = math.isqrt(x.shape[1]) if x.ndim == 2 else 0
    if x.ndim == 2 and x.shape[1] > MAX_PRINTED and side**2 == x.shape[1]:
        x = x.view(-1, side, side)
    x = x[:, None] if x.ndim == 3 else x
    return x.float() if x.ndim == 4 and x.shape[1] == 1 else None


def join_tiles(tiles: Tensor) -> Tensor:
    """(B, T, C, h, w) -> (B, C, rows·h, columns·w) in a grid as square as possible, with thin white seams."""
    b, t, c, h, w = tiles.shape
    across = math.ceil(math.sqrt(t))
    down = math.ceil(t / across)
    seam = max(1, h // 16)
    white = 255.0 if tiles.dtype == torch.uint8 else 1.0
    framed = torch.full((b, across * down, c, h + seam, w + seam), white).to(tiles.dtype)
    framed[:, :t, :, :h, :w] = tiles
    grid = framed.view(b, down, across, c, h + seam, w + seam).permute(0, 3, 1, 4, 2, 5)
    return grid.reshape(b, c, down * (h + seam), across * (w + seam))[..., :-seam, :-seam]


def is_printable(x: Tensor) -> bool:
    """Whether the rows are single numbers or short sequences of numbers."""
    return to_pixels(x) is None and (x.ndim == 1 or (x.ndim == 2 and x.shape[1] <= MAX_PRINTED))


def number_captions(
    name: str, true: Tensor | None, predicted: Tensor | None, names: Sequence[str] = ()
) -> list[Caption]:
    """One caption per sample; only integers and bools are marked as correct or wrong, floats never."""
    answers, predictions = (
        [] if x is None else [format_numbers(row, names) for row in x] for x in (true, predicted)
    )
    correct: list[list[bool]] = []
    if true is not None and predicted is not None and true.shape == predicted.shape:
        correct = [] if true.is_floating_point() else (true == predicted).view(len(true), -1).tolist()
    rows = itertools.zip_longest(answers, predictions, correct)
    return [Caption(name, a or "", p or "", tuple(c or ())) for a, p, c in rows]


def is_selection(predicted: Tensor, true: Tensor) -> bool:
    """Whether all predicted pictures are pictures of the puzzle, so that the model selects images instead of making them."""
    if to_pixels(predicted[:1]) is None or predicted.shape[1:] != true.shape[1:]:
        return False
    return all(bool((true == one).flatten(1).all(1).any()) for one in predicted)


def format_numbers(x: Tensor, names: Sequence[str] = ()) -> str:
    """One row of numbers as text: by name, yes and no, or up to three significant digits."""
    values = x.reshape(-1).tolist()
    if names:
        return ", ".join(names[int(v)] for v in values)
    if x.dtype == torch.bool:
        return " ".join("yes" if v else "no" for v in values)
    return " ".join(f"{v:.3g}" if isinstance(v, float) else f"{v}" for v in values)

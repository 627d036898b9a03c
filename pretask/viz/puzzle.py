"""What a picture of a puzzle shows, as plain data: a method describes its puzzles, `viz/draw.py` paints them.

    Puzzle(
        question=[Panel("rotated", image)],
        answer=[Panel("up", image, (Arrow(90),))],
        captions=[choice("Which way is up?", names, true, predicted)],
    )

Images are (C, H, W) in [0, 1], on any device. `generic` describes the puzzles of a method that says nothing about them, by
the shapes of their fields alone.
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
"""left, top, right and bottom of a part, as fractions of the picture"""
WHOLE: Box = (0.0, 0.0, 1.0, 1.0)
SHORT = 12
"""numbers per row that are still worth printing: a permutation of nine tiles, not a bag of words"""


# ---- marks on a picture


@dataclass(frozen=True)
class Arrow:
    """From the middle of the picture."""

    angle: float
    """degrees counterclockwise from straight up"""


@dataclass(frozen=True)
class Frame:
    """Around a part of the picture."""

    box: Box
    label: str = ""
    role: Literal["first", "second", "other"] = "first"


@dataclass(frozen=True)
class Points:
    """Places of the picture."""

    at: Tensor  # (N, 2) row and column, as fractions of the picture


@dataclass(frozen=True)
class Mask:
    """Patches that are hidden."""

    hidden: Tensor  # (h, w) bool
    opacity: float = 1.0


@dataclass(frozen=True)
class Contours:
    """Lines over the picture."""

    strength: Tensor  # (H, W) in [0, 1]


Mark = Arrow | Frame | Points | Mask | Contours


# ---- what a panel shows


@dataclass(frozen=True)
class Tile:
    """One cell of a board; without an image it is an empty place."""

    image: Tensor | None = None  # (C, h, w)
    label: str = ""
    correct: bool | None = None


@dataclass(frozen=True)
class Board:
    """Tiles side by side, row by row."""

    tiles: Sequence[Tile]
    columns: int = 3


@dataclass(frozen=True)
class Depth:
    """A map of distances, 0 where they are not known, between the two that the color scale begins and ends with."""

    meters: Tensor  # (1, H, W)
    span: tuple[float, float]


@dataclass(frozen=True)
class Normals:
    """A map of surface normals, 0 where they are not known."""

    vectors: Tensor  # (3, H, W)


@dataclass(frozen=True)
class Words:
    text: str


@dataclass(frozen=True)
class Bars:
    """Shares in [0, 1] by name."""

    shares: Mapping[str, float]


@dataclass(frozen=True)
class Panel:
    title: str
    content: Tensor | Board | Depth | Normals | Words | Bars
    marks: Sequence[Mark] = ()
    correct: bool | None = None
    """of what a network answered; none: nobody can say"""


@dataclass(frozen=True)
class Caption:
    """A line below a puzzle: the question, its answer, what the network answered and which parts of that are right."""

    question: str
    answer: str = ""
    predicted: str = ""
    each: tuple[bool, ...] = ()

    @property
    def correct(self) -> bool | None:
        """Whether all of it is right; None: not judged."""
        return all(self.each) if self.each else None

    @property
    def mark(self) -> str:
        sign = {True: "✓", False: "✗", None: ""}[self.correct]
        return f"{sign} ({sum(self.each)} of {len(self.each)})" if len(self.each) > 1 else sign


@dataclass(frozen=True)
class Puzzle:
    """One puzzle: pictures of the question, of its answer and of the network's; `captions` is mostly one line."""

    question: Sequence[Panel]
    answer: Sequence[Panel] = ()
    predicted: Sequence[Panel] = ()
    captions: Sequence[Caption] = ()


def choice(
    question: str, names: Sequence[str], true: Tensor | int, predicted: Tensor | int | None
) -> Caption:
    """The caption of a question with one right answer; `true` and `predicted` are single numbers, from 0."""
    if predicted is None:
        return Caption(question, names[int(true)])
    return Caption(question, names[int(true)], names[int(predicted)], (int(true) == int(predicted),))


def reconstruction(question: str, answer: str, true: Tensor, predicted: Tensor | None = None) -> Caption:
    """The caption of an image that a network paints: no painting is right, so it says how near it comes."""
    if predicted is None:
        return Caption(question, answer)
    error = (true.float() - predicted.float()).square().mean().clamp(min=1e-10)
    return Caption(question, answer, f"≈ {-10 * error.log10():.1f} dB PSNR")


# ---- any other puzzle


def generic(pretext: Any, answers: Mapping[str, Tensor], names: Names) -> Iterator[Puzzle]:
    """Puzzles whose fields are shown by their shapes; `names` are of a field's numbers, from 0.

    A puzzle is a frozen dataclass of tensors whose rows are samples: (B, 1 or 3, H, W) is a picture, (B, T, C, h, w) are
    its tiles, bools (B, h, w) a mask, (B,) and short (B, k) numbers; all else is not shown.
    """
    asked = tensors(pretext)
    seen = [x for x in asked.values() if pixels(x[:1]) is not None]
    total = max((len(x) for x in seen or asked.values()), default=0)  # samples, not constants of the task
    asked = {name: x for name, x in asked.items() if len(x) == total}
    answered = {name: x.detach().cpu() for name, x in answers.items() if len(x) == total}
    captions: list[list[Caption]] = []
    for name in {**asked, **answered}:
        question, answer = asked.get(name), answered.get(name)
        if question is not None and answer is not None and taken_from(answer, question):
            own = (question == answer).flatten(1).all(1).tolist()
            said = [("its own" if right else "another's", (right,)) for right in own]
            captions.append([Caption(plain(name), "", text, right) for text, right in said])
        elif all(x is None or countable(x) for x in (question, answer)):
            captions.append(numbers(plain(name), question, answer, names.get(name, ())))
    shown, painting = (
        {plain(name): seen for name, x in of.items() if (seen := pixels(x)) is not None}
        for of in (asked, answered)
    )
    for i in range(total):
        yield Puzzle(
            [Panel(name, x[i]) for name, x in shown.items()],
            predicted=[Panel(f"{name}, network", x[i]) for name, x in painting.items()],
            captions=[lines[i] for lines in captions],
        )


def plain(name: str) -> str:
    """The name of a field, for people: left_hidden -> left hidden."""
    return name.strip("_").replace("_", " ")


def tensors(pretext: Any) -> dict[str, Tensor]:
    """Fields that are tensors with rows, by name; a tuple of tensors counts its members from 1."""
    found: dict[str, Any] = {}
    for field in fields(pretext):
        value = getattr(pretext, field.name)
        several = isinstance(value, tuple | list)
        found |= {f"{field.name} {i + 1}": v for i, v in enumerate(value)} if several else {field.name: value}
    return {name: x.detach().cpu() for name, x in found.items() if isinstance(x, Tensor) and x.ndim}


def pixels(x: Tensor) -> Tensor | None:
    """(B, …) -> (B, 1 or 3, H, W) in [0, 1], or None for what is no picture."""
    if x.dtype == torch.bool:
        return mask(x)
    if not (x.is_floating_point() or x.dtype == torch.uint8):
        return None
    if x.ndim == 5 and x.shape[2] in (1, 3):
        x = joined(x)
    if x.ndim != 4 or x.shape[1] not in (1, 3):
        return None
    x = x.float().nan_to_num() / (255 if x.dtype == torch.uint8 else 1)
    low, high = (x.amin(), x.amax()) if x.numel() else (0, 1)
    if low < -0.1 or high > 1.1:  # not plain pixels: stretched, so that something is seen
        x = (x - low) / (high - low)
    return x.clamp(0, 1)


def mask(x: Tensor) -> Tensor | None:
    """Bools (B, h, w), (B, 1, h, w) or a long (B, h·w) -> (B, 1, h, w), white where true."""
    side = math.isqrt(x.shape[1]) if x.ndim == 2 else 0
    if x.ndim == 2 and x.shape[1] > SHORT and side**2 == x.shape[1]:
        x = x.view(-1, side, side)
    x = x[:, None] if x.ndim == 3 else x
    return x.float() if x.ndim == 4 and x.shape[1] == 1 else None


def joined(tiles: Tensor) -> Tensor:
    """(B, T, C, h, w) -> (B, C, rows·h, columns·w) with thin white seams, as square as T allows."""
    b, t, c, h, w = tiles.shape
    across = math.ceil(math.sqrt(t))
    down = math.ceil(t / across)
    seam = max(1, h // 16)
    white = 255.0 if tiles.dtype == torch.uint8 else 1.0
    framed = torch.full((b, across * down, c, h + seam, w + seam), white).to(tiles.dtype)
    framed[:, :t, :, :h, :w] = tiles
    grid = framed.view(b, down, across, c, h + seam, w + seam).permute(0, 3, 1, 4, 2, 5)
    return grid.reshape(b, c, down * (h + seam), across * (w + seam))[..., :-seam, :-seam]


def countable(x: Tensor) -> bool:
    """Whether its rows are numbers that can be printed."""
    return pixels(x) is None and (x.ndim == 1 or (x.ndim == 2 and x.shape[1] <= SHORT))


def numbers(
    name: str, asked: Tensor | None, answered: Tensor | None, names: Sequence[str] = ()
) -> list[Caption]:
    """One line per sample; answers are judged where they are exact: whole numbers, yes and no."""
    questions, answers = ([] if x is None else [printed(row, names) for row in x] for x in (asked, answered))
    right: list[list[bool]] = []
    if asked is not None and answered is not None and asked.shape == answered.shape:
        right = [] if asked.is_floating_point() else (asked == answered).view(len(asked), -1).tolist()
    rows = itertools.zip_longest(questions, answers, right)
    return [Caption(name, q or "", a or "", tuple(r or ())) for q, a, r in rows]


def taken_from(answered: Tensor, asked: Tensor) -> bool:
    """Whether all answered pictures are pictures of the puzzle, so that the model has chosen, not painted."""
    if pixels(answered[:1]) is None or answered.shape[1:] != asked.shape[1:]:
        return False
    return all(bool((asked == one).flatten(1).all(1).any()) for one in answered)


def printed(x: Tensor, names: Sequence[str] = ()) -> str:
    values = x.reshape(-1).tolist()
    if names:
        return ", ".join(names[int(v)] for v in values)
    if x.dtype == torch.bool:
        return " ".join("yes" if v else "no" for v in values)
    return " ".join(f"{v:.3g}" if isinstance(v, float) else f"{v}" for v in values)

"""A contact sheet of any method's puzzles, drawn from the shapes of their fields alone.

A puzzle is a frozen dataclass of tensors whose rows are samples: (B, 1 or 3, H, W) is a picture,
(B, T, C, h, w) are its tiles, bools (B, h, w) a mask, (B,) and short (B, k) numbers; all else is not drawn.
`cells` reads it, `puzzles` paints the cells into one image, the HTML report sets them as pictures and text.
"""

import itertools
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, fields
from functools import cache
from pathlib import Path
from typing import Any

import torch
from PIL import Image, ImageDraw, ImageFont
from torch import Tensor

Rgb = tuple[int, int, int]
Names = Mapping[str, Sequence[str]]
NAMELESS: Names = {}

SHORT = 12
"""numbers per row that are still worth printing: a permutation of nine tiles, not a bag of words"""
TILE, LARGEST = 144, 192
"""pixels: a picture is enlarged in whole steps to about the first and never drawn larger than the second"""
WIDTH = 1280
"""pixels of the widest sheet"""
MARGIN, GAP, BETWEEN = 28, 6, 28
"""pixels around the sheet, between pictures of one puzzle, between puzzles"""
PAPER: Rgb = (255, 255, 255)
INK: Rgb = (28, 32, 38)
MUTED: Rgb = (106, 114, 126)
RIGHT: Rgb = (21, 115, 71)
WRONG: Rgb = (190, 38, 38)


@dataclass(frozen=True)
class Note:
    """A line below a puzzle: what was asked, what was answered, which of its numbers are right (none: not judged)."""

    name: str
    asked: str = ""
    answered: str = ""
    each: tuple[bool, ...] = ()

    @property
    def right(self) -> bool | None:
        """Whether all of it is right; None: not judged."""
        return all(self.each) if self.each else None

    @property
    def mark(self) -> str:
        if len(self.each) > 1:
            return f"({sum(self.each)} of {len(self.each)})"
        return {True: "✓", False: "✗", None: ""}[self.right]


@dataclass(frozen=True)
class Cell:
    """One puzzle: pictures under their names, numbers as notes."""

    pictures: tuple[tuple[str, Image.Image], ...]
    notes: tuple[Note, ...] = ()


def puzzles(
    pretext: Any,
    solved: Mapping[str, Tensor] | None = None,
    *,
    rows: int = 8,
    title: str,
    names: Names = NAMELESS,
) -> Image.Image:
    """The first `rows` puzzles with their answers; with `solved`, the model's own answers beside them."""
    drawn = cells(pretext, solved or {}, rows, names)
    return paint(drawn, title=title, subtitle=tally(drawn))


def images(x: Tensor, captions: Sequence[str] = (), columns: int = 8, title: str = "") -> Image.Image:
    """(N, 1 or 3, H, W) in [0, 1] or uint8 -> a contact sheet of `columns`, a caption below each picture."""
    notes = [(Note("", caption),) for caption in captions] or [()] * len(x)
    drawn = [Cell((("", picture),), note) for picture, note in zip(pictures(x), notes, strict=True)]
    return paint(drawn, title=title, columns=columns)


# reading a puzzle


def cells(pretext: Any, solved: Mapping[str, Tensor], rows: int, names: Names = NAMELESS) -> list[Cell]:
    """The first `rows` samples of a puzzle, whatever its fields are; `names` are of a field's numbers, from 0."""
    asked = tensors(pretext)
    looks = [x for x in asked.values() if pixels(x[:1]) is not None]
    total = max(
        (len(x) for x in looks or asked.values()), default=0
    )  # rows of samples, not constants of the task
    asked = {name: x[:rows] for name, x in asked.items() if len(x) == total}
    answered = {name: x[:rows].detach().cpu() for name, x in solved.items() if len(x) == total}

    columns: dict[str, list[Image.Image]] = {}
    notes: list[list[Note]] = []
    for name in {**asked, **answered}:
        question, answer = asked.get(name), answered.get(name)
        for label, x in ((name, question), (f"{name}, answered", answer)):
            if x is not None and pixels(x[:rows]) is not None:
                columns[label] = pictures(x[:rows])
        if question is not None and answer is not None and taken_from(answer[:rows], question):
            notes.append(choices(name, question[:rows], answer[:rows]))
        elif all(x is None or countable(x) for x in (question, answer)):
            some = (None if x is None else x[:rows] for x in (question, answer))
            notes.append(numbers(name, *some, names=names.get(name, ())))
    return [
        Cell(tuple((name, column[i]) for name, column in columns.items()), tuple(note[i] for note in notes))
        for i in range(min(rows, total))
    ]


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
    low, high = x.amin(), x.amax()
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


def pictures(x: Tensor) -> list[Image.Image]:
    """(B, 1 or 3, H, W) -> as many images, of the size they came in."""
    shown = pixels(x)
    if shown is None:
        raise ValueError(f"no pictures in a tensor {tuple(x.shape)} of {x.dtype}; expected (B, 1 or 3, H, W)")
    bytes_ = (shown * 255).round().to(torch.uint8).expand(-1, 3, -1, -1).permute(0, 2, 3, 1)
    return [Image.fromarray(one.contiguous().numpy()) for one in bytes_]


def countable(x: Tensor) -> bool:
    """Whether its rows are numbers that can be printed."""
    return pixels(x) is None and (x.ndim == 1 or (x.ndim == 2 and x.shape[1] <= SHORT))


def numbers(
    name: str, asked: Tensor | None, answered: Tensor | None, names: Sequence[str] = ()
) -> list[Note]:
    """One note per sample; answers are judged where they are exact: whole numbers, yes and no."""
    questions, answers = ([] if x is None else [printed(row, names) for row in x] for x in (asked, answered))
    right: list[list[bool]] = []
    if asked is not None and answered is not None and asked.shape == answered.shape:
        right = [] if asked.is_floating_point() else (asked == answered).view(len(asked), -1).tolist()
    rows = itertools.zip_longest(questions, answers, right)
    return [Note(name, q or "", a or "", tuple(r or ())) for q, a, r in rows]


def taken_from(answered: Tensor, asked: Tensor) -> bool:
    """Whether all answered pictures are pictures of the puzzle, so that the model has chosen, not painted."""
    if pixels(answered[:1]) is None or answered.shape[1:] != asked.shape[1:]:
        return False
    return all(bool((asked == one).flatten(1).all(1).any()) for one in answered)


def choices(name: str, asked: Tensor, answered: Tensor) -> list[Note]:
    own = (asked == answered).flatten(1).all(1).tolist()
    return [Note(name, answered="its own" if right else "another's", each=(right,)) for right in own]


def printed(x: Tensor, names: Sequence[str] = ()) -> str:
    values = x.reshape(-1).tolist()
    if names:
        return ", ".join(names[int(v)] for v in values)
    if x.dtype == torch.bool:
        return " ".join("yes" if v else "no" for v in values)
    return " ".join(f"{v:.3g}" if isinstance(v, float) else f"{v}" for v in values)


def tally(drawn: Sequence[Cell]) -> str:
    """ "turn: 6 of 8 answered rightly", of all numbers that were judged."""
    judged: dict[str, list[bool]] = {}
    for note in (note for cell in drawn for note in cell.notes if note.each):
        judged.setdefault(note.name, []).extend(note.each)
    return "; ".join(
        f"{name}: {sum(right)} of {len(right)} answered rightly" for name, right in judged.items()
    )


# painting


@cache
def font(size: int, bold: bool = False) -> ImageFont.FreeTypeFont:
    """DejaVu, which comes with matplotlib: it has the arrow and the marks that Pillow's own font lacks."""
    import matplotlib

    file = "DejaVuSans-Bold.ttf" if bold else "DejaVuSans.ttf"
    return ImageFont.truetype(Path(matplotlib.get_data_path(), "fonts", "ttf", file), size)


def paint(drawn: Sequence[Cell], *, title: str = "", subtitle: str = "", columns: int = 0) -> Image.Image:
    """All cells on one sheet: `columns` of them side by side, by default as many as fit, in even lines."""
    shown = [level([(name, enlarged(picture)) for name, picture in cell.pictures]) for cell in drawn]
    heads = font(15)
    names = [name for name, _ in drawn[0].pictures] if drawn else []
    widths = [
        max(math.ceil(heads.getlength(name)), *(row[i][1].width for row in shown))
        for i, name in enumerate(names)
    ]
    wide = sum(widths) + GAP * max(0, len(widths) - 1)
    wide = max([wide, *(0 if columns else length(note) for cell in drawn for note in cell.notes)])
    high = max((p.height for cell in shown for _, p in cell), default=0)
    notes = max((len(cell.notes) for cell in drawn), default=0)
    head = 24 if any(names) else 0

    between = GAP * 2 if columns else BETWEEN
    across = columns or max(1, min(len(drawn), (WIDTH - 2 * MARGIN + between) // (wide + between)))
    lines = math.ceil(len(drawn) / across)
    across = columns or math.ceil(len(drawn) / max(1, lines))
    step = high + notes * 24 + between
    top = MARGIN + (38 if title else 0) + (28 if subtitle else 0)
    width = 2 * MARGIN + across * (wide + between) - between
    width = max(
        width,
        *(2 * MARGIN + math.ceil(f.getlength(t)) for f, t in ((font(22, True), title), (font(17), subtitle))),
    )
    sheet = Image.new("RGB", (width, top + head + lines * step - between + MARGIN), PAPER)
    pen = ImageDraw.Draw(sheet)
    pen.text((MARGIN, MARGIN - 6), title, INK, font(22, True))
    pen.text((MARGIN, top - 32), subtitle, MUTED, font(17))

    for i, (cell, row) in enumerate(zip(drawn, shown, strict=True)):
        x, y = MARGIN + i % across * (wide + between), top + head + i // across * step
        at = x
        for (name, picture), w in zip(row, widths, strict=True):
            if i < across:
                pen.text((at, y - head), name, MUTED, heads)
            sheet.paste(picture, (at, y))
            at += w + GAP
        for line, note in enumerate(cell.notes):
            write(pen, note, x, y + high + 5 + line * 24, wide)
    return sheet


def enlarged(picture: Image.Image) -> Image.Image:
    """Small pictures by a whole factor, unsmoothed, so that their pixels are seen; large ones reduced."""
    side = max(picture.size)
    times = max(1, round(TILE / side))
    if side <= LARGEST:
        return picture.resize((picture.width * times, picture.height * times), Image.Resampling.NEAREST)
    size = tuple(max(1, round(s * LARGEST / side)) for s in picture.size)
    return picture.resize((size[0], size[1]), Image.Resampling.LANCZOS)


def level(row: Sequence[tuple[str, Image.Image]]) -> list[tuple[str, Image.Image]]:
    """All pictures of a puzzle as high as the highest."""
    high = max((p.height for _, p in row), default=0)
    sizes = [(round(p.width * high / p.height), high) for _, p in row]
    return [
        (name, p.resize(size, Image.Resampling.NEAREST)) for (name, p), size in zip(row, sizes, strict=True)
    ]


def spans(note: Note) -> list[tuple[str, Rgb]]:
    """A note in coloured pieces: grey name, black question, answer in the colour of its verdict."""
    colour = {True: RIGHT, False: WRONG, None: INK}[note.right]
    pieces = [(note.name, MUTED), (note.asked, INK)]
    if note.answered:
        arrow = "→ answered" if note.asked else "answered"
        pieces += [(arrow, MUTED), (f"{note.answered} {note.mark}".rstrip(), colour)]
    return [(text, ink) for text, ink in pieces if text]


def length(note: Note) -> int:
    return math.ceil(sum(font(17).getlength(text + " ") for text, _ in spans(note)))


def write(pen: ImageDraw.ImageDraw, note: Note, x: float, y: float, room: int) -> None:
    """One note from (x, y) on; what finds no room is cut and ends in an ellipsis."""
    end = x + room
    for text, ink in spans(note):
        while text and x + font(17).getlength(text) > end + 1:
            text = text.rstrip("…")[:-1] + "…" if len(text.rstrip("…")) > 1 else ""
        pen.text((x, y), text, ink, font(17))
        x += font(17).getlength(text + " ")

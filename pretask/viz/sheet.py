"""Contact sheets: puzzles with question, answer and what the network answered, or any other pictures side by side.

`cells` turns puzzles into pictures and captions, `paint` puts them on one sheet, the HTML report sets them as pictures
and text.
"""

import itertools
import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

from PIL import Image, ImageDraw
from torch import Tensor

from pretask.viz import draw
from pretask.viz.draw import INK, MUTED, PAPER, RIGHT, WRONG, Rgb, cut, font
from pretask.viz.puzzle import Caption, Puzzle, pixels

TILE, LARGEST = 144, 192
"""pixels: a picture is enlarged in whole steps to about the first and never drawn larger than the second"""
WIDTH = 1400
"""pixels of the widest sheet"""
MARGIN, GAP, BETWEEN = 28, 6, 32
"""pixels around the sheet, between pictures of one puzzle, between puzzles"""
POINTER = 34
"""pixels between the pictures of question, answer and network's answer; an arrow has room there"""
LINE, HEADS = 24, 22
"""pixels of a line of a caption, of the titles above pictures"""


@dataclass(frozen=True)
class Cell:
    """One puzzle: pictures under their names, and captions."""

    pictures: tuple[tuple[str, Image.Image], ...]
    captions: tuple[Caption, ...] = ()
    parts: tuple[int, ...] = ()
    """the pictures with which the answer and the network's answer begin; an arrow points to the first"""


def puzzles(shown: Iterable[Puzzle], *, rows: int = 8, title: str, about: str = "") -> Image.Image:
    """The first `rows` puzzles: questions, their answers and, where a network has answered, its own."""
    drawn = cells(shown, rows)
    return paint(drawn, title=title, subtitle=" · ".join(filter(None, (about, tally(drawn)))))


def cells(shown: Iterable[Puzzle], rows: int) -> list[Cell]:
    """The first `rows` puzzles as pictures LARGEST pixels high, and text."""
    return [cell(one) for one in itertools.islice(shown, rows)]


def cell(shown: Puzzle, side: int = LARGEST) -> Cell:
    parts = [part for part in (shown.question, shown.answer, shown.predicted) if part]
    starts = itertools.accumulate((len(part) for part in parts[:-1]), initial=0)
    return Cell(
        tuple((one.title, draw.panel(one, side)) for part in parts for one in part),
        tuple(shown.captions),
        tuple(itertools.islice(starts, 1, None)),
    )


def images(x: Tensor, captions: Sequence[str] = (), columns: int = 8, title: str = "") -> Image.Image:
    """(N, 1 or 3, H, W) in [0, 1] or uint8 -> a contact sheet of `columns`, a caption below each picture."""
    texts = [(Caption("", caption),) for caption in captions] or [()] * len(x)
    drawn = [Cell((("", picture),), text) for picture, text in zip(pictures(x), texts, strict=True)]
    return paint(drawn, title=title, columns=columns)


def pictures(x: Tensor) -> list[Image.Image]:
    """(B, 1 or 3, H, W) -> as many images, of the size they came in."""
    shown = pixels(x)
    if shown is None:
        raise ValueError(f"no pictures in a tensor {tuple(x.shape)} of {x.dtype}; expected (B, 1 or 3, H, W)")
    return [draw.image(one) for one in shown]


def tally(drawn: Sequence[Cell]) -> str:
    """ "6 of 8 answered correctly", of all questions that were judged; with their names where they are several."""
    judged: dict[str, list[bool]] = {}
    for caption in (caption for cell in drawn for caption in cell.captions if caption.each):
        judged.setdefault(caption.question, []).extend(caption.each)
    said = {name: f"{sum(right)} of {len(right)} answered correctly" for name, right in judged.items()}
    return "; ".join(said.values() if len(said) == 1 else (f"{name}: {text}" for name, text in said.items()))


# painting


def paint(drawn: Sequence[Cell], *, title: str = "", subtitle: str = "", columns: int = 0) -> Image.Image:
    """All cells on one sheet: `columns` of them side by side, by default as many as fit, in even lines."""
    shown = [level([(name, enlarged(picture)) for name, picture in one.pictures]) for one in drawn]
    heads = font(14)
    names = [name for name, _ in drawn[0].pictures] if drawn else []
    widths = [
        max(*(math.ceil(heads.getlength(row[i][0])) for row in shown), *(row[i][1].width for row in shown))
        for i in range(len(names))
    ]
    parts = drawn[0].parts if drawn else ()
    spaces = [POINTER if i in parts else GAP for i in range(1, len(widths))]
    wide = sum(widths) + sum(spaces)
    wide = max([wide, *(0 if columns else length(text) for one in drawn for text in one.captions)])
    wide = min(wide, max(WIDTH - 2 * MARGIN, sum(widths) + sum(spaces)))
    high = max((p.height for row in shown for _, p in row), default=0)
    lines = max((sum(map(rows_of, one.captions)) for one in drawn), default=0)
    head = HEADS if any(name for row in shown for name, _ in row) else 0

    between = GAP * 2 if columns else BETWEEN
    across = columns or max(1, min(len(drawn), (WIDTH - 2 * MARGIN + between) // (wide + between)))
    down = math.ceil(len(drawn) / across)
    across = columns or math.ceil(len(drawn) / max(1, down))
    step = head + high + lines * LINE + (6 if lines else 0) + between
    width = 2 * MARGIN + across * (wide + between) - between
    texts = [(title, font(24, True), INK, 34), (subtitle, font(16), MUTED, 26)]
    width = max(width, *(min(WIDTH, 2 * MARGIN + math.ceil(f.getlength(text))) for text, f, _, _ in texts))
    written = [
        (line, f, ink, tall)
        for text, f, ink, tall in texts
        for line in draw.wrapped(text, f, width - 2 * MARGIN)
    ]
    top = MARGIN + sum(tall for *_, tall in written) + (14 if written else 0)
    sheet = Image.new("RGB", (width, top + down * step - between + MARGIN), PAPER)
    pen, y = ImageDraw.Draw(sheet), MARGIN - 6
    for line, face, ink, tall in written:
        pen.text((MARGIN, y), line, ink, face)
        y += tall

    for i, (one, row) in enumerate(zip(drawn, shown, strict=True)):
        x, y = MARGIN + i % across * (wide + between), top + i // across * step
        at = x
        for k, ((name, picture), w) in enumerate(zip(row, widths, strict=True)):
            if k in one.parts[:1]:
                pen.text((at - POINTER / 2, y + head + high / 2), "→", MUTED, font(22), anchor="mm")
            pen.text((at, y), name, MUTED, heads)
            sheet.paste(picture, (at, y + head))
            at += w + [*spaces, 0][k]
        y += head + high + 6
        for text in one.captions:
            y = write(pen, text, x, y, wide)
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


def spans(caption: Caption) -> list[list[tuple[str, Rgb, bool]]]:
    """A caption as lines of colored pieces: question and bold answer, then the network's in the color of its verdict."""
    asked = [(caption.question, INK, False), (caption.answer, INK, bool(caption.question))]
    lines = [[piece for piece in asked if piece[0]]]
    if caption.predicted:
        color = {True: RIGHT, False: WRONG, None: INK}[caption.correct]
        said = f"{caption.predicted} {caption.mark}".rstrip()
        lines.append([("Network:", MUTED, False), (said, color, True)])
    return [line for line in lines if line]


def rows_of(caption: Caption) -> int:
    return len(spans(caption))


def length(caption: Caption) -> int:
    """Of its longest line, pixels."""
    return max(
        (
            math.ceil(sum(font(16, bold).getlength(text + " ") for text, _, bold in line))
            for line in spans(caption)
        ),
        default=0,
    )


def write(pen: ImageDraw.ImageDraw, caption: Caption, x: float, y: int, room: int) -> int:
    """One caption from (x, y) on; what finds no room is cut and ends in an ellipsis. Returns where the next begins."""
    for line in spans(caption):
        at = x
        for text, ink, bold in line:
            face = font(16, bold)
            text = cut(text, face, max(0, x + room - at + 1))
            pen.text((at, y), text, ink, face)
            at += face.getlength(text + " ")
        y += LINE
    return y

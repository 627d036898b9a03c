"""Contact sheets: puzzles with question, answer and the network's answer, or any other pictures, in a grid.

`cells` turns puzzles into pictures and captions; `paint` arranges them on one sheet, and the HTML report shows them as
pictures and text.
"""

import itertools
import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

from PIL import Image, ImageDraw
from torch import Tensor

from pretask.viz import draw
from pretask.viz.draw import CORRECT, INK, MUTED, PAPER, WRONG, Rgb, font, truncate
from pretask.viz.puzzle import Caption, Puzzle, to_pixels

TARGET_SIDE, MAX_SIDE = 144, 192
"""pixels: pictures are enlarged by a whole factor to about the first, and never drawn larger than the second"""
MAX_WIDTH = 1400
"""maximum width of a sheet, pixels"""
MARGIN, GAP, CELL_GAP = 28, 6, 32
"""margin of the sheet, gap between pictures of one puzzle, and gap between puzzles, pixels"""
ARROW_GAP = 34
"""gap between question, answer and network's answer, pixels; wide enough for an arrow"""
LINE_HEIGHT, TITLE_HEIGHT = 24, 22
"""height of a line of a caption, and of the titles above pictures, pixels"""


@dataclass(frozen=True)
class Cell:
    """One puzzle: pictures with their titles, and captions."""

    pictures: tuple[tuple[str, Image.Image], ...]
    captions: tuple[Caption, ...] = ()
    part_starts: tuple[int, ...] = ()
    """index of the first picture of the answer and of the network's answer; an arrow points to the former"""


def puzzles(examples: Iterable[Puzzle], *, rows: int = 8, title: str, about: str = "") -> Image.Image:
    """A sheet of the first `rows` puzzles: questions, answers and, if present, the network's answers."""
    drawn = cells(examples, rows)
    return paint(drawn, title=title, subtitle=" · ".join(filter(None, (about, tally(drawn)))))


def cells(examples: Iterable[Puzzle], rows: int) -> list[Cell]:
    """The first `rows` puzzles as pictures MAX_SIDE pixels high, and captions."""
    return [cell(one) for one in itertools.islice(examples, rows)]


def cell(puzzle: Puzzle, side: int = MAX_SIDE) -> Cell:
    parts = [part for part in (puzzle.question, puzzle.answer, puzzle.predicted) if part]
    starts = itertools.accumulate((len(part) for part in parts[:-1]), initial=0)
    return Cell(
        tuple((one.title, draw.render_panel(one, side)) for part in parts for one in part),
        tuple(puzzle.captions),
        tuple(itertools.islice(starts, 1, None)),
    )


def images(x: Tensor, captions: Sequence[str] = (), columns: int = 8, title: str = "") -> Image.Image:
    """(N, 1 or 3, H, W) in [0, 1] or uint8 -> a contact sheet with `columns` columns and a caption below each picture."""
    texts = [(Caption("", caption),) for caption in captions] or [()] * len(x)
    drawn = [Cell((("", picture),), text) for picture, text in zip(pictures(x), texts, strict=True)]
    return paint(drawn, title=title, columns=columns)


def pictures(x: Tensor) -> list[Image.Image]:
    """(B, 1 or 3, H, W) -> B images of the same size."""
    unit = to_pixels(x)
    if unit is None:
        raise ValueError(f"no pictures in a tensor {tuple(x.shape)} of {x.dtype}; expected (B, 1 or 3, H, W)")
    return [draw.to_pil(one) for one in unit]


def tally(drawn: Sequence[Cell]) -> str:
    """ "6 of 8 answered correctly", over all captions with an exact solution; per question if there are several."""
    answered: dict[str, list[bool]] = {}
    for caption in (caption for cell in drawn for caption in cell.captions if caption.parts_correct):
        answered.setdefault(caption.question, []).extend(caption.parts_correct)
    counts = {name: f"{sum(ok)} of {len(ok)} answered correctly" for name, ok in answered.items()}
    return "; ".join(
        counts.values() if len(counts) == 1 else (f"{name}: {text}" for name, text in counts.items())
    )


# ---- painting


def paint(drawn: Sequence[Cell], *, title: str = "", subtitle: str = "", columns: int = 0) -> Image.Image:
    """Arrange all cells on one sheet with `columns` columns; by default as many as fit, in balanced rows."""
    rows = [equalize_heights([(name, enlarge(picture)) for name, picture in one.pictures]) for one in drawn]
    title_font = font(14)
    names = [name for name, _ in drawn[0].pictures] if drawn else []
    widths = [
        max(*(math.ceil(title_font.getlength(row[i][0])) for row in rows), *(row[i][1].width for row in rows))
        for i in range(len(names))
    ]
    starts = drawn[0].part_starts if drawn else ()
    spaces = [ARROW_GAP if i in starts else GAP for i in range(1, len(widths))]
    wide = sum(widths) + sum(spaces)
    wide = max([wide, *(0 if columns else caption_width(text) for one in drawn for text in one.captions)])
    wide = min(wide, max(MAX_WIDTH - 2 * MARGIN, sum(widths) + sum(spaces)))
    high = max((p.height for row in rows for _, p in row), default=0)
    lines = max((sum(map(line_count, one.captions)) for one in drawn), default=0)
    head = TITLE_HEIGHT if any(name for row in rows for name, _ in row) else 0

    between = GAP * 2 if columns else CELL_GAP
    across = columns or max(1, min(len(drawn), (MAX_WIDTH - 2 * MARGIN + between) // (wide + between)))
    down = math.ceil(len(drawn) / across)
    across = columns or math.ceil(len(drawn) / max(1, down))
    step = head + high + lines * LINE_HEIGHT + (6 if lines else 0) + between
    width = 2 * MARGIN + across * (wide + between) - between
    texts = [(title, font(24, True), INK, 34), (subtitle, font(16), MUTED, 26)]
    width = max(
        width, *(min(MAX_WIDTH, 2 * MARGIN + math.ceil(f.getlength(text))) for text, f, _, _ in texts)
    )
    written = [
        (line, f, ink, tall)
        for text, f, ink, tall in texts
        for line in draw.wrap(text, f, width - 2 * MARGIN)
    ]
    top = MARGIN + sum(tall for *_, tall in written) + (14 if written else 0)
    sheet = Image.new("RGB", (width, top + down * step - between + MARGIN), PAPER)
    pen, y = ImageDraw.Draw(sheet), MARGIN - 6
    for line, face, ink, tall in written:
        pen.text((MARGIN, y), line, ink, face)
        y += tall

    for i, (one, row) in enumerate(zip(drawn, rows, strict=True)):
        x, y = MARGIN + i % across * (wide + between), top + i // across * step
        at = x
        for k, ((name, picture), w) in enumerate(zip(row, widths, strict=True)):
            if k in one.part_starts[:1]:
                pen.text((at - ARROW_GAP / 2, y + head + high / 2), "→", MUTED, font(22), anchor="mm")
            pen.text((at, y), name, MUTED, title_font)
            sheet.paste(picture, (at, y + head))
            at += w + [*spaces, 0][k]
        y += head + high + 6
        for text in one.captions:
            y = write_caption(pen, text, x, y, wide)
    return sheet


def enlarge(picture: Image.Image) -> Image.Image:
    """Enlarge a small picture by a whole factor without smoothing, so that its pixels are visible; shrink a large one."""
    side = max(picture.size)
    factor = max(1, round(TARGET_SIDE / side))
    if side <= MAX_SIDE:
        return picture.resize((picture.width * factor, picture.height * factor), Image.Resampling.NEAREST)
    size = tuple(max(1, round(s * MAX_SIDE / side)) for s in picture.size)
    return picture.resize((size[0], size[1]), Image.Resampling.LANCZOS)


def equalize_heights(row: Sequence[tuple[str, Image.Image]]) -> list[tuple[str, Image.Image]]:
    """Enlarge all pictures of a puzzle to the height of the tallest."""
    high = max((p.height for _, p in row), default=0)
    sizes = [(round(p.width * high / p.height), high) for _, p in row]
    return [
        (name, p.resize(size, Image.Resampling.NEAREST)) for (name, p), size in zip(row, sizes, strict=True)
    ]


def caption_lines(caption: Caption) -> list[list[tuple[str, Rgb, bool]]]:
    """Lines of (text, color, bold): question and answer, then the network's answer in green or red."""
    first = [(caption.question, INK, False), (caption.answer, INK, bool(caption.question))]
    lines = [[piece for piece in first if piece[0]]]
    if caption.predicted:
        color = {True: CORRECT, False: WRONG, None: INK}[caption.correct]
        answer = f"{caption.predicted} {caption.mark}".rstrip()
        lines.append([("Network:", MUTED, False), (answer, color, True)])
    return [line for line in lines if line]


def line_count(caption: Caption) -> int:
    return len(caption_lines(caption))


def caption_width(caption: Caption) -> int:
    """Width of the longest line, pixels."""
    return max(
        (
            math.ceil(sum(font(16, bold).getlength(text + " ") for text, _, bold in line))
            for line in caption_lines(caption)
        ),
        default=0,
    )


def write_caption(pen: ImageDraw.ImageDraw, caption: Caption, x: float, y: int, max_width: int) -> int:
    """Write a caption at (x, y), truncated to `max_width`; returns the y of the next caption."""
    for line in caption_lines(caption):
        at = x
        for text, ink, bold in line:
            face = font(16, bold)
            text = truncate(text, face, max(0, x + max_width - at + 1))
            pen.text((at, y), text, ink, face)
            at += face.getlength(text + " ")
        y += LINE_HEIGHT
    return y

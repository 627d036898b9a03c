"""Panels of a puzzle as images: what `viz/puzzle.py` describes, painted `side` pixels high."""

import math
from collections.abc import Callable
from functools import cache
from pathlib import Path

import numpy as np
import torch
from PIL import Image, ImageDraw, ImageFont
from torch import Tensor

from pretask.viz.puzzle import (
    WHOLE,
    Arrow,
    Bars,
    Board,
    Contours,
    Depth,
    Frame,
    Mark,
    Mask,
    Normals,
    Panel,
    Points,
    Tile,
    Words,
)

Rgb = tuple[int, int, int]
PAPER: Rgb = (255, 255, 255)
INK: Rgb = (28, 32, 38)
MUTED: Rgb = (106, 114, 126)
RIGHT: Rgb = (21, 115, 71)
WRONG: Rgb = (190, 38, 38)
FIRST: Rgb = (255, 140, 26)
SECOND: Rgb = (38, 132, 255)
EMPTY: Rgb = (240, 242, 245)
EDGE: Rgb = (193, 199, 207)
HIDDEN: Rgb = (156, 162, 171)
LINE: Rgb = (255, 221, 51)

SMOOTH = 48
"""pixels: larger images are enlarged smoothly, smaller ones show their pixels"""
GRID = 8
"""pixels: masked patches that are larger are parted by lines"""
TIMES = 4
"""lines are painted so many times as large, and reduced"""


@cache
def font(size: int, bold: bool = False) -> ImageFont.FreeTypeFont:
    """DejaVu, which comes with matplotlib: it has the arrow and the marks that Pillow's own font lacks."""
    import matplotlib

    file = "DejaVuSans-Bold.ttf" if bold else "DejaVuSans.ttf"
    return ImageFont.truetype(Path(matplotlib.get_data_path(), "fonts", "ttf", file), size)


def panel(shown: Panel, side: int) -> Image.Image:
    """A panel with its marks; what a network answered has a frame and a mark, green if it is right and red if not."""
    picture = content(shown.content, side)
    verdict = None if shown.correct is None else (RIGHT if shown.correct else WRONG)
    for mark in shown.marks:
        picture = marked(picture, mark, verdict or FIRST)
    if verdict is None:
        return picture
    width = max(2, side // 48)

    def framed(pen: ImageDraw.ImageDraw, t: int) -> None:
        w, h = picture.width * t, picture.height * t
        pen.rectangle((0, 0, w - 1, h - 1), outline=verdict, width=width * t)
        badge(pen, (w - 0.09 * h, 0.09 * h), 0.09 * h, verdict, bool(shown.correct))

    return over(picture, framed)


def content(shown: Tensor | Board | Depth | Normals | Words | Bars, side: int) -> Image.Image:
    match shown:
        case Board():
            return board(shown, side)
        case Depth():
            return depth(shown, side)
        case Normals():
            return normals(shown, side)
        case Words():
            return words(shown, side)
        case Bars():
            return bars(shown, side)
        case _:
            return outlined(scaled(image(shown), side))


def outlined(picture: Image.Image) -> Image.Image:
    """With a faint edge, which parts white from white."""
    edge = (0, 0, picture.width - 1, picture.height - 1)
    ImageDraw.Draw(picture, "RGBA").rectangle(edge, outline=(0, 0, 0, 40))
    return picture


def image(x: Tensor) -> Image.Image:
    """(1 or 3, H, W) in [0, 1], or uint8 -> an image of the size it came in."""
    x = x.detach().cpu()
    x = x.float().nan_to_num().clamp(0, 1) * 255 if x.is_floating_point() else x
    x = x.round().to(torch.uint8).expand(3, -1, -1).permute(1, 2, 0)
    return Image.fromarray(x.contiguous().numpy())


def scaled(picture: Image.Image, side: int) -> Image.Image:
    """As high as `side`; small ones show their pixels."""
    how = Image.Resampling.NEAREST if max(picture.size) < SMOOTH else Image.Resampling.BICUBIC
    how = Image.Resampling.LANCZOS if picture.height > side else how
    return picture.resize((max(1, round(picture.width * side / picture.height)), side), how)


def over(picture: Image.Image, paint: Callable[[ImageDraw.ImageDraw, int], None]) -> Image.Image:
    """The picture with what `paint` draws, TIMES as large, on a transparent sheet over it."""
    sheet = Image.new("RGBA", (picture.width * TIMES, picture.height * TIMES))
    paint(ImageDraw.Draw(sheet), TIMES)
    sheet = sheet.resize(picture.size, Image.Resampling.BOX)
    return Image.alpha_composite(picture.convert("RGBA"), sheet).convert("RGB")


# ---- marks


def marked(picture: Image.Image, mark: Mark, color: Rgb) -> Image.Image:
    match mark:
        case Arrow():
            return over(picture, lambda pen, t: arrow(pen, picture.size, mark.angle, color, t))
        case Frame():
            return labeled(over(picture, lambda pen, t: frame(pen, picture.size, mark, t)), mark)
        case Points():
            return over(picture, lambda pen, t: points(pen, picture.size, mark, t))
        case Mask():
            return over(picture, lambda pen, t: masked(pen, picture.size, mark, t))
        case Contours():
            strength = mark.strength.detach().cpu().float().clamp(0, 1)
            alpha = scaled(image(strength[None]), picture.height).convert("L")
            faint = Image.blend(picture, Image.new("RGB", picture.size), 0.45)
            return Image.composite(Image.new("RGB", picture.size, LINE), faint, alpha)


def arrow(pen: ImageDraw.ImageDraw, size: tuple[int, int], angle: float, color: Rgb, t: int) -> None:
    """White-edged, through the middle, `angle` counterclockwise from straight up."""
    w, h = size[0] * t, size[1] * t
    across, up = -math.sin(math.radians(angle)), -math.cos(math.radians(angle))

    def shape(grow: float) -> list[tuple[float, float]]:
        """Of length 0.64 of the height; points as (along, beside) in units of it."""
        half, wide = 0.03 + grow, 0.105 + 1.7 * grow
        outline = [
            (-0.30 - grow, -half), (0.10 - grow, -half), (0.10 - grow, -wide), (0.32 + 1.8 * grow, 0.0),
            (0.10 - grow, wide), (0.10 - grow, half), (-0.30 - grow, half),
        ]  # fmt: skip
        return [(w / 2 + h * (a * across - b * up), h / 2 + h * (a * up + b * across)) for a, b in outline]

    pen.polygon(shape(0.018), fill=PAPER)
    pen.polygon(shape(0.0), fill=color)


def frame(pen: ImageDraw.ImageDraw, size: tuple[int, int], mark: Frame, t: int) -> None:
    color, width = {
        "first": (FIRST, size[1] / 64),
        "second": (SECOND, size[1] / 64),
        "other": (PAPER, size[1] / 128),
    }[mark.role]
    left, top, right, bottom = corners(size, mark, t)
    inset = 0 if mark.box == WHOLE else t
    if inset:
        pen.rectangle((left, top, right, bottom), outline=(0, 0, 0, 110), width=round((width + 2) * t))
    pen.rectangle(
        (left + inset, top + inset, right - inset, bottom - inset), outline=color, width=round(width * t)
    )


def corners(size: tuple[int, int], mark: Frame, t: int = 1) -> tuple[float, float, float, float]:
    """Of a frame, pixels; inside of the picture."""
    w, h = size[0] * t - 1, size[1] * t - 1
    left, top, right, bottom = (min(1.0, max(0.0, x)) for x in mark.box)
    return left * w, top * h, max(right * w, left * w + 8 * t), max(bottom * h, top * h + 8 * t)


def labeled(picture: Image.Image, mark: Frame) -> Image.Image:
    """The label in a corner of the frame: upper left of the first, lower right of the second, so that both are seen."""
    if not mark.label:
        return picture
    color = {"first": FIRST, "second": SECOND, "other": MUTED}[mark.role]
    left, top, right, bottom = corners(picture.size, mark)
    first = mark.role == "first"
    return tag(picture, mark.label, (left, top) if first else (right, bottom), color, ends=not first)


def tag(
    picture: Image.Image,
    text: str,
    at: tuple[float, float],
    color: Rgb,
    size: float = 1 / 13,
    ends: bool = False,
) -> Image.Image:
    """A label that begins at a point, or ends there; its `size` is a share of the picture's height."""
    face = font(max(11, round(size * picture.height)), True)
    pen = ImageDraw.Draw(picture)
    high, pad = int(face.size) + 4, 4
    wide = math.ceil(face.getlength(text)) + 2 * pad
    x, y = (at[0] - wide + 1, at[1] - high + 1) if ends else at
    x, y = min(max(0, x), picture.width - wide), min(max(0, y), picture.height - high)
    pen.rectangle((x, y, x + wide - 1, y + high - 1), fill=color)
    pen.text((x + wide / 2, y + high / 2), text, PAPER, face, anchor="mm")
    return picture


def points(pen: ImageDraw.ImageDraw, size: tuple[int, int], mark: Points, t: int) -> None:
    radius = t * size[1] / 48
    for row, column in mark.at.tolist():
        x, y = column * size[0] * t, row * size[1] * t
        pen.ellipse((x - radius, y - radius, x + radius, y + radius), fill=PAPER)
        radius_ = 0.65 * radius
        pen.ellipse((x - radius_, y - radius_, x + radius_, y + radius_), fill=FIRST)


def masked(pen: ImageDraw.ImageDraw, size: tuple[int, int], mark: Mask, t: int) -> None:
    rows, columns = mark.hidden.shape
    w, h = size[0] * t / columns, size[1] * t / rows
    for row, column in mark.hidden.nonzero().tolist():
        box = (column * w, row * h, (column + 1) * w - 1, (row + 1) * h - 1)
        pen.rectangle(box, fill=(*HIDDEN, round(255 * mark.opacity)))
        if w >= GRID * t:
            pen.rectangle(box, outline=(*PAPER, 110), width=max(1, t // 2))


def badge(pen: ImageDraw.ImageDraw, at: tuple[float, float], radius: float, color: Rgb, right: bool) -> None:
    """A disk with a check mark or a cross."""
    (x, y), r, width = at, radius, max(2, round(0.28 * radius))
    pen.ellipse((x - r, y - r, x + r, y + r), fill=color)
    strokes = (
        [[(-0.45, 0.02), (-0.12, 0.36), (0.48, -0.34)]]
        if right
        else [[(-0.38, -0.38), (0.38, 0.38)], [(-0.38, 0.38), (0.38, -0.38)]]
    )
    for stroke in strokes:
        pen.line([(x + r * a, y + r * b) for a, b in stroke], fill=PAPER, width=width, joint="curve")


# ---- other contents


def board(shown: Board, side: int) -> Image.Image:
    """Square tiles with gaps; empty places are outlined."""
    across = shown.columns
    down = math.ceil(len(shown.tiles) / across)
    gap = max(2, side // 48)
    starts = [round(i * (side + gap) / down) for i in range(max(across, down) + 1)]
    picture = Image.new("RGB", (starts[across] - gap, side), PAPER)
    for i, one in enumerate(shown.tiles):
        x, y = i % across, i // across
        cell = tile(one, starts[y + 1] - starts[y] - gap)
        picture.paste(cell.resize((starts[x + 1] - starts[x] - gap, cell.height)), (starts[x], starts[y]))
    return picture


def tile(shown: Tile, side: int) -> Image.Image:
    if shown.image is None:
        picture = Image.new("RGB", (side, side), EMPTY)
        pen = ImageDraw.Draw(picture)
        pen.rectangle((0, 0, side - 1, side - 1), outline=EDGE)
        face = font(max(11, side * 4 // 5 // max(2, len(shown.label))), True)
        pen.text((side / 2, side / 2), shown.label, MUTED, face, anchor="mm")
    else:
        picture = outlined(scaled(image(shown.image), side))
        if shown.label:
            picture = tag(picture, shown.label, (0, 0), INK, 0.2)
    if shown.correct is not None:
        color = RIGHT if shown.correct else WRONG

        def framed(pen: ImageDraw.ImageDraw, t: int) -> None:
            w, h = picture.width * t, picture.height * t
            pen.rectangle((0, 0, w - 1, h - 1), outline=color, width=max(2, side // 24) * t)
            badge(pen, (w - 0.19 * h, 0.19 * h), 0.19 * h, color, bool(shown.correct))

        picture = over(picture, framed)
    return picture


def depth(shown: Depth, side: int) -> Image.Image:
    """Near is bright, far is dark, unknown is gray; a scale in meters runs along the lower edge."""
    from matplotlib import colormaps

    low, high = shown.span
    meters = shown.meters.detach().cpu().float()[0]
    share = ((meters - low) / max(high - low, 1e-6)).clamp(0, 1)
    colors = (255 * colormaps["viridis_r"](share.numpy())[..., :3]).astype(np.uint8)
    colors[(meters <= 0).numpy()] = EDGE
    picture = scaled(Image.fromarray(colors), side)
    face = font(max(10, side // 15))
    strip, margin = int(face.size) + 6, 4
    pen = ImageDraw.Draw(picture)
    top = side - strip
    pen.rectangle((0, top, picture.width, side), fill=PAPER)
    texts = f"{low:.1f} m", f"{high:.1f} m"
    lengths = [math.ceil(face.getlength(text)) for text in texts]
    pen.text((margin, top + strip / 2), texts[0], INK, face, anchor="lm")
    pen.text((picture.width - margin, top + strip / 2), texts[1], INK, face, anchor="rm")
    first, last = margin + lengths[0] + 5, picture.width - margin - lengths[1] - 5
    ramp = colormaps["viridis_r"](np.linspace(0, 1, max(1, last - first)))[None, :, :3]
    bar = Image.fromarray((255 * ramp).astype(np.uint8)).resize((max(1, last - first), strip - 8))
    picture.paste(bar, (first, top + 4))
    return picture


def normals(shown: Normals, side: int) -> Image.Image:
    """Red is to the right, green up, blue towards the camera; a sphere in the corner has the color of every direction."""
    picture = scaled(Image.fromarray(directed(shown.vectors.detach().cpu().float())), side)
    size = 4 * (side // 4) // 4
    at = (torch.arange(size) + 0.5) / size * 2 - 1
    x, y = at.expand(size, -1), at[:, None].expand(-1, size)
    square = x.square() + y.square()
    z = -(1 - square).clamp(min=0).sqrt()
    ball = directed(torch.stack([x, y, z]))
    corner = (picture.width - size - 4, side - size - 4)
    disk = Image.fromarray((255 * (1 - square.sqrt()).mul(size / 2).clamp(0, 1)).to(torch.uint8).numpy())
    rim = disk.resize((size + 4, size + 4))
    picture.paste(PAPER, (corner[0] - 2, corner[1] - 2), rim)
    picture.paste(Image.fromarray(ball), corner, disk)
    return picture


def directed(vectors: Tensor) -> np.ndarray:
    """(3, H, W) of x to the right, y down, z away from the camera -> their usual colors (H, W, 3); none are gray."""
    toward = vectors * torch.tensor([1.0, -1.0, -1.0])[:, None, None]
    colors = (127.5 * (toward + 1)).round().clamp(0, 255).to(torch.uint8).permute(1, 2, 0).numpy().copy()
    colors[(vectors.square().sum(0) < 0.25).numpy()] = EDGE
    return colors


def words(shown: Words, side: int) -> Image.Image:
    """A text on a card, as much of it as there is room for."""
    picture = Image.new("RGB", (side, side), EMPTY)
    pen, face, pad = ImageDraw.Draw(picture), font(max(10, side // 15)), side // 16
    tall = int(face.size) * 4 // 3
    lines, most = wrapped(shown.text, face, side - 2 * pad), (side - 2 * pad) // tall
    if len(lines) > most:
        lines = [*lines[: most - 1], cut(lines[most - 1] + " …", face, side - 2 * pad)]
    for i, line in enumerate(lines):
        pen.text((pad, pad + i * tall), line, INK, face)
    return picture


def wrapped(text: str, face: ImageFont.FreeTypeFont, room: int) -> list[str]:
    lines: list[str] = []
    for word in text.split():
        if lines and face.getlength(f"{lines[-1]} {word}") <= room:
            lines[-1] += f" {word}"
        else:
            lines.append(cut(word, face, room))
    return lines


def cut(text: str, face: ImageFont.FreeTypeFont, room: float) -> str:
    """The text, or what of it there is room for, ending in an ellipsis."""
    if face.getlength(text) <= room:
        return text
    while text and face.getlength(f"{text}…") > room:
        text = text[:-1]
    return f"{text.rstrip(' …')}…"


def bars(shown: Bars, side: int) -> Image.Image:
    """The largest shares, each a bar below its name."""
    picture = Image.new("RGB", (side, side), EMPTY)
    pen, face, pad = ImageDraw.Draw(picture), font(max(10, side // 15)), side // 16
    room, step = side - 2 * pad, (side - 2 * pad) // max(3, len(shown.shares))
    for i, (name, share) in enumerate(shown.shares.items()):
        y = pad + i * step
        number = f"{100 * share:.0f} %"
        pen.text((pad, y), cut(name, face, room - face.getlength(number) - 6), INK, face)
        pen.text((side - pad, y), number, MUTED, face, anchor="ra")
        top = y + int(face.size) * 4 // 3
        pen.rectangle((pad, top, side - pad, top + step // 5), fill=EDGE)
        pen.rectangle((pad, top, pad + max(1, round(share * room)), top + step // 5), fill=SECOND)
    return picture

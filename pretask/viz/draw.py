"""Rendering of the panels in `viz/puzzle.py` as images, `side` pixels high."""

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
    Text,
    Tile,
)

Rgb = tuple[int, int, int]
PAPER: Rgb = (255, 255, 255)
INK: Rgb = (28, 32, 38)
MUTED: Rgb = (106, 114, 126)
CORRECT: Rgb = (21, 115, 71)
WRONG: Rgb = (190, 38, 38)
FIRST: Rgb = (255, 140, 26)
SECOND: Rgb = (38, 132, 255)
EMPTY: Rgb = (240, 242, 245)
EDGE: Rgb = (193, 199, 207)
MASKED: Rgb = (156, 162, 171)
LINE: Rgb = (255, 221, 51)
PALETTE = (
    *(
        "#4e79a7",
        "#f28e2b",
        "#e15759",
        "#59a14f",
        "#b07aa1",
        "#edc948",
        "#76b7b2",
        "#ff9da7",
        "#9c755f",
        "#8c8c8c",
    ),
    *(
        "#3d6fb6",
        "#c56a10",
        "#b8434e",
        "#3f8a3a",
        "#8a5a8f",
        "#b8952a",
        "#3f9a93",
        "#d9667f",
        "#7d5a45",
        "#6f7780",
    ),
    *("#2f4b7c", "#a05195", "#d45087", "#f95d6a"),
)
"""colors of classes on maps, in order; reused for more classes"""

MIN_SMOOTH = 48
"""longer side from which pictures are enlarged smoothly, pixels; smaller ones keep visible pixels"""
MIN_GRID = 8
"""smallest side of masked patches that are separated by lines, pixels"""
SUPERSAMPLING = 4
"""factor by which lines are drawn larger and then downscaled, for antialiasing"""


@cache
def font(size: int, bold: bool = False) -> ImageFont.FreeTypeFont:
    """DejaVu Sans, which ships with matplotlib; Pillow's default font lacks the arrow, check mark and cross."""
    import matplotlib

    file = "DejaVuSans-Bold.ttf" if bold else "DejaVuSans.ttf"
    return ImageFont.truetype(Path(matplotlib.get_data_path(), "fonts", "ttf", file), size)


def render_panel(panel: Panel, side: int) -> Image.Image:
    """A panel with its marks; an answer of the network gets a frame and a badge, green if correct and red if not."""
    picture = render_content(panel.content, side)
    color = None if panel.correct is None else (CORRECT if panel.correct else WRONG)
    for mark in panel.marks:
        picture = draw_mark(picture, mark, color or FIRST)
    if color is None:
        return picture
    width = max(2, side // 48)

    def draw_border(pen: ImageDraw.ImageDraw, scale: int) -> None:
        w, h = picture.width * scale, picture.height * scale
        pen.rectangle((0, 0, w - 1, h - 1), outline=color, width=width * scale)
        draw_badge(pen, (w - 0.09 * h, 0.09 * h), 0.09 * h, color, bool(panel.correct))

    return overlay(picture, draw_border)


def render_content(content: Tensor | Board | Depth | Normals | Text | Bars, side: int) -> Image.Image:
    match content:
        case Board():
            return render_board(content, side)
        case Depth():
            return render_depth(content, side)
        case Normals():
            return render_normals(content, side)
        case Text():
            return render_text(content, side)
        case Bars():
            return render_bars(content, side)
        case _:
            return add_outline(resize_to_height(to_pil(content), side))


def add_outline(picture: Image.Image) -> Image.Image:
    """Draw a faint outline, so that white pictures stand out from the background."""
    edge = (0, 0, picture.width - 1, picture.height - 1)
    ImageDraw.Draw(picture, "RGBA").rectangle(edge, outline=(0, 0, 0, 40))
    return picture


def to_pil(x: Tensor) -> Image.Image:
    """(1 or 3, H, W) in [0, 1], or uint8 -> an image of the same size."""
    x = x.detach().cpu()
    x = x.float().nan_to_num().clamp(0, 1) * 255 if x.is_floating_point() else x
    x = x.round().to(torch.uint8).expand(3, -1, -1).permute(1, 2, 0)
    return Image.fromarray(x.contiguous().numpy())


def resize_to_height(picture: Image.Image, side: int) -> Image.Image:
    """Resize to a height of `side`; small pictures keep visible pixels."""
    resampling = Image.Resampling.NEAREST if max(picture.size) < MIN_SMOOTH else Image.Resampling.BICUBIC
    resampling = Image.Resampling.LANCZOS if picture.height > side else resampling
    return picture.resize((max(1, round(picture.width * side / picture.height)), side), resampling)


def overlay(picture: Image.Image, paint: Callable[[ImageDraw.ImageDraw, int], None]) -> Image.Image:
    """Draw on a picture with `paint(pen, scale)`, antialiased; coordinates are `scale` times those of the picture."""
    layer = Image.new("RGBA", (picture.width * SUPERSAMPLING, picture.height * SUPERSAMPLING))
    paint(ImageDraw.Draw(layer), SUPERSAMPLING)
    layer = layer.resize(picture.size, Image.Resampling.BOX)
    return Image.alpha_composite(picture.convert("RGBA"), layer).convert("RGB")


# ---- marks


def draw_mark(picture: Image.Image, mark: Mark, color: Rgb) -> Image.Image:
    match mark:
        case Arrow():
            return overlay(
                picture, lambda pen, scale: draw_arrow(pen, picture.size, mark.angle, color, scale)
            )
        case Frame():
            return draw_frame_label(
                overlay(picture, lambda pen, scale: draw_frame(pen, picture.size, mark, scale)), mark
            )
        case Points():
            return overlay(picture, lambda pen, scale: draw_points(pen, picture.size, mark, scale))
        case Mask():
            return overlay(picture, lambda pen, scale: draw_mask(pen, picture.size, mark, scale))
        case Contours():
            strength = mark.strength.detach().cpu().float().clamp(0, 1)
            alpha = resize_to_height(to_pil(strength[None]), picture.height).convert("L")
            faded = Image.blend(picture, Image.new("RGB", picture.size), 0.45)
            return Image.composite(Image.new("RGB", picture.size, LINE), faded, alpha)


def draw_arrow(pen: ImageDraw.ImageDraw, size: tuple[int, int], angle: float, color: Rgb, scale: int) -> None:
    """A white-edged arrow through the center, rotated by `angle` degrees counterclockwise from straight up."""
    w, h = size[0] * scale, size[1] * scale
    across, up = -math.sin(math.radians(angle)), -math.cos(math.radians(angle))

    def outline(margin: float) -> list[tuple[float, float]]:
        """Corners of the arrow, wider by `margin`; offsets along it and across it are fractions of the height."""
        half, wide = 0.03 + margin, 0.105 + 1.7 * margin
        offsets = [
            (-0.30 - margin, -half), (0.10 - margin, -half), (0.10 - margin, -wide), (0.32 + 1.8 * margin, 0.0),
            (0.10 - margin, wide), (0.10 - margin, half), (-0.30 - margin, half),
        ]  # fmt: skip
        return [(w / 2 + h * (a * across - b * up), h / 2 + h * (a * up + b * across)) for a, b in offsets]

    pen.polygon(outline(0.018), fill=PAPER)
    pen.polygon(outline(0.0), fill=color)


def draw_frame(pen: ImageDraw.ImageDraw, size: tuple[int, int], mark: Frame, scale: int) -> None:
    color, width = {
        "first": (FIRST, size[1] / 64),
        "second": (SECOND, size[1] / 64),
        "other": (PAPER, size[1] / 128),
    }[mark.role]
    left, top, right, bottom = frame_corners(size, mark, scale)
    inset = 0 if mark.box == WHOLE else scale
    if inset:
        pen.rectangle((left, top, right, bottom), outline=(0, 0, 0, 110), width=round((width + 2) * scale))
    pen.rectangle(
        (left + inset, top + inset, right - inset, bottom - inset), outline=color, width=round(width * scale)
    )


def frame_corners(size: tuple[int, int], mark: Frame, scale: int = 1) -> tuple[float, float, float, float]:
    """Left, top, right and bottom of a frame in pixels, clipped to the picture."""
    w, h = size[0] * scale - 1, size[1] * scale - 1
    left, top, right, bottom = (min(1.0, max(0.0, x)) for x in mark.box)
    return left * w, top * h, max(right * w, left * w + 8 * scale), max(bottom * h, top * h + 8 * scale)


def draw_frame_label(picture: Image.Image, mark: Frame) -> Image.Image:
    """Draw the label in a corner of the frame: upper left of the first, lower right of the second, so that both are visible."""
    if not mark.label:
        return picture
    color = {"first": FIRST, "second": SECOND, "other": MUTED}[mark.role]
    left, top, right, bottom = frame_corners(picture.size, mark)
    first = mark.role == "first"
    return draw_label(picture, mark.label, (left, top) if first else (right, bottom), color, ends=not first)


def draw_label(
    picture: Image.Image,
    text: str,
    at: tuple[float, float],
    color: Rgb,
    size: float = 1 / 13,
    ends: bool = False,
) -> Image.Image:
    """Draw a label with its upper left corner at a point, or its lower right if `ends`; `size` is a fraction of the height."""
    face = font(max(11, round(size * picture.height)), True)
    pen = ImageDraw.Draw(picture)
    high, pad = int(face.size) + 4, 4
    wide = math.ceil(face.getlength(text)) + 2 * pad
    x, y = (at[0] - wide + 1, at[1] - high + 1) if ends else at
    x, y = min(max(0, x), picture.width - wide), min(max(0, y), picture.height - high)
    pen.rectangle((x, y, x + wide - 1, y + high - 1), fill=color)
    pen.text((x + wide / 2, y + high / 2), text, PAPER, face, anchor="mm")
    return picture


def draw_points(pen: ImageDraw.ImageDraw, size: tuple[int, int], mark: Points, scale: int) -> None:
    radius = scale * size[1] / 48
    for row, column in mark.positions.tolist():
        x, y = column * size[0] * scale, row * size[1] * scale
        pen.ellipse((x - radius, y - radius, x + radius, y + radius), fill=PAPER)
        inner = 0.65 * radius
        pen.ellipse((x - inner, y - inner, x + inner, y + inner), fill=FIRST)


def draw_mask(pen: ImageDraw.ImageDraw, size: tuple[int, int], mark: Mask, scale: int) -> None:
    rows, columns = mark.masked.shape
    w, h = size[0] * scale / columns, size[1] * scale / rows
    for row, column in mark.masked.nonzero().tolist():
        box = (column * w, row * h, (column + 1) * w - 1, (row + 1) * h - 1)
        pen.rectangle(box, fill=(*MASKED, round(255 * mark.opacity)))
        if w >= MIN_GRID * scale:
            pen.rectangle(box, outline=(*PAPER, 110), width=max(1, scale // 2))


def draw_badge(
    pen: ImageDraw.ImageDraw, at: tuple[float, float], radius: float, color: Rgb, correct: bool
) -> None:
    """A disk with a check mark if `correct`, else with a cross."""
    (x, y), r, width = at, radius, max(2, round(0.28 * radius))
    pen.ellipse((x - r, y - r, x + r, y + r), fill=color)
    strokes = (
        [[(-0.45, 0.02), (-0.12, 0.36), (0.48, -0.34)]]
        if correct
        else [[(-0.38, -0.38), (0.38, 0.38)], [(-0.38, 0.38), (0.38, -0.38)]]
    )
    for stroke in strokes:
        pen.line([(x + r * a, y + r * b) for a, b in stroke], fill=PAPER, width=width, joint="curve")


# ---- contents other than images


def render_board(board: Board, side: int) -> Image.Image:
    """Square tiles with gaps; empty tiles are outlined."""
    across = board.columns
    down = math.ceil(len(board.tiles) / across)
    gap = max(2, side // 48)
    starts = [round(i * (side + gap) / down) for i in range(max(across, down) + 1)]
    picture = Image.new("RGB", (starts[across] - gap, side), PAPER)
    for i, one in enumerate(board.tiles):
        x, y = i % across, i // across
        cell = render_tile(one, starts[y + 1] - starts[y] - gap)
        picture.paste(cell.resize((starts[x + 1] - starts[x] - gap, cell.height)), (starts[x], starts[y]))
    return picture


def render_tile(tile: Tile, side: int) -> Image.Image:
    if tile.image is None:
        picture = Image.new("RGB", (side, side), EMPTY)
        pen = ImageDraw.Draw(picture)
        pen.rectangle((0, 0, side - 1, side - 1), outline=EDGE)
        face = font(max(11, side * 4 // 5 // max(2, len(tile.label))), True)
        pen.text((side / 2, side / 2), tile.label, MUTED, face, anchor="mm")
    else:
        picture = add_outline(resize_to_height(to_pil(tile.image), side))
        if tile.label:
            picture = draw_label(picture, tile.label, (0, 0), INK, 0.2)
    if tile.correct is not None:
        color = CORRECT if tile.correct else WRONG

        def draw_border(pen: ImageDraw.ImageDraw, scale: int) -> None:
            w, h = picture.width * scale, picture.height * scale
            pen.rectangle((0, 0, w - 1, h - 1), outline=color, width=max(2, side // 24) * scale)
            draw_badge(pen, (w - 0.19 * h, 0.19 * h), 0.19 * h, color, bool(tile.correct))

        picture = overlay(picture, draw_border)
    return picture


def render_depth(depth: Depth, side: int) -> Image.Image:
    """A depth map: near is bright, far is dark, unknown is gray; with a color scale in meters along the lower edge."""
    from matplotlib import colormaps

    low, high = depth.span
    meters = depth.meters.detach().cpu().float()[0]
    fraction = ((meters - low) / max(high - low, 1e-6)).clamp(0, 1)
    colors = (255 * colormaps["viridis_r"](fraction.numpy())[..., :3]).astype(np.uint8)
    colors[(meters <= 0).numpy()] = EDGE
    picture = resize_to_height(Image.fromarray(colors), side)
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


def render_normals(normals: Normals, side: int) -> Image.Image:
    """A normal map: red is right, green is up, blue faces the camera; a sphere in the corner shows all colors."""
    picture = resize_to_height(Image.fromarray(normal_colors(normals.vectors.detach().cpu().float())), side)
    size = 4 * (side // 4) // 4
    at = (torch.arange(size) + 0.5) / size * 2 - 1
    x, y = at.expand(size, -1), at[:, None].expand(-1, size)
    square = x.square() + y.square()
    z = -(1 - square).clamp(min=0).sqrt()
    ball = normal_colors(torch.stack([x, y, z]))
    corner = (picture.width - size - 4, side - size - 4)
    disk = Image.fromarray((255 * (1 - square.sqrt()).mul(size / 2).clamp(0, 1)).to(torch.uint8).numpy())
    rim = disk.resize((size + 4, size + 4))
    picture.paste(PAPER, (corner[0] - 2, corner[1] - 2), rim)
    picture.paste(Image.fromarray(ball), corner, disk)
    return picture


def normal_colors(vectors: Tensor) -> np.ndarray:
    """(3, H, W) normals, x right, y down, z away from the camera -> usual colors (H, W, 3); unknown normals are gray."""
    toward = vectors * torch.tensor([1.0, -1.0, -1.0])[:, None, None]
    colors = (127.5 * (toward + 1)).round().clamp(0, 255).to(torch.uint8).permute(1, 2, 0).numpy().copy()
    colors[(vectors.square().sum(0) < 0.25).numpy()] = EDGE
    return colors


def render_text(text: Text, side: int) -> Image.Image:
    """A text on a card, truncated to fit."""
    picture = Image.new("RGB", (side, side), EMPTY)
    pen, face, pad = ImageDraw.Draw(picture), font(max(10, side // 15)), side // 16
    line_height = int(face.size) * 4 // 3
    lines, max_lines = wrap(text.text, face, side - 2 * pad), (side - 2 * pad) // line_height
    if len(lines) > max_lines:
        lines = [*lines[: max_lines - 1], truncate(lines[max_lines - 1] + " …", face, side - 2 * pad)]
    for i, line in enumerate(lines):
        pen.text((pad, pad + i * line_height), line, INK, face)
    return picture


def wrap(text: str, face: ImageFont.FreeTypeFont, max_width: int) -> list[str]:
    """Split a text into lines of at most `max_width` pixels; longer words are truncated."""
    lines: list[str] = []
    for word in text.split():
        if lines and face.getlength(f"{lines[-1]} {word}") <= max_width:
            lines[-1] += f" {word}"
        else:
            lines.append(truncate(word, face, max_width))
    return lines


def truncate(text: str, face: ImageFont.FreeTypeFont, max_width: float) -> str:
    """The text, shortened to `max_width` pixels and with an ellipsis if it is longer."""
    if face.getlength(text) <= max_width:
        return text
    while text and face.getlength(f"{text}…") > max_width:
        text = text[:-1]
    return f"{text.rstrip(' …')}…"


def render_bars(bars: Bars, side: int) -> Image.Image:
    """A bar chart: each bar below its name and percentage."""
    picture = Image.new("RGB", (side, side), EMPTY)
    pen, face, pad = ImageDraw.Draw(picture), font(max(10, side // 15)), side // 16
    max_width, step = side - 2 * pad, (side - 2 * pad) // max(3, len(bars.fractions))
    for i, (name, fraction) in enumerate(bars.fractions.items()):
        y = pad + i * step
        number = f"{100 * fraction:.0f} %"
        pen.text((pad, y), truncate(name, face, max_width - face.getlength(number) - 6), INK, face)
        pen.text((side - pad, y), number, MUTED, face, anchor="ra")
        top = y + int(face.size) * 4 // 3
        pen.rectangle((pad, top, side - pad, top + step // 5), fill=EDGE)
        pen.rectangle((pad, top, pad + max(1, round(fraction * max_width)), top + step // 5), fill=SECOND)
    return picture

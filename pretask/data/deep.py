"""Images that are not 8-bit: integers of more bits or with a sign, and floats, in TIFF, PNG and other formats.

Pillow has no mode for most of them and reduces 16-bit colors to their high bytes. TIFF is read by tifffile, or by Pillow if
tifffile lacks the codec; PNG is read by Pillow twice, for the high and the low bytes.
"""

import ctypes
import io
import logging
import struct
import sys
from collections.abc import Callable
from dataclasses import dataclass
from functools import cache, partial
from typing import Any

import numpy as np
from PIL import Image

from pretask.errors import install_command
from pretask.transforms.ranges import PixelStats, Range, Span, to_unit, valid_mask

FULL: Span = (0.0, 65535.0)
"""range of 16-bit values that the writer has scaled up"""
ORIENTATION = 0x0112  # EXIF tag
LUMA = np.array([0.299, 0.587, 0.114], np.float32)
"""weights of red, green and blue in gray, as in Pillow"""
SCALED = ("PPM", "JPEG2000", "JXL")
"""formats whose readers scale values up to 16 bits"""
OTHER_BYTE = {"B": "L", "L": "B", "N": "B" if sys.byteorder == "little" else "L"}
"""byte order with which Pillow, which keeps the high byte, keeps the low byte instead"""

# tags of TIFF
BITS, PHOTOMETRIC, SAMPLES, MINIMUM, MAXIMUM, COLORMAP, EXTRA, FORMAT = 258, 262, 277, 280, 281, 320, 338, 339
SIGNED_MINIMUM, SIGNED_MAXIMUM, NODATA = 340, 341, 42113
WHITE_IS_ZERO, BLACK_IS_ZERO, RGB, PALETTE, CMYK = 0, 1, 2, 3, 5
MULTIPLIED = 1
ALPHA = (MULTIPLIED, 2, 999)
"""kinds of extra samples that are alpha; 999 is written by CorelDRAW"""
TIFF = (b"II*\0", b"MM\0*", b"II+\0", b"MM\0+")


@dataclass(frozen=True)
class Deep:
    """An image that is not 8-bit. Its header is read, its pixels are not."""

    size: tuple[int, int]  # width, height, as stored
    stored: Callable[[], np.ndarray]  # -> (H, W) or (H, W, bands)
    alpha: int = 0
    """meaning of the last band: 0 no alpha, 1 premultiplied alpha, else straight alpha"""
    white_is_zero: bool = False
    declared: Span | None = None
    nodata: float | None = None
    orientation: Callable[[], int] = lambda: 1
    """EXIF orientation"""

    def numbers(self) -> np.ndarray:
        """Decode the pixels, (H, W, bands)."""
        pixels = self.stored()
        return pixels[..., None] if pixels.ndim == 2 else pixels

    def look(self) -> PixelStats | None:
        """Statistics of the pixels; None if they are bytes."""
        pixels = self.numbers()[..., : -1 if self.alpha else None]
        return (
            None
            if pixels.dtype == np.uint8
            else PixelStats.from_pixels(pixels, self.valid(pixels), self.declared)
        )

    def valid(self, pixels: np.ndarray) -> np.ndarray | None:
        return None if self.nodata is None else pixels != self.nodata

    def bright(self, known: Range, channels: int, upright: bool = True) -> np.ndarray:
        """(H, W, channels) float32 in 0 … 1, composited on white; black where there is no data. Raises UnknownRange."""
        pixels = self.numbers()
        cover = None
        if self.alpha:
            pixels, cover = pixels[..., :-1], pixels[..., -1:]
        valid = valid_mask(pixels, self.valid(pixels))
        made = to_unit(pixels, known.span(pixels.dtype), valid)
        if self.white_is_zero:
            made = 1 - made if valid is None else np.where(valid, 1 - made, 0)
        if cover is not None:
            cover = to_unit(cover, opaque(cover.dtype))
            made = (made if self.alpha == MULTIPLIED else made * cover) + (1 - cover)
        return turned(colored(made.clip(0, 1), channels), self.orientation() if upright else 1)


def opaque(dtype: np.dtype[Any]) -> Span:
    """The full range of alpha values, which does not depend on the range of brightness."""
    return (0.0, 1.0 if dtype.kind == "f" else float(np.iinfo(dtype).max))


def colored(bright: np.ndarray, channels: int) -> np.ndarray:
    """(H, W, 1 or 3) -> (H, W, channels)"""
    if bright.shape[2] == channels:
        return bright
    return bright.repeat(3, axis=2) if channels == 3 else (bright @ LUMA)[..., None]


def turned(x: np.ndarray, orientation: int) -> np.ndarray:
    """Rotate and flip to upright, given the EXIF orientation."""
    if orientation in (5, 6, 7, 8):
        x = x.swapaxes(0, 1)
    if orientation in (2, 3, 6, 7):
        x = x[:, ::-1]
    if orientation in (3, 4, 7, 8):
        x = x[::-1]
    return x


# ---- detection


def of(image: Image.Image, data: bytes | None) -> Deep | None:
    """A Deep image of what Pillow has opened; None if it is 8-bit. `data` are the bytes of its file."""
    if image.format == "TIFF" and data is not None:
        return None if eight_bit(image.tag_v2) else tiff(data, image)  # type: ignore[attr-defined]
    raw = rawmode(image)
    if image.mode[0] in "IF":
        stored, alpha = partial(np.asarray, image), 0
    elif ";16" in raw and image.format == "PNG" and data is not None:
        stored, alpha = partial(two_bytes, data, raw), 2 if "A" in raw else 0
    else:
        return None
    full = image.format in SCALED or (image.format == "PNG" and significant(data))
    declared = FULL if full and image.mode != "F" else None
    return Deep(image.size, stored, alpha, declared=declared, orientation=partial(exif_orientation, image))


def rawmode(image: Image.Image) -> str:
    """Pillow's name for the pixel format in the file."""
    tile = getattr(image, "tile", None)  # only opened files have it
    if not tile:
        return ""
    return str(tile[0][3][0] if isinstance(tile[0][3], tuple) else tile[0][3])


def exif_orientation(image: Image.Image) -> int:
    """EXIF orientation; in a PNG it may be at the end of the file."""
    return image.getexif().get(ORIENTATION, 1)


def two_bytes(data: bytes, raw: str) -> np.ndarray:
    """(H, W, bands) of 16 bits, of which Pillow keeps one byte at a time."""
    if raw.startswith("LA"):  # as long as 8-bit RGBA
        pairs = reread(data, "RGBA", "RGBA").astype(np.uint16)
        return pairs[..., ::2] << 8 | pairs[..., 1::2]
    high = np.asarray(Image.open(io.BytesIO(data)))
    return high.astype(np.uint16) << 8 | reread(data, raw[:-1] + OTHER_BYTE[raw[-1]])


def reread(data: bytes, raw: str, mode: str | None = None) -> np.ndarray:
    """Read the pixels of a file with another raw mode."""
    image: Any = Image.open(io.BytesIO(data))
    image.tile = [
        part._replace(args=(raw, *part.args[1:]) if isinstance(part.args, tuple) else raw)
        for part in image.tile
    ]
    image._mode = mode or image.mode
    image.load()
    return np.asarray(image)


def significant(data: bytes | None) -> bool:
    """Whether a PNG states its significant bits (sBIT), so that its writer has scaled the values up as the standard requires."""
    at = 8
    while data is not None and at + 8 <= len(data):
        length, kind = struct.unpack_from(">I4s", data, at)
        if kind in (b"sBIT", b"IDAT"):
            return kind == b"sBIT"
        at += length + 12
    return False


# ---- TIFF


def eight_bit(tags: Any) -> bool:
    """Whether a TIFF is 8-bit, so that Pillow reads it correctly. Raises ValueError if its bands are not colors."""
    bits, kinds = listed(tags.get(BITS, 1)), listed(tags.get(FORMAT, 1))
    alpha(tags)
    return max(bits) <= 8 and not set(kinds) & {2, 3, 5, 6}


def alpha(tags: Any) -> int:
    """Meaning of the last band, see `Deep.alpha`. Raises ValueError unless the bands are gray or RGB, with or without alpha.

    A fourth band is alpha only if the file says so or does not say what it is.
    """
    photometric, samples, extra = tags.get(PHOTOMETRIC, BLACK_IS_ZERO), tags.get(SAMPLES, 1), tags.get(EXTRA)
    extra = listed(extra) if extra is not None else (2,) if (photometric, samples) == (RGB, 4) else ()
    kind = int(extra[-1]) if extra and extra[-1] in ALPHA and samples > 1 else 0
    expected = {RGB: (3,), CMYK: (4,), PALETTE: (1,)}.get(photometric, (1, 3))
    if samples - bool(kind) not in expected:
        raise ValueError(f"{samples} bands: expected 1 or 3")
    return kind


def listed(x: Any) -> tuple[Any, ...]:
    return tuple(x) if isinstance(x, tuple | list) else (x,)


def tiff(data: bytes, image: Image.Image | None = None) -> Deep:
    """Open a TIFF file; `image` is the same opened by Pillow, if possible. Raises ValueError or an exception of tifffile."""
    page = first_page(data)
    tags = {tag.code: tag.value for tag in page.tags}
    kind, photometric = alpha(tags), tags.get(PHOTOMETRIC, BLACK_IS_ZERO)
    if page.dtype is None or page.dtype.kind not in "uif":
        raise ValueError(f"TIFF of {page.dtype or 'unknown numbers'}")
    if photometric not in (WHITE_IS_ZERO, BLACK_IS_ZERO, RGB, PALETTE) or not set(page.axes) <= set("YXS"):
        raise ValueError(f"TIFF is neither gray nor RGB: {page.photometric.name}, {page.axes}")

    def stored() -> np.ndarray:
        pixels = decompressed(page, data, image)
        pixels = np.moveaxis(pixels, page.axes.index("S"), 2) if page.axes.startswith("S") else pixels
        return looked_up(pixels, page.colormap) if photometric == PALETTE else pixels

    return Deep(
        (page.imagewidth, page.imagelength),
        stored,
        kind,
        photometric == WHITE_IS_ZERO,
        declared(tags),
        nodata(tags.get(NODATA)),
        lambda: tags.get(ORIENTATION, 1),
    )


def first_page(data: bytes) -> Any:
    return tifffile().TiffFile(io.BytesIO(data)).pages[0]


@cache
def tifffile() -> Any:
    """The library, imported lazily because that is slow, without its log messages; damaged files raise an error too."""
    import tifffile

    logging.getLogger("tifffile").setLevel(logging.CRITICAL)
    return tifffile


def decompressed(page: Any, data: bytes, image: Image.Image | None) -> np.ndarray:
    try:
        return page.asarray(maxworkers=1)
    except Exception as error:
        if "imagecodecs" not in str(error):
            raise
    if image is not None and image.mode[0] in "IF":
        return (
            np.asarray(image).view(page.dtype)
            if page.dtype.itemsize == 4
            else np.asarray(image).astype(page.dtype)
        )
    if image is not None and ";16" in (raw := rawmode(image)):
        return two_bytes(data, raw)
    raise ValueError(f"TIFF compressed by {page.compression.name} ({install_command('formats')})")


def looked_up(pixels: np.ndarray, colormap: np.ndarray) -> np.ndarray:
    """(H, W) palette indices, (3, K) 16-bit palette -> (H, W, 3) uint8; palettes are meant for display."""
    return (colormap.T / 257).round().astype(np.uint8)[pixels]


def declared(tags: Any) -> Span | None:
    """The range of values that a file declares."""
    for low, high in ((SIGNED_MINIMUM, SIGNED_MAXIMUM), (MINIMUM, MAXIMUM)):
        if high in tags:
            span = float(min(listed(tags.get(low, 0)))), float(max(listed(tags[high])))
            if span[0] < span[1]:
                return span
    return None


def nodata(text: Any) -> float | None:
    """The value of pixels without data, from the tag that GDAL writes."""
    try:
        return float(text)
    except (TypeError, ValueError):
        return None


# ---- log messages


@cache
def silence() -> None:
    """Stop Pillow and its libtiff from writing to standard error; damaged files raise an error too.

    libtiff's handlers are global, so no thread needs to redirect its output.
    """
    from PIL import _imaging

    logging.getLogger("PIL").setLevel(logging.CRITICAL)
    try:
        library = ctypes.CDLL(_imaging.__file__)
        library.TIFFSetErrorHandler(None)
        library.TIFFSetWarningHandler(None)
    except (OSError, AttributeError):  # linked differently
        pass

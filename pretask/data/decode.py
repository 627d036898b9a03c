"""Decodes any image file to a square uint8 array: upright, 8 bit, gray or RGB, short side resized and center-cropped, or
stretched.

Transparent pixels become white, as on a web page. Values of more than 8 bits are mapped by a range
(`pretask.transforms.ranges`) first, then resized.
"""

import io
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import numpy as np
from PIL import Image, ImageOps, UnidentifiedImageError

from pretask.data import deep, formats
from pretask.data.deep import ORIENTATION, Deep
from pretask.transforms.ranges import UNKNOWN, PixelStats, Range, UnknownRange, to_uint8

MAX_PIXELS = 2**27
"""limit on the pixels of an image: 134 million pixels are 400 MB as RGB"""
MAX_BYTES = 2**30
"""limit on the size of a file"""
warnings.filterwarnings(
    "ignore", module="PIL"
)  # MAX_PIXELS replaces Pillow's limit; other damage is reported or repaired

Encoded = Path | bytes | Image.Image | Deep


class Unreadable(Exception):
    """An image cannot be used; the message is the reason in a few words."""


class NoRange(Unreadable):
    """The image has more than 8 bits, and no image of its type was in the sample from which the range was measured."""


def canvas(
    encoded: Encoded, size: int, channels: int, stretch: bool = False, known: Range = UNKNOWN
) -> np.ndarray:
    """A file, its bytes or an opened image -> (channels, size, size) uint8; `stretch`: resize instead of center-cropping."""
    with readable():
        image = open_image(encoded)
        if isinstance(image, Deep):
            return fitted(image.bright(known, channels), size, stretch)
        if image.format == "JPEG":  # the codec downscales by 2, 4 or 8, never below `size`
            image.draft("L" if channels == 1 else None, (size, size))
        image = to_8bit(upright(image), channels)
        pixels = np.asarray(stretched(image, size) if stretch else center_crop(image, size))
        return pixels.reshape(size, size, channels).transpose(2, 0, 1)


def fitted(bright: np.ndarray, size: int, stretch: bool = False) -> np.ndarray:
    """(H, W, channels) float32 in 0 … 1 -> (channels, size, size) uint8"""
    fit = stretched if stretch else center_crop
    bands = (Image.fromarray(np.ascontiguousarray(band)) for band in bright.transpose(2, 0, 1))
    return to_uint8(np.stack([np.asarray(fit(band, size)) for band in bands]))


def to_pil(encoded: Encoded, channels: int, known: Range = UNKNOWN, turn: bool = True) -> Image.Image:
    """The image at its own size with 8 bits; `turn`: upright."""
    with readable():
        image = open_image(encoded)
        if isinstance(image, Deep):
            pixels = to_uint8(image.bright(known, channels, turn))
            return Image.fromarray(pixels if channels == 3 else pixels[..., 0])
        return to_8bit(upright(image) if turn else image, channels)


def thumbnail(
    encoded: Encoded, side: int, channels: int, known: Range = UNKNOWN
) -> tuple[tuple[int, int], Image.Image]:
    """Width and height as stored, and the whole image with a longer side of at most `side` pixels; much faster than decoding all of a
    large JPEG."""
    with readable():
        image = open_image(encoded)
        size = image.size
        if isinstance(image, Deep):
            found = to_pil(image, channels, known)
        else:
            if image.format == "JPEG":  # the codec downscales by 2, 4 or 8, never below `side`
                image.draft("L" if channels == 1 else None, (side, side))
            found = to_8bit(upright(image), channels)
        found.thumbnail((side, side), Image.Resampling.BICUBIC, reducing_gap=3.0)
        return size, found


def measure(encoded: Encoded) -> PixelStats | None:
    """Statistics that determine the range; None for an 8-bit image, of which only the header is read."""
    with readable():
        image = open_image(encoded)
        return image.look() if isinstance(image, Deep) else None


def size_of(encoded: Encoded) -> tuple[int, int]:
    """Width and height as stored, read from the header."""
    with readable():
        return open_image(encoded).size


@contextmanager
def readable() -> Iterator[None]:
    """Turns any exception of a decoder within the block into Unreadable; each decoder raises its own."""
    try:
        yield
    except Unreadable:
        raise
    except UnidentifiedImageError:
        raise Unreadable("not an image") from None
    except UnknownRange as unknown:
        raise NoRange(str(unknown)) from None
    except Exception as error:
        raise Unreadable(reason(error)) from None


def open_image(encoded: Encoded) -> Image.Image | Deep:
    """Open an image and read its header, without decoding its pixels."""
    if isinstance(encoded, Image.Image):
        return deep.of(encoded, None) or encoded
    if isinstance(encoded, Deep):
        return encoded
    data = read(encoded)
    try:
        image = pillow(data)
        found = deep.of(image, data) or image
    except UnidentifiedImageError:
        if not data.startswith(deep.TIFF):
            raise
        found = deep.tiff(data)
    width, height = found.size
    if width * height > MAX_PIXELS:
        raise Unreadable(f"{width} x {height} pixels, more than {MAX_PIXELS:,}")
    return found


def read(encoded: Path | bytes) -> bytes:
    """Read the bytes of a file."""
    if isinstance(encoded, Path) and encoded.stat().st_size > MAX_BYTES:
        raise Unreadable(f"{encoded.stat().st_size:,} bytes, more than {MAX_BYTES:,}")
    data = encoded if isinstance(encoded, bytes) else encoded.read_bytes()
    if not data:
        raise Unreadable("empty")
    return data


def pillow(data: bytes) -> Image.Image:
    """Open with Pillow or one of its plugins."""
    deep.silence()
    name = formats.kind(data)
    try:
        return Image.open(io.BytesIO(data))
    except Exception:
        if name is None:
            raise
    formats.plug_in(name)
    try:
        return Image.open(io.BytesIO(data))
    except Exception:  # each plugin has its own
        raise Unreadable(f"damaged {name}") from None


def upright(image: Image.Image) -> Image.Image:
    if image.format == "JXL" and not getattr(image, "jpeg", False):  # already rotated by its decoder
        return image
    if image.getexif().get(ORIENTATION, 1) == 1:
        return image
    return ImageOps.exif_transpose(image)


def to_8bit(image: Image.Image, channels: int) -> Image.Image:
    """Convert to 8-bit gray or RGB, without palette or transparency."""
    mode = "L" if channels == 1 else "RGB"
    if image.mode == mode and "transparency" not in image.info:
        return image
    if image.has_transparency_data:
        image = image.convert("RGBA")
        image = Image.alpha_composite(Image.new("RGBA", image.size, "white"), image)
    return image.convert(mode)


def center_crop(image: Image.Image, size: int) -> Image.Image:
    """Center crop, resized with anti-aliasing."""
    if image.size == (size, size):
        return image
    side = min(image.size)
    left, top = (image.width - side) / 2, (image.height - side) / 2
    box = (left, top, left + side, top + side)
    return image.resize((size, size), Image.Resampling.BICUBIC, box=box, reducing_gap=3.0)


def stretched(image: Image.Image, size: int) -> Image.Image:
    """Resize to a square; does not keep the aspect ratio."""
    return image.resize((size, size), Image.Resampling.BICUBIC, reducing_gap=3.0)


def reason(error: BaseException) -> str:
    """Reason of an error in a few words, without the file name."""
    if isinstance(error, OSError) and error.strerror:
        return error.strerror.lower()
    return (str(error) or type(error).__name__).splitlines()[0][:120]

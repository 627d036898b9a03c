"""Any image file as a square uint8 canvas: upright, 8 bit, grey or RGB, short side resized, center cut out; or stretched.

Transparent pixels become white, as a page shows them. 16-bit values are scaled (65535 -> 255), not clipped.
"""

import io
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import numpy as np
from PIL import Image, ImageOps, UnidentifiedImageError

MAX_PIXELS = 2**27
"""larger images are not decoded: 134 million pixels are 400 MB as RGB"""
MAX_BYTES = 2**30
"""larger files are not read"""
ORIENTATION = 0x0112  # EXIF tag

warnings.filterwarnings(
    "ignore", module="PIL"
)  # MAX_PIXELS decides on bombs; other damage is named or mended

Encoded = Path | bytes | Image.Image


class Unreadable(Exception):
    """One image cannot be used; the message is the reason, in a few words."""


def canvas(encoded: Encoded, size: int, channels: int, stretch: bool = False) -> np.ndarray:
    """A file, its bytes or an opened image -> (channels, size, size) uint8; `stretch`: all of it, whatever its shape."""
    with readable():
        image = opened(encoded)
        if image.format == "JPEG":  # the codec itself reduces by 2, 4 or 8, never below `size`
            image.draft("L" if channels == 1 else None, (size, size))
        image = plain(upright(image), channels)
        pixels = np.asarray(stretched(image, size) if stretch else square(image, size))
        return pixels.reshape(size, size, channels).transpose(2, 0, 1)


def short_side(encoded: Encoded) -> int:
    """From the header alone."""
    with readable():
        return min(opened(encoded).size)


@contextmanager
def readable() -> Iterator[None]:
    """Whatever a decoder raises in here makes one image Unreadable; each decoder has its own ways to fail."""
    try:
        yield
    except Unreadable:
        raise
    except UnidentifiedImageError:
        raise Unreadable("not an image") from None
    except Exception as error:
        raise Unreadable(reason(error)) from None


def opened(encoded: Encoded) -> Image.Image:
    """Header read, pixels not yet decoded."""
    if isinstance(encoded, Image.Image):
        return encoded
    if isinstance(encoded, Path) and encoded.stat().st_size > MAX_BYTES:
        raise Unreadable(f"{encoded.stat().st_size:,} bytes, more than {MAX_BYTES:,}")
    data = encoded if isinstance(encoded, bytes) else encoded.read_bytes()
    if not data:
        raise Unreadable("empty")
    image = Image.open(io.BytesIO(data))
    if image.width * image.height > MAX_PIXELS:
        raise Unreadable(f"{image.width} x {image.height} pixels, more than {MAX_PIXELS:,}")
    return image


def upright(image: Image.Image) -> Image.Image:
    if image.getexif().get(ORIENTATION, 1) == 1:
        return image
    return ImageOps.exif_transpose(image)


def plain(image: Image.Image, channels: int) -> Image.Image:
    """8 bit, without palette or transparency."""
    mode = "L" if channels == 1 else "RGB"
    if image.mode == mode and "transparency" not in image.info:
        return image
    if image.mode[0] in "IF":
        return Image.fromarray(eight_bit(np.asarray(image))).convert(mode)
    if image.has_transparency_data:
        image = image.convert("RGBA")
        image = Image.alpha_composite(Image.new("RGBA", image.size, "white"), image)
    return image.convert(mode)


def eight_bit(pixels: np.ndarray) -> np.ndarray:
    """(H, W) of 16 bit, 16 bit stored in 32, or floats in [0, 1] -> uint8."""
    if pixels.dtype.kind != "f":
        return (pixels.clip(0, 65535) / 257).round().astype(np.uint8)
    if not (pixels.min() >= 0 and pixels.max() <= 1):
        raise Unreadable("floating point pixels outside [0, 1]")
    return (pixels * 255).round().astype(np.uint8)


def square(image: Image.Image, size: int) -> Image.Image:
    """The central square, resized with anti-aliasing."""
    if image.size == (size, size):
        return image
    side = min(image.size)
    left, top = (image.width - side) / 2, (image.height - side) / 2
    box = (left, top, left + side, top + side)
    return image.resize((size, size), Image.Resampling.BICUBIC, box=box, reducing_gap=3.0)


def stretched(image: Image.Image, size: int) -> Image.Image:
    """All of it as a square; the aspect is lost."""
    return image.resize((size, size), Image.Resampling.BICUBIC, reducing_gap=3.0)


def reason(error: BaseException) -> str:
    """In a few words, without the file's name."""
    if isinstance(error, OSError) and error.strerror:
        return error.strerror.lower()
    return (str(error) or type(error).__name__).splitlines()[0][:120]

"""Every format that cameras, scanners and web pages write, compared with known pixels."""

import contextlib
import io
import zlib
from pathlib import Path

import numpy as np
import pytest
from PIL import Image, features

from pretask.data import decode
from pretask.transforms.ranges import Range

SIZE = 24
RAMP = np.linspace(0, 255, SIZE).round().astype(np.uint8)
UPRIGHT = np.stack(  # red grows downwards, green to the right, a blue corner at the top left
    [RAMP[:, None].repeat(SIZE, 1), RAMP[None].repeat(SIZE, 0), np.zeros((SIZE, SIZE), np.uint8)], 2
)
UPRIGHT[:8, :8, 2] = 200
GRAY = RAMP[:, None].repeat(SIZE, 1)


def saved(image: Image.Image, kind: str, **options) -> bytes:
    file = io.BytesIO()
    image.save(file, kind, **options)
    return file.getvalue()


def shown(data: bytes, channels: int = 3) -> np.ndarray:
    """-> (SIZE, SIZE, channels)."""
    return decode.canvas(data, SIZE, channels).transpose(1, 2, 0)


@pytest.mark.parametrize(
    ("kind", "options", "off"),
    [
        ("PNG", {}, 0),
        ("BMP", {}, 0),
        ("TIFF", {}, 0),
        ("WEBP", {"lossless": True}, 0),
        ("WEBP", {"quality": 98}, 4),
        ("JPEG", {"quality": 98, "subsampling": 0}, 2),
    ],
)
def test_color_images_keep_their_pixels(kind: str, options: dict, off: int):
    out = shown(saved(Image.fromarray(UPRIGHT), kind, **options))
    assert np.abs(out.astype(int) - UPRIGHT).mean() <= off


@pytest.mark.parametrize("kind", ["PNG", "BMP", "TIFF", "GIF"])
def test_gray_images_have_three_equal_channels_or_one(kind: str):
    data = saved(Image.fromarray(GRAY), kind)
    assert np.array_equal(shown(data), GRAY[..., None].repeat(3, 2))
    assert np.array_equal(shown(data, 1), GRAY[..., None])


def test_palette_is_applied():
    image = Image.fromarray(UPRIGHT // 64 * 64).quantize(256)
    assert image.mode == "P"
    assert np.array_equal(shown(saved(image, "PNG")), np.asarray(image.convert("RGB")))


def test_one_bit_is_black_and_white():
    assert set(np.unique(shown(saved(Image.fromarray(GRAY).convert("1"), "PNG")))) == {0, 255}


@pytest.mark.parametrize("mode", ["RGBA", "LA"])
def test_transparency_becomes_white(mode: str):
    image = Image.fromarray(UPRIGHT).convert(mode)
    alpha = np.zeros((SIZE, SIZE), np.uint8)
    alpha[:, :12] = 255
    image.putalpha(Image.fromarray(alpha))
    out = shown(saved(image, "PNG"))
    assert np.array_equal(
        out[:, :12], np.asarray(Image.fromarray(UPRIGHT).convert(mode[:-1]).convert("RGB"))[:, :12]
    )
    assert (out[:, 12:] == 255).all()


def test_transparent_palette_entry_becomes_white():
    image = Image.new("P", (SIZE, SIZE), 0)
    image.putpalette([10, 20, 30, 200, 100, 50])
    image.paste(1, (0, 0, 12, SIZE))
    out = shown(saved(image, "PNG", transparency=0))
    assert (out[:, 12:] == 255).all()
    assert (out[:, :12] == [200, 100, 50]).all()


def test_cmyk_becomes_rgb():
    out = shown(saved(Image.fromarray(UPRIGHT).convert("CMYK"), "JPEG", quality=98, subsampling=0))
    assert np.abs(out.astype(int) - UPRIGHT).max() <= 16


@pytest.mark.parametrize("kind", ["PNG", "TIFF"])
def test_sixteen_bits_are_scaled_not_clipped(kind: str):
    deep = GRAY.astype(np.uint16) * 257
    made = decode.canvas(saved(Image.fromarray(deep), kind), SIZE, 1, known=Range((0, 65535)))
    assert np.array_equal(made[0], GRAY)


def test_images_of_more_than_8_bits_need_a_range():
    for pixels in (GRAY.astype(np.uint16), (GRAY / 255).astype(np.float32)):
        with pytest.raises(
            decode.NoRange, match=f"{pixels.dtype.name} without a range .give --range LOW HIGH"
        ):
            shown(saved(Image.fromarray(pixels), "TIFF"))


BACK = {  # orientation of EXIF -> how the upright image is stored
    1: lambda x: x,
    2: lambda x: x[:, ::-1],
    3: lambda x: x[::-1, ::-1],
    4: lambda x: x[::-1],
    5: lambda x: x.transpose(1, 0, 2),
    6: lambda x: np.rot90(x),
    7: lambda x: x[::-1, ::-1].transpose(1, 0, 2),
    8: lambda x: np.rot90(x, -1),
}


@pytest.mark.parametrize("orientation", BACK)
@pytest.mark.parametrize("kind", ["PNG", "TIFF", "JPEG", "WEBP"])
def test_rotated_photo_is_turned_upright(kind: str, orientation: int):
    exif = Image.Exif()
    exif[decode.ORIENTATION] = orientation
    stored = Image.fromarray(np.ascontiguousarray(BACK[orientation](UPRIGHT)))
    options = {"WEBP": {"lossless": True}, "JPEG": {"quality": 98, "subsampling": 0}}.get(kind, {})
    out = shown(saved(stored, kind, exif=exif, **options))
    assert np.abs(out.astype(int) - UPRIGHT).max() <= (12 if kind == "JPEG" else 0)


@pytest.mark.parametrize("wide", [True, False])
def test_image_is_center_cropped(wide: bool):
    picture = np.zeros((SIZE, 3 * SIZE, 3), np.uint8)
    picture[:, SIZE : 2 * SIZE] = UPRIGHT
    picture = picture if wide else picture.transpose(1, 0, 2)
    expected = UPRIGHT if wide else UPRIGHT.transpose(1, 0, 2)
    out = shown(saved(Image.fromarray(picture), "PNG"))
    assert np.abs(out[2:-2, 2:-2].astype(int) - expected[2:-2, 2:-2]).max() == 0


def test_downscaling_does_not_alias():
    stripes = np.zeros((10 * SIZE, 10 * SIZE, 3), np.uint8)
    stripes[::2] = 255  # every second row: subsampling every tenth would give all or none
    assert np.abs(shown(saved(Image.fromarray(stripes), "PNG")).astype(int) - 127).max() <= 5


def test_jpeg_draft_mode_never_goes_below_the_size():
    fine = Image.fromarray(UPRIGHT).resize(
        (50, 50), Image.Resampling.BICUBIC
    )  # 50 -> 24 may be halved, not quartered
    out = shown(saved(fine, "JPEG", quality=98, subsampling=0))
    assert np.abs(out.astype(int) - UPRIGHT)[1:-1, 1:-1].mean() < 4


def big(width: int, height: int) -> bytes:
    """A PNG header that claims many pixels, like a decompression bomb."""
    data = bytearray(saved(Image.new("L", (4, 4)), "PNG"))
    data[16:24] = width.to_bytes(4, "big") + height.to_bytes(4, "big")
    data[29:33] = zlib.crc32(data[12:29]).to_bytes(4, "big")
    return bytes(data)


PHOTO = saved(Image.fromarray(UPRIGHT), "JPEG")


@pytest.mark.parametrize(
    ("data", "message"),
    [
        (b"", "empty"),
        (b"this is a text, not a photo", "not an image"),
        (PHOTO[: len(PHOTO) // 2], "(?i)truncated"),
        (saved(Image.fromarray(UPRIGHT), "PNG")[:90], "(?i)truncated|broken"),
        (big(20000, 20000), "pixels"),
        (big(13000, 13000), "pixels"),  # over this limit, under Pillow's own
    ],
    ids=["empty", "text", "half a jpeg", "half a png", "gigapixel", "large"],
)
def test_unreadable_images_have_a_reason(data: bytes, message: str):
    with pytest.raises(decode.Unreadable, match=message):
        decode.canvas(data, SIZE, 3)


KINDS = ["JPEG", "PNG", "TIFF", "WEBP", "BMP", "GIF", *(["AVIF"] if features.check("avif") else [])]


@pytest.mark.filterwarnings("ignore::UserWarning:PIL")
def test_random_damage_raises_only_unreadable():
    rng = np.random.default_rng(0)
    files = [saved(Image.fromarray(UPRIGHT), kind) for kind in KINDS]
    for data in files * 50:
        hurt = np.frombuffer(data, np.uint8).copy()[: rng.integers(len(data) // 2, 2 * len(data))]
        hurt[rng.integers(0, len(hurt), 8)] = rng.integers(0, 256, 8)
        with contextlib.suppress(decode.Unreadable):
            assert decode.canvas(hurt.tobytes(), SIZE, 3).shape == (3, SIZE, SIZE)


def test_file_too_large_to_be_an_image_is_not_read(tmp_path: Path):
    with (tmp_path / "film.png").open("wb") as film:
        film.truncate(2**40)  # sparse: takes no disk space, but exceeds the memory
    with pytest.raises(decode.Unreadable, match="bytes, more than"):
        decode.canvas(tmp_path / "film.png", SIZE, 3)


def test_missing_file_is_unreadable(tmp_path: Path):
    with pytest.raises(decode.Unreadable, match="no such file"):
        decode.canvas(tmp_path / "gone.png", SIZE, 3)

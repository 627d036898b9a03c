"""Images of more than 8 bits keep their brightness, with one range for a whole run."""

import io
import json
import struct
import subprocess
import sys
import zlib
from pathlib import Path

import numpy as np
import pytest
import tifffile
import torch
from PIL import Image

import pretask
from pretask import PretaskFeatures, Reading
from pretask import data as sources
from pretask.cli import main
from pretask.data import annotated, decode, deep, encoded, folder, formats, in_memory, store
from pretask.data.base import OpenOptions
from pretask.errors import install_command
from pretask.train.run import Run
from pretask.transforms.ranges import PixelStats, Range, clipped_fraction, complete
from pretask.types import UserError

SIDE, COUNT = 16, 6
SMALL = {"encoder": "resnet_small:width=4", "steps": 1, "batch": 4, "size": SIDE, "quiet": True}


def photos(count: int = COUNT) -> np.ndarray:
    """(N, SIDE, SIDE, 3) uint8, each of different brightness, together from 0 to 255."""
    rng = np.random.default_rng(0)
    made = rng.integers(0, 60, (count, SIDE, SIDE, 3)) + 195 * np.arange(count)[:, None, None, None] // (
        count - 1
    )
    made[0, 0, 0], made[-1, 0, 0] = 0, 255
    return made.astype(np.uint8)


COLOR = photos()
GRAY = COLOR[..., 0]


def png(pixels: np.ndarray, chunk: bytes = b"") -> bytes:
    """(H, W, bands) of 16 bits, which Pillow cannot write; `chunk` precedes the pixels."""
    kind = {1: 0, 2: 4, 3: 2, 4: 6}[pixels.shape[2]]
    height, width = pixels.shape[:2]
    lines = b"".join(b"\0" + line.astype(">u2").tobytes() for line in pixels)

    def part(name: bytes, data: bytes) -> bytes:
        return struct.pack(">I", len(data)) + name + data + struct.pack(">I", zlib.crc32(name + data))

    header = part(b"IHDR", struct.pack(">IIBBBBB", width, height, 16, kind, 0, 0, 0))
    bits = part(b"sBIT", chunk) if chunk else b""
    return b"\x89PNG\r\n\x1a\n" + header + bits + part(b"IDAT", zlib.compress(lines)) + part(b"IEND", b"")


def tif(pixels: np.ndarray, **known) -> bytes:
    file = io.BytesIO()
    tifffile.imwrite(file, pixels, **known)
    return file.getvalue()


def pillow(pixels: np.ndarray, **known) -> bytes:
    file = io.BytesIO()
    Image.fromarray(pixels).save(file, **known)
    return file.getvalue()


def to(top: int, kind: type = np.uint16):
    """Bytes -> integers from 0 to `top`."""
    return lambda x: (x.astype(np.float64) * top / 255).round().astype(kind)


def unit(kind: type):
    return lambda x: (x / 255).astype(kind)


TWELVE, FULL = to(4095), to(65535)
RGB = {"photometric": "rgb"}
SIXTEEN = np.arange(65536)[None].repeat(3, 0).astype(np.uint16)  # a palette of grays


def tag(code: int, kind: int, *values) -> dict:
    return {"extratags": [(code, kind, len(values), values if len(values) > 1 else values[0], False)]}


GRAYS = {
    "8 bit": lambda x: pillow(x, format="PNG"),
    "full 16 bit": lambda x: tif(FULL(x)),
    "full 16 bit PNG": lambda x: pillow(FULL(x), format="PNG"),
    "12 bit in 16": lambda x: tif(TWELVE(x)),
    "12 bit in 16, big-endian": lambda x: tif(TWELVE(x), byteorder=">"),
    "12 bit in 16, LZW": lambda x: pillow(TWELVE(x), format="TIFF", compression="tiff_lzw"),
    "12 bit in 16, deflated": lambda x: tif(TWELVE(x), compression="zlib", predictor=True),
    "12 bit in 16, BigTIFF": lambda x: tif(TWELVE(x), bigtiff=True),
    "12 bit in 16, white is zero": lambda x: tif(TWELVE(255 - x), photometric="miniswhite"),
    "12 bit scaled up to 16": lambda x: png((TWELVE(x) << 4 | TWELVE(x) >> 8)[..., None], b"\x0c"),
    "8 bit in int32": lambda x: tif(x.astype(np.int32)),
    "8 bit in uint32": lambda x: tif(x.astype(np.uint32), byteorder=">"),
    "8 bit, white is zero": lambda x: tif(255 - x, photometric="miniswhite"),
    "full 32 bit": lambda x: tif(to(2**32 - 1, np.uint32)(x)),
    "float16": lambda x: tif(unit(np.float16)(x)),
    "float32": lambda x: tif(unit(np.float32)(x)),
    "float32, big-endian": lambda x: tif(unit(np.float32)(x), byteorder=">"),
    "float32, white is zero": lambda x: tif(unit(np.float32)(255 - x), photometric="miniswhite"),
    "float64": lambda x: tif(unit(np.float64)(x)),
    "int16, declared": lambda x: tif(x.astype(np.int16) * 5 - 1024, **signed(-1024, 251)),
    "uint16, declared": lambda x: tif(x.astype(np.uint16) * 2 + 40, **declared(40, 550)),
    "uint16, wrongly declared": lambda x: tif(TWELVE(x), **declared(0, 1)),
    "palette of 16 bit": lambda x: tif(FULL(x), photometric="palette", colormap=SIXTEEN),
}
COLORS = {
    "full 16 bit": lambda x: tif(FULL(x), **RGB),
    "12 bit in 16": lambda x: tif(TWELVE(x), **RGB),
    "12 bit in 16, planar": lambda x: tif(TWELVE(x).transpose(2, 0, 1), planarconfig="separate", **RGB),
    "12 bit in 16, PNG": lambda x: png(TWELVE(x)),
    "12 bit in 16, RGBA": lambda x: png(np.dstack([TWELVE(x), np.full((SIDE, SIDE), 65535)])),
    "8 bit, planar": lambda x: tif(x.transpose(2, 0, 1), planarconfig="separate", **RGB),
    "float32": lambda x: tif(unit(np.float32)(x), **RGB),
    "int32": lambda x: tif(x.astype(np.int32), photometric="minisblack", planarconfig="contig"),
}


def signed(low: int, high: int) -> dict:
    return {"extratags": [(340, "h", 1, low, False), (341, "h", 1, high, False)]}


def declared(low: int, high: int) -> dict:
    return {"extratags": [(280, "H", 1, low, False), (281, "H", 1, high, False)]}


def written(at: Path, pixels, form) -> Path:
    at.mkdir(parents=True)
    for i, image in enumerate(pixels):
        data = form(image)
        ending = "png" if data.startswith(b"\x89PNG") else "tif"
        (at / f"{i}.{ending}").write_bytes(data)
    return at


def opened(at: Path, channels: int = 1, **known) -> torch.Tensor:
    """(N, H, W, channels)"""
    source = sources.open(at, size=SIDE, channels=channels, progress=False, **known)
    return source.__getitems__(torch.arange(len(source))).image.permute(0, 2, 3, 1)


def off(one, other) -> int:
    return int(np.abs(np.asarray(one).astype(int) - np.asarray(other).astype(int)).max())


# ---- round trip at any bit depth


@pytest.mark.parametrize("kind", GRAYS)
def test_gray_image_of_any_bit_depth_gives_the_same_8_bit_image(kind, tmp_path):
    assert off(opened(written(tmp_path / "x", GRAY, GRAYS[kind]))[..., 0], GRAY) <= 1


@pytest.mark.parametrize("kind", COLORS)
def test_color_image_of_any_bit_depth_gives_the_same_8_bit_image(kind, tmp_path):
    assert off(opened(written(tmp_path / "x", COLOR, COLORS[kind]), 3), COLOR) <= 1


@pytest.mark.parametrize("kind", [np.uint16, np.int16, np.uint32, np.float32])
def test_pillow_reads_tiff_without_a_tifffile_codec(kind, monkeypatch):
    pytest.importorskip("imagecodecs")
    form, known = to(251, kind) if kind != np.float32 else unit(kind), Range((0, 251), (0, 1))
    for pixels, more in ((GRAY[0], {}), (COLOR[0], RGB)):
        if pixels.ndim == 3 and kind != np.uint16:
            continue  # not supported by Pillow
        data = tif(form(pixels), compression="lzw", **more)
        expected = decode.canvas(data, SIDE, 3, known=known)
        page = deep.first_page(data)
        monkeypatch.setattr(type(page), "asarray", lacking)
        assert np.array_equal(decode.canvas(data, SIDE, 3, known=known), expected)
        monkeypatch.undo()


def lacking(page, **_):
    raise KeyError("requires the 'imagecodecs' package")


@pytest.mark.parametrize("kind", [np.uint16, np.int32, np.int64, np.float32, np.float64])
def test_arrays_of_any_type_give_the_same_8_bit_image(kind, tmp_path):
    deep = unit(kind)(COLOR) if kind in (np.float32, np.float64) else to(4095, kind)(COLOR)
    np.savez(tmp_path / "x.npz", images=deep)
    assert off(opened(tmp_path / "x.npz", 3), COLOR) <= 1
    assert off(in_memory.from_array(deep).image.permute(0, 2, 3, 1), COLOR) <= 1
    assert in_memory.from_array(deep[..., 0]).range == sources.open(tmp_path / "x.npz").range


def test_resizing_equals_that_of_8_bit_images(tmp_path):
    smooth = np.linspace(0, 255, 64 * 48).reshape(64, 48).round().astype(np.uint8)
    plain, deep = decode.canvas(pillow(smooth, format="PNG"), 24, 3), tif(TWELVE(smooth))
    assert off(decode.canvas(deep, 24, 3, known=Range((0, 4095))), plain) <= 1
    squeezed = decode.canvas(deep, 24, 3, stretch=True, known=Range((0, 4095)))
    assert off(squeezed, decode.canvas(pillow(smooth, format="PNG"), 24, 3, stretch=True)) <= 1


def test_transparent_16_bit_is_composited_on_white():
    pixels = np.dstack([np.zeros((4, 4)), np.repeat([0, 65535], 2)[:, None].repeat(4, 1)]).astype(np.uint16)
    for data in (png(pixels), tif(pixels, photometric="minisblack", extrasamples=["unassalpha"])):
        assert decode.canvas(data, 4, 1, known=Range((0, 65535)))[0, :, 0].tolist() == [255, 255, 0, 0]


@pytest.mark.parametrize("orientation", range(1, 9))
def test_deep_images_are_turned_upright(orientation):
    plain = pillow(GRAY[0], format="TIFF", tiffinfo={274: orientation})
    deep = tif(GRAY[0].astype(np.uint16), **tag(274, "H", orientation))
    assert np.array_equal(decode.canvas(plain, SIDE, 1), decode.canvas(deep, SIDE, 1, known=Range((0, 255))))


def test_scaled_up_16_bit_images_stay_dark(tmp_path):
    dark = GRAY // 32
    at = written(tmp_path / "x", dark, lambda x: png((TWELVE(x) << 4 | TWELVE(x) >> 8)[..., None], b"\x0c"))
    assert off(opened(at)[..., 0], dark) <= 1


# ---- one range


def test_range_is_measured_as_documented(tmp_path):
    def of(pixels, **known) -> Range:
        return complete(Range(**known), [PixelStats.from_pixels(np.asarray(pixels))])

    assert of(np.array([0, 200], np.uint16)).integers == (0, 255)
    assert of(np.array([0, 256], np.uint16)).integers == (0, 511)
    assert of(np.array([7, 4096], np.int32)).integers == (0, 8191)
    assert of(np.array([0.0, 1.0])).floats == (0, 1)
    ramp = np.arange(1001) - 100
    assert of(ramp).integers == pytest.approx((-99, 899)) and of(ramp / 2).floats == pytest.approx(
        (-49.5, 449.5)
    )
    assert of(np.array([-5, -5])).integers == (-5, -4)  # never empty
    assert of(ramp / 2, integers=(0, 9)).floats == (0, 9)  # same quantity, other type
    assert of(ramp / 1000 + 0.1, integers=(0, 9)).floats == (0, 1)
    assert of(ramp, floats=(0, 1)).integers == pytest.approx((-99, 899))
    assert of(ramp, integers=(3, 4)).integers == (3, 4)


def test_one_range_keeps_the_order_of_brightness_between_images(tmp_path):
    means = (
        opened(written(tmp_path / "x", GRAY, lambda x: tif(x.astype(np.int16) * 3 - 500)))
        .float()
        .mean((1, 2, 3))
    )
    assert (means.diff() > 20).all()


def test_pixels_without_data_are_ignored_and_black(tmp_path):
    hole = np.s_[4:8, 4:8]

    def with_hole(kind, value, **known):
        def form(x):
            pixels = kind(x)
            pixels[hole] = value
            return tif(pixels, **known)

        return form

    gdal = {"extratags": [(42113, "s", 0, "-9999", False)]}
    for i, form in enumerate(
        [
            with_hole(unit(np.float32), np.nan),
            with_hole(unit(np.float64), np.inf),
            with_hole(unit(np.float32), -9999, **gdal),
            with_hole(lambda x: x.astype(np.int16), -9999, **gdal),
            with_hole(lambda x: unit(np.float32)(255 - x), np.nan, photometric="miniswhite"),
        ]
    ):
        expected = GRAY.copy()
        expected[:, *hole] = 0
        assert off(opened(written(tmp_path / str(i), GRAY, form))[..., 0], expected) <= 1
    one = decode.canvas(with_hole(unit(np.float32), np.nan)(GRAY[-1]), 8, 1, known=Range(None, (0, 1)))
    assert (
        one[0, 2:4, 2:4].max() < 60 and one[0, 5:].min() > 180
    )  # a hole affects no pixel beyond its border when resized


def test_given_range_wins(tmp_path, capsys):
    at = written(tmp_path / "x", GRAY, lambda x: tif(x.astype(np.int16) * 5 - 1024))
    reading = Reading(range=(-1024, 251))
    assert off(opened(at, reading=reading)[..., 0], GRAY) <= 1
    assert off(opened(at, reading=reading, range=Range((0, 9)))[..., 0], GRAY) <= 1
    with pytest.raises(UserError, match=r"--range 5.0 5.0 is out of range; expected 2 numbers"):
        pretask.pretrain("rotnet", at, tmp_path / "run", **SMALL, reading=Reading(range=(5.0, 5.0)))
    assert main.main(["prepare", str(at), "--out", str(tmp_path / "s"), "--range", "-1024", "251"]) == 0
    assert json.loads((tmp_path / "s" / "store.json").read_text())["range"]["integers"] == [-1024, 251]


def test_clipped_values_are_reported_above_one_percent(tmp_path, capsys):
    stats = PixelStats.from_pixels(np.arange(1000))
    assert clipped_fraction(Range((0, 989)), [stats]) == 0.01
    assert clipped_fraction(Range((10, 989)), [stats]) == 0.02
    at = written(tmp_path / "x", GRAY, lambda x: tif(TWELVE(x)))
    opened(at, range=Range((0, 4095)))
    assert "clipped" not in capsys.readouterr().err
    opened(at, range=Range((0, 2000)))
    assert "of the values lie outside of the range 0 … 2000 and are clipped" in capsys.readouterr().err


def test_many_constant_images_give_a_warning_and_few_do_not(tmp_path, capsys):
    for gone, warned in ((1, False), (2, True)):
        some = photos(10)[..., 0]
        some[:gone] = 7
        at = written(tmp_path / str(gone), some, GRAYS["8 bit"])
        for cache_mb in (0, 2048):
            opened(at, cache_mb=cache_mb)
            assert (f"{gone} of 10 sampled images are constant" in capsys.readouterr().err) == warned
        in_memory.from_array(some)
        assert ("are constant" in capsys.readouterr().err) == warned


def test_stream_of_deep_images_needs_a_range(tmp_path, writes_parquet):
    spec = writes_parquet([tif(TWELVE(x)) for x in GRAY])
    with pytest.raises(
        UserError, match=r"measured first, and contains uint16 without a range .give --range LOW"
    ):
        next(sources.open(spec, size=SIDE).epoch(2))
    stream = sources.open(spec, size=SIDE, channels=1, reading=Reading(range=(0, 4095)))
    assert off(next(stream.epoch(COUNT)).image[:, 0], GRAY) <= 1


@pytest.fixture
def writes_parquet(tmp_path):
    pytest.importorskip("datasets")
    import pyarrow as pa
    import pyarrow.parquet as pq

    def write(images: list[bytes]) -> str:
        pq.write_table(pa.table({"image": images}), tmp_path / "x.parquet")
        return f"hf-stream:{tmp_path / 'x.parquet'}"

    return write


# ---- the range of a run, and of a store


@pytest.fixture(scope="module")
def ct(tmp_path_factory) -> Path:
    """Signed values from -1024 to 251, in two classes."""
    at = tmp_path_factory.mktemp("ct")
    for name, some in (("dark", GRAY[:3]), ("light", GRAY[3:])):
        written(at / name, some, lambda x: tif(x.astype(np.int16) * 5 - 1024, **signed(-1024, 251)))
    return at


@pytest.fixture(scope="module")
def run(ct, tmp_path_factory) -> Path:
    at = tmp_path_factory.mktemp("runs") / "run"
    pretask.pretrain("rotnet", ct, at, **SMALL)
    return at


def test_run_keeps_its_range(run):
    for card in ("run.json", "encoder.json"):
        assert json.loads((run / card).read_text())["range"] == {"integers": [-1024, 251]}
    there = Run(run)
    assert there.encoder.range == there.untrained.range == there.source.range == OF_CT


def test_other_images_use_the_range_of_the_run(run, tmp_path):
    half = GRAY // 2  # its own range would be different
    at = written(tmp_path / "x", half, lambda x: tif(x.astype(np.int16) * 5 - 1024))
    plain = written(tmp_path / "y", half, GRAYS["8 bit"])
    expected = pretask.embed(run, plain)
    np.testing.assert_allclose(pretask.embed(run, at), expected, atol=1e-5)
    array = half.astype(np.int16) * 5 - 1024
    np.testing.assert_allclose(pretask.embed(run, array), expected, atol=1e-5)
    np.testing.assert_allclose(PretaskFeatures(run).fit(array).transform(array[:2]), expected[:2], atol=1e-5)
    floats = unit(np.float32)(half)  # within 0 … 1, so unchanged
    np.testing.assert_allclose(PretaskFeatures(run).fit_transform(floats), expected, atol=1e-5)


OF_CT = Range(integers=(-1024, 251))


class Seen(Exception):
    """Raised when a source is opened."""


COMMANDS = {
    "evaluate": ["evaluate", "RUN", "--data", "CT"],
    "embed": ["embed", "RUN", "--data", "CT", "--out", "OUT/x.parquet"],
    "cluster": ["cluster", "RUN", "--data", "CT", "--clusters", "2", "--out", "OUT/c"],
    "study": ["study", "RUN", "--data", "CT"],
    "report": ["report", "RUN", "--data", "CT"],
    "colorize": ["colorize", "RUN", "--data", "CT", "--out", "OUT/p"],
    "export": ["export", "RUN", "--to", "torch", "--out", "OUT/e"],
    "transfer": ["transfer", "RUN", "--data", "VOC", "--task", "classification"],
    "monitor": [
        "pretrain",
        "rotnet",
        "--data",
        "CT",
        "--monitor",
        "CT",
        "--size",
        "16",
    ],
    "resume": ["pretrain", "--resume", "RUN", "--steps", "2"],
}


@pytest.mark.parametrize("command", COMMANDS)
def test_every_command_uses_the_range_of_its_run(command, run, ct, tmp_path, monkeypatch):
    ranges: list[Range] = []

    def seen(name, items, known):
        if command == "monitor" and known == Range():
            return OF_CT
        ranges.append(known)
        raise Seen

    for module in (encoded, annotated):
        monkeypatch.setattr(module, "range_of", seen)
    places = {"RUN": str(run), "CT": str(ct), "VOC": str(voc(tmp_path / "voc")), "OUT": str(tmp_path)}
    words = [
        next((w.replace(k, v) for k, v in places.items() if w.split("/")[0] == k), w)
        for w in COMMANDS[command]
    ]
    with pytest.raises(Seen):
        main.main(words)
    assert ranges == [OF_CT]


def voc(at: Path) -> Path:
    (at / "Annotations").mkdir(parents=True)
    (at / "JPEGImages").mkdir()
    (at / "JPEGImages" / "a.tif").write_bytes(tif(GRAY[0].astype(np.int16) * 5 - 1024))
    box = "<bndbox><xmin>1</xmin><ymin>1</ymin><xmax>9</xmax><ymax>9</ymax></bndbox>"
    (at / "Annotations" / "a.xml").write_text(
        f"<annotation><filename>a.tif</filename><object><name>cat</name>{box}</object></annotation>"
    )
    return at


def test_annotated_images_are_mapped_by_the_range(tmp_path):
    found = annotated.load(voc(tmp_path / "voc"), OpenOptions(range=Range((-1024, 251))))
    assert off(found.items[0].image(1)[0], GRAY[0]) <= 1 and found.range.integers == (-1024, 251)
    assert off(annotated.pictures(found, SIDE, 1).__getitems__(torch.arange(1)).image[0, 0], GRAY[0]) <= 1


def test_test_set_uses_the_range_of_the_training_set(tmp_path, monkeypatch):
    from pretask.workflows.inputs import labeled_pair

    for name, some in (("train", GRAY), ("test", GRAY // 4)):
        for label in "ab":
            written(tmp_path / name / label, some, lambda x: tif(TWELVE(x)))
    both = labeled_pair(tmp_path / "train", tmp_path / "test", OpenOptions(SIDE, 1, range=Range()))
    means = [each.__getitems__(torch.arange(12)).image.float().mean().item() for each in both if each]
    assert means[0] / means[1] == pytest.approx(4, rel=0.1)


def test_store_keeps_its_range_and_warns_of_a_different_one(ct, tmp_path, capsys):
    source = sources.open(ct, size=SIDE, reading=Reading(range=(-1024, 251)))
    store.prepare(source, tmp_path / "s", progress=False)
    back = sources.open(tmp_path / "s", range=source.range)
    assert back.range == source.range and "differ in brightness" not in capsys.readouterr().err
    sources.open(tmp_path / "s", range=Range((0, 4095)))
    assert "was prepared with the range -1024 … 251, not 0 … 4095" in capsys.readouterr().err


def test_export_states_its_range(run):
    from pretask.workflows.export import use_hf, use_onnx, use_torch

    encoder = Run(run).encoder
    for usage in (use_torch, use_onnx):
        assert "in [0, 1], mapped from -1024 … 251 and clipped" in usage(Path("x"), encoder)
    assert "a PIL image of 8 bit, mapped from -1024 … 251 and clipped" in use_hf(Path("x"), encoder)


# ---- files that are not images, and no messages of libraries


def bands(count: int, **known):
    deep = np.repeat(FULL(GRAY[0])[..., None], count, 2)
    return tif(deep, planarconfig="contig", photometric="minisblack", **known)


@pytest.mark.parametrize(
    ("data", "why"),
    [
        (bands(13), "13 bands: expected 1 or 3"),
        (bands(2), "2 bands: expected 1 or 3"),
        (tif(np.repeat(GRAY[0][..., None], 4, 2), planarconfig="contig", photometric="minisblack"), "4 bands: expected 1 or 3"),
        (tif(np.repeat(GRAY[0][..., None], 4, 2), photometric="rgb", extrasamples=["unspecified"]), "4 bands: expected 1 or 3"),
        (tif(GRAY[0].astype(np.complex64)), "TIFF of complex64"),
    ],
)  # fmt: skip
def test_bands_that_are_not_colors_have_one_reason(data, why):
    with pytest.raises(decode.Unreadable, match=why):
        decode.canvas(data, SIDE, 3)


def test_damaged_files_write_nothing_to_standard_error(tmp_path):
    """In a separate process, to capture standard error below Python."""
    good = [
        pillow(COLOR[0], format="TIFF", compression=how)
        for how in ("tiff_lzw", "jpeg", "tiff_deflate", "packbits")
    ] + [GRAYS["12 bit in 16, LZW"](GRAY[0]), tif(TWELVE(COLOR[0]), **RGB, compression="zlib"), bands(13)]
    rng = np.random.default_rng(1)
    for i in range(60):
        bad = bytearray(good[i % len(good)])
        for at in rng.integers(8, len(bad), 1 + i % 7):
            bad[at] ^= int(rng.integers(1, 256))
        (tmp_path / f"{i}.tif").write_bytes(bad[: len(bad) - i % 3 * 20])
    script = (
        "import sys; from pathlib import Path; from concurrent.futures import ThreadPoolExecutor\n"
        "from pretask.data import decode\n"
        "from pretask.transforms.ranges import Range\n"
        "def one(path):\n"
        "    try: decode.canvas(path, 16, 3, known=Range.fixed((0, 4095)))\n"
        "    except decode.Unreadable as why: return str(why)\n"
        "with ThreadPoolExecutor(2) as threads: why = list(threads.map(one, sorted(Path(sys.argv[1]).glob('*.tif'))))\n"
        "print(sum(map(bool, why)))"
    )
    result = subprocess.run(
        [sys.executable, "-c", script, str(tmp_path)], capture_output=True, text=True, check=True
    )
    assert result.stderr == "" and int(result.stdout) > 20


# ---- HEIC and JPEG XL


def encoded_as(kind: str, pixels: np.ndarray, **options) -> bytes:
    pytest.importorskip("pillow_heif" if kind == "HEIF" else "pillow_jxl")
    (formats.heif if kind == "HEIF" else formats.jpeg_xl)()
    return pillow(
        pixels, format=kind, **{"HEIF": {"quality": 100}, "JXL": {"lossless": True}}[kind], **options
    )


SMOOTH = np.linspace(0, 200, 64 * 64).reshape(64, 64, 1).repeat(3, 2).round().astype(np.uint8)


@pytest.mark.parametrize("kind", ["HEIF", "JXL"])
def test_heic_and_jpeg_xl_are_read_with_any_suffix(kind, tmp_path):
    (tmp_path / "photo").write_bytes(encoded_as(kind, SMOOTH))
    (tmp_path / "photo.png").write_bytes(pillow(SMOOTH, format="PNG"))
    assert folder.is_image(str(tmp_path / "photo").encode())
    source = sources.open(tmp_path, size=64, progress=False)
    one, other = source.__getitems__(torch.arange(2)).image
    assert off(one, other) <= 4


@pytest.mark.parametrize("kind", ["HEIF", "JXL"])
def test_damaged_heic_and_jpeg_xl_have_a_reason(kind):
    with pytest.raises(decode.Unreadable):
        decode.canvas(encoded_as(kind, SMOOTH)[:60], 16, 3)


@pytest.mark.parametrize(
    ("kind", "module", "name"),
    [("HEIF", "pillow_heif", "HEIC"), ("JXL", "pillow_jxl", "JPEG XL")],
)
def test_missing_plugin_is_counted_with_install_advice(kind, module, name, tmp_path, monkeypatch):
    first = {"HEIF": b"\0\0\0\x18ftypheic\0\0\0\0mif1heic", "JXL": b"\xff\x0a"}[kind]
    for i in range(2):
        (tmp_path / f"{i}.bin").write_bytes(first + bytes(200))
    written(tmp_path / "good", photos(30)[..., 0], GRAYS["8 bit"])
    monkeypatch.setitem(sys.modules, module, None)  # makes its import fail
    for plugin in (formats.heif, formats.jpeg_xl):
        plugin.cache_clear()
    source = sources.open(tmp_path, size=SIDE, progress=False)
    assert f"2 skipped: 2 {name} ({install_command('formats')})" in source.ledger.summary()


def test_plugins_are_imported_lazily():
    script = (
        "import sys; from pretask import data; data.open('synthetic:8:16')\n"
        "from pretask.data import decode; from PIL import Image; decode.canvas(Image.new('RGB', (8, 8)), 8, 3)\n"
        "print([m for m in ('pillow_heif', 'pillow_jxl', 'tifffile') if m in sys.modules])"
    )
    result = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=True)
    assert result.stdout == "[]\n"

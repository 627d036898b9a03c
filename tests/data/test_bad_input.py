"""Bad input is skipped and listed, or gives a one-line error with exit code 2, and never leaves partial output."""

import csv
import io
import json
import os
import pickle
import shutil
import subprocess
import zipfile
import zlib
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from pretask import data as sources
from pretask.cli.main import main
from pretask.data import encoded
from pretask.data.base import OpenOptions
from pretask.encoders.saved import WEIGHTS
from pretask.runtime import files
from pretask.train import checkpoint, run, trainer
from pretask.types import UserError
from pretask.workflows import pretrain as pretraining

FAST = ["--encoder", "resnet_small:width=8", "--batch", "20"]


def pretrain(data: str | Path, out: Path, *more: str) -> int:
    return main(["pretrain", "rotnet", "--data", str(data), "--out", str(out), *FAST, *more])


def error_line(capsys: pytest.CaptureFixture[str]) -> str:
    """The one-line error message."""
    lines = [line for line in capsys.readouterr().err.splitlines() if not line.startswith("step ")]
    assert len(lines) == 1 and lines[0].startswith("pretask: "), lines
    return lines[0]


def listed(folder: Path) -> dict[str, str]:
    text = (folder / "bad.csv").read_text(errors="surrogateescape")
    head, *rows = csv.reader(io.StringIO(text, newline=""))
    assert head == ["file", "reason"] and len({name for name, _ in rows}) == len(rows)
    return dict(rows)  # type: ignore[arg-type]


# ---- folders


def colors(side: int = 20, seed: int = 0) -> Image.Image:
    coarse = np.random.default_rng(seed).integers(0, 256, (3, 3, 3), dtype=np.uint8)
    return Image.fromarray(coarse).resize((side, side), Image.Resampling.BILINEAR)


def bomb() -> bytes:
    """A PNG whose header claims 2.5 gigapixels."""
    file = io.BytesIO()
    Image.new("L", (4, 4)).save(file, "PNG")
    data = bytearray(file.getvalue())
    data[16:24] = (50_000).to_bytes(4, "big") * 2
    data[29:33] = zlib.crc32(data[12:29]).to_bytes(4, "big")
    return bytes(data)


BAD = {
    "b/half.jpg": "runcated",
    "b/empty.png": "empty",
    "b/text.jpg": "not an image",
    "b/giga.png": "pixels",
    "b/link.png": "broken link",
    "b/new\nline.jpg": "not an image",
    "b/\udcff.png": "not an image",
}


@pytest.fixture(scope="module")
def mixed(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """80 good files of all common formats, and those of BAD."""
    root = tmp_path_factory.mktemp("mixed")
    deep = "/".join("d" * 50)
    for folder in ("a", "b", "kinds", deep):
        (root / folder).mkdir(parents=True)
    for i in range(67):
        colors(seed=i).save(root / f"a/{i:03d}.png")
    image, exif = colors(40), Image.Exif()
    exif[0x0112] = 6
    image.convert("CMYK").save(root / "kinds/cmyk.jpg")
    Image.fromarray(np.asarray(image)[..., 0].astype(np.uint16) * 257).save(root / "kinds/deep.png")
    image.quantize(16).save(root / "kinds/palette.png", transparency=0)
    image.save(root / "kinds/turned.jpg", exif=exif)
    image.convert("RGBA").save(root / "kinds/rgba.png")
    image.convert("1").save(root / "kinds/bit.png")
    for kind in ("gif", "webp"):
        image.save(root / f"kinds/moving.{kind}", save_all=True, append_images=[image.rotate(90)])
    image.resize((1, 5000)).save(root / "kinds/thin.png")
    image.resize((5000, 1)).save(root / "kinds/flat.jpg")
    image.save(root / "kinds/été 写真.png")
    image.save(root / "kinds/two\nlines.png")
    image.save(root / deep / "deep.png")
    whole = (root / "kinds/turned.jpg").read_bytes()
    contents = {"half": whole[: len(whole) // 2], "empty": b"", "giga": bomb()}
    for name in BAD:
        if name != "b/link.png":
            (root / name).write_bytes(contents.get(Path(name).stem, b"a text"))
    (root / "b/link.png").symlink_to("gone.png")
    (root / "b/a folder.jpg").mkdir()
    return root


@pytest.fixture(params=["cached", "decoded by workers"])
def cache(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> None:
    if request.param != "cached":
        monkeypatch.setattr(sources.open, "__defaults__", (OpenOptions(cache_mb=0),))


@pytest.mark.usefixtures("cache")
def test_only_bad_files_are_skipped_and_listed(mixed: Path, tmp_path: Path):
    assert pretrain(mixed, tmp_path / "run", "--steps", "4") == 0
    found = listed(tmp_path / "run")
    assert set(found) == set(BAD)
    assert all(reason in found[name] for name, reason in BAD.items()), found


@pytest.mark.usefixtures("cache")
def test_too_many_bad_files_are_a_one_line_error_and_leave_no_folder(mixed: Path, tmp_path: Path, capsys):
    assert pretrain(mixed, tmp_path / "run", "--steps", "4", "--max-bad", "0.05") == 2
    assert "7 of 87 images cannot be read" in error_line(capsys)
    assert not list(tmp_path.iterdir())


@pytest.fixture
def large(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> tuple[Path, set[str]]:
    """600 files decoded by workers, 20 of them bad, none of those in the sample read at opening."""
    monkeypatch.setattr(sources.open, "__defaults__", (OpenOptions(cache_mb=0),))
    content = io.BytesIO()
    colors(8).save(content, "PNG")
    bad = [i for i in range(101, 600, 2) if i not in encoded.sample(600)][:20]
    (tmp_path / "photos").mkdir()
    for i in range(600):
        (tmp_path / f"photos/{i:03d}.png").write_bytes(b"no" if i in bad else content.getvalue())
    return tmp_path / "photos", {f"{i:03d}.png" for i in bad}


def test_bad_files_found_by_workers_are_listed_in_the_run(large, tmp_path: Path):
    folder, bad = large
    assert pretrain(folder, tmp_path / "run", "--epochs", "1", "--size", "8") == 0
    assert set(listed(tmp_path / "run")) == bad


def test_run_with_too_many_bad_files_ends_in_a_one_line_error_and_lists_them(large, tmp_path: Path, capsys):
    folder, bad = large
    assert pretrain(folder, tmp_path / "run", "--epochs", "1", "--size", "8", "--max-bad", "0.02") == 2
    assert "at most 2% are tolerated" in error_line(capsys)
    found = set(listed(tmp_path / "run"))
    assert found <= bad and len(found) > 12
    assert not (tmp_path / "run" / run.DONE).exists()


def test_bad_files_found_before_a_crash_stay_listed(large, tmp_path: Path, monkeypatch):
    folder, bad = large
    words, plain = ("--epochs", "1", "--size", "8"), trainer.Trainer.step
    monkeypatch.setattr(trainer, "SAVE_EVERY", 0.0)

    def cut(self: trainer.Trainer, batch, progress):
        if progress.step == 28:
            raise KeyboardInterrupt
        return plain(self, batch, progress)

    with monkeypatch.context() as patch:
        patch.setattr(trainer.Trainer, "step", cut)
        patch.setattr(files, "write_text", lambda *_: None)  # as if the process were killed
        patch.setattr(pretraining, "first_files", lambda folder, card, **_: card_only(folder, card))
        assert pretrain(folder, tmp_path / "run", *words) == 130
    assert not (tmp_path / "run" / "bad.csv").exists()
    assert main(["pretrain", "--resume", str(tmp_path / "run")]) == 0
    assert set(listed(tmp_path / "run")) == bad


def card_only(folder: Path, card: dict) -> None:
    (folder / run.CARD).write_text(json.dumps(card, default=str))


# ---- unwritable paths


def test_existing_file_at_out_is_not_changed(tmp_path: Path, capsys):
    (tmp_path / "thesis.tex").write_text("years")
    for out in ("thesis.tex", "thesis.tex/run"):
        assert pretrain("synthetic:64:16", tmp_path / out, "--steps", "1") == 2
        assert "is a file" in error_line(capsys)
    assert [p.name for p in tmp_path.iterdir()] == ["thesis.tex"]
    assert (tmp_path / "thesis.tex").read_text() == "years"


@pytest.fixture
def disk(tmp_path: Path) -> Iterator[Path]:
    """A small disk; `resize` changes it."""
    place = tmp_path / "disk"
    place.mkdir()
    done = subprocess.run(["mount", "-t", "tmpfs", "-o", "size=16k", "tmpfs", place], capture_output=True)
    if done.returncode:
        pytest.skip("a small disk takes the right to mount one")
    yield place
    subprocess.run(["umount", place], check=True)


def resize(disk: Path, size: int, more: str = "rw") -> None:
    subprocess.run(["mount", "-o", f"remount,{more},size={size}", disk], check=True)


def test_read_only_disk_is_a_one_line_error(disk: Path, capsys):
    resize(disk, 2**20, "ro")
    assert pretrain("synthetic:64:16", disk / "runs" / "a", "--steps", "1") == 2
    assert "is not writable" in error_line(capsys)
    assert main(["prepare", "synthetic:64:16", "--out", str(disk / "store")]) == 2
    assert "could not write" in error_line(capsys)


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("whole") / "run"
    assert pretrain("synthetic:64:16", folder, "--steps", "5") == 0
    return folder


FULL = [0.02, 0.3, 0.7, 0.95, 1.15, 1.5]  # fraction of the bytes that a run writes, without its report


@pytest.mark.parametrize("share", FULL)
def test_full_disk_is_a_one_line_error_and_the_run_can_be_resumed(
    share: float, whole: Path, disk: Path, capsys, monkeypatch
):
    monkeypatch.setattr(trainer, "SAVE_EVERY", 0.0)
    size = sum(p.stat().st_size for p in whole.iterdir() if p.suffix != ".html")
    resize(disk, int(share * size))
    capsys.readouterr()
    assert pretrain("synthetic:64:16", disk / "run", "--steps", "5") == 2
    assert "o space left on device" in error_line(capsys)
    left = [p.name for p in disk.rglob("*")]
    assert not [name for name in left if name.endswith(".new")]
    resize(disk, 100 * size)
    if "run" not in left:
        return
    assert main(["pretrain", "--resume", str(disk / "run")]) == 0
    expected, final = (checkpoint.load(at / checkpoint.LATEST)["method"] for at in (whole, disk / "run"))
    assert all(torch.equal(value, final[key]) for key, value in expected.items())
    assert (disk / "run" / WEIGHTS).read_bytes() == (whole / WEIGHTS).read_bytes()
    assert [row["step"] for row in files.read_rows(disk / "run" / run.LOG)] == list(range(5))


def test_full_disk_while_preparing_is_a_one_line_error_and_leaves_nothing(disk: Path, capsys):
    resize(disk, 121 * 4096)  # 120 pages of images, and one for all other files
    assert main(["prepare", "synthetic:640:16", "--out", str(disk / "store")]) == 2
    assert "full" in error_line(capsys) and not list(disk.iterdir())


def test_failed_append_of_a_row_names_the_file():
    with pytest.raises(files.Unwritable, match="/dev/full: No space left"):
        files.append_row(Path("/dev/full"), {"step": 1})


# ---- malicious and damaged files


class Trap:
    """Writes a file when it is unpickled."""

    def __init__(self, sprung: Path):
        self.sprung = sprung

    def __reduce__(self):
        return Path.touch, (self.sprung,)


IMAGES = np.random.default_rng(0).integers(0, 256, (40, 16, 16, 3), dtype=np.uint8)


def npz(at: Path, compressed: bool = False, **arrays) -> Path:
    (np.savez_compressed if compressed else np.savez)(at / "x.npz", **arrays)
    return at / "x.npz"


def hurt(path: Path, where: float, length: int = 40) -> Path:
    """Overwrite bytes in the middle of a file."""
    data = bytearray(path.read_bytes())
    begin = int(where * len(data))
    data[begin : begin + length] = bytes((b + 101) % 256 for b in data[begin : begin + length])
    path.write_bytes(data)
    return path


def cut(path: Path, share: float) -> Path:
    path.write_bytes(path.read_bytes()[: int(share * path.stat().st_size)])
    return path


def huge(at: Path) -> Path:
    """An array whose header claims more than fits into memory."""
    head = io.BytesIO()
    form = {"descr": "|u1", "fortran_order": False, "shape": (2**40, 64, 64)}
    np.lib.format.write_array_header_1_0(head, form)
    with zipfile.ZipFile(at / "x.npz", "w") as z:
        z.writestr("images.npy", head.getvalue() + b"few bytes")
    return at / "x.npz"


def packed(offsets: np.ndarray, at: Path) -> Path:
    return npz(at, jpeg=np.zeros(400, np.uint8), offsets=offsets)


def table(at: Path, column: str = "image") -> Path:
    import pyarrow as pa
    import pyarrow.parquet as pq

    cells = []
    for image in IMAGES:
        file = io.BytesIO()
        Image.fromarray(image).save(file, "PNG")
        cells.append(file.getvalue())
    pq.write_table(pa.table({column: cells}), at / "x.parquet")
    return at / "x.parquet"


BROKEN = {
    "npz cut short": lambda at: cut(npz(at, images=IMAGES), 0.5),
    "npz compressed and hurt": lambda at: hurt(npz(at, compressed=True, images=IMAGES), 0.5),
    "npz with objects": lambda at: npz(at, images=np.array([Trap(at / "sprung")] * 40, object)),
    "npz of words": lambda at: npz(at, images=IMAGES.astype(str)),
    "npz of one number": lambda at: npz(at, images=np.uint8(3)),
    "npz without images": lambda at: npz(at, images=IMAGES[:0]),
    "npz of no width": lambda at: npz(at, images=IMAGES[:, :, :0]),
    "npz of other arrays": lambda at: npz(at, x=IMAGES),
    "npz of absurd size": huge,
    "offsets of floats": lambda at: packed(np.linspace(0, 400, 41), at),
    "offsets that fall": lambda at: packed(np.arange(0, 410, 10)[::-1], at),
    "offsets too large": lambda at: packed(np.arange(0, 820, 20), at),
    "no offsets": lambda at: packed(np.zeros(0, int), at),
    "parquet cut short": lambda at: cut(table(at), 0.5),
    "parquet hurt": lambda at: hurt(table(at), 0.1, 2000),
    "parquet without images": lambda at: table(at, "text"),
}


@pytest.mark.parametrize("what", BROKEN)
def test_broken_file_is_a_one_line_error_and_runs_no_code(what: str, tmp_path: Path, capfd):
    path = BROKEN[what](tmp_path)
    assert pretrain(path, tmp_path / "run", "--steps", "2") == 2
    assert "x" in error_line(capfd)
    assert [p.name for p in tmp_path.iterdir()] == [path.name]


LABELS = {
    "too few": np.arange(39),
    "objects": np.array([None, 1] * 20, object),
    "in three dimensions": np.zeros((40, 2, 2), int),
}


@pytest.mark.parametrize("what", LABELS)
def test_broken_labels_stop_only_evaluation(what: str, whole: Path, tmp_path: Path, capsys):
    path = npz(tmp_path, images=IMAGES, labels=LABELS[what])
    with pytest.raises(UserError) as error:
        sources.open_labeled(path)
    assert "\n" not in str(error.value)
    assert pretrain(path, tmp_path / "run", "--steps", "1") == 0


def test_hub_name_fails_immediately_without_network(monkeypatch, tmp_path: Path, capsys):
    utils = pytest.importorskip("huggingface_hub.utils")
    tried = []

    class Offline:
        def head(self, address: str, timeout: float) -> None:
            tried.append(address)
            raise OSError("no route to host")

    monkeypatch.setattr(utils, "get_session", Offline)
    waits = []
    monkeypatch.setattr("huggingface_hub.utils._http.time.sleep", waits.append)
    assert pretrain("hf:nobody/nothing-of-this-name", tmp_path / "run") == 2
    assert "nothing-of-this-name" in error_line(capsys)
    assert len(tried) == 1 and not [seconds for seconds in waits if seconds >= 1]


def test_empty_hub_name_is_not_the_working_directory(capsys, tmp_path: Path):
    assert pretrain("hf:", tmp_path / "run") == 2
    assert "expected hf:USER/DATA" in error_line(capsys)


# ---- damaged runs


def evil(path: Path) -> None:
    torch.save({"step": 3, "method": Trap(path.parent / "sprung")}, path)


def without(key: str, path: Path) -> None:
    card = json.loads(path.read_text())
    del card[key]
    path.write_text(json.dumps(card))


DAMAGE = {
    "checkpoint cut": ("checkpoint.pt", lambda p: cut(p, 0.5)),
    "checkpoint of noise": ("checkpoint.pt", lambda p: p.write_bytes(os.urandom(5000))),
    "checkpoint empty": ("checkpoint.pt", lambda p: p.write_bytes(b"")),
    "checkpoint with code": ("checkpoint.pt", evil),
    "a plain pickle": ("checkpoint.pt", lambda p: p.write_bytes(pickle.dumps(Trap(p.parent / "sprung")))),
    "checkpoint of one tensor": ("checkpoint.pt", lambda p: torch.save(torch.zeros(3), p)),
    "checkpoint without parts": ("checkpoint.pt", lambda p: torch.save({"step": 3}, p)),
    "weights of another": ("checkpoint.pt", lambda p: torch.save({**checkpoint.load(p), "method": {}}, p)),
    "card cut": ("run.json", lambda p: cut(p, 0.5)),
    "card of a list": ("run.json", lambda p: p.write_text("[1, 2]")),
    "card without steps": ("run.json", lambda p: without("steps", p)),
    "card without settings": ("run.json", lambda p: without("settings", p)),
}
ENCODER = {
    "weights cut": ("encoder.safetensors", lambda p: cut(p, 0.5)),
    "weights of noise": ("encoder.safetensors", lambda p: p.write_bytes(os.urandom(5000))),
    "weights empty": ("encoder.safetensors", lambda p: p.write_bytes(b"")),
    "weights with code": ("encoder.safetensors", evil),
    "shape cut": ("encoder.json", lambda p: cut(p, 0.5)),
    "shape without size": ("encoder.json", lambda p: without("size", p)),
    "shape of another": (
        "encoder.json",
        lambda p: p.write_text(p.read_text().replace("width=8", "width=16")),
    ),
}


@pytest.mark.parametrize("what", DAMAGE | ENCODER)
def test_damaged_run_is_a_one_line_error_and_runs_no_code(what: str, whole: Path, tmp_path: Path, capsys):
    shutil.copytree(whole, tmp_path / "run")
    name, damage = (DAMAGE | ENCODER)[what]
    damage(tmp_path / "run" / name)
    capsys.readouterr()
    features = ["--data", "synthetic:40:16", "--out", str(tmp_path / "x.parquet")]
    resume, embed = (
        ["pretrain", "--resume", str(tmp_path / "run")],
        ["embed", str(tmp_path / "run"), *features],
    )
    assert main(resume if what in DAMAGE else embed) == 2
    assert name.partition(".")[0] in error_line(capsys)
    assert not (tmp_path / "run" / "sprung").exists() and not (tmp_path / "x.parquet").exists()

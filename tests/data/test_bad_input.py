"""Bad input costs nothing: skipped and listed, or one line and exit code 2, and nothing half-written."""

import csv
import io
import json
import os
import pickle
import shutil
import subprocess
import tarfile
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
from pretask.runtime import files as checkpoint
from pretask.train import run
from pretask.train import trainer as loop
from pretask.types import UserError
from pretask.workflows import pretrain as pretraining

FAST = ["--encoder", "resnet_small:width=8", "--batch", "20"]


def pretrain(data: str | Path, out: Path, *more: str) -> int:
    return main(["pretrain", "rotnet", "--data", str(data), "--out", str(out), *FAST, *more])


def said(capsys: pytest.CaptureFixture[str]) -> str:
    """The one line that a mistake is answered with."""
    lines = [line for line in capsys.readouterr().err.splitlines() if not line.startswith("step ")]
    assert len(lines) == 1 and lines[0].startswith("pretask: "), lines
    return lines[0]


def listed(folder: Path) -> dict[str, str]:
    text = (folder / "bad.csv").read_text(errors="surrogateescape")
    head, *rows = csv.reader(io.StringIO(text, newline=""))
    assert head == ["file", "reason"] and len({name for name, _ in rows}) == len(rows)
    return dict(rows)  # type: ignore[arg-type]


# ---- folders


def colours(side: int = 20, seed: int = 0) -> Image.Image:
    coarse = np.random.default_rng(seed).integers(0, 256, (3, 3, 3), dtype=np.uint8)
    return Image.fromarray(coarse).resize((side, side), Image.Resampling.BILINEAR)


def bomb() -> bytes:
    """A PNG whose header promises 2.5 gigapixels."""
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
    """80 good files, of every kind people have, and those of BAD."""
    root = tmp_path_factory.mktemp("mixed")
    deep = "/".join("d" * 50)
    for folder in ("a", "b", "kinds", deep):
        (root / folder).mkdir(parents=True)
    for i in range(67):
        colours(seed=i).save(root / f"a/{i:03d}.png")
    image, exif = colours(40), Image.Exif()
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
        monkeypatch.setitem(sources.open.__kwdefaults__, "cache_mb", 0)


@pytest.mark.usefixtures("cache")
def test_bad_files_are_skipped_and_listed_and_no_others(mixed: Path, tmp_path: Path):
    assert pretrain(mixed, tmp_path / "run", "--steps", "4") == 0
    found = listed(tmp_path / "run")
    assert set(found) == set(BAD)
    assert all(reason in found[name] for name, reason in BAD.items()), found


@pytest.mark.usefixtures("cache")
def test_too_many_bad_files_are_one_line_and_leave_no_folder(mixed: Path, tmp_path: Path, capsys):
    assert pretrain(mixed, tmp_path / "run", "--steps", "4", "--max-bad", "0.05") == 2
    assert "7 of 87 images cannot be read" in said(capsys)
    assert not list(tmp_path.iterdir())


@pytest.fixture
def large(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> tuple[Path, set[str]]:
    """600 files decoded by workers, 20 of them bad, none where a first look falls."""
    monkeypatch.setitem(sources.open.__kwdefaults__, "cache_mb", 0)
    content = io.BytesIO()
    colours(8).save(content, "PNG")
    bad = [i for i in range(101, 600, 2) if i not in encoded.sample(600)][:20]
    (tmp_path / "photos").mkdir()
    for i in range(600):
        (tmp_path / f"photos/{i:03d}.png").write_bytes(b"no" if i in bad else content.getvalue())
    return tmp_path / "photos", {f"{i:03d}.png" for i in bad}


def test_what_workers_meet_is_listed_in_the_run(large, tmp_path: Path):
    folder, bad = large
    assert pretrain(folder, tmp_path / "run", "--epochs", "1", "--size", "8") == 0
    assert set(listed(tmp_path / "run")) == bad


def test_a_run_that_meets_too_many_ends_in_one_line_and_lists_them(large, tmp_path: Path, capsys):
    folder, bad = large
    assert pretrain(folder, tmp_path / "run", "--epochs", "1", "--size", "8", "--max-bad", "0.02") == 2
    assert "at most 2% are tolerated" in said(capsys)
    found = set(listed(tmp_path / "run"))
    assert found <= bad and len(found) > 12
    assert not (tmp_path / "run" / run.DONE).exists()


def test_what_was_bad_before_a_crash_is_still_listed_after_it(large, tmp_path: Path, monkeypatch):
    folder, bad = large
    words, plain = ("--epochs", "1", "--size", "8"), loop.Trainer.step
    monkeypatch.setattr(loop, "SAVE_EVERY", 0.0)

    def cut(self: loop.Trainer, batch, progress):
        if progress.step == 28:
            raise KeyboardInterrupt
        return plain(self, batch, progress)

    with monkeypatch.context() as patch:
        patch.setattr(loop.Trainer, "step", cut)
        patch.setattr(checkpoint, "write_text", lambda *_: None)  # as if it were killed
        patch.setattr(pretraining, "first_files", lambda folder, card, **_: card_only(folder, card))
        assert pretrain(folder, tmp_path / "run", *words) == 130
    assert not (tmp_path / "run" / "bad.csv").exists()
    assert main(["pretrain", "--resume", str(tmp_path / "run")]) == 0
    assert set(listed(tmp_path / "run")) == bad


def card_only(folder: Path, card: dict) -> None:
    (folder / run.CARD).write_text(json.dumps(card, default=str))


# ---- places that cannot be written


def test_an_out_with_a_file_in_the_way_is_left_alone(tmp_path: Path, capsys):
    (tmp_path / "thesis.tex").write_text("years")
    for out in ("thesis.tex", "thesis.tex/run"):
        assert pretrain("synthetic:64:16", tmp_path / out, "--steps", "1") == 2
        assert "is a file" in said(capsys)
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


def test_a_disk_that_is_read_only_is_one_line(disk: Path, capsys):
    resize(disk, 2**20, "ro")
    assert pretrain("synthetic:64:16", disk / "runs" / "a", "--steps", "1") == 2
    assert "may not be written to" in said(capsys)
    assert main(["prepare", "synthetic:64:16", "--out", str(disk / "store")]) == 2
    assert "could not write" in said(capsys)


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("whole") / "run"
    assert pretrain("synthetic:64:16", folder, "--steps", "5") == 0
    return folder


FULL = [0.02, 0.3, 0.7, 0.95, 1.15, 1.5]  # of the bytes that a run leaves, without its report


@pytest.mark.parametrize("share", FULL)
def test_a_full_disk_is_one_line_and_with_room_the_run_goes_on(
    share: float, whole: Path, disk: Path, capsys, monkeypatch
):
    monkeypatch.setattr(loop, "SAVE_EVERY", 0.0)
    size = sum(p.stat().st_size for p in whole.iterdir() if p.suffix != ".html")
    resize(disk, int(share * size))
    capsys.readouterr()
    assert pretrain("synthetic:64:16", disk / "run", "--steps", "5") == 2
    assert "o space left on device" in said(capsys)
    left = [p.name for p in disk.rglob("*")]
    assert not [name for name in left if name.endswith(".new")]
    resize(disk, 100 * size)
    if "run" not in left:
        return
    assert main(["pretrain", "--resume", str(disk / "run")]) == 0
    expected, final = (checkpoint.load(at / checkpoint.LATEST)["method"] for at in (whole, disk / "run"))
    assert all(torch.equal(value, final[key]) for key, value in expected.items())
    assert (disk / "run" / run.WEIGHTS).read_bytes() == (whole / run.WEIGHTS).read_bytes()
    assert [row["step"] for row in run.read(disk / "run" / run.LOG)] == list(range(5))


def test_a_full_disk_while_preparing_is_one_line_and_leaves_nothing(disk: Path, capsys):
    resize(disk, 121 * 4096)  # 120 pages of images, and one for all that comes with them
    assert main(["prepare", "synthetic:640:16", "--out", str(disk / "store")]) == 2
    assert "full" in said(capsys) and not list(disk.iterdir())


def test_a_row_that_cannot_be_appended_is_named():
    with pytest.raises(checkpoint.Unwritable, match="/dev/full: No space left"):
        run.append(Path("/dev/full"), {"step": 1})


# ---- files that are not what they seem


class Trap:
    """Pickled, it writes a file when it is opened."""

    def __init__(self, sprung: Path):
        self.sprung = sprung

    def __reduce__(self):
        return Path.touch, (self.sprung,)


IMAGES = np.random.default_rng(0).integers(0, 256, (40, 16, 16, 3), dtype=np.uint8)


def npz(at: Path, compressed: bool = False, **arrays) -> Path:
    (np.savez_compressed if compressed else np.savez)(at / "x.npz", **arrays)
    return at / "x.npz"


def hurt(path: Path, where: float, length: int = 40) -> Path:
    """Other bytes somewhere in the file."""
    data = bytearray(path.read_bytes())
    begin = int(where * len(data))
    data[begin : begin + length] = bytes((b + 101) % 256 for b in data[begin : begin + length])
    path.write_bytes(data)
    return path


def cut(path: Path, share: float) -> Path:
    path.write_bytes(path.read_bytes()[: int(share * path.stat().st_size)])
    return path


def huge(at: Path) -> Path:
    """An array whose header promises more than any memory holds."""
    head = io.BytesIO()
    form = {"descr": "|u1", "fortran_order": False, "shape": (2**40, 64, 64)}
    np.lib.format.write_array_header_1_0(head, form)
    with zipfile.ZipFile(at / "x.npz", "w") as z:
        z.writestr("images.npy", head.getvalue() + b"few bytes")
    return at / "x.npz"


def packed(offsets: np.ndarray, at: Path) -> Path:
    return npz(at, jpeg=np.zeros(400, np.uint8), offsets=offsets)


def shard(at: Path) -> Path:
    with tarfile.open(at / "x.tar", "w") as tar:
        for i in range(40):
            file = io.BytesIO()
            Image.fromarray(IMAGES[i]).save(file, "PNG")
            member = tarfile.TarInfo(f"{i:03d}.png")
            member.size = file.tell()
            tar.addfile(member, io.BytesIO(file.getvalue()))
    return at / "x.tar"


def second_header(at: Path) -> Path:
    """tarfile itself takes a member's damaged header for the end of the shard."""
    path = shard(at)
    data = bytearray(path.read_bytes())
    with tarfile.open(path) as tar:
        place = tar.getmembers()[20].offset
    data[place : place + 200] = b"x" * 200
    path.write_bytes(data)
    return path


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
    "npz of floats": lambda at: npz(at, images=IMAGES / 255),
    "npz of one number": lambda at: npz(at, images=np.uint8(3)),
    "npz without images": lambda at: npz(at, images=IMAGES[:0]),
    "npz of no width": lambda at: npz(at, images=IMAGES[:, :, :0]),
    "npz of other arrays": lambda at: npz(at, x=IMAGES),
    "npz of absurd size": huge,
    "offsets of floats": lambda at: packed(np.linspace(0, 400, 41), at),
    "offsets that fall": lambda at: packed(np.arange(0, 410, 10)[::-1], at),
    "offsets too large": lambda at: packed(np.arange(0, 820, 20), at),
    "no offsets": lambda at: packed(np.zeros(0, int), at),
    "tar cut short": lambda at: cut(shard(at), 0.5),
    "tar with a hurt header": second_header,
    "parquet cut short": lambda at: cut(table(at), 0.5),
    "parquet hurt": lambda at: hurt(table(at), 0.1, 2000),
    "parquet without images": lambda at: table(at, "text"),
}


@pytest.mark.parametrize("what", BROKEN)
def test_a_broken_file_is_one_line_and_runs_no_code(what: str, tmp_path: Path, capfd):
    path = BROKEN[what](tmp_path)
    assert pretrain(path, tmp_path / "run", "--steps", "2") == 2
    assert "x" in said(capfd)
    assert [p.name for p in tmp_path.iterdir()] == [path.name]


LABELS = {
    "too few": np.arange(39),
    "objects": np.array([None, 1] * 20, object),
    "in two columns": np.zeros((40, 2), int),
}


@pytest.mark.parametrize("what", LABELS)
def test_broken_labels_stop_evaluation_alone(what: str, whole: Path, tmp_path: Path, capsys):
    path = npz(tmp_path, images=IMAGES, labels=LABELS[what])
    with pytest.raises(UserError) as told:
        sources.open_labelled(path)
    assert "\n" not in str(told.value)
    assert pretrain(path, tmp_path / "run", "--steps", "1") == 0


def test_without_a_network_a_hub_name_fails_at_once(monkeypatch, tmp_path: Path, capsys):
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
    assert "nothing-of-this-name" in said(capsys)
    assert len(tried) == 1 and not [seconds for seconds in waits if seconds >= 1]


def test_an_empty_hub_name_is_not_taken_for_the_working_folder(capsys, tmp_path: Path):
    assert pretrain("hf:", tmp_path / "run") == 2
    assert "expected hf:USER/DATA" in said(capsys)


# ---- runs that were damaged


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
def test_a_damaged_run_is_one_line_and_runs_no_code(what: str, whole: Path, tmp_path: Path, capsys):
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
    assert name.partition(".")[0] in said(capsys)
    assert not (tmp_path / "run" / "sprung").exists() and not (tmp_path / "x.parquet").exists()

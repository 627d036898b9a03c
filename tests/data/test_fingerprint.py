"""Fingerprints of the images of a run: which changes are detected, how they are reported, and what is then refused."""

import csv
import io
import json
import os
import shutil
import tarfile
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

import pretask
from pretask import data
from pretask.cli.main import main
from pretask.data import fingerprint, in_memory, places
from pretask.reports import neighbors
from pretask.reports.report import report
from pretask.runtime import files
from pretask.train import run
from pretask.types import UserError
from pretask.workflows import export
from pretask.workflows import resume as resuming
from pretask.workflows.reruns import repeated, same_data

N, SIDE = 24, 16
TINY = {"encoder": "resnet_small:width=4", "steps": 2, "batch": 8}


def picture(number: int, side: int = SIDE) -> Image.Image:
    return Image.fromarray(np.random.default_rng(number).integers(0, 256, (side, side, 3), np.uint8))


def paint(path: Path, number: int, side: int = SIDE) -> None:
    """Write BMP, whose size in bytes does not depend on the content."""
    path.parent.mkdir(parents=True, exist_ok=True)
    picture(number, side).save(path, "BMP")


def folder_of(root: Path, numbers=range(N)) -> Path:
    for i in numbers:
        paint(root / f"{i % 2}" / f"{i:03d}.bmp", i)
    return root


def seen(spec: str | Path, **known) -> fingerprint.Fingerprint:
    return data.open(spec, progress=False, **known).fingerprint()


def compared(then: fingerprint.Fingerprint, now: fingerprint.Fingerprint) -> str:
    """The differences; checks that the digests agree with them."""
    changes = fingerprint.differences(then, now)
    assert (then.digest == now.digest) == (changes == "")
    return changes


@pytest.fixture
def photos(tmp_path) -> Path:
    return folder_of(tmp_path / "photos")


# ---- differences


def nothing(root: Path) -> None:
    """Rewrite all files in reverse order with new times, as on another file system."""
    for i in reversed(range(N)):
        path = root / f"{i % 2}" / f"{i:03d}.bmp"
        path.unlink()
        paint(path, i)


def add(root: Path) -> None:
    for i in range(N, N + 4):
        paint(root / "0" / f"{i:03d}.bmp", i)


def remove(root: Path) -> None:
    (root / "0" / "002.bmp").unlink()


def rename(root: Path) -> None:
    (root / "0" / "002.bmp").rename(root / "1" / "002.bmp")


def repaint(root: Path) -> None:
    paint(root / "1" / "003.bmp", 99)


def resize(root: Path) -> None:
    paint(root / "1" / "005.bmp", 5, SIDE + 1)


def everything(root: Path) -> None:
    for work in (add, remove, repaint):
        work(root)


CHANGES = {
    nothing: "",
    add: "4 added (0/024.bmp, 0/025.bmp, 0/026.bmp, …)",
    remove: "1 removed (0/002.bmp)",
    rename: "1 added (1/002.bmp), 1 removed (0/002.bmp)",
    repaint: "1 changed (1/003.bmp)",
    resize: "1 changed (1/005.bmp)",
    everything: "4 added (0/024.bmp, 0/025.bmp, 0/026.bmp, …), 1 removed (0/002.bmp), 1 changed (1/003.bmp)",
}


@pytest.mark.parametrize("cache_mb", [2048, 0])
@pytest.mark.parametrize("change", CHANGES, ids=lambda change: change.__name__)
def test_folder_reports_added_removed_and_changed_files(photos, change, cache_mb):
    then = seen(photos, cache_mb=cache_mb)
    change(photos)
    assert compared(then, seen(photos, cache_mb=cache_mb)) == CHANGES[change]


def test_copy_at_another_path_is_equal_also_through_a_link(photos, tmp_path):
    then = seen(photos)
    copy = shutil.copytree(photos, tmp_path / "elsewhere" / "pictures")
    (tmp_path / "link").symlink_to(copy, target_is_directory=True)
    assert [compared(then, seen(place)) for place in (copy, tmp_path / "link")] == ["", ""]


def test_link_counts_as_its_target(photos, tmp_path):
    then, path = seen(photos), photos / "1" / "003.bmp"
    path.rename(tmp_path / "moved.bmp")
    path.symlink_to(tmp_path / "moved.bmp")
    assert compared(then, seen(photos)) == ""
    path.unlink()
    path.symlink_to(photos / "1" / "005.bmp")
    assert compared(then, seen(photos)) == "1 changed (1/003.bmp)"


def test_all_sizes_and_the_content_of_a_sample_are_compared(tmp_path):
    root = folder_of(tmp_path / "many", range(200))
    then = seen(root)
    assert len(then.sums) == fingerprint.SAMPLE and len(then.sizes) == 200
    assert then.sampled[[0, -1]].tolist() == [0, 199] and 3 not in then.sampled
    paint(root / "1" / "003.bmp", 3, SIDE + 1)
    assert compared(then, seen(root)) == "1 changed (1/003.bmp)"


def test_both_ends_of_a_large_file_are_hashed(photos, monkeypatch):
    monkeypatch.setattr(fingerprint, "END", 100)
    then = seen(photos)
    for at in (10, -10):
        with (photos / "1" / "003.bmp").open("r+b") as file:
            file.seek(at, os.SEEK_SET if at > 0 else os.SEEK_END)
            file.write(b"\1\2\3\4")
        now = seen(photos)
        assert compared(then, now) == "1 changed (1/003.bmp)"
        then = now


def test_unreadable_images_are_part_of_the_fingerprint(photos):
    (photos / "0" / "002.bmp").write_bytes(b"nothing")
    then = seen(photos)
    (photos / "0" / "002.bmp").write_bytes(b"notHing")
    assert compared(then, seen(photos)) == "1 changed (0/002.bmp)"


def test_any_change_of_an_array_in_memory_is_detected(tmp_path):
    images = np.random.default_rng(0).integers(0, 256, (200, SIDE, SIDE, 3), np.uint8)
    path = tmp_path / "images.npz"
    np.savez(path, images=images)
    then = seen(path)
    assert compared(then, in_memory.from_array(images).fingerprint()) == ""
    np.savez_compressed(tmp_path / "again.npz", images=images, labels=np.arange(200))
    assert compared(then, seen(tmp_path / "again.npz")) == ""
    images[3, 0, 0, 0] ^= 1  # an image outside the sample
    np.savez(path, images=images)
    assert compared(then, seen(path)) == "some pixels or texts changed"
    images[199, 0, 0, 0] ^= 1
    np.savez(path, images=images)
    assert compared(then, seen(path)) == "1 changed (199)"
    assert compared(then, in_memory.from_array(images[:198]).fingerprint()) == "2 removed (198, 199)"


def test_store_is_compared_by_names_and_sampled_pixels(photos, tmp_path):
    out = tmp_path / "store"
    assert main(["prepare", str(photos), "--out", str(out)]) == 0
    then = seen(out)
    assert compared(then, seen(shutil.copytree(out, tmp_path / "copy"))) == ""
    with (out / "image.bin").open("r+b") as file:
        file.write(b"\1\2\3\4")
    assert compared(then, seen(out)) == "1 changed (0/000.bmp)"


def shard(path: Path, numbers) -> None:
    with tarfile.open(path, "w") as tar:
        for i in numbers:
            file = io.BytesIO()
            picture(i).save(file, "BMP")
            member = tarfile.TarInfo(f"{i:03d}.bmp")
            member.size = file.tell()
            file.seek(0)
            tar.addfile(member, file)


def test_replaced_shard_is_detected_by_position_and_as_a_stream(tmp_path, monkeypatch):
    pytest.importorskip("datasets")
    for part in range(2):
        shard(tmp_path / f"{part}.tar", range(8 * part, 8 * part + 8))
    specs = f"{tmp_path}/*.tar", f"hf-stream:{tmp_path}/*.tar#16"
    then = [seen(spec) for spec in specs]
    copy = shutil.copytree(tmp_path, tmp_path / "copy")
    moved = f"{copy}/*.tar", f"hf-stream:{copy}/*.tar#16"
    assert [compared(a, seen(spec)) for a, spec in zip(then, moved, strict=True)] == ["", ""]
    monkeypatch.chdir(tmp_path.parent)
    assert compared(then[1], seen(f"hf-stream:{tmp_path.name}/*.tar#16")) == ""
    shard(tmp_path / "1.tar", [8, 9, 99, 11, 12, 13, 14])
    changes = [compared(a, seen(spec)) for a, spec in zip(then, specs, strict=True)]
    assert changes[0].startswith("1 added (1.tar/099.bmp), 2 removed (1.tar/010.bmp, 1.tar/015.bmp)")
    assert changes[1] == "1 changed (1.tar)"


def test_text_of_an_image_is_part_of_the_fingerprint(photos, tmp_path):
    def with_text(words: str) -> fingerprint.Fingerprint:
        with (photos / "pairs.csv").open("w", newline="") as file:
            rows = [(f"{i % 2}/{i:03d}.bmp", words if i == 3 else f"number {i}") for i in range(N)]
            csv.writer(file).writerows([("image", "text"), *rows])
        return seen(photos / "pairs.csv")

    then = with_text("a red house")
    assert compared(then, with_text("a red house")) == ""
    assert compared(then, with_text("a red horse")) == "some pixels or texts changed"


def test_absolute_paths_of_a_table_are_compared_relative_to_their_common_folder(photos, tmp_path):
    def table(root: Path) -> fingerprint.Fingerprint:
        with (root / "pairs.csv").open("w", newline="") as file:
            rows = [(str(root / f"{i % 2}" / f"{i:03d}.bmp"), f"number {i}") for i in range(N)]
            csv.writer(file).writerows([("image", "text"), *rows])
        return seen(root / "pairs.csv")

    assert compared(table(photos), table(shutil.copytree(photos, tmp_path / "copy"))) == ""


def test_order_and_duplicates_are_detected(photos):
    def rows(*numbers: int) -> fingerprint.Fingerprint:
        lines = ["image,text", *(f"{i % 2}/{i:03d}.bmp,a text" for i in numbers)]
        (photos / "pairs.csv").write_text("\n".join(lines))
        return seen(photos / "pairs.csv")

    then = rows(1, 2, 3)
    assert compared(then, rows(2, 1, 3)) == "different order or duplicates"
    assert compared(then, rows(1, 2, 3, 3)) == "different order or duplicates"


def test_stored_fingerprint_is_read_back_or_none(photos, tmp_path):
    then = seen(photos)
    files.write(tmp_path / fingerprint.FILE, then.write)
    kept = fingerprint.read(tmp_path)
    assert kept is not None and kept.digest == then.digest
    (tmp_path / fingerprint.FILE).write_bytes(b"PK\3\4")
    assert fingerprint.read(tmp_path) is None


# ---- paths


@pytest.mark.parametrize(
    ("spec", "recorded", "shown"),
    [
        ("photos", "{}/photos", "photos"),
        ("photos/0/", "{}/photos/0", "0"),
        ("a+b: c", "{}/a+b: c", None),
        ("shards/*.tar", "{}/shards/*.tar", "*.tar"),
        ("rows.csv:context,captions", "{}/rows.csv:context,captions", "rows.csv:context,captions"),
        ("text:photos", "text:{}/photos", "text:photos"),
        ("text:rows.csv:text", "text:{}/rows.csv:text", "text:rows.csv:text"),
        ("scenes:photos+shards/*.tar", "scenes:{0}/photos+{0}/shards/*.tar", "scenes:photos+*.tar"),
        ("scenes:photos+synthetic:8", "scenes:{}/photos+synthetic:8", "scenes:photos+synthetic:8"),
        ("hf-stream:shards/*.tar#64", "hf-stream:{}/shards/*.tar#64", "hf-stream:*.tar#64"),
        ("hf:someone/photos:full:train", "hf:someone/photos:full:train", "hf:someone/photos:full:train"),
        ("hf:shards", "hf:{}/shards", "hf:shards"),
        ("cifar10:test", "cifar10:test", "cifar10:test"),
        ("synthetic:8:16", "synthetic:8:16", "synthetic:8:16"),
        (in_memory.SPEC, in_memory.SPEC, in_memory.SPEC),
        ("gone", "gone", "gone"),
    ],
)
def test_paths_become_absolute_and_names_stay(photos, tmp_path, monkeypatch, spec, recorded, shown):
    (tmp_path / "a+b: c").mkdir()
    (tmp_path / "shards").mkdir()
    shard(tmp_path / "shards" / "0.tar", range(2))
    (tmp_path / "rows.csv").touch()
    monkeypatch.chdir(tmp_path)
    made = places.absolute(spec)
    assert made == recorded.format(tmp_path)
    assert places.absolute(made) == made
    assert shown is None or places.short(made) == shown


# ---- of a run


@pytest.fixture(scope="module")
def trained(tmp_path_factory) -> Path:
    """A run in `work/run` on `work/photos`, with relative paths; images are labeled by folder."""
    work = tmp_path_factory.mktemp("work")
    folder_of(work / "photos")
    before = Path.cwd()
    os.chdir(work)
    try:
        pretask.pretrain("rotnet", "photos", "run", monitor="photos", quiet=True, **TINY)
    finally:
        os.chdir(before)
    return work


@pytest.fixture
def work(trained, tmp_path) -> Path:
    """A copy, whose run still has the path of the original, which is not changed."""
    return Path(shutil.copytree(trained, tmp_path / "work"))


def resume(folder: Path, *more: str) -> int:
    return main(["pretrain", "--resume", str(folder), *more])


def contents(folder: Path) -> dict[str, bytes]:
    return {
        str(path.relative_to(folder)): path.read_bytes()
        for path in sorted(folder.rglob("*"))
        if path.is_file() and path.name != files.LOCK
    }


def edited(folder: Path, **entries) -> Path:
    card = json.loads((folder / run.CARD).read_text())
    (folder / run.CARD).write_text(json.dumps(card | entries))
    return folder


def test_card_has_absolute_paths_and_the_report_short_ones(trained):
    card = run.Run(trained / "run").card
    place = str(trained / "photos")
    assert (card["data"], card["settings"]["data"], card["settings"]["monitor"]) == (place, place, place)
    assert card[fingerprint.KEY] == seen(trained / "photos").digest
    page = report(trained / "run").read_text()
    assert ">photos<" in page
    assert "cannot be read:" not in page


def test_run_resumes_from_another_working_directory(work, trained, tmp_path, monkeypatch, capsys):
    folder_of(tmp_path / "there" / "photos", range(500, 540))
    monkeypatch.chdir(tmp_path / "there")
    assert resume(work / "run", "--steps", "4") == 0, capsys.readouterr().err
    assert run.Run(work / "run").card["n"] == N
    assert "photos: 24 found" in (output := capsys.readouterr().err)
    assert "bit for bit" not in output and "cannot be checked" not in output


@pytest.mark.parametrize(
    "change", [c for c in CHANGES if c is not nothing], ids=lambda change: change.__name__
)
def test_run_is_not_resumed_with_other_images_and_nothing_is_written(work, change, capsys):
    change(work / "photos")
    before = contents(work)
    assert resume(work / "run", "--data", str(work / "photos"), "--steps", "4") == 2
    lines = capsys.readouterr().err.splitlines()
    assert len(lines) == 1 and lines[0].startswith("pretask: photos does not hold the images that ")
    assert f"was trained on: {CHANGES[change]}; " in lines[0] and "--data PATH" in lines[0]
    assert contents(work) == before


def test_same_images_are_accepted_at_another_path_which_is_recorded(work, tmp_path, monkeypatch):
    (work / "photos").rename(work / "moved")
    monkeypatch.chdir(work)
    assert resume(Path("run"), "--data", "moved", "--monitor", "moved", "--steps", "4") == 0
    card, place = run.Run("run").card, str(work / "moved")
    assert (card["data"], card["settings"]["data"], card["settings"]["monitor"]) == (place, place, place)
    assert card["steps"] == 4
    monkeypatch.chdir(tmp_path)
    assert resume(work / "run", "--steps", "6") == 0
    assert "cannot be read:" not in (work / "run" / "report.html").read_text()


def test_missing_images_give_advice_how_to_resume(work, capsys):
    card = json.loads((work / "run" / run.CARD).read_text())
    edited(work / "run", settings={**card["settings"], "data": str(work / "gone")})
    before = contents(work)
    assert resume(work / "run") == 2
    output = capsys.readouterr().err
    assert (
        "if they were moved, give their new location with --data PATH" in output
        and len(output.splitlines()) == 1
    )
    assert contents(work) == before
    assert (
        pretask.pretrain(None, work / "photos", resume=work / "run", steps=4, quiet=True).card["steps"] == 4
    )


def test_different_array_of_equal_length_is_refused(tmp_path):
    images = np.stack([np.asarray(picture(i)) for i in range(N)])
    pretask.pretrain("rotnet", images, tmp_path / "run", quiet=True, **TINY)
    other = images.copy()
    other[5] = 0
    with pytest.raises(UserError, match=r"trained on: 1 changed \(5\)"):
        pretask.pretrain(None, other, resume=tmp_path / "run", steps=4, quiet=True)
    np.savez(tmp_path / "same.npz", images=images)
    made = pretask.pretrain(None, tmp_path / "same.npz", resume=tmp_path / "run", steps=4, quiet=True)
    assert made.card["settings"]["data"] == str(tmp_path / "same.npz")


def test_run_without_fingerprint_resumes_with_a_warning(work, capsys):
    repaint(work / "photos")
    (work / "run" / fingerprint.FILE).unlink()
    edited(work / "run", fingerprint=None)
    assert resume(work / "run", "--data", str(work / "photos"), "--steps", "4") == 0
    assert capsys.readouterr().err.count("it was started by an older version") == 1


def test_changed_images_are_refused_without_the_list_of_names(work, capsys):
    (work / "run" / fingerprint.FILE).write_bytes(b"PK")
    assert resume(work / "run", "--data", str(work / "photos")) == 0
    repaint(work / "photos")
    assert resume(work / "run", "--data", str(work / "photos")) == 2
    assert "differences unknown, as " in capsys.readouterr().err


def test_loss_of_bit_reproducibility_is_reported_in_one_line(work, capsys):
    card = run.Run(work / "run").card
    versions = {
        **card["versions"],
        "torch": "2.0.1",
        "pillow": "9.0",
        "lightning-fabric": "1.0",
        "python": "3.1",
    }
    here = card["precision"]  # the fastest precision of this CPU
    other = "32-true" if here == "bf16-mixed" else "bf16-mixed"
    edited(work / "run", versions=versions, threads=7, precision=other, device="an abacus", processes=3)
    assert resume(work / "run", "--steps", "4") == 0
    (line,) = [line for line in capsys.readouterr().err.splitlines() if "bit for bit" in line]
    now = card["versions"]
    assert line == (
        f"Continues, but not bit for bit: precision {other} → {here}, device an abacus → "
        f"{card['device']}, processes 3 → 1, threads 7 → {card['threads']}, torch 2.0.1 → {now['torch']}, "
        f"pillow 9.0 → {now['pillow']}"
    )


@pytest.mark.parametrize("package", ["pretask", "torch", "torchvision", "timm", "numpy", "pillow"])
def test_every_package_that_affects_numbers_is_checked(package):
    versions = dict.fromkeys(resuming.DECIDING, "1.0")
    now = {"versions": {**versions, package: "1.1"}}
    assert resuming.differing({"versions": versions}, now) == [f"{package} 1.0 → 1.1"]
    assert resuming.differing({}, now) == []


def test_changed_monitor_images_are_reported(work, capsys):
    shutil.copytree(work / "photos", work / "labeled")
    repaint(work / "labeled")
    words = ("--data", str(work / "photos"), "--monitor", str(work / "labeled"), "--steps", "4")
    assert resume(work / "run", *words) == 0
    assert capsys.readouterr().err.count("The --monitor images have changed") == 1


# ---- other commands that open the images of a run


@pytest.fixture
def changed(work) -> Path:
    """A run with one changed image."""
    repaint(work / "photos")
    card = json.loads((work / "run" / run.CARD).read_text())
    place = str(work / "photos")
    return edited(work / "run", data=place, settings={**card["settings"], "data": place})


MESSAGE = "the images of this run have changed: 1 changed (1/003.bmp)"


def test_report_says_that_the_images_have_changed(changed):
    assert MESSAGE in report(changed).read_text()


def test_audit_and_other_seeds_are_refused(changed, capsys):
    assert main(["audit", str(changed)]) == 2
    assert MESSAGE in capsys.readouterr().err
    with pytest.raises(UserError, match="have changed: 1 changed"):
        repeated(run.Run(changed), changed.with_name("run-s1"), None, seed=1)
    assert not changed.with_name("run-s1").exists()


def test_export_is_not_compared_on_changed_images(changed, trained):
    assert (
        "noise images, since the run's images are missing or have changed"
        in export.probes(run.Run(changed))[1]
    )
    assert export.probes(run.Run(trained / "run"))[1] == "5 images of photos"


def test_labels_of_changed_images_are_not_used(changed, trained):
    assert neighbors.labels(changed, run.Run(changed).card) is None
    label = neighbors.labels(trained / "run", run.Run(trained / "run").card)
    assert label is not None and len(label) == N


def test_runs_on_a_copy_of_the_images_are_comparable():
    card = {"data": "/a/photos", fingerprint.KEY: "1"}
    assert same_data(card, {**card, "data": "/b/photos"})
    assert not same_data(card, {**card, fingerprint.KEY: "2"})
    assert not same_data(card, {"data": "/b/photos"})

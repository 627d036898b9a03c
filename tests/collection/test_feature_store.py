"""Stored features equal those computed at once, whatever was interrupted, added, removed or changed in between."""

import os
import signal

import numpy as np
import pytest
import torch
from forked import Forked, wait_until
from PIL import Image

from pretask import data, encoders
from pretask.collection import store
from pretask.encoders.readout import Readout
from pretask.types import UserError
from pretask.workflows import embed


@pytest.fixture
def readout():
    torch.manual_seed(0)
    return Readout(encoders.build("resnet_small:width=4", 3, 16))


@pytest.fixture
def photos(tmp_path):
    """Twenty pictures."""
    image = data.open("synthetic:24:16").image.permute(0, 2, 3, 1).numpy()
    (tmp_path / "photos").mkdir()
    for i, pixels in enumerate(image[:20]):
        Image.fromarray(pixels).save(tmp_path / "photos" / f"{i:02}.png")
    return tmp_path / "photos"


def opened(photos):
    return data.open(photos, size=16, progress=False, cache_mb=0)


def by_name(found):
    return dict(zip(found.names, np.array(found.features), strict=True))


def check(found, readout, photos):
    """Every image has a row, and it is the right one."""
    source = opened(photos)
    expected = embed.array(readout, source)
    names = source.files(torch.arange(len(source)))
    rows = by_name(found)
    assert sorted(rows) == sorted(names)
    np.testing.assert_allclose(np.stack([rows[name] for name in names]), expected, atol=1e-5)
    assert [names[i] for i in found.positions(source)] == list(found.names)


def counted(monkeypatch) -> list[int]:
    """Numbers of images that are embedded from now on."""
    seen, before = [], Readout.rows

    def rows(self, image):
        seen.append(len(image))
        return before(self, image)

    monkeypatch.setattr(Readout, "rows", rows)
    return seen


def test_features_are_computed_once(photos, readout, tmp_path, monkeypatch):
    check(store.collect(tmp_path / "s", readout, opened(photos), progress=False), readout, photos)
    seen = counted(monkeypatch)
    found = store.collect(tmp_path / "s", readout, opened(photos), progress=False)
    assert not seen and len(found) == 20 and found.rows().shape == (20, readout.width)
    assert list(store.opened(tmp_path / "s").names) == list(found.names)


def test_interrupted_work_goes_on_after_the_last_batch(photos, readout, tmp_path, monkeypatch):
    monkeypatch.setattr(store, "BATCH", 4)
    done = []

    def stops(self, image, before=Readout.rows):
        if len(done) == 3:
            raise KeyboardInterrupt
        done.append(image)
        return before(self, image)

    with monkeypatch.context() as patch:
        patch.setattr(Readout, "rows", stops)
        with pytest.raises(KeyboardInterrupt):
            store.collect(tmp_path / "s", readout, opened(photos), progress=False)
    with (tmp_path / "s" / "features-0.bin").open("ab") as file:  # half a batch that was not counted yet
        file.write(b"half")
    with (tmp_path / "s" / "names-0.bin").open("ab") as file:
        file.write(b"half")
    seen = counted(monkeypatch)
    found = store.collect(tmp_path / "s", readout, opened(photos), progress=False)
    assert sum(seen) == 8
    check(found, readout, photos)


def test_a_killed_process_loses_nothing_that_was_counted(photos, readout, tmp_path, monkeypatch):
    monkeypatch.setattr(store, "BATCH", 1)

    def collect() -> None:
        store.collect(tmp_path / "s", readout, opened(photos), progress=False)
        os._exit(0)

    going = Forked(tmp_path / "printed", first=collect)
    wait_until(lambda: (state := store.read_state(tmp_path / "s")) is not None and state.rows >= 2, going)
    going.send_signal(signal.SIGKILL)
    assert going.wait() == -signal.SIGKILL
    seen = counted(monkeypatch)
    found = store.collect(tmp_path / "s", readout, opened(photos), progress=False)
    assert sum(seen) <= 18
    check(found, readout, photos)


def test_new_images_are_added_gone_ones_dropped_and_changed_ones_computed_again(
    photos, readout, tmp_path, monkeypatch
):
    store.collect(tmp_path / "s", readout, opened(photos), progress=False)
    (photos / "03.png").unlink()
    (photos / "11.png").replace(photos / "zz, new.png")
    Image.fromarray(np.full((16, 16, 3), 7, np.uint8)).save(photos / "05.png")
    seen = counted(monkeypatch)
    found = store.collect(tmp_path / "s", readout, opened(photos), progress=False)
    assert sum(seen) == 2 and len(found) == 19
    check(found, readout, photos)
    assert len([*(tmp_path / "s").glob("features-*.bin")]) == 1  # nothing of what is gone is left


def test_unreadable_images_have_no_row(photos, readout, tmp_path):
    (photos / "04.png").write_bytes(b"no picture")
    found = store.collect(tmp_path / "s", readout, opened(photos), progress=False)
    assert len(found) == 19 and "04.png" not in found.names


def test_equal_pixels_have_equal_sums(photos, readout, tmp_path):
    Image.open(photos / "00.png").save(photos / "copy.bmp")
    found = store.collect(tmp_path / "s", readout, opened(photos), progress=False)
    sums = {name: row.tobytes() for name, row in zip(found.names, found.sums, strict=True)}
    assert sums["copy.bmp"] == sums["00.png"] and len(set(sums.values())) == 20


@pytest.mark.parametrize("change", ["weights", "stage", "grid", "mean"])
def test_features_of_another_encoder_are_refused(photos, readout, tmp_path, change):
    store.collect(tmp_path / "s", Readout(readout.encoder, "stage2"), opened(photos), progress=False)
    other = Readout(
        readout.encoder, "stage1" if change == "stage" else "stage2", 1 if change == "grid" else None
    )
    with torch.no_grad():
        if change == "weights":
            next(other.parameters()).add_(0.1)
        elif change == "mean":
            other.encoder.mean.add_(0.1)
    with pytest.raises(UserError, match="holds features of another encoder or stage"):
        store.collect(tmp_path / "s", other, opened(photos), progress=False)


def test_images_that_are_no_files_are_computed_again_when_they_change(readout, tmp_path, monkeypatch):
    store.collect(tmp_path / "s", readout, data.open("synthetic:12:16"), progress=False)
    seen = counted(monkeypatch)
    store.collect(tmp_path / "s", readout, data.open("synthetic:12:16"), progress=False)
    assert not seen
    found = store.collect(tmp_path / "s", readout, data.open("synthetic:14:16"), progress=False)
    assert sum(seen) == 14 and len(found) == 14
    np.testing.assert_allclose(
        by_name(found)["13"], embed.array(readout, data.open("synthetic:14:16"))[13], atol=1e-5
    )


def test_a_folder_without_or_with_damaged_features_is_one_line(readout, tmp_path):
    with pytest.raises(UserError, match="holds no features"):
        store.opened(tmp_path)
    (tmp_path / store.STATE).write_text("{")
    with pytest.raises(UserError, match="cannot be read; remove"):
        store.collect(tmp_path, readout, data.open("synthetic:4:16"), progress=False)

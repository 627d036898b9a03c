"""The order of an epoch reaches the loop: whole, in shares, from the middle, and whoever decodes."""

import gc
import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from multiprocessing import active_children
from pathlib import Path

import pytest
import torch
from PIL import Image
from torch import Tensor

from pretask import data as sources
from pretask.data import decode_workers as workers
from pretask.data import loader, store
from pretask.types import Batch, UserError

N = 150


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    at = tmp_path_factory.mktemp("photos")
    for i in range(N):
        Image.new("RGB", (16, 16), (i, 255 - i, 7)).save(at / f"{i:03d}.png")
    return at


@pytest.fixture(params=["memory", "workers", "map"])
def source(request: pytest.FixtureRequest, folder: Path, tmp_path: Path) -> sources.Images:
    """N images whose red is their position."""
    if request.param == "map":
        store.prepare(sources.open(folder), tmp_path / "store", progress=False)
        return sources.open(tmp_path / "store")
    return sources.open(folder, size=16, cache_mb=64 if request.param == "memory" else 0)


ORDER = torch.randperm(N, generator=torch.Generator().manual_seed(3))


def red(batch: Batch) -> Tensor:
    return batch.image[:, 0, 0, 0].long()


def epoch(source: sources.Images, *args, **options) -> list[Batch]:
    return list(loader.epoch(source, *args, workers=2, **options))


def test_every_batch_holds_the_images_of_its_part_of_the_order(source: sources.Images):
    batches = epoch(source, ORDER, 70)  # more than one chunk, and a shorter last batch
    assert [len(b) for b in batches] == [70, 70, 10]
    for k, batch in enumerate(batches):
        assert torch.equal(batch.index, ORDER[70 * k : 70 * k + 70])
        assert torch.equal(red(batch), batch.index)


@pytest.mark.parametrize("world", [2, 3])
def test_the_shares_of_a_batch_make_the_whole(source: sources.Images, world: int):
    whole = epoch(source, ORDER, 30)
    shares = [epoch(source, ORDER, 30, share=(rank, world)) for rank in range(world)]
    for batch, *parts in zip(whole, *shares, strict=True):
        assert torch.equal(torch.cat([p.index for p in parts]), batch.index)
        assert torch.equal(torch.cat([p.image for p in parts]), batch.image)


def test_a_resumed_epoch_is_the_tail_of_a_whole_one(source: sources.Images):
    whole, tail = epoch(source, ORDER, 20), epoch(source, ORDER, 20, first=5)
    assert [b.index.tolist() for b in tail] == [b.index.tolist() for b in whole[5:]]
    assert all(torch.equal(a.image, b.image) for a, b in zip(tail, whole[5:], strict=True))
    assert epoch(source, ORDER, 20, first=8) == []


def test_an_order_may_repeat_and_leave_out(source: sources.Images):
    order = torch.tensor([5, 5, 5, 149, 0, 5])
    assert torch.cat([red(b) for b in epoch(source, order, 4)]).tolist() == order.tolist()


def test_an_epoch_after_an_unfinished_one_is_whole(source: sources.Images):
    former = loader.epoch(source, ORDER, 10, workers=2)
    next(former)  # and still alive, as in a loop that stopped at a step
    assert torch.equal(torch.cat([b.index for b in epoch(source, ORDER.flip(0), 10)]), ORDER.flip(0))
    for batch in loader.epoch(source, ORDER, 10, workers=2):
        assert torch.equal(red(batch), batch.index)
        break
    assert torch.equal(torch.cat([red(b) for b in epoch(source, ORDER, 10)]), ORDER)


def test_batches_that_were_kept_do_not_change(source: sources.Images):
    first = next(loader.epoch(source, ORDER, 10, workers=2))
    kept = first.image.clone()
    epoch(source, ORDER.flip(0), 10)
    epoch(source, ORDER.flip(0), 10)
    assert torch.equal(first.image, kept)


def test_labels_beside_a_source_do_not_matter(folder: Path, tmp_path: Path):
    for kind in "ab":
        (tmp_path / "two" / kind).mkdir(parents=True)
        for i in range(5):
            Image.new("RGB", (16, 16), (i, 0, 0)).save(tmp_path / "two" / kind / f"{i}.png")
    labelled, plain = sources.open_labelled(tmp_path / "two"), sources.open(tmp_path / "two")
    for a, b in zip(epoch(labelled, torch.arange(10), 4), epoch(plain, torch.arange(10), 4), strict=True):
        assert torch.equal(a.image, b.image)


def test_workers_stay_for_the_next_epoch_and_go_with_their_source(folder: Path):
    before = set(active_children())
    source = sources.open(folder, size=16, cache_mb=0)
    epoch(source, ORDER, 50)
    workers = set(active_children()) - before
    epoch(source, ORDER, 50)
    assert len(workers) == 2
    assert set(active_children()) - before == workers
    del source
    gc.collect()
    deadline = time.monotonic() + 10
    while set(active_children()) - before and time.monotonic() < deadline:
        time.sleep(0.05)
    assert not set(active_children()) - before


def ahead() -> int:
    return sum(thread.name == "ahead" for thread in threading.enumerate())


def test_an_epoch_that_is_dropped_leaves_no_thread(source: sources.Images):
    batches = loader.epoch(source, ORDER, 10, workers=2)
    next(batches)
    assert ahead() == (0 if type(batches) is map else 1)
    del batches
    gc.collect()
    assert ahead() == 0


def test_an_error_while_making_a_batch_reaches_the_loop():
    def broken() -> Iterator[Batch]:
        yield Batch(torch.arange(1), torch.zeros(1, 1, 2, 2, dtype=torch.uint8))
        raise UserError("no more")

    batches = loader.Ahead(broken())
    assert len(next(batches)) == 1
    with pytest.raises(UserError, match="no more"):
        next(batches)
    with pytest.raises(StopIteration):
        next(batches)


def test_the_thread_runs_ahead_but_not_away():
    made: list[int] = []

    def slow() -> Iterator[Batch]:
        for k in range(100):
            made.append(k)
            yield Batch(torch.tensor([k]), torch.zeros(1, 1, 2, 2, dtype=torch.uint8))

    batches = loader.Ahead(slow())
    next(batches)
    time.sleep(0.3)
    assert 2 <= len(made) <= 2 + loader.AHEAD
    batches.close()


def test_an_epoch_left_unfinished_at_the_end_of_the_program_says_nothing(tmp_path: Path):
    for i in range(40):
        Image.new("RGB", (8, 8), (i, i, i)).save(tmp_path / f"{i:02d}.png")
    script = f"""
import torch
from pretask import loader, sources
source = sources.open({str(tmp_path)!r}, cache_mb=0, progress=False)
batches = iter(loader.epoch(source, torch.arange(40), 4))
next(batches)
"""
    told = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, timeout=60)
    assert (told.returncode, told.stderr) == (0, "")


def test_a_source_of_ones_own_needs_only_getitems():
    class Mine:
        def __getitems__(self, index: Tensor) -> Batch:
            return Batch(index, index.to(torch.uint8)[:, None, None, None].expand(-1, 1, 4, 4))

    batches = epoch(Mine(), torch.arange(9), 4)  # type: ignore[arg-type]
    assert torch.equal(torch.cat([red(b) for b in batches]), torch.arange(9))


def test_where_a_worker_is_killed_another_takes_over_and_no_batch_changes(folder: Path, capfd):
    source = sources.open(folder, size=16, cache_mb=0)
    order = ORDER.repeat(20)
    handler = signal.getsignal(signal.SIGCHLD)
    batches = loader.epoch(source, order, 64, workers=2)
    assert signal.getsignal(signal.SIGCHLD) == handler  # or a death would be raised in the middle of a step
    made = [next(batches)]
    for _ in range(2):
        os.kill(active_children()[0].pid, signal.SIGKILL)
        made += [next(batches) for _ in range(10)]
    made += list(batches)
    assert torch.equal(torch.cat([red(b) for b in made]), order)
    assert "another one takes over" in capfd.readouterr().err


def test_where_workers_are_killed_again_and_again_it_ends_in_one_line(folder: Path, monkeypatch):
    monkeypatch.setattr(workers, "TAKEOVERS", 0)
    source = sources.open(folder, size=16, cache_mb=0)
    batches = loader.epoch(source, ORDER.repeat(20), 64, workers=2)
    next(batches)
    for child in active_children():
        os.kill(child.pid, signal.SIGKILL)
    with pytest.raises(UserError, match=r"killed 1 times.*fewer --workers or a smaller --batch"):
        list(batches)


def test_real_photos_are_the_same_from_workers_and_from_memory(shared_data):
    path = shared_data("imagenette224", "val")
    kept, later = sources.open(path, size=64), sources.open(path, size=64, cache_mb=0)
    order = torch.randperm(600, generator=torch.Generator().manual_seed(0))[:160]
    for a, b in zip(epoch(kept, order, 80), epoch(later, order, 80), strict=True):
        assert torch.equal(a.image, b.image)

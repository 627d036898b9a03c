"""The order of an epoch reaches the loop: whole, in shards, from the middle, and with any number of workers."""

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

from pretask import data
from pretask.data import decode_workers, loader, store
from pretask.types import Batch, UserError

N = 150


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    at = tmp_path_factory.mktemp("photos")
    for i in range(N):
        Image.new("RGB", (16, 16), (i, 255 - i, 7)).save(at / f"{i:03d}.png")
    return at


@pytest.fixture(params=["memory", "workers", "map"])
def source(request: pytest.FixtureRequest, folder: Path, tmp_path: Path) -> data.Images:
    """N images whose red is their position."""
    if request.param == "map":
        store.prepare(data.open(folder), tmp_path / "store", progress=False)
        return data.open(tmp_path / "store")
    return data.open(folder, size=16, cache_mb=64 if request.param == "memory" else 0)


ORDER = torch.randperm(N, generator=torch.Generator().manual_seed(3))


def red(batch: Batch) -> Tensor:
    return batch.image[:, 0, 0, 0].long()


def epoch(source: data.Images, *args, **options) -> list[Batch]:
    return list(loader.epoch(source, *args, workers=2, **options))


def test_every_batch_has_the_images_of_its_part_of_the_order(source: data.Images):
    batches = epoch(source, ORDER, 70)  # more than one chunk, and a shorter last batch
    assert [len(b) for b in batches] == [70, 70, 10]
    for k, batch in enumerate(batches):
        assert torch.equal(batch.index, ORDER[70 * k : 70 * k + 70])
        assert torch.equal(red(batch), batch.index)


@pytest.mark.parametrize("world", [2, 3])
def test_shards_of_a_batch_make_the_whole(source: data.Images, world: int):
    whole = epoch(source, ORDER, 30)
    shares = [epoch(source, ORDER, 30, shard=(rank, world)) for rank in range(world)]
    for batch, *parts in zip(whole, *shares, strict=True):
        assert torch.equal(torch.cat([p.index for p in parts]), batch.index)
        assert torch.equal(torch.cat([p.image for p in parts]), batch.image)


def test_resumed_epoch_is_the_tail_of_a_whole_one(source: data.Images):
    whole, tail = epoch(source, ORDER, 20), epoch(source, ORDER, 20, first=5)
    assert [b.index.tolist() for b in tail] == [b.index.tolist() for b in whole[5:]]
    assert all(torch.equal(a.image, b.image) for a, b in zip(tail, whole[5:], strict=True))
    assert epoch(source, ORDER, 20, first=8) == []


def test_order_may_repeat_and_omit_images(source: data.Images):
    order = torch.tensor([5, 5, 5, 149, 0, 5])
    assert torch.cat([red(b) for b in epoch(source, order, 4)]).tolist() == order.tolist()


def test_epoch_after_an_unfinished_one_is_complete(source: data.Images):
    former = loader.epoch(source, ORDER, 10, workers=2)
    next(former)  # still alive, as in a loop that stopped early
    assert torch.equal(torch.cat([b.index for b in epoch(source, ORDER.flip(0), 10)]), ORDER.flip(0))
    for batch in loader.epoch(source, ORDER, 10, workers=2):
        assert torch.equal(red(batch), batch.index)
        break
    assert torch.equal(torch.cat([red(b) for b in epoch(source, ORDER, 10)]), ORDER)


def test_earlier_batches_do_not_change(source: data.Images):
    first = next(loader.epoch(source, ORDER, 10, workers=2))
    kept = first.image.clone()
    epoch(source, ORDER.flip(0), 10)
    epoch(source, ORDER.flip(0), 10)
    assert torch.equal(first.image, kept)


def test_labels_of_a_source_do_not_matter(folder: Path, tmp_path: Path):
    for kind in "ab":
        (tmp_path / "two" / kind).mkdir(parents=True)
        for i in range(5):
            Image.new("RGB", (16, 16), (i, 0, 0)).save(tmp_path / "two" / kind / f"{i}.png")
    labeled, plain = data.open_labeled(tmp_path / "two"), data.open(tmp_path / "two")
    for a, b in zip(epoch(labeled, torch.arange(10), 4), epoch(plain, torch.arange(10), 4), strict=True):
        assert torch.equal(a.image, b.image)


def test_workers_are_reused_and_end_with_their_source(folder: Path):
    before = set(active_children())
    source = data.open(folder, size=16, cache_mb=0)
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


def prefetcher_threads() -> int:
    return sum(thread.name == "prefetcher" for thread in threading.enumerate())


def test_dropped_epoch_leaves_no_thread(source: data.Images):
    batches = loader.epoch(source, ORDER, 10, workers=2)
    next(batches)
    assert prefetcher_threads() == (0 if type(batches) is map else 1)
    del batches
    gc.collect()
    assert prefetcher_threads() == 0


def test_error_of_the_prefetcher_thread_is_raised_in_the_loop():
    def broken() -> Iterator[Batch]:
        yield Batch(torch.arange(1), torch.zeros(1, 1, 2, 2, dtype=torch.uint8))
        raise UserError("no more")

    batches = loader.Prefetcher(broken())
    assert len(next(batches)) == 1
    with pytest.raises(UserError, match="no more"):
        next(batches)
    with pytest.raises(StopIteration):
        next(batches)


def test_prefetching_is_bounded():
    made: list[int] = []

    def slow() -> Iterator[Batch]:
        for k in range(100):
            made.append(k)
            yield Batch(torch.tensor([k]), torch.zeros(1, 1, 2, 2, dtype=torch.uint8))

    batches = loader.Prefetcher(slow())
    next(batches)
    time.sleep(0.3)
    assert 2 <= len(made) <= 2 + loader.PREFETCH
    batches.close()


def test_unfinished_epoch_at_exit_prints_nothing(tmp_path: Path):
    for i in range(40):
        Image.linear_gradient("L").resize((8, 8)).save(tmp_path / f"{i:02d}.png")
    script = f"""
import torch
from pretask import data
from pretask.data import loader
source = data.open({str(tmp_path)!r}, cache_mb=0, progress=False)
batches = iter(loader.epoch(source, torch.arange(40), 4))
next(batches)
"""
    result = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, timeout=60)
    assert (result.returncode, result.stderr) == (0, "")


def test_custom_source_needs_only_getitems():
    class Mine:
        def __getitems__(self, index: Tensor) -> Batch:
            return Batch(index, index.to(torch.uint8)[:, None, None, None].expand(-1, 1, 4, 4))

    batches = epoch(Mine(), torch.arange(9), 4)  # type: ignore[arg-type]
    assert torch.equal(torch.cat([red(b) for b in batches]), torch.arange(9))


def test_killed_worker_is_replaced_and_no_batch_changes(folder: Path, capfd):
    source = data.open(folder, size=16, cache_mb=0)
    order = ORDER.repeat(20)
    handler = signal.getsignal(signal.SIGCHLD)
    batches = loader.epoch(source, order, 64, workers=2)
    assert (
        signal.getsignal(signal.SIGCHLD) == handler
    )  # otherwise the death of a worker would raise in the middle of a step
    made = [next(batches)]
    for _ in range(2):
        os.kill(active_children()[0].pid, signal.SIGKILL)
        made += [next(batches) for _ in range(10)]
    made += list(batches)
    assert torch.equal(torch.cat([red(b) for b in made]), order)
    assert "restarting the workers" in capfd.readouterr().err


def test_repeatedly_killed_workers_are_a_one_line_error(folder: Path, monkeypatch):
    monkeypatch.setattr(decode_workers, "MAX_RESTARTS", 0)
    source = data.open(folder, size=16, cache_mb=0)
    batches = loader.epoch(source, ORDER.repeat(20), 64, workers=2)
    next(batches)
    for child in active_children():
        os.kill(child.pid, signal.SIGKILL)
    with pytest.raises(UserError, match=r"killed 1 times.*fewer --workers or a smaller --batch"):
        list(batches)


def test_real_photos_are_the_same_from_workers_and_from_memory(shared_data):
    path = shared_data("imagenette224", "val")
    kept, later = data.open(path, size=64), data.open(path, size=64, cache_mb=0)
    order = torch.randperm(600, generator=torch.Generator().manual_seed(0))[:160]
    for a, b in zip(epoch(kept, order, 80), epoch(later, order, 80), strict=True):
        assert torch.equal(a.image, b.image)

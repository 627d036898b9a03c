"""Streams, which have no random access, from the command line."""

import io
import json
from pathlib import Path

import pytest
import torch
from forked import torchrun
from PIL import Image

from pretask import data
from pretask.cli.main import main
from pretask.data import loader
from pretask.encoders.saved import WEIGHTS
from pretask.runtime import distributed
from pretask.train import run, trainer

datasets = pytest.importorskip("datasets")

FAST = ["--encoder", "resnet_small:width=8", "--batch", "16", "--steps", "9", "--size", "16"]


def png(image: torch.Tensor) -> bytes:
    file = io.BytesIO()
    Image.fromarray(image.permute(1, 2, 0).numpy()).save(file, "PNG")
    return file.getvalue()


@pytest.fixture
def stream(tmp_path, monkeypatch):
    monkeypatch.setattr(datasets.config, "SLEEP_TIME_ON_THREADS_SHUTDOWN", 0)  # 5 s after each shuffled pass
    images = data.open("synthetic:64:16").image
    for part, rows in enumerate(images.split(32)):
        cells = [{"bytes": png(image), "path": None} for image in rows]
        table = datasets.Dataset.from_dict({"image": cells}).cast_column("image", datasets.Image())
        table.to_parquet(tmp_path / f"{part}.parquet")
    return f"hf-stream:{tmp_path}/*.parquet#64"


def test_stream_can_be_trained_on_previewed_and_reported(stream, tmp_path, capsys):
    out = tmp_path / "run"
    assert main(["pretrain", "rotnet", "--data", stream, "--out", str(out), *FAST]) == 0, capsys.readouterr()
    assert run.load(out).card["n"] == 64 and (out / "DONE").exists()
    assert "puzzles" in (out / "report.html").read_text()
    picture = ["--out", str(tmp_path / "p.png"), "--size", "16"]
    assert main(["preview", "rotnet", "--data", stream, *picture]) == 0
    check = ["check", "rotnet", "--data", stream, "--size", "16", "--encoder", "resnet_small:width=8"]
    assert main(check) == 0, capsys.readouterr()


def test_interrupted_run_on_a_stream_resumes(stream, tmp_path, monkeypatch):
    from pretask.train import logger

    whole, cut = (tmp_path / name for name in ("whole", "cut"))
    assert main(["pretrain", "rotnet", "--data", stream, "--out", str(whole), *FAST]) == 0
    note = logger.RunLogger.log_step

    def stop(self, progress, *rest):
        if progress.step == 5:
            raise KeyboardInterrupt
        return note(self, progress, *rest)

    monkeypatch.setattr(logger.RunLogger, "log_step", stop)
    assert main(["pretrain", "rotnet", "--data", stream, "--out", str(cut), *FAST]) == 130
    monkeypatch.undo()
    assert main(["pretrain", "--resume", str(cut)]) == 0
    assert (whole / WEIGHTS).read_bytes() == (cut / WEIGHTS).read_bytes()


def test_sample_is_evenly_spaced_or_the_first_images_of_a_stream(stream):
    source = data.open("synthetic:64:16")
    assert loader.sample(source, 4).index.tolist() == [0, 21, 42, 63]
    assert len(loader.sample(source, 100)) == 64
    streamed = data.open(stream, size=16)
    assert torch.equal(loader.sample(streamed, 5).image, source.image[:5])


def record() -> None:
    """Each process writes the sums of the images of its first epoch into the working folder."""
    plain, seen = trainer.Trainer.step, []

    def step(self, batch, progress):
        seen.extend(batch.image.sum((1, 2, 3)).tolist())
        if progress.epoch == 0 and len(seen) == 24:
            Path(f"saw-{distributed.rank()}.json").write_text(json.dumps(seen))
        return plain(self, batch, progress)

    trainer.Trainer.step = step


def test_two_processes_read_different_shards_of_a_stream(stream, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    words = ["pretrain", "rotnet", "--data", stream, "--out", tmp_path / "run", *FAST, "--devices", "2"]
    # what reads Arrow files in threads cannot be forked
    both = torchrun(tmp_path, *words, first=record, how="spawn")
    assert [process.wait() for process in both] == [0, 0], both[0].err
    one, other = (set(json.loads((tmp_path / f"saw-{rank}.json").read_text())) for rank in range(2))
    first, second = (set(x.sum((1, 2, 3)).tolist()) for x in data.open("synthetic:64:16").image.split(32))
    assert (one < first and other < second) or (one < second and other < first)

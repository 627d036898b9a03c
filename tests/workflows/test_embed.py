"""Embedding: rows on disk equal the encoder's features, and failures leave no partial files."""

import csv

import numpy as np
import pyarrow.parquet as pq
import pytest
import torch
from PIL import Image

from pretask import data as sources
from pretask import encoders
from pretask.cli import main
from pretask.encoders.readout import Readout
from pretask.encoders.saved import SHAPE, WEIGHTS
from pretask.reading import Reading
from pretask.transforms import augment
from pretask.types import UserError
from pretask.workflows import embed


@pytest.fixture
def encoder():
    torch.manual_seed(0)
    return encoders.build("resnet_small:width=8", 3, 32).eval()


@pytest.fixture
def folder(tmp_path):
    """Twenty pictures in two folders."""
    image = sources.open("synthetic:20:32").image.permute(0, 2, 3, 1).numpy()
    for i, pixels in enumerate(image):
        path = tmp_path / "photos" / "ab"[i % 2] / f"{i:02}.png"
        path.parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(pixels).save(path)
    return tmp_path / "photos"


@pytest.fixture
def run(encoder, run_of, tmp_path):
    made = run_of(encoder, tmp_path / "run")
    assert (made / WEIGHTS).exists()
    assert (made / SHAPE).exists()
    return made


def by_hand(encoder, folder, files, stage="pool", grid=1):
    """A map's mean over each of grid x grid cells that divide it evenly."""
    pixels = [np.asarray(Image.open(folder / file).convert("RGB")) for file in files]
    x = augment.to_float(torch.from_numpy(np.stack(pixels)).permute(0, 3, 1, 2))
    with torch.no_grad():
        out = encoder(x)[stage]
    if out.ndim == 2:
        return out.numpy()
    n, c, h, w = out.shape
    return out.view(n, c, grid, h // grid, grid, w // grid).mean((3, 5)).flatten(1).numpy()


def features(table):
    return np.stack(table["features"].to_pylist())


@pytest.mark.parametrize(
    ("flags", "stage", "grid"),
    [
        ([], "pool", 1),
        (["--stage", "stage2", "--grid", "2"], "stage2", 2),
        (["--stage", "stage3", "--grid", "1"], "stage3", 1),
    ],
)
def test_each_row_is_the_encoder_applied_to_the_named_file(
    run, encoder, folder, tmp_path, flags, stage, grid
):
    out = tmp_path / "f.parquet"
    words = ["embed", str(run), "--data", str(folder), "--out", str(out), *flags, "--batch", "8"]
    assert main.main(words) == 0
    table = pq.read_table(out)
    files = table["file"].to_pylist()
    assert sorted(files) == sorted(str(p.relative_to(folder)) for p in folder.rglob("*.png"))
    np.testing.assert_allclose(features(table), by_hand(encoder, folder, files, stage, grid), atol=1e-5)
    assert np.array_equal(np.load(tmp_path / "f.npy"), features(table).astype(np.float32))
    assert (
        str(table.schema.field("features").type)
        == f"fixed_size_list<element: float>[{grid**2 * encoder.widths[stage]}]"
    )


def test_unreadable_files_have_no_row_and_are_listed(encoder, folder, tmp_path):
    (folder / "a" / "04.png").write_bytes(b"no picture")
    (folder / "b" / "19.png").write_bytes(b"")
    for cache_mb in (0, 100):  # decoded on demand, and when opened
        out = tmp_path / f"{cache_mb}.parquet"
        source = sources.open(folder, size=32, reading=Reading(max_bad=0.2), cache_mb=cache_mb)
        made = embed.write(Readout(encoder), source, out, batch=8)
        table = pq.read_table(out)
        files = table["file"].to_pylist()
        assert made.n == len(files) == len(np.load(made.array)) == 18
        assert "a/04.png" not in files
        assert "b/19.png" not in files
        np.testing.assert_allclose(features(table), by_hand(encoder, folder, files), atol=1e-5)
        rows = list(csv.reader(made.skipped.open()))
        assert rows == [["file", "reason"], ["a/04.png", "not an image"], ["b/19.png", "empty"]]


def test_rows_are_written_in_groups_so_that_memory_does_not_grow(encoder, tmp_path, monkeypatch):
    monkeypatch.setattr(embed, "GROUP", 16)
    made = embed.write(Readout(encoder), sources.open("synthetic:50:32"), tmp_path / "f.parquet", batch=8)
    file = pq.ParquetFile(made.table)
    assert [file.metadata.row_group(i).num_rows for i in range(file.num_row_groups)] == [16, 16, 16, 2]
    whole = embed.array(Readout(encoder), sources.open("synthetic:50:32"))
    np.testing.assert_allclose(np.load(made.array), whole, atol=1e-5)
    assert np.load(made.array, mmap_mode="r").shape == (50, encoder.dim)


def test_a_stream_is_read_beyond_its_stated_length_without_unreadable_rows(encoder, folder, tmp_path):
    import datasets

    paths = sorted(folder.rglob("*.png"))
    cells = [{"bytes": p.read_bytes(), "path": None} for p in paths]
    cells[3]["bytes"] = b"no picture"
    data = datasets.Dataset.from_dict({"image": cells}, features=datasets.Features(image=datasets.Image()))
    data.to_parquet(tmp_path / "photos.parquet")
    source = sources.open(
        f"hf-stream:{tmp_path / 'photos.parquet'}#12", size=32
    )  # the stated length is too small
    made = embed.write(Readout(encoder), source, tmp_path / "f.parquet", batch=8)
    expected = by_hand(encoder, folder, [p.relative_to(folder) for p in paths if p != paths[3]])
    np.testing.assert_allclose(np.load(made.array), expected, atol=1e-5)
    assert "row 3,not an image" in made.skipped.read_text()


def test_existing_files_are_not_overwritten(encoder, tmp_path):
    (tmp_path / "f.npy").write_text("mine")
    with pytest.raises(UserError, match=r"f\.npy exists"):
        embed.write(Readout(encoder), sources.open("synthetic:8:32"), tmp_path / "f.parquet")
    assert [p.name for p in tmp_path.iterdir()] == ["f.npy"]


@pytest.mark.parametrize("failure", [KeyboardInterrupt(), OSError(28, "No space left on device")])
def test_an_interrupted_command_leaves_no_partial_files(encoder, tmp_path, monkeypatch, failure):
    def breaks(rows):
        def broken(*given):
            found = rows(*given)
            yield next(found)
            raise failure

        return broken

    monkeypatch.setattr(embed, "rows", breaks(embed.rows))
    expected = UserError if isinstance(failure, OSError) else KeyboardInterrupt
    with pytest.raises(expected):
        embed.write(Readout(encoder), sources.open("synthetic:20:32"), tmp_path / "f.parquet", batch=8)
    assert not list(tmp_path.iterdir())


def test_embedding_does_not_change_the_encoder(encoder):
    encoder.train()
    before = {k: v.clone() for k, v in encoder.state_dict().items()}
    embed.array(Readout(encoder), sources.open("synthetic:8:32"))
    assert encoder.training
    assert all(torch.equal(v, before[k]) for k, v in encoder.state_dict().items())


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (["RUN", "--data", "synthetic:8", "--stage", "stge2"], "no stage 'stge2'; it has stem, stage1"),
        (["RUN", "--data", "nowhere/at/all"], "nowhere/at/all is neither"),
        (["RUN", "--data", "synthetic:8", "--out", "f.npy"], "should end in .parquet"),
        (["nowhere", "--data", "synthetic:8"], "no weights at nowhere"),
        (["timm:resnet18q", "--data", "synthetic:8"], "did you mean resnet18"),
        (["timm:resnet18d_nonsense_name", "--data", "synthetic:8"], "unknown encoder"),
        ([], "needs a RUN"),
    ],
)
def test_user_errors_are_one_line_and_leave_no_files(run, tmp_path, monkeypatch, capsys, words, said):
    monkeypatch.chdir(tmp_path)
    assert main.main(["embed", *(str(run) if word == "RUN" else word for word in words)]) == 2
    err = capsys.readouterr().err
    assert said in err
    assert err.count("\n") == 1
    assert not list(tmp_path.glob("f*"))

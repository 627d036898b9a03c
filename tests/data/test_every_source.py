"""Properties of every kind of source."""

import io
import struct
import tarfile
from collections.abc import Callable
from functools import cache
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from small import undrawn

import pretask
from pretask import data as sources
from pretask.data import loader, store
from pretask.data.base import OpenOptions
from pretask.encoders.saved import WEIGHTS
from pretask.reading import Reading
from pretask.types import Batch, UserError

N, SIZE, CLASSES = 24, 20, ["ant", "bee", "cat"]


@pytest.fixture(autouse=True)
def _undrawn(monkeypatch: pytest.MonkeyPatch):
    undrawn(monkeypatch)


def pictures() -> tuple[np.ndarray, np.ndarray]:
    """-> (N, SIZE, SIZE, 3) smooth images, all different, and labels (N,), sorted like class folders."""
    rng = np.random.default_rng(0)
    coarse = rng.integers(0, 256, (N, 3, 3, 3), dtype=np.uint8)
    smooth = [np.asarray(Image.fromarray(c).resize((SIZE, SIZE), Image.Resampling.BILINEAR)) for c in coarse]
    return np.stack(smooth), np.sort(rng.integers(0, 3, N))


def png(pixels: np.ndarray) -> bytes:
    file = io.BytesIO()
    Image.fromarray(pixels).save(file, "PNG")
    return file.getvalue()


def folder(at: Path, labels: np.ndarray) -> str:
    for i, (pixels, k) in enumerate(zip(pictures()[0], labels, strict=True)):
        path = at / "photos" / CLASSES[k] / "nested" / f"{i:03d} é.png"
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(png(pixels))
    return str(at / "photos")


def npz(at: Path, labels: np.ndarray) -> str:
    np.savez(at / "data.npz", images=pictures()[0], labels=labels, class_names=np.array(CLASSES))
    return str(at / "data.npz")


def packed(at: Path, labels: np.ndarray) -> str:
    files = [png(p) for p in pictures()[0]]
    np.savez(
        at / "packed.npz",
        jpeg=np.frombuffer(b"".join(files), np.uint8),
        offsets=np.cumsum([0, *map(len, files)]),
        labels=labels,
        class_names=np.array(CLASSES),
    )
    return str(at / "packed.npz")


def parquet(at: Path, labels: np.ndarray) -> str:
    datasets = pytest.importorskip("datasets")
    features = datasets.Features({"image": datasets.Image(), "label": datasets.ClassLabel(names=CLASSES)})
    (at / "tables").mkdir()
    for part, rows in enumerate(np.array_split(np.arange(N), 2)):
        table = {
            "image": [{"bytes": png(pictures()[0][i]), "path": None} for i in rows],
            "label": labels[rows],
        }
        data = datasets.Dataset.from_dict(table, features=features)
        data.to_parquet(at / "tables" / f"train-{part}.parquet")
    return str(at / "tables")


def shards(at: Path, labels: np.ndarray) -> str:
    for part, rows in enumerate(np.array_split(np.arange(N), 2)):
        with tarfile.open(at / f"shard-{part}.tar", "w") as tar:
            for i in rows:
                for suffix, content in (("png", png(pictures()[0][i])), ("cls", str(labels[i]).encode())):
                    member = tarfile.TarInfo(f"{i:03d}.{suffix}")
                    member.size = len(content)
                    tar.addfile(member, io.BytesIO(content))
    return str(at / "shard-*.tar")


def prepared(at: Path, labels: np.ndarray) -> str:
    store.prepare(sources.open_labeled(npz(at, labels)), at / "store", progress=False)
    return str(at / "store")


KINDS: dict[str, Callable[[Path, np.ndarray], str]] = {
    f.__name__: f for f in (folder, npz, packed, parquet, shards, prepared)
}
DECODED = {"folder", "packed", "parquet", "shards"}
CASES = [(kind, 64) for kind in KINDS] + [
    (kind, 0) for kind in sorted(DECODED)
]  # in memory, then decoded on demand


@pytest.fixture(scope="module")
def specs(tmp_path_factory: pytest.TempPathFactory) -> dict[str, str]:
    return {kind: make(tmp_path_factory.mktemp(kind), pictures()[1]) for kind, make in KINDS.items()}


@pytest.fixture(params=CASES, ids=lambda case: f"{case[0]}-{'memory' if case[1] else 'later'}")
def source(request: pytest.FixtureRequest, specs: dict[str, str]) -> sources.Images:
    kind, cache = request.param
    return sources.open(specs[kind], size=None if kind == "prepared" else SIZE, cache_mb=cache)


def test_batch_has_the_images_of_its_index_in_its_order(source: sources.Images):
    index = torch.tensor([7, 3, 3, 23, 0])
    batch = source.__getitems__(index)
    assert torch.equal(batch.index, index)
    assert batch.image.dtype == torch.uint8
    assert batch.image.shape == (5, source.channels, source.size, source.size)
    assert torch.equal(batch.image, torch.from_numpy(pictures()[0]).permute(0, 3, 1, 2)[index])
    assert torch.equal(source.__getitems__(index).image, batch.image)


def test_loader_returns_the_same_as_indexing(source: sources.Images):
    order = torch.randperm(N, generator=torch.Generator().manual_seed(0))
    for k, batch in enumerate(loader.epoch(source, order, 8, workers=1)):
        assert torch.equal(batch.index, order[8 * k : 8 * k + 8])
        assert torch.equal(batch.image, source.__getitems__(batch.index).image)
    assert k == 2


def test_source_has_correct_attributes(source: sources.Images):
    assert (len(source), source.channels, source.size, source.ledger.bad) == (N, 3, SIZE, {})
    assert source.provides == frozenset()
    assert source.name
    assert len(set(source.files(torch.arange(N)))) == N


def test_source_for_pretraining_has_no_labels(source: sources.Images):
    assert not [name for name in vars(source) if "label" in name or "class" in name or "target" in name]
    assert not hasattr(source, "label")
    assert not source.__getitems__(torch.arange(2)).aux
    inner = getattr(source, "reader", None)
    assert inner is None or inner.groups is None


@pytest.mark.parametrize("kind", KINDS)
def test_shuffled_labels_change_no_image(kind: str, specs: dict[str, str], tmp_path: Path):
    shuffled = KINDS[kind](tmp_path, pictures()[1][::-1].copy())
    before, after = sources.open(specs[kind]), sources.open(shuffled)
    assert torch.equal(before.__getitems__(torch.arange(N)).image, after.__getitems__(torch.arange(N)).image)


def digits(at: Path, labels: np.ndarray) -> str:
    """Files in MNIST's format, with the names that torchvision expects."""
    raw = at / "MNIST" / "raw"
    raw.mkdir(parents=True)
    images = pictures()[0][..., 0].repeat(2, 1).repeat(2, 2)[:, :28, :28]
    for part in ("train", "t10k"):
        head = struct.pack(">iiii", 2051, N, 28, 28)
        (raw / f"{part}-images-idx3-ubyte").write_bytes(head + images.tobytes())
        (raw / f"{part}-labels-idx1-ubyte").write_bytes(struct.pack(">ii", 2049, N) + bytes(labels.tolist()))
    return "mnist"


def unlabeled(kind: str, at: Path, labels: np.ndarray) -> str:
    """The same images without labels."""
    spec = KINDS[kind](at, labels)
    if kind == "folder":
        for path in sorted(Path(spec).rglob("*.png")):
            path.rename(at / "photos" / path.name)
    elif spec.endswith(".npz"):
        arrays = dict(np.load(spec))
        np.savez(spec, **{key: arrays[key] for key in arrays if key in ("images", "jpeg", "offsets")})
    elif kind == "prepared":
        (Path(spec) / "label.npy").unlink()
    return spec


BLIND = [*((kind, how) for kind in KINDS for how in ("shuffled", "absent")), ("digits", "shuffled")]


def trained(spec: str, at: Path) -> bytes:
    """Weights after some steps on `spec`."""
    small = {"encoder": "resnet_small:width=4", "steps": 4, "batch": 8, "quiet": True}
    run = pretask.pretrain("rotnet", spec, at / "run", reading=Reading(root=at), **small)
    return (run.folder / WEIGHTS).read_bytes()


@pytest.fixture(scope="module")
def expected(tmp_path_factory: pytest.TempPathFactory) -> Callable[[str], bytes]:
    @cache
    def weights(kind: str) -> bytes:
        at = tmp_path_factory.mktemp(kind)
        return trained({**KINDS, "digits": digits}[kind](at, pictures()[1]), at)

    return weights


@pytest.mark.parametrize(("kind", "how"), BLIND)
def test_shuffled_or_absent_labels_change_no_weight(kind: str, how: str, expected, tmp_path: Path):
    labels = np.random.default_rng(1).permutation(pictures()[1])
    assert labels.tolist() != pictures()[1].tolist()
    if how == "absent":
        spec = unlabeled(kind, tmp_path, labels)
    else:
        spec = {**KINDS, "digits": digits}[kind](tmp_path, labels)
    assert trained(spec, tmp_path) == expected(kind)


def test_batch_has_no_field_for_labels():
    image = torch.zeros(2, 3, 4, 4, dtype=torch.uint8)
    for name in ("label", "labels", "class", "target"):
        with pytest.raises(ValueError, match=name):
            Batch(torch.arange(2), image, {name: torch.zeros(2)})
        with pytest.raises(TypeError):
            Batch(torch.arange(2), image, **{name: torch.zeros(2)})


@pytest.mark.parametrize(("kind", "cache"), CASES)
def test_labels_match_their_images(kind: str, cache: int, specs: dict[str, str]):
    labeled = sources.open_labeled(specs[kind], cache_mb=cache)
    images, labels = pictures()
    assert labeled.label.dtype == torch.int64
    assert labeled.label.tolist() == labels.tolist()
    assert labeled.classes == (CLASSES if kind != "shards" else ["0", "1", "2"])
    shown = labeled.__getitems__(torch.arange(N)).image
    assert torch.equal(shown, torch.from_numpy(images).permute(0, 3, 1, 2))


@pytest.mark.parametrize("kind", sorted(DECODED | {"npz"}))
def test_size_and_channels_are_as_requested(kind: str, specs: dict[str, str]):
    batch = sources.open(specs[kind], size=12, channels=1).__getitems__(torch.arange(3))
    assert batch.image.shape == (3, 1, 12, 12)
    expected = [
        Image.fromarray(p).convert("L").resize((12, 12), Image.Resampling.BICUBIC) for p in pictures()[0][:3]
    ]
    assert torch.equal(batch.image[:, 0], torch.from_numpy(np.stack([np.asarray(e) for e in expected])))


def test_options_can_be_an_object_or_keywords_and_keywords_win():
    given = OpenOptions(size=24, channels=1, labels="all")
    one = sources.open("synthetic:4", given)
    assert (one.size, one.channels) == (24, 1)
    named = sources.open("synthetic:4", given, channels=3)
    assert (named.size, named.channels) == (24, 3)
    assert len(sources.open_labeled("synthetic:4", OpenOptions(size=24)).label) == 4
    with pytest.raises(TypeError, match="sise"):
        sources.open("synthetic:4", sise=24)


def test_unlabeled_images_are_kept_when_opened_without_labels(tmp_path: Path):
    """For any value of `labels` in the options."""
    for name in ("ant/0.png", "1.png"):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).write_bytes(png(pictures()[0][0]))
    options = OpenOptions(size=16, labels="all")
    assert len(sources.open(tmp_path, options)) == 2 and len(sources.open_labeled(tmp_path, options)) == 1


@pytest.mark.parametrize("name", ["synthetic:12:24", "demo:test"])
def test_synthetic_images_are_reproducible(name: str):
    first, second = sources.open_labeled(name), sources.open_labeled(name)
    index = torch.arange(len(first))
    assert torch.equal(first.__getitems__(index).image, second.__getitems__(index).image)
    assert torch.equal(first.label, second.label)
    assert not hasattr(sources.open(name), "label")


def test_splits_of_the_demo_differ():
    train, test = sources.open_labeled("demo"), sources.open_labeled("demo:test")
    assert (len(train), len(test), train.classes) == (6000, 2000, test.classes)
    assert not torch.equal(
        train.__getitems__(torch.arange(50)).image, test.__getitems__(torch.arange(50)).image
    )
    assert train.label.bincount(minlength=10).min() > 500


@pytest.mark.parametrize(
    ("spec", "message"),
    [
        ("nowhere/photos", "neither a file or folder"),
        ("cifar11", "did you mean cifar10"),
        ("synthetic:many", "expected synthetic"),
        ("demo:val", "train and test"),
        ("hf-stream:nowhere/*.parquet", "matches no file"),
    ],
)
def test_missing_source_is_named(spec: str, message: str):
    with pytest.raises(UserError, match=message):
        sources.open(spec)


def test_mistyped_path_gets_a_suggestion(tmp_path: Path):
    (tmp_path / "holiday-photos").mkdir()
    with pytest.raises(UserError, match=r"did you mean .*holiday-photos"):
        sources.open(tmp_path / "holliday-photos")

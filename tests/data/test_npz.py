"""`.npz` files: every shape people save, and a clear word on the others."""

import io
import zipfile
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from pretask import data as sources
from pretask.types import UserError

RNG = np.random.default_rng(0)
COLOUR = RNG.integers(0, 256, (5, 10, 10, 3), dtype=np.uint8)


def saved(at: Path, **arrays) -> Path:
    np.savez(at / "data.npz", **arrays)
    return at / "data.npz"


def pixels(path: Path, **asked) -> torch.Tensor:
    source = sources.open(path, **asked)
    return source.__getitems__(torch.arange(len(source))).image


def test_grey_arrays_keep_one_channel(tmp_path: Path):
    assert torch.equal(
        pixels(saved(tmp_path, images=COLOUR[..., 0])), torch.from_numpy(COLOUR[:, None, ..., 0])
    )
    assert torch.equal(
        pixels(saved(tmp_path, images=COLOUR[..., :1])), torch.from_numpy(COLOUR[:, None, ..., 0])
    )


def test_grey_becomes_colour_and_back_when_asked(tmp_path: Path):
    grey = pixels(saved(tmp_path, images=COLOUR[..., 0]), channels=3)
    assert torch.equal(grey, torch.from_numpy(COLOUR[:, None, ..., 0]).expand(-1, 3, -1, -1))
    luma = pixels(saved(tmp_path, images=COLOUR), channels=1)[:, 0].numpy().astype(float)
    assert np.abs(luma - COLOUR @ [0.299, 0.587, 0.114]).max() <= 1


def test_colour_arrays_are_taken_as_they_are(tmp_path: Path):
    assert torch.equal(pixels(saved(tmp_path, images=COLOUR)), torch.from_numpy(COLOUR).permute(0, 3, 1, 2))


def test_transparent_arrays_are_laid_on_white(tmp_path: Path):
    clear = np.concatenate([COLOUR, np.zeros((5, 10, 10, 1), np.uint8)], 3)
    assert (pixels(saved(tmp_path, images=clear)) == 255).all()


def test_oblong_arrays_are_cut_square(tmp_path: Path):
    wide = np.zeros((2, 10, 30, 3), np.uint8)
    wide[:, :, 10:20] = COLOUR[:2]
    assert torch.equal(pixels(saved(tmp_path, images=wide)), torch.from_numpy(COLOUR[:2]).permute(0, 3, 1, 2))


def test_arrays_are_resized_as_files_are(tmp_path: Path):
    expected = [np.asarray(Image.fromarray(c).resize((7, 7), Image.Resampling.BICUBIC)) for c in COLOUR]
    out = pixels(saved(tmp_path, images=COLOUR), size=7)
    assert torch.equal(out, torch.from_numpy(np.stack(expected)).permute(0, 3, 1, 2))


def test_labels_of_any_kind_are_numbered(tmp_path: Path):
    path = saved(tmp_path, images=COLOUR, labels=np.array(["b", "a", "b", "c", "a"]))
    source = sources.open_labelled(path)
    assert (source.label.tolist(), source.classes) == ([1, 0, 1, 2, 0], ["a", "b", "c"])
    source = sources.open_labelled(saved(tmp_path, images=COLOUR, labels=np.array([10, 9, 10, 30, 9])))
    assert (source.label.tolist(), source.classes) == ([1, 0, 1, 2, 0], ["9", "10", "30"])


@pytest.mark.parametrize(
    ("arrays", "told"),
    [
        ({"x": COLOUR}, r"holds \['x'\]; expected `images`"),
        ({"images": COLOUR.astype(np.float32)}, "float32; expected uint8"),
        ({"images": COLOUR.transpose(0, 3, 1, 2)}, "expected uint8 of shape"),
        ({"images": COLOUR[:0]}, "expected uint8 of shape"),
        ({"images": COLOUR[0, 0]}, "expected uint8 of shape"),
    ],
)
def test_other_arrays_are_named(tmp_path: Path, arrays: dict, told: str):
    with pytest.raises(UserError, match=told):
        sources.open(saved(tmp_path, **arrays))


@pytest.mark.parametrize(
    ("labels", "names", "told"),
    [
        (np.zeros(4, int), None, r"shape \(4,\); expected \(5,\)"),
        (np.arange(5), ["a", "b"], "labels run from 0 to 4, but there are 2 class names"),
        (np.arange(5) - 2, list("abcde"), "labels run from -2 to 2"),
    ],
)
def test_labels_that_do_not_fit_are_named_and_pretraining_does_not_mind(
    tmp_path: Path, labels, names, told: str
):
    extra = {} if names is None else {"class_names": np.array(names)}
    path = saved(tmp_path, images=COLOUR, labels=labels, **extra)
    with pytest.raises(UserError, match=told):
        sources.open_labelled(path)
    assert len(sources.open(path)) == 5


def test_without_labels_there_is_nothing_to_evaluate_on(tmp_path: Path):
    with pytest.raises(UserError, match="has no labels"):
        sources.open_labelled(saved(tmp_path, images=COLOUR))


def test_pickles_are_not_opened(tmp_path: Path):
    class Trap:
        def __reduce__(self):
            return Path(tmp_path / "sprung").touch, ()

    np.savez(tmp_path / "data.npz", images=np.array([Trap()], object))
    with pytest.raises(UserError, match="pickle"):
        sources.open(tmp_path / "data.npz")
    assert not (tmp_path / "sprung").exists()


@pytest.mark.parametrize("content", [b"", b"no zip at all", b"half"])
def test_damaged_files_are_named(tmp_path: Path, content: bytes):
    path = saved(tmp_path, images=COLOUR)
    path.write_bytes(path.read_bytes()[:500] if content == b"half" else content)
    with pytest.raises(UserError, match=r"data\.npz cannot be read"):
        sources.open(path)


def test_a_hurt_array_inside_is_named(tmp_path: Path):
    with zipfile.ZipFile(tmp_path / "data.npz", "w") as z:
        z.writestr("images.npy", b"\x93NUMPY garbage")
    with pytest.raises(UserError, match="cannot be read"):
        sources.open(tmp_path / "data.npz")


def test_encoded_images_that_are_damaged_are_dropped_with_their_labels(tmp_path: Path):
    files = []
    for c in np.concatenate([COLOUR] * 4):
        file = io.BytesIO()
        Image.fromarray(c).save(file, "PNG")
        files.append(file.getvalue())
    files[3] = b"no image"
    path = saved(
        tmp_path,
        jpeg=np.frombuffer(b"".join(files), np.uint8),
        offsets=np.cumsum([0, *map(len, files)]),
        labels=np.arange(20),
    )
    source = sources.open_labelled(path)
    assert source.ledger.bad == {"3": "not an image"}
    assert source.label.tolist() == [i for i in range(20) if i != 3]
    assert source.files(torch.tensor([2, 3])) == ["2", "4"]


@pytest.mark.parametrize(
    "offsets", [[0, 30, 20, 40], [-5, 10, 20], [0, 20, 401], [0], [0.0, 20.0], [[0, 20]]]
)
def test_offsets_that_cannot_be_are_named(tmp_path: Path, offsets: list):
    path = saved(tmp_path, jpeg=np.zeros(400, np.uint8), offsets=np.array(offsets))
    with pytest.raises(UserError, match=r"`offsets` (do not rise|\(N \+ 1,\) of whole)"):
        sources.open(path)


def test_the_packed_form_is_decoded(shared_data):
    packed = sources.open_labelled(shared_data("cifar10", "cifar10_test_full_jpeg.npz"))
    arrays = sources.open_labelled(shared_data("cifar10", "cifar10_test.npz"))
    place = torch.from_numpy(np.load(shared_data("cifar10", "cifar10_test.npz"))["full_index"]).long()
    assert torch.equal(packed.label[place], arrays.label)
    assert torch.equal(packed.__getitems__(place).image, arrays.__getitems__(torch.arange(len(arrays))).image)
    assert packed.classes == arrays.classes

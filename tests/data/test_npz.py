"""`.npz` files: every supported shape, and clear errors for the others."""

import io
import zipfile
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from pretask import data
from pretask.types import UserError

RNG = np.random.default_rng(0)
COLOR = RNG.integers(0, 256, (5, 10, 10, 3), dtype=np.uint8)


def saved(at: Path, **arrays) -> Path:
    np.savez(at / "data.npz", **arrays)
    return at / "data.npz"


def pixels(path: Path, **options) -> torch.Tensor:
    source = data.open(path, **options)
    return source.__getitems__(torch.arange(len(source))).image


def test_gray_arrays_keep_one_channel(tmp_path: Path):
    assert torch.equal(
        pixels(saved(tmp_path, images=COLOR[..., 0])), torch.from_numpy(COLOR[:, None, ..., 0])
    )
    assert torch.equal(
        pixels(saved(tmp_path, images=COLOR[..., :1])), torch.from_numpy(COLOR[:, None, ..., 0])
    )


def test_gray_and_color_are_converted_on_request(tmp_path: Path):
    gray = pixels(saved(tmp_path, images=COLOR[..., 0]), channels=3)
    assert torch.equal(gray, torch.from_numpy(COLOR[:, None, ..., 0]).expand(-1, 3, -1, -1))
    luma = pixels(saved(tmp_path, images=COLOR), channels=1)[:, 0].numpy().astype(float)
    assert np.abs(luma - COLOR @ [0.299, 0.587, 0.114]).max() <= 1


def test_color_arrays_are_unchanged(tmp_path: Path):
    assert torch.equal(pixels(saved(tmp_path, images=COLOR)), torch.from_numpy(COLOR).permute(0, 3, 1, 2))


def test_transparent_arrays_are_composited_on_white(tmp_path: Path):
    clear = np.concatenate([COLOR, np.zeros((5, 10, 10, 1), np.uint8)], 3)
    assert (pixels(saved(tmp_path, images=clear)) == 255).all()


def test_rectangular_arrays_are_center_cropped(tmp_path: Path):
    wide = np.zeros((2, 10, 30, 3), np.uint8)
    wide[:, :, 10:20] = COLOR[:2]
    assert torch.equal(pixels(saved(tmp_path, images=wide)), torch.from_numpy(COLOR[:2]).permute(0, 3, 1, 2))


def test_arrays_are_resized_like_files(tmp_path: Path):
    expected = [np.asarray(Image.fromarray(c).resize((7, 7), Image.Resampling.BICUBIC)) for c in COLOR]
    out = pixels(saved(tmp_path, images=COLOR), size=7)
    assert torch.equal(out, torch.from_numpy(np.stack(expected)).permute(0, 3, 1, 2))


def test_labels_of_any_type_become_indices(tmp_path: Path):
    path = saved(tmp_path, images=COLOR, labels=np.array(["b", "a", "b", "c", "a"]))
    source = data.open_labeled(path)
    assert (source.label.tolist(), source.classes) == ([1, 0, 1, 2, 0], ["a", "b", "c"])
    source = data.open_labeled(saved(tmp_path, images=COLOR, labels=np.array([10, 9, 10, 30, 9])))
    assert (source.label.tolist(), source.classes) == ([1, 0, 1, 2, 0], ["9", "10", "30"])


@pytest.mark.parametrize(
    ("arrays", "message"),
    [
        ({"x": COLOR}, r"contains \['x'\]; expected `images`"),
        ({"images": COLOR.astype(bool)}, "bool; expected integers or floats"),
        ({"images": COLOR.transpose(0, 3, 1, 2)}, "expected integers or floats of shape"),
        ({"images": COLOR[:0]}, "expected integers or floats of shape"),
        ({"images": COLOR[0, 0]}, "expected integers or floats of shape"),
    ],
)
def test_invalid_arrays_are_reported(tmp_path: Path, arrays: dict, message: str):
    with pytest.raises(UserError, match=message):
        data.open(saved(tmp_path, **arrays))


@pytest.mark.parametrize(
    ("labels", "names", "message"),
    [
        (np.zeros(4, int), None, r"shape \(4,\); expected \(5,\)"),
        (np.arange(5), ["a", "b"], "labels range from 0 to 4, but there are 2 class names"),
        (np.arange(5) - 2, list("abcde"), "labels range from -2 to 2"),
    ],
)
def test_invalid_labels_are_reported_and_do_not_affect_pretraining(
    tmp_path: Path, labels, names, message: str
):
    extra = {} if names is None else {"class_names": np.array(names)}
    path = saved(tmp_path, images=COLOR, labels=labels, **extra)
    with pytest.raises(UserError, match=message):
        data.open_labeled(path)
    assert len(data.open(path)) == 5


def test_opening_labeled_without_labels_fails(tmp_path: Path):
    with pytest.raises(UserError, match="has no labels"):
        data.open_labeled(saved(tmp_path, images=COLOR))


def test_pickles_are_not_opened(tmp_path: Path):
    class Trap:
        def __reduce__(self):
            return Path(tmp_path / "sprung").touch, ()

    np.savez(tmp_path / "data.npz", images=np.array([Trap()], object))
    with pytest.raises(UserError, match="pickle"):
        data.open(tmp_path / "data.npz")
    assert not (tmp_path / "sprung").exists()


@pytest.mark.parametrize("content", [b"", b"no zip at all", b"half"])
def test_damaged_files_are_reported(tmp_path: Path, content: bytes):
    path = saved(tmp_path, images=COLOR)
    path.write_bytes(path.read_bytes()[:500] if content == b"half" else content)
    with pytest.raises(UserError, match=r"data\.npz cannot be read"):
        data.open(path)


def test_damaged_array_inside_is_reported(tmp_path: Path):
    with zipfile.ZipFile(tmp_path / "data.npz", "w") as z:
        z.writestr("images.npy", b"\x93NUMPY garbage")
    with pytest.raises(UserError, match="cannot be read"):
        data.open(tmp_path / "data.npz")


def test_encoded_images_that_are_damaged_are_dropped_with_their_labels(tmp_path: Path):
    files = []
    for c in np.concatenate([COLOR] * 4):
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
    source = data.open_labeled(path)
    assert source.ledger.bad == {"3": "not an image"}
    assert source.label.tolist() == [i for i in range(20) if i != 3]
    assert source.files(torch.tensor([2, 3])) == ["2", "4"]


@pytest.mark.parametrize(
    "offsets", [[0, 30, 20, 40], [-5, 10, 20], [0, 20, 401], [0], [0.0, 20.0], [[0, 20]]]
)
def test_invalid_offsets_are_reported(tmp_path: Path, offsets: list):
    path = saved(tmp_path, jpeg=np.zeros(400, np.uint8), offsets=np.array(offsets))
    with pytest.raises(UserError, match=r"`offsets` (are not ascending|\(N \+ 1,\) of integers)"):
        data.open(path)


def test_packed_images_are_decoded(shared_data):
    packed = data.open_labeled(shared_data("cifar10", "cifar10_test_full_jpeg.npz"))
    arrays = data.open_labeled(shared_data("cifar10", "cifar10_test.npz"))
    place = torch.from_numpy(np.load(shared_data("cifar10", "cifar10_test.npz"))["full_index"]).long()
    assert torch.equal(packed.label[place], arrays.label)
    assert torch.equal(packed.__getitems__(place).image, arrays.__getitems__(torch.arange(len(arrays))).image)
    assert packed.classes == arrays.classes

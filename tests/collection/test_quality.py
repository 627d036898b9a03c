"""Each fault is found where it was planted, and not where all images have it."""

import numpy as np
import pytest
from PIL import Image, ImageFilter

from pretask import data
from pretask.collection import quality


@pytest.fixture(scope="module")
def pictures():
    """Forty colored drawings of 96 px with clear edges."""
    image = data.open("demo:test", size=96).image[:40].permute(0, 2, 3, 1).numpy()
    return [Image.fromarray(pixels) for pixels in image]


def dark(image):
    return image.point(lambda v: v // 8)


def bright(image):
    return image.point(lambda v: 235 + v // 13)


FAULTS = {
    "tiny": lambda image: image.resize((20, 20)),
    "extreme shape": lambda image: image.resize((400, 96)),
    "flat": lambda image: Image.new("RGB", image.size, (120, 90, 60)),
    "too dark": dark,
    "too bright": bright,
    "blurred": lambda image: image.filter(ImageFilter.GaussianBlur(4)),
    "gray among color": lambda image: image.convert("L").convert("RGB"),
}


@pytest.mark.parametrize("fault", FAULTS)
def test_a_planted_fault_is_found(pictures, fault):
    changed = [FAULTS[fault](image) if i == 7 else image for i, image in enumerate(pictures)]
    looks = [quality.measured(*image.size, image) for image in changed]
    found, common = quality.faults(looks, 96)
    assert found[7] == fault and not common
    assert sum(map(bool, found)) == 1


def test_a_fault_of_most_images_is_a_property_of_the_collection(pictures):
    looks = [quality.measured(*image.size, dark(image)) for image in pictures]
    found, common = quality.faults(looks, 96)
    assert not any(found) and common["too dark"] == 40


def test_images_are_measured_at_their_own_size(tmp_path):
    wide = np.random.default_rng(0).integers(0, 255, (300, 1200, 3), np.uint8)
    Image.fromarray(wide).save(tmp_path / "wide.jpg")
    (tmp_path / "bad.jpg").write_bytes(b"no picture")
    Image.fromarray(wide[:200, :200]).save(tmp_path / "z.png")
    source = data.open(tmp_path, size=32, cache_mb=0, progress=False, reading=data.Reading(max_bad=0.9))
    names = source.files(__import__("torch").arange(3))
    found = {name: quality.look(source, i) for i, name in enumerate(names)}
    assert (found["wide.jpg"].width, found["wide.jpg"].height) == (1200, 300)
    assert found["bad.jpg"] is None and found["z.png"].width == 200

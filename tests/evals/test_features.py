"""Features: the encoder's outputs in the order of the source, computed once and cached."""

import numpy as np
import pytest
import torch
from PIL import Image
from torch import Tensor, nn

from pretask import data as sources
from pretask import encoders
from pretask.data.arrays import Arrays
from pretask.data.subset import LabeledSubset
from pretask.encoders.readout import pool_map
from pretask.evals import features
from pretask.evals.features import embed
from pretask.rng import Rng
from pretask.types import UserError


def source(n: int = 40, seed: int = 0, name: str = "toy") -> sources.LabeledDataset:
    rng = Rng(seed, "features")
    image = rng.integers(n, 3, 16, 16, high=256).to(torch.uint8)
    return sources.LabeledDataset(Arrays(name, image), rng.integers(n, high=3), ["a", "b", "c"])


def encoder(seed: int = 0) -> encoders.Encoder:
    torch.manual_seed(seed)
    return encoders.build("resnet_small:width=8", 3, 16)


class Scaled(nn.Module):
    """An encoder whose map is the pixels times a factor, and whose pooled features are their mean."""

    def __init__(self, factor: float):
        super().__init__()
        self.factor = factor

    def forward(self, x: Tensor) -> dict[str, Tensor]:
        return {"map": self.factor * x, "pool": x.mean((2, 3))}


@pytest.mark.parametrize(
    ("shape", "width", "side"),
    [
        ((2, 64, 16, 16), 4096, 8),
        ((2, 65, 16, 16), 4096, 7),
        ((2, 8, 4, 4), 4096, 4),  # never finer than the map itself
        ((2, 8, 3, 5), 4096, 3),
        ((2, 5000, 2, 2), 4096, 1),  # more channels than values: one position each
    ],
)
def test_a_map_is_averaged_over_the_finest_grid_that_fits(shape, width, side):
    x = Rng(*shape).normal(*shape)
    out = pool_map(x, width)
    assert out.shape == (2, shape[1] * side * side)
    h, w = shape[2:]
    first = x[0, 0, : -(-h // side), : -(-w // side)].mean()  # the upper left cell, rounded outwards
    assert out[0, 0] == pytest.approx(first.item(), abs=1e-5)
    if h % side == w % side == 0:
        assert torch.allclose(out.view(2, shape[1], -1).mean(2), x.mean((2, 3)), atol=1e-5)
    assert side == h or (side + 1) ** 2 * shape[1] > width or side + 1 > min(h, w)


def test_all_stages_are_in_the_order_of_the_source_for_any_batch_size():
    net, data = encoder(), source()
    found = embed(net, data, batch=7, progress=False)
    assert [*found.stages] == ["stem", "stage1", "stage2", "stage3", "pool"] and len(found) == 40
    net.eval()
    for i in (0, 6, 7, 39):
        single = net(data.__getitems__(torch.tensor([i])).image.float() / 255)
        for stage, x in found.stages.items():
            assert torch.allclose(x[i].float(), pool_map(single[stage])[0], atol=2e-3, rtol=2e-3)
    assert torch.equal(found.label, data.label) and found.classes == data.classes


def test_features_are_computed_in_eval_mode_and_the_encoder_is_unchanged():
    net, data = encoder().train(), source()
    before = {name: value.clone() for name, value in net.state_dict().items()}
    one = embed(net, data, progress=False)
    assert net.training and all(torch.equal(before[k], v) for k, v in net.state_dict().items())
    other = embed(net.eval(), data, progress=False)
    assert not net.training and torch.equal(one.stages["pool"], other.stages["pool"])


def test_an_encoder_can_be_trained_after_features_are_computed():
    net = encoder()
    embed(net, source(), progress=False)
    net(torch.rand(4, 3, 16, 16))["pool"].sum().backward()
    assert net.net.stem[0].weight.grad.abs().sum() > 0


def test_wide_stages_are_stored_in_half_precision_if_their_values_fit():
    kept = embed(Scaled(1.0), source(), progress=False)
    assert (kept.stages["map"].dtype, kept.stages["pool"].dtype) == (torch.float16, torch.float32)
    for factor in (1e6, 1e-6):
        out = embed(Scaled(factor), source(), progress=False).stages["map"]
        assert out.dtype == torch.float32
        assert torch.allclose(out, factor * source().images.image.flatten(1) / 255, rtol=1e-5, atol=0)


def test_values_too_large_for_half_precision_are_clamped():
    dim = source()
    dim.images.image[:20] = 2
    out = embed(Scaled(1e6), dim, batch=20, progress=False).stages["map"]
    assert out.dtype == torch.float16 and out.max() == 65504 and out[:20].max() < 1e4


def test_an_infinite_value_in_a_later_batch_is_an_error_and_not_clamped():
    class Late(Scaled):
        def forward(self, x: Tensor) -> dict[str, Tensor]:
            out = super().forward(x)
            return out | {"map": torch.where(out["map"] > 0.5, torch.inf, out["map"])}

    dim = source()
    dim.images.image[:20] = 2
    with pytest.raises(UserError, match="NaN or infinite"):
        embed(Late(1.0), dim, batch=20, progress=False)


@pytest.mark.parametrize("wrong", [torch.nan, torch.inf])
@pytest.mark.parametrize("stage", ["map", "pool"])
def test_nan_or_infinite_features_are_a_one_line_error(wrong, stage):
    class Broken(Scaled):
        def forward(self, x: Tensor) -> dict[str, Tensor]:
            out = super().forward(x)
            return out | {stage: torch.where(out[stage] > 0.5, wrong, out[stage])}

    with pytest.raises(UserError, match=f"toy at {stage!r} contain NaN or infinite") as error:
        embed(Broken(1.0), source(), progress=False)
    assert "\n" not in str(error.value)


# ---- the cache


def counted(net: nn.Module) -> list[int]:
    """The batch size of every call of the encoder."""
    seen: list[int] = []
    net.register_forward_hook(lambda module, given, out: seen.append(len(given[0])))
    return seen


def test_cached_features_are_reused(tmp_path):
    net, data = encoder(), source()
    seen = counted(net)
    first = embed(net, data, cache=tmp_path, progress=False)
    assert sum(seen) == 40
    again = embed(net, data, cache=tmp_path, progress=False)
    assert sum(seen) == 40  # not computed again
    assert all(torch.equal(x, again.stages[stage]) for stage, x in first.stages.items())
    assert torch.equal(again.label, data.label) and again.classes == data.classes
    assert len(list(tmp_path.iterdir())) == 1  # no partial files


def test_every_change_gives_another_cache_key():
    net, data = encoder(), source()
    names = [features.cache_key(net, data, 4096)]
    assert features.cache_key(encoder(), source(), 4096) == names[0]
    names += [features.cache_key(encoder(1), data, 4096), features.cache_key(net, data, 1024)]
    names += [
        features.cache_key(net, source(seed=1), 4096),
        features.cache_key(net, source(name="other"), 4096),
    ]
    names += [features.cache_key(net, LabeledSubset(data, torch.arange(39), "toy"), 4096)]
    with torch.no_grad():
        net.net.stage3[0].body[1].running_mean[0] += 1e-3  # a buffer, not a weight
    names.append(features.cache_key(net, data, 4096))
    net.mean += 0.1
    names.append(features.cache_key(net, data, 4096))
    data.label[0] = (data.label[0] + 1) % 3
    names.append(features.cache_key(net, data, 4096))
    data.images.image[39, 0, 0, 0] ^= 1
    names.append(features.cache_key(net, data, 4096))
    assert len(set(names)) == len(names) == 10 and {len(name) for name in names} == {16}


# ---- files


@pytest.fixture
def folder(tmp_path):
    """Three classes of eight files; in each of the first two, one file is no image."""
    rng = np.random.default_rng(0)
    for c in "abc":
        (tmp_path / c).mkdir()
        for i in range(8):
            pixels = rng.integers(0, 256, (16, 16, 3), dtype=np.uint8)
            Image.fromarray(pixels).save(tmp_path / c / f"{i}.png")
    (tmp_path / "a" / "3.png").write_bytes(b"not an image")
    (tmp_path / "b" / "7.png").write_bytes((tmp_path / "b" / "7.png").read_bytes()[:60])
    return tmp_path


@pytest.mark.parametrize("cache_mb", [0, 100])  # decoded on access, and when opened
def test_unreadable_files_are_dropped_with_their_labels(folder, cache_mb, tmp_path):
    data = sources.open_labeled(folder, size=16, cache_mb=cache_mb, progress=False)
    net = Scaled(1.0)
    found = embed(net, data, progress=False, batch=5, cache=tmp_path / "cache")
    names = [n for n in data.files(torch.arange(len(data))) if n not in {"a/3.png", "b/7.png"}]
    assert len(found) == len(names) == 22
    assert ["abc"[k] for k in found.label] == [name[0] for name in names]
    for row, name in zip(found.stages["map"], names, strict=True):
        pixels = torch.from_numpy(np.array(Image.open(folder / name)))
        assert torch.allclose(row.float(), pixels.permute(2, 0, 1).flatten() / 255, atol=1e-3)
    again = embed(net, data, progress=False, batch=5, cache=tmp_path / "cache")
    assert torch.equal(again.stages["pool"], found.stages["pool"]) and torch.equal(again.label, found.label)


def test_a_part_drops_its_own_unreadable_files(folder):
    data = sources.open_labeled(folder, size=16, cache_mb=0, progress=False)
    place = {name: i for i, name in enumerate(data.files(torch.arange(24)))}
    index = torch.tensor([place[n] for n in ("c/4.png", "a/3.png", "a/0.png", "b/7.png", "b/1.png")])
    found = embed(Scaled(1.0), LabeledSubset(data, index, "part"), progress=False)
    assert found.label.tolist() == [2, 0, 1]
    own = data.__getitems__(index[[0, 2, 4]]).image.float() / 255
    assert torch.allclose(found.stages["pool"], own.mean((2, 3)), atol=1e-5)


def test_an_unlabeled_source_has_features_without_labels():
    bare = embed(Scaled(1.0), source().images, progress=False)
    assert len(bare) == 40 and len(bare.label) == 0 and bare.classes == []


@pytest.mark.parametrize(
    ("size", "device", "images"), [(32, "cpu", 256), (96, "cpu", 28), (512, "cpu", 8), (96, "cuda", 256)]
)
def test_inference_batch_size_depends_on_image_size_and_device(size, device, images):
    assert encoders.inference_batch(size, device) == images


def test_inference_batch_size_does_not_change_features(monkeypatch):
    whole = embed(encoder(), source(), progress=False).stages
    monkeypatch.setattr(encoders, "MAX_BATCH", 11)
    monkeypatch.setattr(encoders, "CPU_PIXELS", 1 << 30)
    parts = embed(encoder(), source(), progress=False).stages
    for stage, x in whole.items():
        torch.testing.assert_close(parts[stage], x, atol=1e-3, rtol=1e-3)
    image = source().__getitems__(torch.arange(40)).image
    torch.testing.assert_close(encoders.pooled(encoder(), image), whole["pool"], atol=1e-5, rtol=0)


def test_stored_features_have_their_stages_in_order(tmp_path):
    """Of equally good stages the deepest is chosen, so their order matters."""
    net, data = encoder(), source()
    made = embed(net, data, cache=tmp_path, progress=False)
    read = embed(net, data, cache=tmp_path, progress=False)
    assert [*read.stages] == [*made.stages] == ["stem", "stage1", "stage2", "stage3", "pool"]
    assert all(torch.equal(read.stages[stage], x) for stage, x in made.stages.items())
    assert made.sums is not None and read.sums is not None and torch.equal(made.sums, read.sums)

"""Baseline rows: k-means patches against a slow loop, untrained and supervised networks."""

import numpy as np
import pytest
import torch
from small import images_for, light, small, undrawn
from torch.testing import assert_close

from pretask import api, data, encoders, methods
from pretask.data.arrays import Arrays
from pretask.evals import baselines, linear_probe
from pretask.evals.features import embed
from pretask.rng import Rng


@pytest.fixture(autouse=True)
def _undrawn(monkeypatch):
    undrawn(monkeypatch)


def images(n: int, size: int = 32, channels: int = 3) -> torch.Tensor:
    """Smooth images, in which neighboring pixels are similar."""
    coarse = Rng(n, size).uniform(n, channels, 8, 8)
    return torch.nn.functional.interpolate(coarse, size=(size, size), mode="bilinear").clamp(0, 1)


def random_patches(n: int, channels: int = 3) -> torch.Tensor:
    source = Arrays("smooth", (255 * images(50, 32, channels)).to(torch.uint8))
    return baselines.normalized(baselines.sample_patches(source, n, Rng(0, "patches")))


# ---- patches


def test_a_patch_is_a_window_of_an_image():
    source = Arrays("numbered", (torch.arange(3 * 12 * 12) % 251).view(1, 3, 12, 12).to(torch.uint8))
    image = source.image[0].float()
    windows = {tuple(image[:, i : i + 6, j : j + 6].flatten().tolist()) for i in range(7) for j in range(7)}
    found = {tuple(p) for p in baselines.sample_patches(source, 1000, Rng(0)).round().tolist()}
    assert found == windows  # every position is sampled, and nothing else


def test_patches_are_sampled_without_replacement():
    """With few images every patch is sampled once; with many, patches are sampled evenly over images and positions."""
    image = Rng(0, "noise").integers(7, 3, 12, 12, high=256).to(torch.uint8)
    found = baselines.sample_patches(Arrays("noise", image), 1000, Rng(0))
    assert len(found) == 7 * 49 and len(found.unique(dim=0)) == len(found)
    # each image is filled with its number
    flat = torch.arange(40)[:, None, None, None].expand(40, 1, 12, 12).to(torch.uint8)
    found = baselines.sample_patches(Arrays("numbered", flat), 800, Rng(0))[:, 0].round().long()
    assert len(found) == 800 and (found.bincount(minlength=40) - 20).abs().max() < 5 * 20**0.5


def test_with_fewer_patches_than_centers_every_patch_is_a_center():
    few = baselines.patches(Arrays("noise", Rng(0, "few").integers(2, 3, 8, 8, high=256).to(torch.uint8)))
    assert few(torch.rand(3, 3, 8, 8))["pool"].shape == (3, 4 * 2 * 9)


def test_normalization_removes_brightness_and_contrast():
    patch = 40 * Rng(1).normal(500, 108) + 100
    z = baselines.normalized(patch)
    expected = [(p - p.mean()) / np.sqrt(p.var(ddof=1) + 10) for p in patch.double().numpy()]
    assert_close(z.double(), torch.from_numpy(np.stack(expected)), atol=1e-4, rtol=1e-4)


def test_whitened_data_have_identity_covariance():
    x = 100 * Rng(2).normal(5000, 20) @ Rng(3).normal(20, 20) + 5
    mean, zca = baselines.whiten(x)
    assert_close(((x - mean) @ zca).T.cov(), torch.eye(20), atol=0.02, rtol=0)
    assert_close(zca, zca.T, atol=1e-4, rtol=0)  # ZCA: no rotation


def test_whitening_does_not_amplify_directions_of_low_variance():
    x = random_patches(4000)
    mean, zca = baselines.whiten(x)
    values, vectors = np.linalg.eigh(np.cov(x.double().numpy().T))
    expected = vectors @ np.diag(values / (values + baselines.WHITENING)) @ vectors.T
    assert_close(((x - mean) @ zca).T.cov().double(), torch.from_numpy(expected), atol=1e-3, rtol=0)


@pytest.mark.parametrize("channels", [1, 3])
def test_features_match_a_loop_over_patches(channels):
    """For each patch normalize, whiten and apply the triangle activation; sum over each quadrant (Coates et al. 2011, sec. 3)."""
    x = random_patches(3000, channels).double()
    mean, zca = baselines.whiten(x)
    centers = Rng(4).normal(7, 36 * channels).double()
    net = baselines.Patches(mean, zca, centers)
    picture = images(2, 17, channels).double()
    expected = torch.zeros(2, 4, 7).double()
    for b in range(2):
        for i in range(12):
            for j in range(12):
                patch = 255 * picture[b, :, i : i + 6, j : j + 6].flatten()
                z = (patch - patch.mean()) / (patch.var() + 10).sqrt()
                distance = ((z - mean) @ zca - centers).norm(dim=1)
                expected[b, 2 * (i >= 6) + (j >= 6)] += (distance.mean() - distance).clamp(min=0)
    assert_close(net(picture)["pool"], expected.flatten(1), atol=1e-6, rtol=1e-6)
    single = baselines.Patches(mean.float(), zca.float(), centers.float())(picture.float())["pool"]
    assert_close(single.double(), expected.flatten(1), atol=0.02, rtol=1e-3)


def test_the_middle_of_an_odd_map_belongs_to_the_first_half():
    quarter = baselines.quadrants(5, 3).argmax(1).view(5, 3)
    assert quarter.tolist() == [[0, 0, 1]] * 3 + [[2, 2, 3]] * 2
    assert baselines.quadrants(5, 3).sum(1).eq(1).all()


def test_block_size_does_not_change_features(monkeypatch):
    mean, zca = baselines.whiten(random_patches(3000))
    net = baselines.Patches(mean, zca, Rng(5).normal(9, 108))
    picture = images(5)
    whole = net(picture)["pool"]
    monkeypatch.setattr(baselines, "MAX_DISTANCES", 27 * 27 * 9 * 2)
    assert_close(net(picture)["pool"], whole)


@pytest.mark.parametrize(("size", "numbers"), [(20, 1200), (32, 3072), (96, 3072)])
def test_raw_pixels_are_downscaled_to_at_most_32_by_32(size, numbers):
    picture = images(2, size)
    out = baselines.Pixels()(picture)["pool"]
    assert out.shape == (2, numbers)
    if size <= 32:
        assert torch.equal(out, picture.flatten(1))
    else:
        assert_close(out.mean(1), picture.mean((1, 2, 3)), atol=0.01, rtol=0)


def test_squared_distances_match_cdist():
    x, y = Rng(6).normal(300, 40), Rng(7).normal(50, 40)
    assert_close(baselines.squared_distances(x, y), torch.cdist(x, y) ** 2, atol=1e-3, rtol=1e-4)
    assert baselines.squared_distances(x, x).diagonal().abs().max() < 1e-3
    assert baselines.squared_distances(x, x).min() >= 0


def test_equal_seeds_give_equal_patches(monkeypatch):
    monkeypatch.setattr(baselines, "SAMPLES", 2000)
    source = data.open("synthetic:40:16")
    one, two, other = (baselines.patches(source, 5, seed) for seed in (0, 0, 1))
    assert torch.equal(one.centers, two.centers) and not torch.equal(one.centers, other.centers)


def test_patches_score_higher_than_pixels_on_real_photographs(shared_data, monkeypatch):
    monkeypatch.setattr(baselines, "SAMPLES", 10_000)
    options = {"progress": False}
    train = data.open_labeled(shared_data("cifar10", "cifar10_train.npz"), **options)
    test = data.open_labeled(shared_data("cifar10", "cifar10_test.npz"), **options)
    train, test = (first(source, n) for source, n in ((train, 600), (test, 800)))

    def accuracy(net: torch.nn.Module) -> float:
        x, unseen = embed(net, train, **options), embed(net, test, **options)
        probe = linear_probe.fit(x.stages["pool"], x.label, 10, 0.1)
        return (probe.predict(unseen.stages["pool"]) == unseen.label).double().mean().item()

    assert accuracy(baselines.patches(train, 50)) > accuracy(baselines.Pixels()) + 0.06


def first(source: data.LabeledDataset, n: int) -> data.LabeledDataset:
    image = source.__getitems__(torch.arange(n)).image
    return data.LabeledDataset(Arrays(source.name, image), source.label[:n], source.classes)


# ---- networks


@pytest.mark.parametrize(
    ("name", "seed"), [("resnet_small:width=8", 0), ("resnet_small:width=8", 3), ("resnet18", 3)]
)
def test_the_untrained_encoder_has_the_initial_weights_of_the_run(name, seed, tmp_path):
    run = api.pretrain(
        "rotnet", "synthetic:32:32", tmp_path / "run", encoder=name, seed=seed, steps=2, batch=16, lr=0.0,
        quiet=True,
    )  # fmt: skip
    net = run.encoder
    initial = dict(baselines.untrained(net, seed).named_parameters())
    assert all(torch.equal(initial[k], v) for k, v in net.named_parameters())
    other = dict(baselines.untrained(net, seed + 1).named_parameters())
    assert not all(torch.equal(other[k], v) for k, v in net.named_parameters())


@pytest.mark.parametrize("method", methods.names())
def test_every_run_restores_its_untrained_encoder(method, tmp_path):
    """Also if the method initializes the encoder itself: a run with learning rate 0 ends with the initial weights."""
    size, net = images_for(method).size, small(methods.recipe(method)().encoder)
    run = api.pretrain(
        method,
        f"synthetic:64:{size}",
        tmp_path / "run",
        encoder=net,
        seed=3,
        steps=2,
        batch=16,
        lr=0.0,
        quiet=True,
        config=light(method),
    )
    random_state = torch.random.get_rng_state()
    initial = dict(run.untrained.named_parameters())
    assert torch.equal(torch.random.get_rng_state(), random_state) and not run.untrained.training
    assert all(torch.equal(initial[k], v) for k, v in run.encoder.named_parameters())


def test_initializing_an_untrained_encoder_keeps_the_random_state():
    net = encoders.build("resnet_small:width=8", 3, 16)
    torch.manual_seed(5)
    expected = torch.rand(3)
    torch.manual_seed(5)
    baselines.untrained(net, 0)
    assert torch.equal(torch.rand(3), expected)


def test_the_supervised_encoder_learns_the_labels_and_the_given_one_is_unchanged():
    train = data.open_labeled("synthetic:96:16")
    net = encoders.build("resnet_small:width=8", 3, 16)
    before = {k: v.clone() for k, v in net.state_dict().items()}
    random_state = torch.random.get_rng_state()
    one = baselines.supervised(net, train, 40, seed=0, progress=False)
    assert torch.equal(torch.random.get_rng_state(), random_state) and not one.training
    assert all(torch.equal(v, before[k]) for k, v in net.state_dict().items())

    def accuracy(net: encoders.Encoder) -> float:
        found = embed(net, train, progress=False)
        probe = linear_probe.fit(found.stages["pool"], found.label, 4, 0.1)
        return (probe.predict(found.stages["pool"]) == found.label).double().mean().item()

    assert accuracy(one) > accuracy(baselines.untrained(net, 0)) + 0.1
    two = baselines.supervised(net, train, 40, seed=0, progress=False)
    assert all(torch.equal(v, two.state_dict()[k]) for k, v in one.state_dict().items())


def test_equal_seeds_give_equal_weights_with_drop_path():
    train = data.open_labeled("synthetic:16:16")
    net = encoders.build("resnet18:drop_path_rate=0.5", 3, 16)
    torch.manual_seed(1)
    one = baselines.supervised(net, train, 2, seed=0, progress=False)
    torch.manual_seed(2)
    two = baselines.supervised(net, train, 2, seed=0, progress=False)
    assert all(torch.equal(v, two.state_dict()[k]) for k, v in one.state_dict().items())

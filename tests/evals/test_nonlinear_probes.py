"""RotNet's nonlinear probes: published sizes, on a frozen map that is chosen without the test set."""

import pytest
import torch
from torch import nn
from torch.testing import assert_close

from pretask import data, encoders
from pretask.data import LabeledDataset
from pretask.data.arrays import Arrays
from pretask.encoders import Encoder
from pretask.evals import linear_probe, nonlinear_probes
from pretask.evals.features import embed
from pretask.evals.measure import Chosen
from pretask.rng import Rng

TRAIN = data.open_labeled("synthetic:96:16")
TEST = data.open_labeled("synthetic:64:16")
SMALL = "resnet_small:width=4,stages=2"


@pytest.fixture(autouse=True)
def _few_steps(monkeypatch):
    monkeypatch.setattr(nonlinear_probes, "STEPS", 3)
    monkeypatch.setattr(nonlinear_probes, "WIDTH", 12)


def encoder(name: str = SMALL, size: int = 16) -> Encoder:
    torch.manual_seed(0)
    return encoders.build(name, 3, size)


def chosen(**accuracy: float) -> Chosen:
    zero = linear_probe.Probe(torch.zeros(4, 1), torch.zeros(4))
    return Chosen(1, {stage: linear_probe.Choice(0.1, a, lambda: zero) for stage, a in accuracy.items()})


BEST = chosen(stem=0.3, stage1=0.5, stage2=0.4, pool=0.9)


def probed(net: Encoder, train=TRAIN, test=TEST, choice=BEST, seed: int = 0):
    return {
        r.metric: r
        for r in nonlinear_probes.score_probes(net, train, test, choice, seed=seed, progress=False)
    }


def waves(n: int, seed: int = 0) -> tuple[torch.Tensor, torch.Tensor]:
    """Maps (n, 2, 4, 4) whose class is whether two values have the same sign, which is not linearly separable."""
    sign = 2.0 * Rng(seed, "signs").integers(n, 2, high=2) - 1
    x = sign.view(n, 2, 1, 1) + 0.3 * Rng(seed, "noise").normal(n, 2, 4, 4)
    return x, (sign.prod(1) > 0).long()


# ---- the probes


def test_the_probes_have_the_published_numbers_of_parameters(monkeypatch):
    """On RotNet's 192 x 8 x 8 map with ten classes (released code)."""
    monkeypatch.undo()
    heads = nonlinear_probes.mlp(192, 8, 10), nonlinear_probes.conv_block(192, 10)
    assert [sum(p.numel() for p in head.parameters()) for head in heads] == [2_500_410, 408_586]
    assert all(head(torch.rand(3, 192, 8, 8)).shape == (3, 10) for head in heads)


@pytest.mark.parametrize(("classes", "width"), [(2, 40), (102, 2040), (103, 2048), (1000, 2048)])
def test_hidden_layers_have_20_units_per_class(classes, width):
    layers = [m for m in nonlinear_probes.mlp(1, 2, classes) if isinstance(m, nn.Linear)]
    assert [(m.in_features, m.out_features, m.bias is None) for m in layers] == [
        (4, width, True), (width, width, True), (width, classes, False)
    ]  # fmt: skip


def test_the_conv_block_uses_neighbors_and_ignores_position():
    head = nonlinear_probes.conv_block(2, 3).eval()
    kernels = [m.kernel_size for m in head.modules() if isinstance(m, nn.Conv2d)]
    assert kernels == [(3, 3), (1, 1), (1, 1)]
    x = torch.zeros(1, 2, 8, 8)
    x[..., 2:4, 2:5] = torch.rand(2, 2, 3)
    assert_close(head(x), head(x.roll((2, 1), (2, 3))))
    assert (head(x) - head(x.flip(3))).abs().max() > 1e-6


@pytest.mark.parametrize(("name", "at"), [("mlp", [0.2, 0.4, 0.45]), ("conv", [0.35, 0.7, 0.85])])
def test_the_rate_drops_at_the_epochs_of_rotnet(name, at, monkeypatch):
    """0.1, 0.02, 0.004, 0.0008 at 20, 40, 45 or at 35, 70, 85 of 100 epochs (released code)."""
    monkeypatch.setattr(nonlinear_probes, "STEPS", 100)
    rates = []
    step = torch.optim.SGD.step

    def spy(self, *rest):
        rates.append(self.param_groups[0]["lr"])
        assert (
            self.param_groups[0] | {"momentum": 0.9, "nesterov": True, "weight_decay": 5e-4}
            == self.param_groups[0]
        )
        return step(self, *rest)

    monkeypatch.setattr(torch.optim.SGD, "step", spy)
    x, label = waves(20)
    nonlinear_probes.fit(name, x, label, 2, 0, progress=False)
    expected = [0.1 * 0.2 ** sum(s / 100 >= a for a in at) for s in range(100)]
    assert rates == pytest.approx(expected) and rates[-1] == pytest.approx(0.0008)


@pytest.mark.parametrize("name", ["mlp", "conv"])
def test_probes_learn_classes_that_are_not_linearly_separable(name, monkeypatch):
    monkeypatch.setattr(nonlinear_probes, "STEPS", 150)
    (x, label), (unseen, truth) = waves(400), waves(400, seed=1)

    def accuracy(label: torch.Tensor) -> float:
        head = nonlinear_probes.fit(name, x.half(), label, 2, 0, progress=False)
        assert not head.training
        with torch.no_grad():
            return (head(unseen).argmax(1) == truth).double().mean().item()

    flat = linear_probe.fit(x.flatten(1), label, 2, 0.01).predict(unseen.flatten(1))
    assert (flat == truth).double().mean() < 0.62 and accuracy(label) > 0.95
    assert 0.35 < accuracy(Rng(0, "guess").integers(400, high=2)) < 0.65


@pytest.mark.parametrize("name", ["mlp", "conv"])
def test_probes_depend_only_on_the_seed(name):
    x, label = waves(40)

    def weights(seed: int, before: int) -> torch.Tensor:
        torch.manual_seed(before)
        state = torch.random.get_rng_state()
        head = nonlinear_probes.fit(name, x, label, 2, seed, progress=False)
        assert torch.equal(torch.random.get_rng_state(), state)
        return torch.cat([p.detach().flatten() for p in head.parameters()])

    assert torch.equal(weights(0, 1), weights(0, 2)) and not torch.equal(weights(0, 1), weights(1, 1))


# ---- the map


MAPS = {
    SMALL: (16, ["stem", "stage1", "stage2"]),
    "resnet18": (32, ["stage1", "stage2", "stage3", "stage4"]),  # the last is 1 x 1
    "vit_tiny_patch16_224:patch_size=8,depth=4,embed_dim=24,num_heads=2": (16, None),
    "mlp": (8, []),
}


@pytest.mark.parametrize("name", MAPS)
def test_maps_are_the_stages_larger_than_1_by_1(name):
    size, expected = MAPS[name]
    net = encoder(name, size).train()
    with torch.no_grad():
        shapes = {k: tuple(v.shape) for k, v in net.eval()(torch.rand(1, 3, size, size)).items()}
    net.train()
    found = nonlinear_probes.map_stages(net)
    assert net.training
    assert found == [k for k, s in shapes.items() if len(s) == 4 and s[2] * s[3] > 1]
    assert expected is None or found == expected


def test_an_encoder_without_maps_has_no_probe_rows():
    assert probed(encoder("mlp", 16), choice=chosen(layer1=0.5, pool=0.5)) == {}


def test_the_map_is_the_best_of_the_linear_probe_on_held_out_training_samples():
    found = probed(encoder())
    assert [*found] == ["mlp", "conv"] and {r.notes["stage"] for r in found.values()} == {"stage1"}
    deep = probed(encoder(), choice=chosen(stem=0.5, stage1=0.5, stage2=0.5, pool=0.1))
    assert {r.notes["stage"] for r in deep.values()} == {"stage2"}  # the deepest of ties


def test_probes_are_trained_on_the_pooled_frozen_map_without_augmentation(monkeypatch):
    """Against the encoder's own stage, averaged over a grid."""
    inputs = []

    def fit(name, x, label, classes, *rest):
        inputs.append((x, label))
        return nn.Sequential(nn.Flatten(), nn.Linear(x[0].numel(), classes))

    monkeypatch.setattr(nonlinear_probes, "fit", fit)
    net = encoder("resnet_small:width=4,stages=2,stride=1", 32).train()
    source = data.open_labeled("synthetic:40:32")
    for memory, side in ((1 << 31, 8), (2 * 40 * 4 * 25, 5)):
        monkeypatch.setattr(nonlinear_probes, "MEMORY", memory)
        inputs.clear()
        probed(net, source, source)
        with torch.no_grad():
            stage = net.eval()(source.__getitems__(torch.arange(40)).image.float() / 255)["stage1"]
        net.train()
        expected = nn.functional.adaptive_avg_pool2d(stage, side)
        for x, label in inputs:
            assert x.dtype == torch.float16 and torch.equal(label, source.label)
            assert_close(x.float(), expected, atol=2e-3, rtol=2e-3)


@pytest.mark.parametrize("mode", [True, False])
def test_the_encoder_and_its_statistics_are_unchanged(mode):
    net = encoder().train(mode)
    before = {k: v.clone() for k, v in net.state_dict().items()}
    state = torch.random.get_rng_state()
    probed(net)
    assert torch.equal(torch.random.get_rng_state(), state) and net.training == mode
    assert any("running_mean" in k for k in before)
    assert all(torch.equal(v, before[k]) for k, v in net.state_dict().items())
    assert all(p.grad is None for p in net.parameters())


# ---- scores


def test_test_labels_are_used_only_for_the_score():
    other = LabeledDataset(TEST.images, (TEST.label + 1) % 4, TEST.classes)
    all_zero = LabeledDataset(TEST.images, torch.zeros(64).long(), TEST.classes)
    own, moved, zeros = (probed(encoder(), test=t) for t in (TEST, other, all_zero))
    for name in ("mlp", "conv"):
        correct_0 = zeros[name].correct.bool()
        assert torch.equal(own[name].correct.bool() & (TEST.label == 0), correct_0 & (TEST.label == 0))
        assert not (own[name].correct.bool() & moved[name].correct.bool()).any()  # one prediction per image
        assert own[name].notes == moved[name].notes and own[name].stage == ""


def test_classes_that_differ_in_the_map_are_learned_and_random_labels_are_not(monkeypatch):
    monkeypatch.setattr(nonlinear_probes, "STEPS", 40)
    label = torch.arange(120) % 3
    image = (80 * label.view(-1, 1, 1, 1) + torch.randint(0, 30, (120, 3, 16, 16))).to(torch.uint8)
    source = LabeledDataset(Arrays("bright", image), label, [*"abc"])
    guess = LabeledDataset(source.images, Rng(1, "guess").integers(120, high=3), [*"abc"])
    options = {"choice": chosen(stem=0.3, stage1=0.5, stage2=0.4, pool=0.9)}
    right, wrong = probed(encoder(), source, source, **options), probed(encoder(), source, guess, **options)
    for name in ("mlp", "conv"):
        assert right[name].value > 90 and 15 < wrong[name].value < 52


def test_an_informative_map_scores_higher_than_a_constant_one(monkeypatch):
    monkeypatch.setattr(nonlinear_probes, "STEPS", 40)
    label = torch.arange(120) % 3
    image = (80 * label.view(-1, 1, 1, 1) + torch.randint(0, 30, (120, 3, 16, 16))).to(torch.uint8)
    source = LabeledDataset(Arrays("bright", image), label, [*"abc"])
    blind = encoder()
    for weight in blind.parameters():
        nn.init.zeros_(weight)
    sees, blinded = probed(encoder(), source, source), probed(blind, source, source)
    for name in ("mlp", "conv"):
        assert sees[name].value > blinded[name].value + 30 and blinded[name].value == pytest.approx(
            100 / 3, abs=1
        )


def test_scores_match_the_predictions_on_embedded_test_images(monkeypatch):
    heads = {}
    fit = nonlinear_probes.fit
    monkeypatch.setattr(nonlinear_probes, "fit", lambda name, *a: heads.setdefault(name, fit(name, *a)))
    net = encoder()
    found = probed(net)
    x = embed(nonlinear_probes.StageMap(net, "stage1"), TEST, progress=False, width=8 * 64).stages["map"]
    for name, head in heads.items():
        with torch.no_grad():
            predicted = head.eval()(x.float().view(64, 4, 8, 8)).argmax(1)
        assert (
            (predicted == TEST.label).double() == found[name].correct
        ).double().mean() > 0.95  # half precision

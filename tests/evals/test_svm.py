"""Exemplar-CNN's evaluation: quadrant maxima of all layers, linear SVMs as in liblinear, no choice by test labels."""

import pytest
import torch
from sklearn.svm import LinearSVC
from torch import Tensor, nn
from torch.testing import assert_close

from pretask import data, encoders
from pretask.data import LabeledDataset
from pretask.data.arrays import Arrays
from pretask.encoders import Encoder
from pretask.evals import linear_probe, svm
from pretask.evals.holdout import splits
from pretask.rng import Rng

TRAIN = data.open_labeled("synthetic:96:16")
TEST = data.open_labeled("synthetic:64:16")
SMALL = "resnet_small:width=4,stages=2"


def encoder(name: str = SMALL, size: int = 16) -> Encoder:
    torch.manual_seed(0)
    return encoders.build(name, 3, size)


def scored(net: Encoder, train=TRAIN, test=TEST, seed: int = 0):
    (found,) = svm.score_svm(net, train, test, seed=seed, progress=False)
    return found


def spied(monkeypatch, net: Encoder, train=TRAIN, test=TEST) -> tuple[Tensor, Tensor, linear_probe.Choice]:
    """The training and test features that the SVMs get, and the chosen penalty."""
    seen = []
    choose, logits = svm.choose, linear_probe.Probe.logits

    def spy(x, *rest):
        seen.append(x)
        seen.append(choose(x, *rest))
        return seen[1]

    monkeypatch.setattr(svm, "choose", spy)
    monkeypatch.setattr(linear_probe.Probe, "logits", lambda self, x: seen.append(x) or logits(self, x))
    scored(net, train, test)
    return seen[0], seen[2], seen[1]


# ---- the features


@pytest.mark.parametrize(
    ("h", "w"), [(1, 1), (1, 4), (2, 2), (3, 3), (4, 4), (5, 3), (9, 9), (12, 7), (17, 17), (48, 48)]
)
def test_a_cell_has_the_maximum_of_its_quadrant(h, w):
    """In loops: the first half of a side is rows 0 … ceil(h / 2) - 1, as a pooling of 9 cuts the released 17 into 9 and 8."""
    x = Rng(h, w).normal(2, 3, h, w)
    expected = []
    for c in range(3):
        for rows in (range((h + 1) // 2), range((h + 1) // 2, h)):
            for columns in (range((w + 1) // 2), range((w + 1) // 2, w)):
                if rows and columns:
                    expected.append(
                        [max(x[b, c, i, j].item() for i in rows for j in columns) for b in (0, 1)]
                    )
    assert_close(svm.max_pool_cells(x), torch.tensor(expected).T)
    assert torch.equal(svm.max_pool_cells(x, 1), x.amax((2, 3)))
    assert torch.equal(svm.max_pool_cells(x[..., 0, 0]), x[..., 0, 0])


def test_the_released_network_has_3840_features_four_per_map(monkeypatch):
    """64c5-128c5-256c5-512f of 96 px: conv maps of 48, 24 and 24, a fully connected one of 17 (test_conv_STL.prototxt has
    pool 9 for it). Each of its 960 maps gives four features, layer by layer; the class layer gives none."""
    net = encoder("exemplar", 96)
    assert net.sides["fc"] == 17
    some = [
        LabeledDataset(
            Arrays("some", torch.randint(0, 256, (20, 3, 96, 96)).byte()), torch.arange(20) % 2, ["a", "b"]
        )
    ]
    shown, _, _ = spied(monkeypatch, net, *some * 2)
    assert shown.shape == (20, 4 * (64 + 128 + 256 + 512)) == (20, 3840)
    with torch.no_grad():
        stages = net.eval()(some[0].__getitems__(torch.arange(20)).image.float() / 255)
    first = 0
    for stage in ("conv1", "conv2", "conv3", "fc"):
        own = svm.max_pool_cells(stages[stage])
        ours = shown[:, first : first + own.shape[1]].float()
        assert_close(ours * own.max() / ours.max(), own, atol=2e-3 * own.max().item(), rtol=0)
        first += own.shape[1]


KINDS = {
    "resnet18": (32, 4 * (64 + 64 + 128 + 256) + 512),  # the last stage is 1 x 1
    "vit_tiny_patch16_224:patch_size=8,depth=4,embed_dim=24,num_heads=2": (16, 4 * 4 * 24),
    "mlp:width=8,depth=2": (16, 2 * 8),
    SMALL: (16, 4 * (4 + 4 + 8)),
}


@pytest.mark.parametrize("name", KINDS)
def test_all_stages_of_every_kind_of_encoder_are_used(name):
    size, count = KINDS[name]
    net = encoder(name, size)
    source = data.open_labeled(f"synthetic:40:{size}")
    found = scored(net, source, source)
    assert found.notes["features"] == count == sum(
        x.shape[1] for s, x in svm.MaxPooledStages(net.eval(), 2)(torch.rand(1, 3, size, size)).items() if s != "pool"
    )  # fmt: skip
    assert 0 <= found.value <= 100


def test_features_too_large_for_memory_are_maxima_of_whole_maps(monkeypatch):
    monkeypatch.setattr(svm, "MEMORY", 2 * 96 * 64)
    assert scored(encoder()).notes["features"] == 64
    monkeypatch.setattr(svm, "MEMORY", 2 * 96 * 64 - 1)
    assert scored(encoder()).notes["features"] == 16


class Fixed(nn.Module):
    """Stages that are channels of the image, the second a thousand times as large and negative, and one that is 0."""

    def __init__(self):
        super().__init__()
        self.widths, self.sides = (
            {"one": 2, "two": 1, "zero": 1, "pool": 1},
            {"one": 4, "two": 4, "zero": 4},
        )

    def forward(self, image: Tensor) -> dict[str, Tensor]:
        x = image[:, :2] / 10
        two = -1000 * image[:, 2:]
        return {"one": x, "two": two, "zero": 0 * two, "pool": two.mean((2, 3))}


def test_stages_are_divided_by_their_percentile_on_training_images(monkeypatch):
    """The percentile is over all values of a stage; a brighter test set stays brighter."""
    rng = Rng(0, "pixels")
    image = rng.integers(4000, 3, 4, 4, high=128).byte()
    train = LabeledDataset(Arrays("dark", image), torch.arange(4000) % 3, [*"abc"])
    test = LabeledDataset(Arrays("bright", 2 * image[:50]), torch.arange(50) % 3, [*"abc"])
    shown, unseen, _ = spied(monkeypatch, Fixed(), train, test)
    pixels = image.double() / 255
    for columns, map in ((slice(0, 8), pixels[:, :2] / 10), (slice(8, 12), -1000 * pixels[:, 2:])):
        own = svm.max_pool_cells(map)
        top = torch.quantile(own.abs().flatten(), 0.9999, interpolation="nearest")
        assert_close(shown[:, columns].double(), own / top, atol=2e-3, rtol=2e-3)
        assert_close(unseen[:, columns].double(), 2 * own[:50] / top, atol=4e-3, rtol=2e-3)
    assert not shown[:, 12:].any() and shown.dtype == torch.float16


def test_one_value_in_ten_thousand_is_above_the_percentile():
    assert svm.percentile(torch.arange(1.0, 20_001)[Rng(0).permutation(20_000)].view(100, 200)) == 19_998
    assert svm.percentile(torch.tensor([[3.0]])) == 3


# ---- the SVMs


def blobs(n: int, d: int, classes: int) -> tuple[Tensor, Tensor, Tensor]:
    """Overlapping classes of non-negative features, as layers have them, and unseen ones."""
    rng = Rng(n, d, classes)
    label = rng.integers(n, high=classes)
    center = rng.uniform(classes, d, low=0, high=0.3)
    unseen = center[rng.integers(200, high=classes)]
    x, unseen = ((m + 0.3 * rng.normal(*m.shape)).clamp(min=0) for m in (center[label], unseen))
    return x, label, unseen


@pytest.mark.parametrize("penalty", [0.1, 1e-3])
@pytest.mark.parametrize(("n", "d"), [(300, 40), (60, 200), (80, 80)])
@pytest.mark.parametrize("classes", [2, 4])
def test_svms_match_scikit_learn_with_more_and_fewer_samples_than_features(n, d, classes, penalty):
    """liblinear's ½ |w|² + C Σ max(0, 1 - y z)², C = 1 / (penalty n), with a hardly penalized bias."""
    x, label, unseen = blobs(n, d, classes)
    mean, _ = linear_probe.standardization(x)
    design = linear_probe.Design(x, (mean, torch.ones(d)))
    assert (design.basis is None) == (n >= d)
    theta = svm.SquaredHinge(design, label, classes).solve(penalty, tolerance=1e-10)
    reference = LinearSVC(C=1 / (penalty * n), dual=False, intercept_scaling=300, tol=1e-9, max_iter=10_000)
    reference.fit(x.double().numpy(), label.numpy())
    decision = torch.from_numpy(reference.decision_function(unseen.double().numpy()))
    ours = design.probe(theta[0]).logits(unseen).double()
    if classes == 2:  # scikit-learn fits one SVM, we fit two
        decision = torch.stack([-decision, decision], 1)
    assert_close(ours, decision, atol=5e-3, rtol=0)


def test_value_and_gradient_match_the_formula_in_loops():
    """For two problems with their own rows: the sum over rows and classes in loops, and autograd."""
    x, label, _ = blobs(30, 6, 3)
    part = Rng(0, "part").integers(2, 30, high=2).bool()
    design = linear_probe.Design(x.double(), (torch.zeros(6).double(), torch.ones(6).double()))
    problem = svm.SquaredHinge(design, label, 3, part)
    theta = Rng(0, "theta").normal(2, 3, 7).double().requires_grad_()
    total = torch.zeros(2).double()
    for b in range(2):
        for i in part[b].nonzero().flatten().tolist():
            for k in range(3):
                y = 1.0 if label[i] == k else -1.0
                z = x[i].double() @ theta[b, k, :-1] + theta[b, k, -1]
                total[b] = total[b] + (1 - y * z).clamp(min=0) ** 2 / part[b].sum()
        total[b] = total[b] + 0.05 / 2 * theta[b, :, :-1].square().sum()
    (gradient,) = torch.autograd.grad(total.sum(), theta)
    value, found = problem.value(theta.detach(), 0.05)
    assert_close(value, total.detach())
    assert_close(found, gradient)


@pytest.mark.parametrize(("n", "d"), [(120, 30), (60, 100)])
def test_the_chosen_penalty_is_the_best_on_the_folds_for_scikit_learn(n, d):
    """LinearSVC on every fold is as accurate as the reported score, and no neighboring penalty is clearly better."""
    x, label, _ = blobs(n, d, 3)
    ways = splits(label, 0)
    choice = svm.choose(x, label, 3, 0)

    def accuracy(penalty: float) -> float:
        right = torch.zeros_like(ways.held_out_mask)
        for b, fitted in enumerate(ways.fit_mask):
            rows = ways.fit[fitted]
            own = LinearSVC(C=1 / (penalty * len(rows)), dual=False, intercept_scaling=100, tol=1e-6)
            own.fit(x[rows].double().numpy(), label[rows].numpy())
            right[b] = (
                torch.from_numpy(own.predict(x[ways.held_out].double().numpy())) == label[ways.held_out]
            )
        return ways.accuracy(right)

    assert accuracy(choice.penalty) == pytest.approx(choice.score, abs=0.01)
    place = linear_probe.PENALTIES.index(choice.penalty)
    for near in linear_probe.PENALTIES[max(0, place - 1) : place + 2]:
        assert accuracy(near) < choice.score + 0.01


# ---- scores


def test_scores_match_the_predictions_for_the_test_images(monkeypatch):
    net = encoder()
    found = scored(net)
    shown, unseen, choice = spied(monkeypatch, net)
    mean, _ = linear_probe.standardization(shown)
    design = linear_probe.Design(shown, (mean, torch.ones_like(mean)))
    svms = design.probe(
        svm.SquaredHinge(design, TRAIN.label, 4).solve(found.notes["penalty"], tolerance=1e-9)[0]
    )
    assert found.notes["penalty"] == choice.penalty
    assert (found.correct.bool() == (svms.predict(unseen) == TEST.label)).double().mean() > 0.96
    assert (found.metric, found.stage, found.value) == (
        "svm",
        "",
        pytest.approx(100 * found.correct.mean().item()),
    )


def test_no_choice_depends_on_the_test_labels_or_images():
    noise = torch.randint(0, 256, (64, 3, 16, 16)).byte()
    others = (
        LabeledDataset(TEST.images, (TEST.label + 1) % 4, TEST.classes),
        LabeledDataset(Arrays("noise", noise), TEST.label, TEST.classes),
    )
    own, moved, noisy = (scored(encoder(), test=test) for test in (TEST, *others))
    assert own.notes == moved.notes == noisy.notes
    assert not (own.correct.bool() & moved.correct.bool()).any()  # one prediction per image


def test_classes_without_training_images_are_never_predicted():
    index = (TRAIN.label != 1).nonzero().flatten()
    train = LabeledDataset(
        Arrays("three", TRAIN.__getitems__(index).image), TRAIN.label[index], TRAIN.classes
    )
    found = scored(encoder(), train)
    assert not found.correct[TEST.label == 1].any() and found.correct.any()


def test_classes_marked_in_corners_are_found_and_random_labels_score_at_chance():
    label = Rng(0, "corner").integers(160, high=4)
    image = torch.randint(0, 100, (160, 3, 16, 16))
    for k, (i, j) in enumerate(((2, 2), (2, 11), (11, 2), (11, 11))):
        image[label == k, :, i : i + 3, j : j + 3] = 255
    half = [
        LabeledDataset(Arrays("corners", image[part].byte()), label[part], [*"abcd"])
        for part in (slice(0, 100), slice(100, 160))
    ]
    guess = LabeledDataset(half[1].images, Rng(1, "guess").integers(60, high=4), [*"abcd"])
    assert scored(encoder(), *half).value > 90 and scored(encoder(), half[0], guess).value < 45

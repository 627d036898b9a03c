"""JULE: both losses in loops, triplets, the merging of clusters, and that labels are not used."""

import inspect
import itertools
import math

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch import Tensor
from torch.testing import assert_close

import pretask
from pretask import encoders, limits, methods
from pretask.config import lr_factor
from pretask.evals import cluster_metrics
from pretask.methods import jule
from pretask.methods.base.context import Context
from pretask.ops import agglomerative as ag
from pretask.rng import Rng
from pretask.train import requirements
from pretask.train.plan import Plan
from pretask.transforms import augment
from pretask.types import Batch, UserError

SMALL = "jule:width=8"


class ClusteredImages:
    """A source of noisy images around four means in turn; only the tests know which."""

    name, provides, bad, channels, size = "pictures", frozenset(), {}, 3, 16

    def __init__(self, n: int = 80):
        self.truth = torch.arange(n) % 4
        mean = Rng(0, "means").uniform(4, 3, 16, 16, high=255)
        self.image = (mean[self.truth] + 60 * Rng(0).normal(n, 3, 16, 16)).clamp(0, 255).to(torch.uint8)

    def __len__(self) -> int:
        return len(self.image)

    def __getitems__(self, index: Tensor) -> Batch:
        return Batch(index, self.image[index])


def context(epoch: int, epochs: int, source: ClusteredImages) -> Context:
    return Context(source, [], Plan.of(epochs, 1).at(epoch), Rng(0, "begin", epoch))


def build(source: ClusteredImages | None = None, **options) -> jule.Jule:
    source = source or ClusteredImages()
    torch.manual_seed(0)
    config = jule.Config(**{"clusters": 4, "unrolling_rate": 0.2} | options)
    method = config.build(encoders.build(SMALL, 3, 16), source).train()
    method.begin(context(0, 1, source))
    return method


def groups(label: Tensor) -> set[frozenset[int]]:
    return {frozenset((label == c).nonzero()[:, 0].tolist()) for c in label.unique()}


def unit(rng: Rng, *shape: int) -> Tensor:
    return F.normalize(rng.normal(*shape), dim=1)


# ---- triplets


def test_every_pair_of_a_cluster_is_an_anchor_once_with_distinct_negatives():
    label = Rng(1).integers(60, high=7)
    anchor, positive, negative = jule.triplets(label, Rng(2).uniform(60), 20)
    pairs = list(zip(anchor.tolist(), positive.tolist(), strict=True))
    assert pairs == [(i, j) for i, j in itertools.combinations(range(60), 2) if label[i] == label[j]]
    assert (label[negative] != label[anchor][:, None]).all()
    assert all(len(set(row)) == 20 for row in negative.tolist())


@pytest.mark.parametrize(
    ("clusters", "each", "negatives", "expected"), [(10, 10, 9, 4050), (50, 2, 20, 1000)]
)
def test_number_of_triplets_is_as_published(clusters, each, negatives, expected):
    label = torch.arange(clusters).repeat(each)
    assert jule.triplets(label, Rng(1).uniform(100), negatives)[2].numel() == expected


def test_negatives_are_uniform_over_other_clusters():
    label = torch.tensor([0, 0, 1, 2, 3, 3, 4])
    count = torch.zeros(7)
    for seed in range(2000):
        anchor, _, negative = jule.triplets(label, Rng(seed).uniform(7), 2)
        count += negative[anchor == 0].flatten().bincount(minlength=7)
    assert count[:2].sum() == 0
    assert_close(count[2:] / 2000, torch.full((5,), 2 / 5), atol=0.05, rtol=0)


def test_negatives_repeat_if_there_are_too_few_others():
    anchor, _, negative = jule.triplets(torch.tensor([0, 0, 0, 1, 2]), Rng(1).uniform(5), 20)
    assert len(anchor) == 3
    for row in negative.tolist():
        assert set(row) == {3, 4} and abs(row.count(3) - row.count(4)) <= 2


@pytest.mark.parametrize("label", [[0, 0, 0, 0], [0, 1, 2, 3]])
@pytest.mark.parametrize("loss", ["margin", "affinity"])
def test_batches_without_triplets_give_no_loss_and_no_gradient(label, loss):
    method = build(loss=loss)
    p = jule.Clustered(torch.rand(4, 3, 16, 16), torch.tensor(label), torch.rand(4))
    found = method.loss(p)
    found.total.backward()
    assert found.total == 0 and found.parts["pairs"] == 0
    assert all(p.grad is None or not p.grad.any() for p in method.parameters())


# ---- losses


def case():
    label = torch.tensor([0, 0, 1, 1, 1, 2])
    index = jule.triplets(label, Rng(2).uniform(6), 2)
    return unit(Rng(1), 6, 8).double().requires_grad_(), index


def triples(index):
    for a, p, row in zip(*(x.tolist() for x in index), strict=True):
        yield from ((a, p, n) for n in row)


@pytest.mark.parametrize(("weight", "margin"), [(1.0, 0.2), (2.0, 1.0)])
def test_margin_loss_matches_the_formula_in_loops(weight, margin):
    rows, index = case()
    z, terms = rows.detach(), []
    for a, p, n in triples(index):
        near, far = (sum((float(z[a, i]) - float(z[b, i])) ** 2 for i in range(8)) for b in (p, n))
        terms.append(max(0.0, weight * near - far + margin))
    assert sum(t > 0 for t in terms) > 0
    assert_close(jule.margin_loss(z, index, weight, margin).item(), sum(terms) / len(terms))


@pytest.mark.parametrize("weight", [1.0, 2.0])
def test_affinity_loss_matches_the_paper_formula_up_to_a_constant(weight):
    rows, index = case()
    z = rows.detach()

    def squared(i, j):
        return sum((float(z[i, k]) - float(z[j, k])) ** 2 for k in range(8))

    scale = sum(squared(i, j) for i in range(6) for j in range(6)) / 36
    terms = []
    for a, p, n in triples(index):
        terms.append(-(weight * math.exp(-squared(a, p) / scale) - math.exp(-squared(a, n) / scale)))
    assert_close(jule.affinity_loss(z, index, weight).item(), weight + sum(terms) / len(terms))


def test_margin_loss_gradient_matches_finite_differences():
    z, index = case()
    assert torch.autograd.gradcheck(lambda z: jule.margin_loss(z, index, 1.0, 5.0), z)


def test_anchor_positive_and_negative_all_get_gradients():
    """The released code's gradient only reaches the anchors."""
    z, _ = case()
    for loss in (jule.margin_loss, jule.affinity_loss):
        options = (1.0, 1.0)[: 2 if loss is jule.margin_loss else 1]
        index = torch.tensor([0]), torch.tensor([1]), torch.tensor([[2]])
        (gradient,) = torch.autograd.grad(loss(z, index, *options), z)
        assert gradient[:3].abs().amax(1).min() > 1e-3 and not gradient[3:].any()


def test_loss_of_identical_images_is_the_margin():
    method, source = build(), ClusteredImages()
    p = method.pretext(source.__getitems__(torch.arange(40)), Rng(1))
    identical = jule.Clustered(torch.full_like(p.image, 0.5), p.label, p.draw)
    found = method.loss(identical)
    assert found.parts["pairs"] > 0
    assert_close(found.total.item(), 0.2, atol=1e-5, rtol=0)


def test_untrained_loss_is_near_its_expected_value_for_both_losses():
    source = ClusteredImages()
    batch = source.__getitems__(torch.arange(80))
    for loss, low, high in (("margin", 0.0, 0.3), ("affinity", 0.3, 1.2)):
        method = build(source, loss=loss)
        p = method.pretext(batch, Rng(1))
        found, z = method.loss(p), F.normalize(method.head(method.encoder(p.image)["pool"]), dim=1)
        index = jule.triplets(p.label, p.draw, min(20, int(method.label.max())))
        if loss == "margin":
            assert_close(found.total, jule.margin_loss(z, index, 1.0, 0.2))
        else:
            assert_close(found.total, jule.affinity_loss(z, index, 1.0))
        assert low < found.total.item() < high


# ---- clusters


def test_pretext_has_each_image_with_its_cluster():
    method, source = build(), ClusteredImages()
    index = torch.tensor([7, 3, 79, 12])
    p = method.pretext(source.__getitems__(index), Rng(1))
    assert torch.equal(p.label, method.label[index])
    assert torch.equal((255 * p.image).round().to(torch.uint8), source.image[index])


def test_initial_clusters_are_neighbor_chains_of_pixels():
    method, source = build(), ClusteredImages()
    x = source.image.flatten(1).double() / 255
    x = x / x.norm(dim=1, keepdim=True).clamp(min=1)
    nearest = torch.cdist(x, x).fill_diagonal_(math.inf).argmin(1)
    assert groups(method.label) == groups(ag.neighbor_chains(nearest))
    assert int(method.initial_clusters) == len(groups(method.label)) <= 40


def test_pixel_rows_have_length_at_most_1_and_large_images_are_downscaled():
    x = torch.stack([torch.full((1, 8, 8), v) for v in (0.01, 1.0)])
    assert_close(jule.flat_pixels(x).norm(dim=1), torch.tensor([0.08, 1.0]))
    assert jule.flat_pixels(torch.rand(2, 3, 64, 64)).shape == (2, 3 * 18 * 18)
    assert jule.flat_pixels(torch.rand(2, 1, 28, 28)).shape == (2, 28 * 28)


@pytest.mark.parametrize(
    ("first", "last", "unrolling_rate", "expected"),
    [
        (1000, 10, 0.9, [1000, 100, 10]),
        (17, 10, 0.9, [17, 10]),
        (10, 10, 0.9, [10]),
        (5, 10, 0.9, [5]),
        (11, 2, 0.5, [11, 5, 2]),
    ],
)
def test_merge_schedule_falls_by_the_unrolling_rate_to_the_final_number(
    first, last, unrolling_rate, expected
):
    assert ag.merge_schedule(first, last, unrolling_rate) == expected


def test_an_unrolling_rate_of_a_fifth_takes_about_20_periods():
    assert 19 <= len(ag.merge_schedule(1000, 10, 0.2)) - 1 <= 21
    assert ag.merge_schedule(1000, 10, 0.2)[:3] == [1000, 800, 640]


@pytest.mark.parametrize("epochs", [1, 2, 3, 4, 5, 7, 12])
def test_clusters_merge_only_at_the_beginning_of_periods_down_to_the_final_number(epochs):
    source = ClusteredImages()
    method = build(source)
    counts = ag.merge_schedule(int(method.initial_clusters), 4, 0.2)
    assert len(counts) >= 3
    seen, before = [], groups(method.label)
    for epoch in range(epochs):
        method.begin_epoch(context(epoch, epochs, source))
        now = groups(method.label)
        assert sum(map(len, now)) == 80
        assert all(any(old <= new for new in now) for old in before)  # merged, never split
        assert len(now) in counts
        if len(now) == len(before):
            assert now == before
        method.begin_epoch(context(epoch, epochs, source))
        assert groups(method.label) == now  # a second call changes nothing
        seen.append(len(now))
        before = now
    assert seen[-1] == 4
    if epochs >= len(counts):
        assert list(dict.fromkeys(seen)) == counts
        assert max(map(seen.count, counts)) - min(map(seen.count, counts)) <= 1


def test_clusters_merge_by_the_embeddings_of_the_images(monkeypatch):
    """By the graph of the normalized head outputs in eval mode, not of pixels."""
    source = ClusteredImages()
    method = build(source, neighbors=5, exact=False, neighbor_clusters=3)
    arguments = {}
    real = ag.agglomerate

    def watched(w, label, x, clusters, **options):
        arguments.update(w=w, x=x, options=options)
        return real(w, label, x, clusters, **options)

    monkeypatch.setattr(ag, "agglomerate", watched)
    method.begin_epoch(context(9, 10, source))
    assert method.training
    method.eval()
    with torch.no_grad():
        z = F.normalize(method.head(method.encoder(augment.to_float(source.image))["pool"]), dim=1)
    assert_close(arguments["x"], z)
    assert arguments["w"].nnz == 80 * 5
    assert arguments["options"] == {
        "neighbor_clusters": 3,
        "exact": False,
        "final_clusters": 4,
        "smallest": 0.05,
    }


def test_a_run_finds_the_four_means_without_labels(tmp_path):
    """The file has labels; the same file without labels gives the same run."""
    source, label = ClusteredImages(), []
    for truth in (source.truth, None):
        path = tmp_path / f"{len(label)}.npz"
        named = {} if truth is None else {"labels": truth.numpy()}
        np.savez(path, images=source.image.permute(0, 2, 3, 1).numpy(), **named)
        run = pretask.pretrain(
            "jule",
            path,
            tmp_path / f"run{len(label)}",
            config={"clusters": 4},
            encoder=SMALL,
            epochs=4,
            batch=40,
            quiet=True,
        )
        label.append(run.method.label)
    assert torch.equal(*label)
    assert cluster_metrics.nmi(cluster_metrics.contingency_table(source.truth, label[0])) > 0.9


def test_the_method_does_not_read_labels_of_the_source():
    assert ".label" not in inspect.getsource(jule).replace("self.label", "").replace("pretext.label", "")
    assert set(Batch.__dataclass_fields__) == {"index", "image", "aux"}


def test_a_state_restored_between_two_merges_continues_with_its_clusters():
    source = ClusteredImages()
    method = build(source)
    method.begin_epoch(context(2, 5, source))
    assert 4 < len(groups(method.label)) < int(method.initial_clusters)
    resumed = jule.Config(clusters=4, unrolling_rate=0.2).build(encoders.build(SMALL, 3, 16), source)
    resumed.load_state_dict(method.state_dict())
    for m in (method, resumed.train()):
        m.begin_epoch(context(4, 5, source))
    assert torch.equal(method.label, resumed.label)


# ---- recipes


def test_paper_networks_have_the_published_widths():
    for spec, channels, size, dim in (
        ("jule:blocks=1", 1, 16, 1800),
        ("jule:pools=1", 1, 28, 3200),
        ("jule", 3, 32, 1250),
        ("jule:blocks=4", 1, 128, 1250),
    ):
        assert encoders.build(spec, channels, size).dim == dim


def test_paper_learning_rate_approximates_the_published_schedule():
    """train.lua:412-414, over 60 epochs of 100 steps for MNIST's 10,000 images."""
    train = jule.Paper.train
    assert train.epochs * 10_000 // train.batch == 6000
    for step in range(0, 6000, 25):
        published = (1 + 0.0001 * step) ** -0.75
        assert_close(lr_factor(train, step / 6000), published, rtol=0.027, atol=0)


class Torch7:
    """optim/sgd.lua:35-82 with default `dampening`, for one parameter."""

    def __init__(self, lr: float, momentum: float, decay: float):
        self.lr, self.momentum, self.decay, self.v = lr, momentum, decay, None

    def step(self, x: float, gradient: float) -> float:
        g = gradient + self.decay * x
        damp = self.momentum
        self.v = g if self.v is None else self.momentum * self.v + (1 - damp) * g
        return x - self.lr * self.v


@pytest.mark.parametrize("kind", ["matrix", "vector"])
def test_paper_steps_equal_those_of_torch7_with_dampened_momentum(kind):
    """For slowly changing gradients, with weight decay, which includes gains and biases."""
    method = jule.Paper(clusters=4).build(encoders.build(SMALL, 3, 16), ClusteredImages())
    (optimizer,) = method.optimizers(jule.Paper.train)
    p = {"matrix": method.head.weight, "vector": method.encoder.net.conv1[1].weight}[kind]
    theirs, x = Torch7(0.01, 0.9, 5e-5), 1.0
    torch.nn.init.ones_(p)
    moved = []
    for t in range(400):
        gradient, before = math.sin(t / 60), (x, p.flatten()[0].item())
        x = theirs.step(x, gradient)
        p.grad = torch.full_like(p, gradient)
        optimizer.step()
        moved.append((x - before[0], p.flatten()[0].item() - before[1]))
    late = torch.tensor(moved, dtype=torch.float64)[100:]
    assert_close(late[:, 1], late[:, 0], rtol=1e-3, atol=1e-5)
    assert late[:, 0].abs().max() > 5e-3


def test_paper_weight_decay_equals_that_of_torch7():
    method = jule.Paper(clusters=4).build(encoders.build(SMALL, 3, 16), ClusteredImages()).double()
    (optimizer,) = method.optimizers(jule.Paper.train)
    theirs, x, p = Torch7(0.01, 0.9, 5e-5), 1.0, method.head.bias
    torch.nn.init.ones_(p)
    for _ in range(2000):
        x = theirs.step(x, 0.0)
        p.grad = torch.zeros_like(p)
        optimizer.step()
    assert_close(1 - p[0].item(), 1 - x, rtol=0.01, atol=0)


def test_paper_gains_are_initialized_uniformly_as_in_torch7():
    gains = [
        m.weight
        for seed in range(40)
        for m in (torch.manual_seed(seed), jule.Paper().build_encoder("jule:pools=1", ClusteredImages()))[
            1
        ].modules()
        if isinstance(m, torch.nn.BatchNorm2d)
    ]
    gains = torch.cat(gains)
    assert gains.min() >= 0 and gains.max() <= 1
    assert_close(gains.mean(), torch.tensor(0.5), atol=0.03, rtol=0)
    assert_close(gains.std(), torch.tensor(12**-0.5), atol=0.02, rtol=0)


@pytest.mark.parametrize(
    ("recipe", "expected"),
    [("paper", lambda z, index: jule.margin_loss(z, index, 1.0, 0.2)), ("paperaffinity", lambda z, index: jule.affinity_loss(z, index, 2.0))],
)  # fmt: skip
def test_both_objectives_have_a_recipe(recipe, expected):
    source = ClusteredImages()
    torch.manual_seed(0)
    config = methods.recipe(f"jule:{recipe}")(clusters=4)
    method = config.build(encoders.build(SMALL, 3, 16), source).train()
    method.begin(context(0, 1, source))
    p = method.pretext(source.__getitems__(torch.arange(80)), Rng(1))
    found, z = method.loss(p), F.normalize(method.head(method.encoder(p.image)["pool"]), dim=1)
    index = jule.triplets(p.label, p.draw, min(20, int(method.label.max())))
    assert_close(found.total, expected(z, index))


def test_paper_run_stops_when_the_final_clusters_are_reached():
    """train.lua:480-487: training ends with the last merge."""
    source, unrolling_rate, final = ClusteredImages(), 0.3, 2
    method = jule.Paper(clusters=final, unrolling_rate=unrolling_rate).build(
        encoders.build(SMALL, 3, 16), source
    )
    method.begin(context(0, 1, source))
    trained_on, count = [], int(method.initial_clusters)
    while count > final:
        trained_on.append(count)
        count -= min(math.ceil(count * unrolling_rate), count - final)
    assert len(trained_on) >= 3
    seen = []
    for epoch in range(3 * len(trained_on)):
        method.begin_epoch(context(epoch, 3 * len(trained_on), source))
        seen.append(int(method.label.max()) + 1)
    assert seen == [n for n in trained_on for _ in range(3)]


def test_paper_schedule_reaches_10_clusters_after_60_epochs():
    """From about 2,500 chains; the default continues for another 20."""
    assert ag.merge_schedule(2500, 10, jule.Paper.unrolling_rate) == [2500, 250, 25, 10]
    assert jule.Paper.train.epochs == 20 * 3


def test_impossible_configs_are_user_errors():
    with pytest.raises(UserError, match=r"jule takes 82 images or more.*, or lower --clusters"):
        requirements.check(jule.Config(clusters=41), encoders.build(SMALL, 3, 16), ClusteredImages())
    with pytest.raises(UserError, match="--clusters 1 is out of range"):
        limits.check(jule.Config(clusters=1))


def test_merging_follows_the_completed_fraction_of_an_extended_run():
    source = ClusteredImages()
    method, plan = (
        build(source),
        Plan.of(10, 1).changed(5, 105),
    )  # one step per epoch, half of the schedule in the first five
    counts = ag.merge_schedule(int(method.initial_clusters), 4, 0.2)
    for step, fraction in ((4, 0.5), (54, 0.75), (104, 1.0)):
        method.begin_epoch(Context(source, [], plan.at(step), Rng(0)))
        assert int(method.label.max()) + 1 == counts[math.ceil(fraction * len(counts)) - 1]

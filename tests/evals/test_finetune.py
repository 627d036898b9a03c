"""Fine-tuning: a learning rate per layer, the given encoder unchanged, test labels used only for the score."""

import math

import pytest
import torch
from torch import nn
from torch.testing import assert_close

from pretask import data, encoders
from pretask.config import TrainConfig
from pretask.data import LabeledDataset
from pretask.data.arrays import Arrays
from pretask.data.subset import LabeledSubset
from pretask.encoders import Encoder
from pretask.evals import fewshot, finetune
from pretask.evals.features import embed
from pretask.types import UserError

TRAIN = data.open_labeled("synthetic:96:16")
TEST = data.open_labeled("synthetic:64:16")
SMALL = "resnet_small:width=4,stages=2"
VIT = "vit_tiny_patch16_224:patch_size=8,depth=3,embed_dim=24,num_heads=2"


@pytest.fixture(autouse=True)
def _few_steps(monkeypatch):
    monkeypatch.setattr(finetune, "STEPS", 3)


def encoder(name: str = SMALL, seed: int = 0, size: int = 16) -> Encoder:
    torch.manual_seed(seed)
    return encoders.build(name, 3, size)


def fitted(net: Encoder, source=TRAIN, steps: int = 3, seed: int = 0, decay: float = 0.5, **train):
    given = {"batch": 32, "lr": 1e-3, "warmup": 0.0} | train
    index = torch.arange(len(source))
    return finetune.fit(
        net, source, index, TrainConfig(**given), steps, seed, decay, name="toy", device="cpu", progress=False
    )


def tuned(net: Encoder, train=TRAIN, test=TEST, **options) -> dict[str, finetune.Result]:
    options = {"seed": 0, "run": 0, "progress": False} | options
    return {r.title: r for r in finetune.score_finetuned(net, train, test, **options)}


def bright(n: int, classes: int = 3, seed: int = 0) -> LabeledDataset:
    """Images whose brightness gives their class."""
    generator = torch.Generator().manual_seed(seed)
    label = torch.arange(n) % classes
    noise = torch.randint(0, 40, (n, 3, 16, 16), generator=generator)
    image = (noise + 80 * label.view(-1, 1, 1, 1)).to(torch.uint8)
    return LabeledDataset(Arrays("bright", image), label, [*"abc"[:classes]])


# ---- layers


LAYERS = {
    "resnet18": ["conv1 bn1", *(f"layer{i}.{j}" for i in range(1, 5) for j in range(2))],
    VIT: ["cls_token pos_embed patch_embed", "blocks.0", "blocks.1", "blocks.2 norm"],
    SMALL: ["stem", "stage1", "stage2"],
    "nin3:width=12": ["conv1", "conv2", "conv3"],
}
"""parameters of each layer, from the input up"""


def expected_scale(name: str, parameter: str, decay: float) -> float:
    layers = LAYERS[name]
    for k, prefixes in enumerate(layers):
        for prefix in prefixes.split():
            if parameter == prefix or parameter.startswith(prefix + "."):
                return decay ** (len(layers) - k)
    raise AssertionError(parameter)


@pytest.mark.parametrize("name", LAYERS)
def test_every_parameter_is_in_one_group_with_the_rate_of_its_layer(name):
    net = encoder(name)
    groups = finetune.layer_decay_groups(net, 0.05, 0.7)
    scale = [(id(p), g["lr_scale"], g["weight_decay"]) for g in groups for p in g["params"]]
    assert sorted(i for i, _, _ in scale) == sorted(id(p) for p in net.parameters())
    of = {i: (s, w) for i, s, w in scale}
    for parameter, p in net.net.named_parameters():
        assert of[id(p)][0] == pytest.approx(expected_scale(name, parameter, 0.7)), parameter
        free = p.ndim <= 1 or parameter in ("cls_token", "pos_embed")
        assert of[id(p)][1] == (0.0 if free else 0.05), parameter


@pytest.mark.parametrize("name", LAYERS)
def test_without_layer_decay_every_layer_has_the_full_rate(name):
    assert {g["lr_scale"] for g in finetune.layer_decay_groups(encoder(name), 0.05, 1.0)} == {1.0}


@pytest.mark.parametrize("name", [SMALL, VIT])
def test_the_first_step_moves_each_layer_by_its_rate(name):
    """Adam's first step is the learning rate times the sign of the gradient: m / √v = ±1."""
    net = encoder(name)
    before = {k: v.detach().clone() for k, v in net.net.named_parameters()}
    probe = fitted(net, steps=1, lr=1e-3, weight_decay=0.0)
    for parameter, now in net.net.named_parameters():
        moved = (now - before[parameter]).abs().max().item()
        assert moved == pytest.approx(1e-3 * expected_scale(name, parameter, 0.5), rel=0.01), parameter
    torch.manual_seed(0)
    head = nn.Linear(net.dim, 4)  # at initialization
    assert (probe.head.weight - head.weight).abs().max().item() == pytest.approx(1e-3, rel=0.01)


def test_the_rate_follows_linear_warmup_and_cosine_decay():
    seen, train = [], TrainConfig(lr=0.4, warmup=0.25)
    weight = nn.Parameter(torch.zeros(1))
    optimizer = torch.optim.SGD([{"params": [weight], "lr_scale": 0.5}], lr=9.0)
    optimizer.register_step_pre_hook(lambda o, *_: seen.append(o.param_groups[0]["lr"]))
    finetune.optimize(optimizer, (weight.sum() for _ in range(8)), train, 8, "toy", False)
    cosine = [(1 + math.cos(math.pi * (s / 8 - 0.25) / 0.75)) / 2 for s in range(2, 8)]
    assert seen == pytest.approx([0.2 * x for x in (0.0, 0.5, *cosine)])
    assert weight.item() == pytest.approx(-sum(seen), rel=1e-5)  # every step is taken exactly once


# ---- trained weights


@pytest.mark.parametrize("name", [SMALL, "resnet18", VIT])
def test_all_weights_are_trained_and_the_given_encoder_is_unchanged(name, monkeypatch):
    net = encoder(name).eval()
    for p in net.parameters():
        p.requires_grad_(False)  # as in a frozen encoder
    before = {k: v.clone() for k, v in net.state_dict().items()}
    kept = []
    fit = finetune.fit
    monkeypatch.setattr(finetune, "fit", lambda *a, **k: kept.append(fit(*a, **k)) or kept[-1])
    state = torch.random.get_rng_state()
    tuned(net)
    assert torch.equal(torch.random.get_rng_state(), state)
    assert all(torch.equal(v, before[k]) for k, v in net.state_dict().items()) and not net.training
    for trained in kept:
        assert trained.encoder is not net and not trained.training
        for k, v in trained.encoder.named_parameters():
            assert not torch.equal(v, before[k]), k


def test_learning_rate_0_changes_nothing():
    net = encoder()
    before = {k: v.detach().clone() for k, v in net.named_parameters()}
    found = fitted(net, steps=5, lr=0.0)
    assert all(torch.equal(v, before[k]) for k, v in net.named_parameters())
    torch.manual_seed(0)
    assert torch.equal(found.head.weight, nn.Linear(net.dim, 4).weight)


def test_true_labels_are_learned_and_random_test_labels_score_at_chance(monkeypatch):
    monkeypatch.setattr(finetune, "STEPS", 60)
    monkeypatch.setattr(finetune, "TRAIN", TrainConfig(batch=32, lr=0.01))
    net, train, test = encoder(), bright(90), bright(60, seed=1)
    assert tuned(net, train, test)["finetune"].value > 90
    noise = torch.randint(0, 3, (300,), generator=torch.Generator().manual_seed(5))
    test = bright(300, seed=2)
    test.label = noise
    assert 20 < tuned(net, train, test)["finetune"].value < 47  # 33.3, four standard deviations


def test_a_pretrained_network_scores_higher_than_an_untrained_one(monkeypatch):
    """With a learning rate so small that a few steps mostly train the head."""
    monkeypatch.setattr(finetune, "STEPS", 8)
    train, test = bright(90), bright(90, seed=1)
    pretrained, untrained = encoder(), encoder()
    fitted(pretrained, train, steps=80, decay=1.0, lr=3e-3)
    assert (
        tuned(pretrained, train, test)["finetune"].value
        > tuned(untrained, train, test)["finetune"].value + 15
    )


def test_equal_seeds_give_equal_weights_and_other_seeds_do_not():
    def weights(seed: int, before: int) -> torch.Tensor:
        net = encoder("resnet10t:stem_width=8,drop_path_rate=0.5", size=32)
        torch.manual_seed(before)  # earlier random numbers have no effect, not even on drop path
        source = data.open_labeled("synthetic:32:32")
        return torch.cat([p.detach().flatten() for p in fitted(net, source, seed=seed).parameters()])

    assert torch.equal(weights(0, 1), weights(0, 2))
    assert not torch.equal(weights(0, 1), weights(1, 1))


# ---- training images


def test_batches_have_matching_labels_and_every_image_equally_often():
    """Every pixel of an image is its index; flips keep pixels, shifts add black ones."""
    number = torch.arange(1, 51)
    image = number.view(-1, 1, 1, 1).expand(50, 3, 16, 16).to(torch.uint8)
    source = LabeledDataset(Arrays("numbered", image), number * 3 % 50, [str(i) for i in range(50)])
    index = torch.arange(
        10, 40
    )  # 30 images: batches of 8, three per epoch, each of which leaves out 6 images
    shown = []
    for x, label in finetune.augmented_batches(source, index, 8, 9, 0, "cpu"):
        seen = (255 * x.amax((1, 2, 3))).round().long()
        assert torch.equal(label, seen * 3 % 50)
        shown.append(seen)
    assert len(shown) == 9 and all(len(s) == 8 for s in shown)
    for k in range(3):
        once = torch.cat(shown[3 * k : 3 * k + 3])
        assert len(once.unique()) == 24 and once.min() >= 11 and once.max() <= 40
    assert not torch.equal(shown[0], shown[3])
    part = LabeledSubset(source, index, "part")  # the same images and labels, indexed within the part
    for (x, label), seen in zip(
        finetune.augmented_batches(part, torch.arange(30), 8, 9, 0, "cpu"), shown, strict=True
    ):
        assert torch.equal((255 * x.amax((1, 2, 3))).round().long(), seen)
        assert torch.equal(label, seen * 3 % 50)


def test_views_are_shifted_by_up_to_an_eighth_and_half_of_them_flipped():
    image = torch.full((1, 1, 16, 16), 100, dtype=torch.uint8)
    image[..., 8:] = 200  # bright on the right
    source = LabeledDataset(
        Arrays("half", image.expand(64, 3, 16, 16).clone()), torch.zeros(64).long(), ["a"]
    )
    ((x, _),) = finetune.augmented_batches(source, torch.arange(64), 64, 1, 0, "cpu")
    flipped = x[:, 0, 8, 2] > x[:, 0, 8, 13]
    assert 16 < flipped.sum() < 48
    black = (x[:, 0] == 0).all(2).sum(1)  # rows
    assert black.max() == 2 and black.min() == 0


def test_draws_have_exact_counts_and_are_those_of_the_run(monkeypatch):
    train = data.open_labeled("synthetic:480:16")
    trained_on = []

    def fit(net, source, index, *rest, **options):
        trained_on.append(index)
        return finetune.Classifier(net, nn.Linear(net.dim, 4))

    monkeypatch.setattr(finetune, "fit", fit)
    found = tuned(encoder(), train, run=3)
    assert [*found] == ["finetune 10-shot", "finetune 100-shot", "finetune"]
    assert [r.notes["images"] for r in found.values()] == [40, 400, 480]
    for index, shots in zip(trained_on, (10, 100), strict=False):
        assert train.label[index].bincount().tolist() == [shots] * 4 and len(index.unique()) == 4 * shots
        assert torch.equal(index, fewshot.draw(train.label, shots, 0, 3))
    assert torch.equal(trained_on[2], torch.arange(480))
    few = trained_on[0]
    tuned(encoder(), train, run=4)
    assert not torch.equal(trained_on[3], few)


def test_unreadable_images_are_not_trained_on(monkeypatch):
    index = []
    monkeypatch.setattr(finetune, "readable", lambda source: torch.tensor([*range(10, 96)]))
    monkeypatch.setattr(
        finetune, "fit",
        lambda net, source, there, *rest, **k: index.append(there) or finetune.Classifier(net, nn.Linear(net.dim, 4)),
    )  # fmt: skip
    tuned(encoder())
    assert len(index) == 2 and all(i.min() >= 10 for i in index)  # 10 shots and all


def test_numbers_of_shots_above_the_smallest_class_are_skipped():
    assert [*tuned(encoder())] == ["finetune 10-shot", "finetune"]
    few = LabeledSubset(
        TRAIN, torch.cat([(TRAIN.label == c).nonzero().flatten()[:9] for c in range(4)]), "few"
    )
    assert [*tuned(encoder(), few)] == ["finetune"]


# ---- scores


def test_test_labels_are_used_only_for_the_score():
    train, test, net = bright(60), bright(40, seed=1), encoder()
    probe = finetune.fit(
        encoder(), train, torch.arange(60), finetune.TRAIN, 3, 0, finetune.DECAY, name="", device="cpu", progress=False
    )  # fmt: skip
    predicted = embed(probe, test, progress=False).stages["pool"].argmax(1)
    for label in (test.label, test.label.flip(0), torch.full((40,), 2)):
        test.label = label
        result = tuned(net, train, test)["finetune"]
        assert torch.equal(result.correct, (predicted == label).double())
        assert result.value == pytest.approx(100 * result.correct.mean().item())


def test_the_trained_classifier_is_in_eval_mode():
    net = encoder()
    probe = fitted(net, steps=4)
    assert not probe.training and not net.training
    with torch.no_grad():
        x = TEST.__getitems__(torch.arange(8)).image.float() / 255
        whole, single = probe(x)["pool"], probe(x[:1])["pool"]
    assert_close(whole[:1], single, atol=1e-5, rtol=1e-4)  # no batch statistics


def test_a_nonfinite_loss_is_an_error():
    net = encoder()
    nn.init.constant_(net.net.stage2[0].body[0].weight, torch.nan)
    with pytest.raises(UserError, match="toy diverged"):
        fitted(net)

"""Rotation decoupling: the loss terms by hand, the memory bank, the cross-fitted RotNets, and what each half encodes."""

import dataclasses
import math

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.testing import assert_close

from pretask import data, encoders
from pretask.config import TrainConfig, lr_factor
from pretask.methods import rotation_decoupling as rd
from pretask.methods.base.context import Context
from pretask.rng import Rng
from pretask.train import requirements
from pretask.train.plan import Plan
from pretask.types import Batch, UserError

SMALL = "resnet_small:width=8"
NOW = Plan.of(1, 1).at(0)


class NoiseImages:
    """A source of n different noise images, generated on access."""

    name, provides, bad, channels, size = "pictures", frozenset(), {}, 3, 16

    def __init__(self, n: int):
        self.n = n

    def __len__(self) -> int:
        return self.n

    def __getitems__(self, index: Tensor) -> Batch:
        image = [Rng(int(i)).integers(3, 16, 16, high=256) for i in index]
        return Batch(index, torch.stack(image).to(torch.uint8))


def built(n: int = 40, **overrides) -> rd.RotationDecoupling:
    torch.manual_seed(0)
    config = rd.Config(**{"half_dim": 32, "rotnet_encoder": SMALL, **overrides})
    method = config.build(encoders.build(SMALL, 3, 16), NoiseImages(n)).train()
    method.begin(context(n, 0))
    return method


def context(n: int, epoch: int, epochs: int = 10) -> Context:
    return Context(NoiseImages(n), [], Plan.of(epochs, 1).at(epoch), Rng(0, "begin", epoch))


def puzzle(method: rd.RotationDecoupling, *index: int) -> rd.Rotated:
    return method.pretext(NoiseImages(len(method.bank)).__getitems__(torch.tensor(index)), Rng(1))


def unit(rng: Rng, *shape: int) -> Tensor:
    return F.normalize(rng.normal(*shape), dim=-1)


# ---- the puzzle


def test_undoing_the_rotations_recovers_each_image_and_its_index():
    p = puzzle(built(side=1.0, crop=0.99), 7, 3, 30)
    straight = torch.stack([x.rot90(-k, (1, 2)) for x, k in zip(p.image, p.rotation.tolist(), strict=True)])
    assert torch.equal(straight, p.image[::4].repeat_interleave(4, 0))
    assert p.rotation.tolist() == [0, 1, 2, 3] * 3
    assert p.index.tolist() == [7, 3, 30]
    means = NoiseImages(40).__getitems__(p.index).image.float().mean((2, 3)) / 255
    assert_close(p.image[::4].mean((2, 3)), means, atol=0.01, rtol=0)


def test_negatives_are_sampled_per_image_from_the_whole_bank():
    p = puzzle(built(), *range(40))
    assert p.negative.shape == (40, 39)
    assert p.negative.unique().tolist() == list(range(40))
    assert (p.negative == p.index[:, None]).any()  # as released: the positive can be among them
    assert not torch.equal(p.negative[0], p.negative[1])
    few = puzzle(built(num_negatives=30), 1, 2).negative
    assert few.shape == (2, 30)
    assert few.max() > 30


# ---- the terms


def test_nce_matches_the_paper_formula():
    z, n = torch.tensor(70.0), 30
    similarity = 3 * Rng(1).normal(5, 9)
    expected = 0.0
    for row in similarity.tolist():
        p = [math.exp(s) / 70 for s in row]
        noise = 8 / n
        expected -= math.log(p[0] / (p[0] + noise)) + sum(math.log(noise / (q + noise)) for q in p[1:])
    assert_close(rd.nce(similarity, z, n).item(), expected / 5, rtol=1e-5, atol=0)


def test_nce_of_equal_similarities_is_the_published_constant():
    """ln(1 + K) + K ln(1 + 1/K), K = 4096; through the method, with Z of the first batch."""
    method = built(5000, num_negatives=4096)
    method.bank.copy_(unit(Rng(1), 1, 128).expand(5000, 128))
    assert_close(method.loss(puzzle(method, 11)).parts["instance"].item(), 9.318, atol=2e-3, rtol=0)


def test_untrained_nce_is_about_10_with_50_000_images():
    method = built(50_000, num_negatives=4096, temperature=0.07)
    assert 0.1525 < method.bank.abs().max() <= 0.1531
    assert_close(method.bank.norm(dim=1).mean().item(), 1.0, atol=0.01, rtol=0)
    found = method.loss(puzzle(method, *range(16)))
    assert_close(found.parts["instance"].item(), 10.1, atol=0.3, rtol=0)
    assert_close(found.carry[2].mean().item() / 50_000, 2.2, atol=0.15, rtol=0)


def test_irrelevance_loss_is_the_variance_over_the_rotations():
    half = Rng(1).normal(3, 4, 5)
    expected = 0.0
    for image in half.tolist():
        for d in range(5):
            mean = sum(rotation[d] for rotation in image) / 4
            expected += sum((rotation[d] - mean) ** 2 for rotation in image) / (3 * 4 * 5)
    assert_close(rd.variance(half).item(), expected, rtol=1e-5, atol=0)
    same = half[:, :1].expand(3, 4, 5)
    assert rd.variance(same) < 1e-12
    for rotation in range(4):
        other = same.clone()
        other[1, rotation, 2] += 0.1
        assert rd.variance(other) > 1e-5


def test_detaching_the_mean_does_not_change_the_variance_gradient():
    plain, held = (Rng(1).normal(3, 4, 5).requires_grad_() for _ in range(2))
    rd.variance(plain).backward()
    (held - held.mean(1, keepdim=True).detach()).square().mean().backward()
    assert plain.grad is not None
    assert plain.grad.abs().max() > 0.01
    assert_close(plain.grad, held.grad)


def test_rotated_copies_are_weighted_down_by_uprightness():
    upright = torch.tensor([[1.0, 1.0, 0.5, 0.0], [0.3, 0.1, 0.9, 0.2]])
    assert_close(
        rd.rotation_weights(upright, 2.0), torch.tensor([[1.0, 0.0, 0.75, 1.0], [1.0, 0.99, 0.19, 0.96]])
    )
    many = rd.rotation_weights(Rng(1).uniform(1000, 4), 2.0)
    assert many.min() >= 0
    assert many.max() <= 1
    assert (many[:, 0] == 1).all()


def test_loss_terms_and_their_sum_match_the_paper():
    """Weights are looked up by image index, not batch position, and divided by 4·B, not by their sum."""
    method = built()
    method.upright.copy_(Rng(5).uniform(40, 4))
    method.constant.fill_(90.0)
    index = [30, 4, 17]
    p = puzzle(method, *index)
    with torch.no_grad():
        found = method.loss(p)
        features = method.widen(method.encoder(p.image)["pool"])
        probability = method.head(features[:, :32]).softmax(1)
        rotation, similarity = 0.0, []
        for b, i in enumerate(index):
            for r in range(4):
                w = 1.0 if r == 0 else 1 - float(method.upright[i, r]) ** 2
                rotation -= w * math.log(probability[4 * b + r, r]) / 12
            v = F.normalize(method.embed(features[4 * b : 4 * b + 4, 32:].mean(0)), dim=0)
            rows = [i, *p.negative[b].tolist()]
            similarity.append([float(v @ method.bank[j]) / 0.2 for j in rows])
            assert_close(found.carry[1][b], v)
    assert_close(found.parts["rotation"].item(), rotation, rtol=1e-4, atol=0)
    instance = rd.nce(torch.tensor(similarity), torch.tensor(90.0), 40)
    assert_close(found.parts["instance"], instance, rtol=1e-4, atol=0)
    assert_close(found.parts["irrelevance"], rd.variance(features[:, 32:].view(3, 4, 32)))
    assert found.parts["irrelevance"] > 0.01
    assert found.parts["rotnets"] == 0
    assert_close(found.total, found.parts["rotation"] + found.parts["irrelevance"] + found.parts["instance"])


def test_log_has_the_accuracy_of_the_classifier_on_each_half():
    """The same classifier is applied to both halves; the second gets no gradient from it."""
    method = built()
    p = puzzle(method, *range(12))
    found = method.loss(p)
    right = [0, 0]
    for row, rotation in zip(method.widen(method.encoder(p.image)["pool"]), p.rotation.tolist(), strict=True):
        for half in (0, 1):
            logits = method.head.weight @ row[32 * half : 32 * (half + 1)] + method.head.bias
            right[half] += int(logits.argmax() == rotation)
    assert found.parts["accuracy"].item() == pytest.approx(right[0] / 48)
    assert found.parts["accuracy_second"].item() == pytest.approx(right[1] / 48)
    assert right[0] != right[1]
    assert not found.parts["accuracy_second"].requires_grad


def test_similarities_are_float32_under_autocast():
    method = built()
    p = puzzle(method, *range(8))
    with torch.autocast("cpu", torch.bfloat16):
        found = method.loss(p)
    _, v, sums = found.carry
    assert v.dtype == torch.float32
    rows = method.bank[torch.cat([p.index[:, None], p.negative], 1)]
    similarity = (v[:, None] * rows).sum(2) / 0.2
    assert_close(sums, 40 * similarity.exp().mean(1), rtol=1e-5, atol=0)
    assert_close(found.parts["instance"], rd.nce(similarity, sums.mean(), 40), rtol=1e-5, atol=0)


def test_untrained_rotation_loss_is_at_chance():
    method = built()
    cost = method.loss(puzzle(method, *range(40))).parts["rotation"].item()
    assert abs(cost - math.log(4)) < 0.2


def test_predictions_come_from_the_first_half():
    method = built()
    p = puzzle(method, *range(8))
    with torch.no_grad():
        method.head.bias.zero_()
        features = method.widen(method.encoder(p.image)["pool"])
        expected, other = (method.head(half).argmax(1) for half in features.split(32, 1))
        assert torch.equal(method.predict(p)["rotation"], expected)
        assert not torch.equal(other, expected)


def test_with_half_dim_0_the_pooled_features_are_split():
    method = built(half_dim=0)
    p = puzzle(method, 1, 2)
    pool = method.encoder(p.image)["pool"]
    f1, f2 = method.split_features(p.image)
    assert_close(torch.cat([f1, f2], 1), pool)
    assert f1.shape == (8, 16)
    assert not list(method.widen.parameters())


# ---- the memory bank


def test_bank_rows_of_the_batch_move_halfway_and_keep_unit_length():
    method = built()
    before, v, index = method.bank.clone(), unit(Rng(1), 6, 128), torch.tensor([3, 30, 7, 8, 20, 39])
    method.after_step((index, v, torch.ones(6)), NOW)
    halfway = 0.5 * before[index] + 0.5 * v
    assert_close(method.bank[index], halfway / halfway.norm(dim=1, keepdim=True))
    others = torch.ones(40, dtype=torch.bool)
    others[index] = False
    assert torch.equal(method.bank[others], before[others])


def test_carry_holds_unit_rows_without_gradient_and_the_bank_is_no_parameter():
    method = built()
    found = method.loss(puzzle(method, 5, 1, 9, 2))
    index, v, sums = found.carry
    assert index.tolist() == [5, 1, 9, 2]
    assert_close(v.norm(dim=1), torch.ones(4))
    assert not v.requires_grad
    assert not sums.requires_grad
    found.total.backward()
    assert method.bank.grad is None
    assert "bank" not in dict(method.named_parameters())


def test_z_is_computed_from_the_first_batch_only():
    method = built()
    first = method.loss(puzzle(method, 1, 2, 3))
    v = F.normalize(Rng(3).normal(3, 128), dim=1)
    method.after_step((torch.tensor([1, 2, 3]), v, first.carry[2]), NOW)
    z = method.constant.clone()
    assert_close(z, first.carry[2].mean())
    assert 30 < z < 160
    method.after_step((torch.tensor([4, 5]), v[:2], torch.tensor([5000.0, 6000.0])), NOW)
    assert torch.equal(method.constant, z)
    later = puzzle(method, 6, 7)
    known = method.eval().loss(later).parts["instance"]
    method.constant.mul_(3)
    assert method.loss(later).parts["instance"] != known
    again = built()
    again.load_state_dict(method.state_dict())
    assert torch.equal(again.constant, method.constant)


def test_z_of_the_first_step_gets_no_gradient():
    """The gradient equals that with a Z fixed beforehand."""
    method = built().eval()
    p = puzzle(method, 1, 2, 3)
    gradients = []
    for _ in range(2):
        method.zero_grad()
        found = method.loss(p)
        found.parts["instance"].backward()
        gradients.append(method.embed.weight.grad.clone())
        method.constant.copy_(found.carry[2].mean())
    assert_close(gradients[0], gradients[1])


# ---- cross-fitting of the RotNets


def test_each_fold_is_a_random_half_of_the_images():
    method = built(41)
    assert sorted(method.fold.bincount().tolist()) == [20, 21]
    assert torch.equal(method.fold, built(41).fold)
    assert not torch.equal(method.fold, torch.arange(41) % 2)


@pytest.mark.parametrize("fold", [0, 1])
def test_a_rotnet_trains_only_on_its_fold(fold):
    """Other images affect neither its gradients nor its state (no batch statistics)."""
    method = built()
    net = (method.rotnet1, method.rotnet2)[fold]
    p = puzzle(method, *range(12))
    own = (method.fold[p.index] == fold).repeat_interleave(4)
    assert 0 < own.sum() < 48
    gradients, states = [], []
    for noise in (0.0, 1.0):
        method.zero_grad()
        image = torch.where(own.view(-1, 1, 1, 1), p.image, p.image + noise)
        method.loss(dataclasses.replace(p, image=image)).total.backward()
        gradients.append([w.grad.clone() for w in net.parameters()])
        states.append({k: v.clone() for k, v in net.state_dict().items()})
    assert all(g.abs().sum() > 0 for g in gradients[0][-2:])
    assert all(map(torch.equal, *gradients))
    assert all(torch.equal(v, states[1][k]) for k, v in states[0].items())


def test_uprightness_is_predicted_by_the_rotnet_of_the_other_fold():
    method = built()
    with torch.no_grad():
        for net, logit in ((method.rotnet1, 2.0), (method.rotnet2, -1.0)):
            net.head.weight.zero_()
            net.head.bias.copy_(torch.tensor([logit, 0, 0, 0]))
    method.predict_uprightness(NoiseImages(40))
    probability = [math.exp(logit) / (math.exp(logit) + 3) for logit in (2.0, -1.0)]
    for i in range(40):
        expected = torch.full((4,), probability[1 - int(method.fold[i])])
        assert_close(method.upright[i], expected)


def test_uprightness_is_predicted_for_each_rotation_of_the_whole_image():
    method = built()
    method.predict_uprightness(NoiseImages(40))
    assert method.rotnet1.encoder.training
    method.eval()
    for i in (0, 13, 39):
        net = (method.rotnet2, method.rotnet1)[int(method.fold[i])]
        image = NoiseImages(40).__getitems__(torch.tensor([i])).image.float() / 255
        for r in range(4):
            with torch.no_grad():
                logits = net.head(net.encoder(image.rot90(r, (2, 3)))["pool"])
            assert_close(method.upright[i, r], logits.softmax(1)[0, 0], rtol=1e-4, atol=1e-5)
    assert method.upright.std() > 1e-4  # similar for untrained networks, but not equal


def test_weights_apply_only_in_the_last_part_of_a_run():
    method = built()
    for epoch in range(10):
        method.begin_epoch(context(40, epoch))
        found = method.loss(puzzle(method, *range(12)))
        assert (found.parts["weight"] == 1) == (epoch < 8)
        assert (found.parts["rotnets"] > 0) == (epoch < 8)
        if epoch == 8:
            predicted = method.upright.clone()
            method.rotnet1.head.bias.data += 1.0
    assert torch.equal(method.upright, predicted)  # predicted only once
    found.total.backward()
    assert all(w.grad is None for j in (method.rotnet1, method.rotnet2) for w in j.parameters())


@pytest.mark.parametrize(
    ("epochs", "fraction", "first"),
    [
        (245, rd.Paper().weighted_fraction, 210),
        (30, 0.15, 26),
        (100, 0.15, 85),
        (2, 0.15, 1),
        (2, 0.9, 1),
        (1, 0.15, 1),
    ],
)
def test_weighting_begins_at_an_epoch_after_the_first(epochs, fraction, first):
    plan = Plan.of(7 * epochs, 7)
    begun = [
        plan.at(7 * epoch).epoch
        for epoch in range(epochs)
        if rd.weighting_begun(plan.at(7 * epoch), fraction)
    ]
    assert begun == list(range(first, epochs))


def test_paper_learning_rate_drops_and_restarts_once():
    train = rd.Paper.train
    epochs = (0, 89, 90, 129, 130, 189, 190, 209, 210, 229, 230, 244)
    at = [train.lr * lr_factor(train, epoch / 245) for epoch in epochs]
    expected = [1e-2, 1e-2, 1e-3, 1e-3, 1e-4, 1e-4, 1e-5, 1e-5, 1e-4, 1e-4, 1e-5, 1e-5]
    assert_close(at, expected)


def test_rotnet_losses_of_two_half_batches_average_to_that_of_the_whole():
    """Also if a half batch has no image of one fold."""
    method = built()
    rows = (method.fold == 0).nonzero()[:4, 0].tolist(), (method.fold == 1).nonzero()[:4, 0].tolist()
    whole = method.rotnet_loss(puzzle(method, *rows[0], *rows[1]))
    parts = []
    for half in (slice(0, 4), slice(4, 8)):
        p = puzzle(method, *rows[0], *rows[1])
        views = slice(4 * half.start, 4 * half.stop)
        parts.append(
            method.rotnet_loss(rd.Rotated(p.image[views], p.rotation[views], p.index[half], p.negative[half]))
        )
    assert_close(torch.stack(parts).mean(), whole)
    p = puzzle(method, *rows[0], *rows[1])
    separate = [
        F.cross_entropy(j.logits(p)[s], p.rotation[s])
        for j, s in ((method.rotnet1, slice(0, 16)), (method.rotnet2, slice(16, 32)))
    ]
    assert_close(whole, separate[0] + separate[1])  # each loss is that of a separate run
    parts[0].backward()
    assert all(torch.isfinite(w.grad).all() for w in method.rotnet2.parameters())


@pytest.mark.parametrize("name", [SMALL, "mobilenetv3_small_050", "alexnet_bn"])
def test_with_group_norms_features_do_not_depend_on_other_images(name):
    torch.manual_seed(0)
    plain = encoders.build(name, 3, 64)
    acts = sum(isinstance(m, nn.ReLU | nn.Hardswish) for m in plain.modules())
    net = rd.group_norms(plain).train()
    assert not any("BatchNorm" in type(m).__name__ for m in net.modules())
    assert sum(isinstance(m, nn.ReLU | nn.Hardswish) for m in net.modules()) == acts
    x = Rng(1).uniform(3, 3, 64, 64)
    with torch.no_grad():
        assert_close(net(x)["pool"][:1], net(x[:1])["pool"], rtol=1e-4, atol=1e-5)


# ---- what the halves encode


def test_rotation_is_linearly_decodable_from_the_first_half_only():
    """By the trained classifier, by a new one per half, and by the fraction of the variance due to the rotation."""
    source = data.open("synthetic:256:16")
    torch.manual_seed(0)
    config = rd.Config(half_dim=64, rotnet_encoder="resnet_small:width=4")
    method = config.build(encoders.build(SMALL, 3, 16), source).train()
    method.begin(Context(source, [], NOW, Rng(0)))
    method.upright.fill_(1e-6)  # skips the RotNets, which do not affect the halves
    optimizer = torch.optim.AdamW(method.groups(), lr=3e-3)
    for step in range(120):
        batch = source.__getitems__(Rng(1, step).permutation(256)[:32])
        found = method.loss(method.pretext(batch, Rng(2, step)))
        for group in optimizer.param_groups:
            group["lr"] = 3e-3 * lr_factor(TrainConfig(warmup=0.0), step / 120)
        optimizer.zero_grad()
        found.total.backward()
        optimizer.step()
        with torch.no_grad():
            method.after_step(found.carry, NOW)
    logged = [found.parts[name].item() for name in ("accuracy", "accuracy_second")]
    assert logged[0] > 0.8
    assert abs(logged[1] - 0.25) < 0.15
    method.eval()
    with torch.no_grad():
        drawn = [method.pretext(source.__getitems__(torch.arange(256)), Rng(3, k)) for k in range(2)]
        (known, new), rotation = [method.split_features(p.image) for p in drawn], drawn[0].rotation
        trained = [(method.head(half).argmax(1) == rotation).float().mean().item() for half in new]
        explained = [rd.variance(half.view(256, 4, 64)) / half.var(0).mean() for half in new]
    fresh = [linear_accuracy(known[h], new[h], rotation) for h in range(2)]
    assert trained[0] > 0.85
    assert abs(trained[1] - 0.25) < 0.1
    assert fresh[0] > 0.85
    assert fresh[1] < fresh[0] - 0.25
    assert explained[0] > 0.4
    assert explained[1] < 0.15


def linear_accuracy(known: Tensor, new: Tensor, rotation: Tensor) -> float:
    """Accuracy on `new` of a linear classifier fitted to `known`."""
    mean, std = known.mean(0), known.std(0) + 1e-3
    probe = nn.Linear(known.shape[1], 4)
    optimizer = torch.optim.LBFGS(probe.parameters(), max_iter=60)

    def loss() -> Tensor:
        optimizer.zero_grad()
        total = F.cross_entropy(probe((known - mean) / std), rotation) + 0.01 * probe.weight.square().sum()
        total.backward()
        return total

    optimizer.step(loss)
    return (probe((new - mean) / std).argmax(1) == rotation).float().mean().item()


# ---- user errors


def test_a_single_image_is_a_user_error():
    net, source = encoders.build("resnet_small:width=8", 3, 16), data.open("synthetic:1:16")
    with pytest.raises(
        UserError, match="rotation_decoupling takes 2 images or more, and synthetic:1:16 has 1"
    ):
        requirements.check(rd.Config(), net, source)


def test_an_odd_number_of_features_without_half_dim_is_a_user_error():
    with pytest.raises(UserError, match="an odd number of features, 15; give --half-dim 256"):
        rd.Config(half_dim=0).build(encoders.build("mlp:width=15", 3, 16), NoiseImages(40))


def test_a_stream_is_refused_at_the_start():
    class Stream(NoiseImages):
        def __getitems__(self, index: Tensor) -> Batch:
            raise UserError("a stream and has no positions")

    with pytest.raises(UserError, match="no positions"):
        built().begin(dataclasses.replace(context(40, 0), source=Stream(40)))


def test_weighting_follows_the_schedule_of_an_extended_run():
    plan = Plan.of(20, 1).changed(10, 210)  # one step per epoch, half of the schedule in the first ten
    begun = [step for step in range(210) if rd.weighting_begun(plan.at(step), 0.25)]
    assert begun == list(range(begun[0], 210)) and plan.at(begun[0]).fraction == pytest.approx(0.75, abs=0.01)
    cut = Plan.of(200, 1).changed(20, 21)
    assert rd.weighting_begun(cut.at(20), 0.25), "the only epoch left is the last"

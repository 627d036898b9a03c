"""Rotation decoupling: each term by hand, what the bank remembers, who judges whom, and which half knows the turn."""

import dataclasses
import math

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.testing import assert_close

from pretask import data as sources
from pretask import encoders
from pretask.config import TrainConfig, schedule
from pretask.methods import rotation_decoupling as rd
from pretask.methods.base.context import Context
from pretask.rng import Rng
from pretask.train.plan import Plan
from pretask.types import Batch, UserError

SMALL = "resnet_small:width=8"
NOW = Plan.of(1, 1).at(0)


class Pictures:
    """So many images of noise, each its own, made when asked for."""

    name, provides, bad, channels, size = "pictures", frozenset(), {}, 3, 16

    def __init__(self, n: int):
        self.n = n

    def __len__(self) -> int:
        return self.n

    def __getitems__(self, index: Tensor) -> Batch:
        image = [Rng(int(i)).integers(3, 16, 16, high=256) for i in index]
        return Batch(index, torch.stack(image).to(torch.uint8))


def built(n: int = 40, **knobs) -> rd.RotationDecoupling:
    torch.manual_seed(0)
    config = rd.Config(**{"half": 32, "judge": SMALL, **knobs})
    method = config.build(encoders.build(SMALL, 3, 16), Pictures(n)).train()
    method.begin(context(n, 0))
    return method


def context(n: int, epoch: int, epochs: int = 10) -> Context:
    return Context(Pictures(n), [], Plan.of(epochs, 1).at(epoch), Rng(0, "begin", epoch))


def puzzle(method: rd.RotationDecoupling, *index: int) -> rd.Turned:
    return method.pretext(Pictures(len(method.bank)).__getitems__(torch.tensor(index)), Rng(1))


def unit(rng: Rng, *shape: int) -> Tensor:
    return F.normalize(rng.normal(*shape), dim=-1)


# ---- the puzzle


def test_undoing_the_turns_gives_each_image_back_beside_its_own_number():
    p = puzzle(built(side=1.0, crop=0.99), 7, 3, 30)
    straight = torch.stack([x.rot90(-k, (1, 2)) for x, k in zip(p.image, p.turn.tolist(), strict=True)])
    assert torch.equal(straight, p.image[::4].repeat_interleave(4, 0))
    assert p.turn.tolist() == [0, 1, 2, 3] * 3
    assert p.index.tolist() == [7, 3, 30]
    means = Pictures(40).__getitems__(p.index).image.float().mean((2, 3)) / 255
    assert_close(p.image[::4].mean((2, 3)), means, atol=0.01, rtol=0)


def test_negatives_come_from_the_whole_bank_each_image_its_own():
    p = puzzle(built(), *range(40))
    assert p.negative.shape == (40, 39)
    assert p.negative.unique().tolist() == list(range(40))
    assert (p.negative == p.index[:, None]).any()  # as released: oneself is among them
    assert not torch.equal(p.negative[0], p.negative[1])
    few = puzzle(built(negatives=30), 1, 2).negative
    assert few.shape == (2, 30)
    assert few.max() > 30


# ---- the terms


def test_the_nce_is_that_of_the_paper():
    z, n = torch.tensor(70.0), 30
    similarity = 3 * Rng(1).normal(5, 9)
    expected = 0.0
    for row in similarity.tolist():
        p = [math.exp(s) / 70 for s in row]
        noise = 8 / n
        expected -= math.log(p[0] / (p[0] + noise)) + sum(math.log(noise / (q + noise)) for q in p[1:])
    assert_close(rd.nce(similarity, z, n).item(), expected / 5, rtol=1e-5, atol=0)


def test_equal_similarities_cost_the_published_constant():
    """ln(1 + K) + K ln(1 + 1/K), K = 4096; through the method, where Z is that of the first batch."""
    method = built(5000, negatives=4096)
    method.bank.copy_(unit(Rng(1), 1, 128).expand(5000, 128))
    assert_close(method.loss(puzzle(method, 11)).parts["instance"].item(), 9.318, atol=2e-3, rtol=0)


def test_an_untrained_net_pays_ten_among_fifty_thousand():
    method = built(50_000, negatives=4096, temperature=0.07)
    assert 0.1525 < method.bank.abs().max() <= 0.1531
    assert_close(method.bank.norm(dim=1).mean().item(), 1.0, atol=0.01, rtol=0)
    found = method.loss(puzzle(method, *range(16)))
    assert_close(found.parts["instance"].item(), 10.1, atol=0.3, rtol=0)
    assert_close(found.carry[2].mean().item() / 50_000, 2.2, atol=0.15, rtol=0)


def test_the_second_halves_cost_their_variance_over_the_turns():
    half = Rng(1).normal(3, 4, 5)
    expected = 0.0
    for image in half.tolist():
        for d in range(5):
            mean = sum(turn[d] for turn in image) / 4
            expected += sum((turn[d] - mean) ** 2 for turn in image) / (3 * 4 * 5)
    assert_close(rd.variance(half).item(), expected, rtol=1e-5, atol=0)
    same = half[:, :1].expand(3, 4, 5)
    assert rd.variance(same) < 1e-12
    for turn in range(4):
        other = same.clone()
        other[1, turn, 2] += 0.1
        assert rd.variance(other) > 1e-5


def test_the_mean_of_the_turns_may_be_held_constant_or_not():
    plain, held = (Rng(1).normal(3, 4, 5).requires_grad_() for _ in range(2))
    rd.variance(plain).backward()
    (held - held.mean(1, keepdim=True).detach()).square().mean().backward()
    assert plain.grad is not None
    assert plain.grad.abs().max() > 0.01
    assert_close(plain.grad, held.grad)


def test_turned_copies_count_less_the_more_upright_they_look():
    upright = torch.tensor([[1.0, 1.0, 0.5, 0.0], [0.3, 0.1, 0.9, 0.2]])
    assert_close(rd.weights(upright, 2.0), torch.tensor([[1.0, 0.0, 0.75, 1.0], [1.0, 0.99, 0.19, 0.96]]))
    many = rd.weights(Rng(1).uniform(1000, 4), 2.0)
    assert many.min() >= 0
    assert many.max() <= 1
    assert (many[:, 0] == 1).all()


def test_the_terms_are_those_of_the_paper_and_their_sum():
    """Weights by the number of the image, not its place in the batch; divided by 4·B, not by their sum."""
    method = built()
    method.upright.copy_(Rng(5).uniform(40, 4))
    method.constant.fill_(90.0)
    index = [30, 4, 17]
    p = puzzle(method, *index)
    with torch.no_grad():
        found = method.loss(p)
        features = method.layer(method.encoder(p.image)["pool"])
        probability = method.head(features[:, :32]).softmax(1)
        rotation, similarity = 0.0, []
        for b, i in enumerate(index):
            for r in range(4):
                w = 1.0 if r == 0 else 1 - float(method.upright[i, r]) ** 2
                rotation -= w * math.log(probability[4 * b + r, r]) / 12
            v = F.normalize(method.describe(features[4 * b : 4 * b + 4, 32:].mean(0)), dim=0)
            rows = [i, *p.negative[b].tolist()]
            similarity.append([float(v @ method.bank[j]) / 0.2 for j in rows])
            assert_close(found.carry[1][b], v)
    assert_close(found.parts["rotation"].item(), rotation, rtol=1e-4, atol=0)
    instance = rd.nce(torch.tensor(similarity), torch.tensor(90.0), 40)
    assert_close(found.parts["instance"], instance, rtol=1e-4, atol=0)
    assert_close(found.parts["irrelevance"], rd.variance(features[:, 32:].view(3, 4, 32)))
    assert found.parts["irrelevance"] > 0.01
    assert found.parts["judges"] == 0
    assert_close(found.total, found.parts["rotation"] + found.parts["irrelevance"] + found.parts["instance"])


def test_the_log_has_the_accuracy_of_the_classifier_on_either_half():
    """The same classifier reads both; to the second half it is nothing to learn from."""
    method = built()
    p = puzzle(method, *range(12))
    found = method.loss(p)
    right = [0, 0]
    for row, turn in zip(method.layer(method.encoder(p.image)["pool"]), p.turn.tolist(), strict=True):
        for half in (0, 1):
            logits = method.head.weight @ row[32 * half : 32 * (half + 1)] + method.head.bias
            right[half] += int(logits.argmax() == turn)
    assert found.parts["accuracy"].item() == pytest.approx(right[0] / 48)
    assert found.parts["accuracy_second"].item() == pytest.approx(right[1] / 48)
    assert right[0] != right[1]
    assert not found.parts["accuracy_second"].requires_grad


def test_similarities_are_not_rounded_where_the_network_is():
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


def test_the_untrained_solver_guesses_the_turn():
    method = built()
    cost = method.loss(puzzle(method, *range(40))).parts["rotation"].item()
    assert abs(cost - math.log(4)) < 0.2


def test_the_solver_answers_from_the_first_half():
    method = built()
    p = puzzle(method, *range(8))
    with torch.no_grad():
        method.head.bias.zero_()
        features = method.layer(method.encoder(p.image)["pool"])
        expected, other = (method.head(half).argmax(1) for half in features.split(32, 1))
        assert torch.equal(method.solve(p)["turn"], expected)
        assert not torch.equal(other, expected)


def test_without_a_layer_the_pooled_features_themselves_are_split():
    method = built(half=0)
    p = puzzle(method, 1, 2)
    pool = method.encoder(p.image)["pool"]
    turning, lasting = method.halves(p.image)
    assert_close(torch.cat([turning, lasting], 1), pool)
    assert turning.shape == (8, 16)
    assert not list(method.layer.parameters())


# ---- what is remembered


def test_a_seen_row_moves_halfway_and_keeps_unit_length_and_no_other_moves():
    method = built()
    before, v, index = method.bank.clone(), unit(Rng(1), 6, 128), torch.tensor([3, 30, 7, 8, 20, 39])
    method.after_step((index, v, torch.ones(6)), NOW)
    halfway = 0.5 * before[index] + 0.5 * v
    assert_close(method.bank[index], halfway / halfway.norm(dim=1, keepdim=True))
    others = torch.ones(40, dtype=torch.bool)
    others[index] = False
    assert torch.equal(method.bank[others], before[others])


def test_what_is_carried_are_unit_rows_without_gradient_and_the_bank_gets_none():
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


def test_z_is_that_of_the_first_batch_for_good():
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


def test_z_of_the_first_step_is_no_way_to_lower_the_loss():
    """It counts as a number: the gradient is that of a Z that was known before."""
    method = built().eval()
    p = puzzle(method, 1, 2, 3)
    gradients = []
    for _ in range(2):
        method.zero_grad()
        found = method.loss(p)
        found.parts["instance"].backward()
        gradients.append(method.describe.weight.grad.clone())
        method.constant.copy_(found.carry[2].mean())
    assert_close(gradients[0], gradients[1])


# ---- who judges whom


def test_each_fold_is_half_of_the_images_drawn_by_the_rng():
    method = built(41)
    assert sorted(method.fold.bincount().tolist()) == [20, 21]
    assert torch.equal(method.fold, built(41).fold)
    assert not torch.equal(method.fold, torch.arange(41) % 2)


@pytest.mark.parametrize("fold", [0, 1])
def test_a_judge_learns_from_the_images_of_its_fold_alone(fold):
    """Whatever the others show: no gradient, and no statistic of a batch."""
    method = built()
    judge = (method.first, method.second)[fold]
    p = puzzle(method, *range(12))
    own = (method.fold[p.index] == fold).repeat_interleave(4)
    assert 0 < own.sum() < 48
    gradients, states = [], []
    for noise in (0.0, 1.0):
        method.zero_grad()
        image = torch.where(own.view(-1, 1, 1, 1), p.image, p.image + noise)
        method.loss(dataclasses.replace(p, image=image)).total.backward()
        gradients.append([w.grad.clone() for w in judge.parameters()])
        states.append({k: v.clone() for k, v in judge.state_dict().items()})
    assert all(g.abs().sum() > 0 for g in gradients[0][-2:])
    assert all(map(torch.equal, *gradients))
    assert all(torch.equal(v, states[1][k]) for k, v in states[0].items())


def test_nobody_is_judged_by_the_net_that_learned_from_it():
    method = built()
    with torch.no_grad():
        for judge, logit in ((method.first, 2.0), (method.second, -1.0)):
            judge.head.weight.zero_()
            judge.head.bias.copy_(torch.tensor([logit, 0, 0, 0]))
    method.ask(Pictures(40))
    said = [math.exp(logit) / (math.exp(logit) + 3) for logit in (2.0, -1.0)]
    for i in range(40):
        expected = torch.full((4,), said[1 - int(method.fold[i])])
        assert_close(method.upright[i], expected)


def test_what_is_judged_is_how_upright_each_turn_of_the_whole_image_looks():
    method = built()
    method.ask(Pictures(40))
    assert method.first.encoder.training
    method.eval()
    for i in (0, 13, 39):
        judge = (method.second, method.first)[int(method.fold[i])]
        image = Pictures(40).__getitems__(torch.tensor([i])).image.float() / 255
        for r in range(4):
            with torch.no_grad():
                logits = judge.head(judge.encoder(image.rot90(r, (2, 3)))["pool"])
            assert_close(method.upright[i, r], logits.softmax(1)[0, 0], rtol=1e-4, atol=1e-5)
    assert method.upright.std() > 1e-4  # of untrained nets: alike, but not the same


def test_weights_are_off_before_the_last_part_of_a_run_and_on_from_then():
    method = built()
    for epoch in range(10):
        method.begin_epoch(context(40, epoch))
        found = method.loss(puzzle(method, *range(12)))
        assert (found.parts["weight"] == 1) == (epoch < 8)
        assert (found.parts["judges"] > 0) == (epoch < 8)
        if epoch == 8:
            judged = method.upright.clone()
            method.first.head.bias.data += 1.0
    assert torch.equal(method.upright, judged)  # once and for good
    found.total.backward()
    assert all(w.grad is None for j in (method.first, method.second) for w in j.parameters())


@pytest.mark.parametrize(
    ("epochs", "late", "first"),
    [(245, rd.Paper().late, 210), (30, 0.15, 26), (100, 0.15, 85), (2, 0.15, 1), (2, 0.9, 1), (1, 0.15, 1)],
)
def test_the_last_part_begins_with_an_epoch_that_is_not_the_first(epochs, late, first):
    plan = Plan.of(7 * epochs, 7)
    begun = [plan.at(7 * epoch).epoch for epoch in range(epochs) if rd.due(plan.at(7 * epoch), late)]
    assert begun == list(range(first, epochs))


def test_the_papers_learning_rate_falls_and_comes_back_once():
    train = rd.Paper.train
    epochs = (0, 89, 90, 129, 130, 189, 190, 209, 210, 229, 230, 244)
    at = [train.lr * schedule(train, epoch / 245) for epoch in epochs]
    expected = [1e-2, 1e-2, 1e-3, 1e-3, 1e-4, 1e-4, 1e-5, 1e-5, 1e-4, 1e-4, 1e-5, 1e-5]
    assert_close(at, expected)


def test_two_halves_of_a_batch_teach_the_judges_what_the_whole_would():
    """Also where a half has no image of one of the folds."""
    method = built()
    rows = (method.fold == 0).nonzero()[:4, 0].tolist(), (method.fold == 1).nonzero()[:4, 0].tolist()
    whole = method.learn(puzzle(method, *rows[0], *rows[1]))
    parts = []
    for half in (slice(0, 4), slice(4, 8)):
        p = puzzle(method, *rows[0], *rows[1])
        turns = slice(4 * half.start, 4 * half.stop)
        parts.append(method.learn(rd.Turned(p.image[turns], p.turn[turns], p.index[half], p.negative[half])))
    assert_close(torch.stack(parts).mean(), whole)
    p = puzzle(method, *rows[0], *rows[1])
    alone = [
        F.cross_entropy(j.logits(p)[s], p.turn[s])
        for j, s in ((method.first, slice(0, 16)), (method.second, slice(16, 32)))
    ]
    assert_close(whole, alone[0] + alone[1])  # each pays what it would as a run of its own
    parts[0].backward()
    assert all(torch.isfinite(w.grad).all() for w in method.second.parameters())


@pytest.mark.parametrize("name", [SMALL, "mobilenetv3_small_050", "alexnet_bn"])
def test_a_judge_sees_every_image_by_itself(name):
    torch.manual_seed(0)
    plain = encoders.build(name, 3, 64)
    acts = sum(isinstance(m, nn.ReLU | nn.Hardswish) for m in plain.modules())
    judge = rd.alone(plain).train()
    assert not any("BatchNorm" in type(m).__name__ for m in judge.modules())
    assert sum(isinstance(m, nn.ReLU | nn.Hardswish) for m in judge.modules()) == acts
    x = Rng(1).uniform(3, 3, 64, 64)
    with torch.no_grad():
        assert_close(judge(x)["pool"][:1], judge(x[:1])["pool"], rtol=1e-4, atol=1e-5)


# ---- the point of it


def test_the_turn_is_read_from_the_first_half_and_not_from_the_second():
    """By the classifier that was trained, by a fresh one for each half, and as a share of what varies in it."""
    source = sources.open("synthetic:256:16")
    torch.manual_seed(0)
    config = rd.Config(half=64, judge="resnet_small:width=4")
    method = config.build(encoders.build(SMALL, 3, 16), source).train()
    method.begin(Context(source, [], NOW, Rng(0)))
    method.upright.fill_(1e-6)  # no judges: they teach the halves nothing
    optimizer = torch.optim.AdamW(method.groups(), lr=3e-3)
    for step in range(120):
        batch = source.__getitems__(Rng(1, step).permutation(256)[:32])
        found = method.loss(method.pretext(batch, Rng(2, step)))
        for group in optimizer.param_groups:
            group["lr"] = 3e-3 * schedule(TrainConfig(warmup=0.0), step / 120)
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
        (known, new), turn = [method.halves(p.image) for p in drawn], drawn[0].turn
        trained = [(method.head(half).argmax(1) == turn).float().mean().item() for half in new]
        varies = [rd.variance(half.view(256, 4, 64)) / half.var(0).mean() for half in new]
    fresh = [read(known[h], new[h], turn) for h in range(2)]
    assert trained[0] > 0.85
    assert abs(trained[1] - 0.25) < 0.1
    assert fresh[0] > 0.85
    assert fresh[1] < fresh[0] - 0.25
    assert varies[0] > 0.4
    assert varies[1] < 0.15


def read(known: Tensor, new: Tensor, turn: Tensor) -> float:
    """Accuracy on `new` of a linear classifier fitted to `known`."""
    mean, spread = known.mean(0), known.std(0) + 1e-3
    fitted = nn.Linear(known.shape[1], 4)
    optimizer = torch.optim.LBFGS(fitted.parameters(), max_iter=60)

    def cost() -> Tensor:
        optimizer.zero_grad()
        total = F.cross_entropy(fitted((known - mean) / spread), turn) + 0.01 * fitted.weight.square().sum()
        total.backward()
        return total

    optimizer.step(cost)
    return (fitted((new - mean) / spread).argmax(1) == turn).float().mean().item()


# ---- mistakes


@pytest.mark.parametrize(
    ("n", "knobs", "says"),
    [
        (1, {}, "has 1 image; to tell one from others takes 2 or more"),
    ],
)
def test_what_cannot_be_is_a_one_line_error(n, knobs, says):
    with pytest.raises(UserError, match=says) as error:
        built(n, **knobs)
    assert "\n" not in str(error.value)


def test_an_odd_number_of_features_has_no_half():
    with pytest.raises(UserError, match="15 features, which have no half; give --half 256"):
        rd.Config(half=0).build(encoders.build("mlp:width=15", 3, 16), Pictures(40))


def test_a_source_whose_images_are_not_found_again_says_so_at_the_start():
    class Stream(Pictures):
        def __getitems__(self, index: Tensor) -> Batch:
            raise UserError("a stream and has no positions")

    with pytest.raises(UserError, match="no positions"):
        built().begin(dataclasses.replace(context(40, 0), source=Stream(40)))


def test_in_a_run_that_is_stretched_the_last_part_is_that_of_the_schedule():
    plan = Plan.of(20, 1).changed(10, 210)  # an epoch a step, half of the schedule in ten
    begun = [step for step in range(210) if rd.due(plan.at(step), 0.25)]
    assert begun == list(range(begun[0], 210)) and plan.at(begun[0]).fraction == pytest.approx(0.75, abs=0.01)
    cut = Plan.of(200, 1).changed(20, 21)
    assert rd.due(cut.at(20), 0.25), "one epoch is left, and it is the last"

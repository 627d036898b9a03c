"""Neighborhood discovery: losses and their gradient by hand, the memory bank, anchors and neighbors."""

import math

import pytest
import torch
import torch.nn.functional as F
from safetensors.torch import load
from torch import Tensor
from torch.testing import assert_close

from pretask import encoders
from pretask.methods import neighbourhood_discovery as nd
from pretask.methods.base.context import Context
from pretask.rng import Rng
from pretask.train import requirements
from pretask.train.plan import Plan
from pretask.types import Batch, UserError

SMALL = "resnet_small:width=8"


class NoiseImages:
    """A source of n noise images, generated on access."""

    name, provides, bad, channels, size = "pictures", frozenset(), {}, 3, 16

    def __init__(self, n: int):
        self.n = n

    def __len__(self) -> int:
        return self.n

    def __getitems__(self, index: Tensor) -> Batch:
        return Batch(index, Rng(0).integers(len(index), 3, 16, 16, high=256).to(torch.uint8))


def build(n: int = 40, config: nd.Config | None = None) -> nd.NeighbourhoodDiscovery:
    torch.manual_seed(0)
    source = NoiseImages(n)
    method = (config or nd.Config()).build(encoders.build(SMALL, 3, 16), source).train()
    method.begin(context(n, 0))
    return method


def context(n: int, epoch: int, epochs: int = 10, rounds: int = 5) -> Context:
    at = Plan.of(epochs, 1, rounds).at(epoch)
    return Context(NoiseImages(n), [], at, Rng(0, "begin", epoch))


def unit(rng: Rng, *shape: int) -> Tensor:
    return F.normalize(rng.normal(*shape), dim=1)


# ---- likelihoods


def test_losses_match_the_paper_formula():
    z, bank = unit(Rng(1), 3, 8), unit(Rng(2), 10, 8)
    index, neighbor = torch.tensor([4, 0, 9]), torch.tensor([[1, 2], [5, 9], [3, 4]])
    instance, joined = nd.negative_log_likelihoods(z, bank, index, neighbor, 0.1)
    for b in range(3):
        every = [math.exp(float(z[b] @ bank[j]) / 0.1) for j in range(10)]
        own = every[index[b]]
        both = own + sum(every[j] for j in neighbor[b])
        assert_close(instance[b].item(), -math.log(own / sum(every)), rtol=1e-4, atol=1e-5)
        assert_close(joined[b].item(), -math.log(both / sum(every)), rtol=1e-4, atol=1e-5)


def test_anchor_loss_is_at_most_the_instance_loss_and_0_with_all_neighbors():
    z, bank, index = unit(Rng(1), 20, 8), unit(Rng(2), 20, 8), torch.arange(20)
    _, neighbor = nd.discover(bank, 19, 0.1)
    for k in (1, 5, 19):
        instance, joined = nd.negative_log_likelihoods(z, bank, index, neighbor[:, :k], 0.1)
        assert (joined <= instance).all()
    assert_close(joined, torch.zeros(20), atol=1e-5, rtol=0)


def test_similarities_are_float32_under_autocast():
    z, bank, index = unit(Rng(1), 20, 8), unit(Rng(2), 20, 8), torch.arange(20)
    _, neighbor = nd.discover(bank, 1, 0.1)
    with torch.autocast("cpu", torch.bfloat16):
        half = nd.negative_log_likelihoods(z, bank, index, neighbor, 0.1)
    assert_close(half, nd.negative_log_likelihoods(z, bank, index, neighbor, 0.1), rtol=0, atol=0)


def test_gradient_matches_the_derivation_by_hand():
    z, bank = unit(Rng(1), 4, 8).requires_grad_(), unit(Rng(2), 12, 8)
    index, neighbor = torch.tensor([0, 3, 7, 11]), torch.tensor([[1, 2], [4, 0], [6, 5], [10, 2]])
    _, joined = nd.negative_log_likelihoods(z, bank, index, neighbor, 0.1)
    joined.sum().backward()
    p = (z.detach() @ bank.T / 0.1).softmax(1)
    for b in range(4):
        positive = [int(index[b]), *neighbor[b].tolist()]
        total = sum(p[b, j] for j in positive)
        expected = (p[b] @ bank - sum(p[b, j] / total * bank[j] for j in positive)) / 0.1
        assert z.grad is not None
        assert_close(z.grad[b], expected, atol=1e-4, rtol=1e-4)


def test_untrained_loss_with_50_000_images_is_at_chance():
    """ln N plus half the variance of the logits: 10.82 + 0.39."""
    method = build(50_000)
    total = method.loss(method.pretext(NoiseImages(50_000).__getitems__(torch.arange(64)), Rng(1))).total
    assert 11.0 < total.item() < 11.4


def test_anchors_and_instances_have_different_losses():
    method = build()
    method.anchor[:5] = True
    method.neighbor.copy_((torch.arange(40)[:, None] + 1) % 40)
    p = method.eval().pretext(NoiseImages(40).__getitems__(torch.arange(10)), Rng(1))
    with torch.no_grad():
        found, z = method.loss(p), method.project(p.image)
    instance, joined = nd.negative_log_likelihoods(z, method.bank, p.index, method.neighbor[p.index], 0.1)
    assert_close(found.total, torch.cat([joined[:5], instance[5:]]).mean())
    assert_close(found.parts["anchors"], torch.tensor(0.5))
    assert_close(found.parts["anchor"], joined[:5].mean())
    assert_close(found.parts["instance"], instance.mean())


@pytest.mark.parametrize(("config", "side"), [(nd.Config(), 12), (nd.Paper(), 16)])
def test_views_are_smaller_than_the_image_except_in_the_paper_recipe(config, side):
    p = build(config=config).pretext(NoiseImages(40).__getitems__(torch.arange(4)), Rng(1))
    assert p.image.shape == (4, 3, side, side)


# ---- bank


def test_bank_is_initialized_within_the_published_bound_by_the_rng():
    method = build(2000)
    assert 0.1525 < method.bank.abs().max() <= 0.1531
    assert abs(method.bank.norm(dim=1).mean() - 1) < 0.01
    assert torch.equal(method.bank, build(2000).bank)


def test_bank_rows_of_the_batch_move_halfway_and_keep_unit_length():
    method = build()
    before, z, index = method.bank.clone(), unit(Rng(1), 6, 128), torch.tensor([3, 30, 7, 8, 20, 39])
    method.after_step((index, z), Plan.of(1, 1).at(0))
    halfway = 0.5 * before[index] + 0.5 * z
    assert_close(method.bank[index], halfway / halfway.norm(dim=1, keepdim=True))
    others = torch.ones(40, dtype=torch.bool)
    others[index] = False
    assert torch.equal(method.bank[others], before[others])


def test_carry_holds_unit_rows_without_gradient():
    method = build()
    p = method.pretext(NoiseImages(40).__getitems__(torch.tensor([5, 1, 9, 2])), Rng(1))
    index, z = method.loss(p).carry
    assert index.tolist() == [5, 1, 9, 2]
    assert z.shape == (4, 128)
    assert not z.requires_grad
    assert_close(z.norm(dim=1), torch.ones(4))


def test_prediction_is_the_image_with_the_nearest_row():
    method = build().eval()
    p = method.pretext(NoiseImages(40).__getitems__(torch.arange(40)), Rng(1))
    with torch.no_grad():
        method.bank.copy_(method.project(p.image))
        assert torch.equal(method.predict(p)["index"], p.index)


# ---- discovery


def test_discovery_matches_the_formula_in_loops():
    bank = unit(Rng(1), 30, 8)
    entropy, neighbor = nd.discover(bank, 3, 0.1)
    for i in range(30):
        p = torch.tensor([math.exp(float(bank[i] @ bank[j]) / 0.1) for j in range(30)])  # itself included
        p = p / p.sum()
        assert_close(entropy[i], -(p * p.log()).sum())
        others = sorted((j for j in range(30) if j != i), key=lambda j: -float(bank[i] @ bank[j]))
        assert neighbor[i].tolist() == others[:3]


def test_block_size_does_not_change_the_result_and_bounds_memory(monkeypatch):
    bank = unit(Rng(1), 101, 16)
    whole = nd.discover(bank, 2, 0.1)
    for block in (1, 101 * 7, 101 * 101):
        entropy, neighbor = nd.discover(bank, 2, 0.1, block=block)
        assert_close(entropy, whole[0])
        assert torch.equal(neighbor, whole[1])
    largest = 0
    topk = Tensor.topk

    def watched(self, k):
        nonlocal largest
        largest = max(largest, self.numel())
        return topk(self, k)

    monkeypatch.setattr(Tensor, "topk", watched)
    nd.discover(bank, 2, 0.1, block=101 * 7)
    assert largest == 101 * 7


def test_images_are_not_their_own_neighbors_even_among_duplicates():
    bank = unit(Rng(1), 1, 8).repeat(12, 1)
    _, neighbor = nd.discover(bank, 11, 0.1)
    assert neighbor.shape == (12, 11)
    for i, row in enumerate(neighbor.tolist()):
        assert sorted(row) == [j for j in range(12) if j != i]


@pytest.mark.parametrize(
    ("n", "counts"),
    [(50_000, [0, 12_500, 25_000, 37_500, 50_000]), (73_257, [0, 18_314, 36_628, 54_942, 73_257])],
)
def test_anchors_grow_by_a_quarter_per_round(n, counts, monkeypatch):
    method = build(n)
    fake = (Rng(1).uniform(n), torch.ones(n, 1, dtype=torch.int64))
    monkeypatch.setattr(nd, "discover", lambda *_: fake)
    seen = []
    for r in range(5):
        method.begin_epoch(context(n, 2 * r))
        seen.append(int(method.anchor.sum()))
    assert seen == counts


def test_anchors_have_the_lowest_entropy_and_are_selected_from_the_bank_each_round():
    method = build(config=nd.Config(neighbors=2))
    method.bank.copy_(F.normalize(method.bank, dim=1))
    before = method.bank.clone()
    method.begin_epoch(context(40, 4))
    entropy, neighbor = nd.discover(method.bank, 2, 0.1)
    assert method.anchor.sum() == 20
    assert entropy[method.anchor].max() <= entropy[~method.anchor].min()
    assert torch.equal(method.neighbor, neighbor)  # among all, anchors or not
    assert method.neighbor[method.anchor].shape == (20, 2)
    assert torch.equal(method.bank, before)  # not reinitialized

    first = method.anchor.clone()
    method.bank.copy_(unit(Rng(9), 40, 128))
    method.begin_epoch(context(40, 5))  # the middle of a round
    assert torch.equal(method.anchor, first)
    assert torch.equal(method.neighbor, neighbor)
    method.begin_epoch(context(40, 6))
    assert method.anchor.sum() == 30
    assert torch.equal(method.neighbor, nd.discover(method.bank, 2, 0.1)[1])


def test_a_run_of_one_round_is_instance_discrimination():
    method = build()
    method.begin_epoch(context(40, 0, rounds=1))
    assert not method.anchor.any()


def test_a_state_restored_in_the_middle_of_a_round_keeps_its_anchors():
    method = build()
    method.begin_epoch(context(40, 4))
    resumed = build(config=nd.Config())
    resumed.load_state_dict(method.state_dict())
    batch = NoiseImages(40).__getitems__(torch.arange(10))
    costs = [m.loss(m.pretext(batch, Rng(3))).total for m in (method, resumed)]
    assert costs[0] == costs[1]
    assert resumed.anchor.sum() == 20


def test_only_the_default_recipe_flips():
    ramp = torch.linspace(0, 255, 16).to(torch.uint8).expand(32, 3, 16, 16)  # dark left, bright right
    batch = Batch(torch.arange(32), ramp)
    flipped = {}
    for config in (nd.Config(), nd.Paper()):
        x = build(config=config).pretext(batch, Rng(1)).image
        flipped[type(config)] = (x[..., 0].mean((1, 2)) > x[..., -1].mean((1, 2))).sum().item()
    assert flipped[nd.Paper] == 0
    assert 6 < flipped[nd.Config] < 26


def test_paper_network_is_a_cifar_resnet18():
    encoder = encoders.build(nd.Paper.encoder, 3, 32)
    assert encoder.dim == 512
    with torch.no_grad():
        assert list(encoder.eval()(torch.zeros(1, 3, 32, 32)).values())[-2].shape == (1, 512, 4, 4)
    assert (
        sum(1 for m in encoder.modules() if isinstance(m, torch.nn.Conv2d) and m.kernel_size == (3, 3)) == 17
    )
    assert (
        sum(p.numel() for p in encoder.parameters()) == 11_168_832
    )  # models/resnet_cifar.py without its linear layer


def test_paper_shortcuts_downsample_by_stride():
    """models/resnet_cifar.py:26-38, the first block of a stage, written out."""
    block = encoders.build(nd.Paper.encoder, 3, 32).net.stage2[0].eval()
    x = Rng(1).normal(2, 64, 8, 8)
    conv1, bn1, _, conv2, bn2 = block.body
    conv3, bn3 = (m for m in block.shortcut if not isinstance(m, torch.nn.AvgPool2d))
    out = bn2(conv2(bn1(conv1(x)).relu())) + bn3(
        torch.einsum("oi,bihw->bohw", conv3.weight[:, :, 0, 0], x[:, :, ::2, ::2])
    )
    assert_close(block(x), out.relu())


def test_too_few_images_are_a_user_error():
    with pytest.raises(UserError, match=r"takes 5 images or more.*has 3; add images, or lower --neighbors"):
        requirements.check(nd.Config(neighbors=3), encoders.build(SMALL, 3, 16), NoiseImages(3))


def test_discovery_runs_once_per_round_in_an_extended_run(monkeypatch):
    method, found, plain = build(), [], nd.discover
    monkeypatch.setattr(nd, "discover", lambda *given: found.append(now) or plain(*given))
    plan = Plan.of(20, 1, 5).changed(6, 126)  # one step per epoch
    for step in range(126):
        now = plan.at(step)
        method.begin_epoch(Context(NoiseImages(40), [], now, Rng(0, "begin", step)))
        assert method.anchor.sum() == 40 * now.cycle // 4
    assert [now.cycle for now in found] == [1, 2, 3, 4] and all(now.first_of_cycle for now in found)


# ---- files for the report


def saved(method: nd.NeighbourhoodDiscovery, epoch: int) -> dict[str, Tensor]:
    at = context(len(method.bank), epoch)
    method.begin_epoch(at)
    return {name: load(content) for name, content in at.files.items()}


def test_every_round_saves_its_anchors_neighbors_and_entropies():
    method = build(config=nd.Config(neighbors=2))
    assert saved(method, 0) == {}  # no neighbors yet
    for number, epoch in enumerate((2, 4, 6, 8), 1):
        method.bank.copy_(unit(Rng(number), 40, 128))
        found = saved(method, epoch)
        assert list(found) == [f"neighbors-{number}.safetensors"]
        (found,) = found.values()
        assert found["anchor"].sum() == 10 * number
        assert torch.equal(found["anchor"], method.anchor)
        assert torch.equal(found["neighbor"].long(), method.neighbor)
        assert_close(found["entropy"], nd.discover(method.bank, 2, 0.1)[0])
        assert saved(method, epoch + 1) == {}  # the middle of a round

"""Neighbourhood discovery: the likelihoods and their gradient by hand, the bank, the curriculum, who is a neighbour."""

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
from pretask.train.plan import Plan
from pretask.types import Batch, UserError

SMALL = "resnet_small:width=8"


class Pictures:
    """So many images of noise, made when asked for."""

    name, provides, bad, channels, size = "pictures", frozenset(), {}, 3, 16

    def __init__(self, n: int):
        self.n = n

    def __len__(self) -> int:
        return self.n

    def __getitems__(self, index: Tensor) -> Batch:
        return Batch(index, Rng(0).integers(len(index), 3, 16, 16, high=256).to(torch.uint8))


def built(n: int = 40, config: nd.Config | None = None) -> nd.NeighbourhoodDiscovery:
    torch.manual_seed(0)
    source = Pictures(n)
    method = (config or nd.Config()).build(encoders.build(SMALL, 3, 16), source).train()
    method.begin(context(n, 0))
    return method


def context(n: int, epoch: int, epochs: int = 10, rounds: int = 5) -> Context:
    at = Plan.of(epochs, 1, rounds).at(epoch)
    return Context(Pictures(n), [], at, Rng(0, "begin", epoch))


def unit(rng: Rng, *shape: int) -> Tensor:
    return F.normalize(rng.normal(*shape), dim=1)


# ---- likelihoods


def test_the_likelihoods_are_those_of_the_paper():
    z, bank = unit(Rng(1), 3, 8), unit(Rng(2), 10, 8)
    index, neighbour = torch.tensor([4, 0, 9]), torch.tensor([[1, 2], [5, 9], [3, 4]])
    instance, joined = nd.likelihoods(z, bank, index, neighbour, 0.1)
    for b in range(3):
        every = [math.exp(float(z[b] @ bank[j]) / 0.1) for j in range(10)]
        own = every[index[b]]
        both = own + sum(every[j] for j in neighbour[b])
        assert_close(instance[b].item(), -math.log(own / sum(every)), rtol=1e-4, atol=1e-5)
        assert_close(joined[b].item(), -math.log(both / sum(every)), rtol=1e-4, atol=1e-5)


def test_an_anchor_never_costs_more_than_an_instance_and_nothing_among_all():
    z, bank, index = unit(Rng(1), 20, 8), unit(Rng(2), 20, 8), torch.arange(20)
    _, neighbour = nd.discover(bank, 19, 0.1)
    for k in (1, 5, 19):
        instance, joined = nd.likelihoods(z, bank, index, neighbour[:, :k], 0.1)
        assert (joined <= instance).all()
    assert_close(joined, torch.zeros(20), atol=1e-5, rtol=0)


def test_similarities_are_not_rounded_where_the_network_is():
    z, bank, index = unit(Rng(1), 20, 8), unit(Rng(2), 20, 8), torch.arange(20)
    _, neighbour = nd.discover(bank, 1, 0.1)
    with torch.autocast("cpu", torch.bfloat16):
        half = nd.likelihoods(z, bank, index, neighbour, 0.1)
    assert_close(half, nd.likelihoods(z, bank, index, neighbour, 0.1), rtol=0, atol=0)


def test_the_gradient_is_the_one_derived_by_hand():
    z, bank = unit(Rng(1), 4, 8).requires_grad_(), unit(Rng(2), 12, 8)
    index, neighbour = torch.tensor([0, 3, 7, 11]), torch.tensor([[1, 2], [4, 0], [6, 5], [10, 2]])
    _, joined = nd.likelihoods(z, bank, index, neighbour, 0.1)
    joined.sum().backward()
    p = (z.detach() @ bank.T / 0.1).softmax(1)
    for b in range(4):
        positive = [int(index[b]), *neighbour[b].tolist()]
        total = sum(p[b, j] for j in positive)
        expected = (p[b] @ bank - sum(p[b, j] / total * bank[j] for j in positive)) / 0.1
        assert z.grad is not None
        assert_close(z.grad[b], expected, atol=1e-4, rtol=1e-4)


def test_an_untrained_net_cannot_tell_fifty_thousand_images_apart():
    """ln N and half the variance of the logits: 10.82 + 0.39."""
    method = built(50_000)
    total = method.loss(method.pretext(Pictures(50_000).__getitems__(torch.arange(64)), Rng(1))).total
    assert 11.0 < total.item() < 11.4


def test_anchors_and_instances_are_scored_each_in_their_way():
    method = built()
    method.anchor[:5] = True
    method.neighbour.copy_((torch.arange(40)[:, None] + 1) % 40)
    p = method.eval().pretext(Pictures(40).__getitems__(torch.arange(10)), Rng(1))
    with torch.no_grad():
        found, z = method.loss(p), method.project(p.image)
    instance, joined = nd.likelihoods(z, method.bank, p.index, method.neighbour[p.index], 0.1)
    assert_close(found.total, torch.cat([joined[:5], instance[5:]]).mean())
    assert_close(found.parts["anchors"], torch.tensor(0.5))
    assert_close(found.parts["anchor"], joined[:5].mean())
    assert_close(found.parts["instance"], instance.mean())


@pytest.mark.parametrize(("config", "side"), [(nd.Config(), 12), (nd.Paper(), 16)])
def test_views_are_smaller_than_the_image_but_for_the_papers(config, side):
    p = built(config=config).pretext(Pictures(40).__getitems__(torch.arange(4)), Rng(1))
    assert p.image.shape == (4, 3, side, side)


# ---- bank


def test_bank_rows_start_within_the_published_bound_and_by_the_rng():
    method = built(2000)
    assert 0.1525 < method.bank.abs().max() <= 0.1531
    assert abs(method.bank.norm(dim=1).mean() - 1) < 0.01
    assert torch.equal(method.bank, built(2000).bank)


def test_a_seen_row_moves_halfway_and_keeps_unit_length_and_no_other_moves():
    method = built()
    before, z, index = method.bank.clone(), unit(Rng(1), 6, 128), torch.tensor([3, 30, 7, 8, 20, 39])
    method.after_step((index, z), Plan.of(1, 1).at(0))
    halfway = 0.5 * before[index] + 0.5 * z
    assert_close(method.bank[index], halfway / halfway.norm(dim=1, keepdim=True))
    others = torch.ones(40, dtype=torch.bool)
    others[index] = False
    assert torch.equal(method.bank[others], before[others])


def test_what_is_carried_are_the_views_own_rows():
    method = built()
    p = method.pretext(Pictures(40).__getitems__(torch.tensor([5, 1, 9, 2])), Rng(1))
    index, z = method.loss(p).carry
    assert index.tolist() == [5, 1, 9, 2]
    assert z.shape == (4, 128)
    assert not z.requires_grad
    assert_close(z.norm(dim=1), torch.ones(4))


def test_the_solver_names_the_image_whose_row_is_nearest():
    method = built().eval()
    p = method.pretext(Pictures(40).__getitems__(torch.arange(40)), Rng(1))
    with torch.no_grad():
        method.bank.copy_(method.project(p.image))
        assert torch.equal(method.solve(p)["index"], p.index)


# ---- discovery


def test_discovery_is_what_the_slow_formula_says():
    bank = unit(Rng(1), 30, 8)
    entropy, neighbour = nd.discover(bank, 3, 0.1)
    for i in range(30):
        p = torch.tensor([math.exp(float(bank[i] @ bank[j]) / 0.1) for j in range(30)])  # oneself included
        p = p / p.sum()
        assert_close(entropy[i], -(p * p.log()).sum())
        others = sorted((j for j in range(30) if j != i), key=lambda j: -float(bank[i] @ bank[j]))
        assert neighbour[i].tolist() == others[:3]


def test_blocks_change_nothing_and_never_hold_all_pairs(monkeypatch):
    bank = unit(Rng(1), 101, 16)
    whole = nd.discover(bank, 2, 0.1)
    for block in (1, 101 * 7, 101 * 101):
        entropy, neighbour = nd.discover(bank, 2, 0.1, block=block)
        assert_close(entropy, whole[0])
        assert torch.equal(neighbour, whole[1])
    largest = 0
    topk = Tensor.topk

    def watched(self, k):
        nonlocal largest
        largest = max(largest, self.numel())
        return topk(self, k)

    monkeypatch.setattr(Tensor, "topk", watched)
    nd.discover(bank, 2, 0.1, block=101 * 7)
    assert largest == 101 * 7


def test_nobody_is_its_own_neighbour_even_among_copies():
    bank = unit(Rng(1), 1, 8).repeat(12, 1)
    _, neighbour = nd.discover(bank, 11, 0.1)
    assert neighbour.shape == (12, 11)
    for i, row in enumerate(neighbour.tolist()):
        assert sorted(row) == [j for j in range(12) if j != i]


@pytest.mark.parametrize(
    ("n", "counts"),
    [(50_000, [0, 12_500, 25_000, 37_500, 50_000]), (73_257, [0, 18_314, 36_628, 54_942, 73_257])],
)
def test_anchors_grow_by_quarters(n, counts, monkeypatch):
    method = built(n)
    fake = (Rng(1).uniform(n), torch.ones(n, 1, dtype=torch.int64))
    monkeypatch.setattr(nd, "discover", lambda *_: fake)
    seen = []
    for r in range(5):
        method.begin_epoch(context(n, 2 * r))
        seen.append(int(method.anchor.sum()))
    assert seen == counts


def test_the_anchors_are_the_surest_and_are_found_anew_from_the_bank_at_each_round():
    method = built(config=nd.Config(neighbours=2))
    method.bank.copy_(F.normalize(method.bank, dim=1))
    before = method.bank.clone()
    method.begin_epoch(context(40, 4))
    entropy, neighbour = nd.discover(method.bank, 2, 0.1)
    assert method.anchor.sum() == 20
    assert entropy[method.anchor].max() <= entropy[~method.anchor].min()
    assert torch.equal(method.neighbour, neighbour)  # among all, anchors or not
    assert method.neighbour[method.anchor].shape == (20, 2)
    assert torch.equal(method.bank, before)  # carried over, never drawn anew

    first = method.anchor.clone()
    method.bank.copy_(unit(Rng(9), 40, 128))
    method.begin_epoch(context(40, 5))  # the middle of a round
    assert torch.equal(method.anchor, first)
    assert torch.equal(method.neighbour, neighbour)
    method.begin_epoch(context(40, 6))
    assert method.anchor.sum() == 30
    assert torch.equal(method.neighbour, nd.discover(method.bank, 2, 0.1)[1])


def test_a_run_of_one_round_tells_instances_apart():
    method = built()
    method.begin_epoch(context(40, 0, rounds=1))
    assert not method.anchor.any()


def test_a_state_restored_in_the_middle_of_a_round_keeps_its_anchors():
    method = built()
    method.begin_epoch(context(40, 4))
    resumed = built(config=nd.Config())
    resumed.load_state_dict(method.state_dict())
    batch = Pictures(40).__getitems__(torch.arange(10))
    costs = [m.loss(m.pretext(batch, Rng(3))).total for m in (method, resumed)]
    assert costs[0] == costs[1]
    assert resumed.anchor.sum() == 20


def test_only_the_practical_recipe_mirrors():
    ramp = torch.linspace(0, 255, 16).to(torch.uint8).expand(32, 3, 16, 16)  # dark left, bright right
    batch = Batch(torch.arange(32), ramp)
    mirrored = {}
    for config in (nd.Config(), nd.Paper()):
        x = built(config=config).pretext(batch, Rng(1)).image
        mirrored[type(config)] = (x[..., 0].mean((1, 2)) > x[..., -1].mean((1, 2))).sum().item()
    assert mirrored[nd.Paper] == 0
    assert 6 < mirrored[nd.Config] < 26


def test_the_published_net_is_a_resnet18_of_the_cifar_kind():
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


def test_the_published_shortcuts_halve_by_stride():
    """models/resnet_cifar.py:26-38, the block that begins a stage, written out."""
    block = encoders.build(nd.Paper.encoder, 3, 32).net.stage2[0].eval()
    x = Rng(1).normal(2, 64, 8, 8)
    conv1, bn1, _, conv2, bn2 = block.body
    conv3, bn3 = (m for m in block.shortcut if not isinstance(m, torch.nn.AvgPool2d))
    out = bn2(conv2(bn1(conv1(x)).relu())) + bn3(
        torch.einsum("oi,bihw->bohw", conv3.weight[:, :, 0, 0], x[:, :, ::2, ::2])
    )
    assert_close(block(x), out.relu())


def test_fewer_images_than_neighbours_is_a_one_line_error():
    with pytest.raises(UserError, match="more than 3 images"):
        nd.Config(neighbours=3).build(encoders.build(SMALL, 3, 16), Pictures(3))


def test_neighbours_are_looked_for_once_a_round_in_a_run_that_is_stretched(monkeypatch):
    method, found, plain = built(), [], nd.discover
    monkeypatch.setattr(nd, "discover", lambda *given: found.append(now) or plain(*given))
    plan = Plan.of(20, 1, 5).changed(6, 126)  # an epoch a step
    for step in range(126):
        now = plan.at(step)
        method.begin_epoch(Context(Pictures(40), [], now, Rng(0, "begin", step)))
        assert method.anchor.sum() == 40 * now.round // 4
    assert [now.round for now in found] == [1, 2, 3, 4] and all(now.first_of_round for now in found)


# ---- what is kept for the report


def kept(method: nd.NeighbourhoodDiscovery, epoch: int) -> dict[str, Tensor]:
    at = context(len(method.bank), epoch)
    method.begin_epoch(at)
    return {name: load(content) for name, content in at.files.items()}


def test_every_round_leaves_its_anchors_neighbors_and_entropies():
    method = built(config=nd.Config(neighbours=2))
    assert kept(method, 0) == {}  # no neighbors yet
    for number, epoch in enumerate((2, 4, 6, 8), 1):
        method.bank.copy_(unit(Rng(number), 40, 128))
        found = kept(method, epoch)
        assert list(found) == [f"neighbors-{number}.safetensors"]
        (found,) = found.values()
        assert found["anchor"].sum() == 10 * number
        assert torch.equal(found["anchor"], method.anchor)
        assert torch.equal(found["neighbor"].long(), method.neighbour)
        assert_close(found["entropy"], nd.discover(method.bank, 2, 0.1)[0])
        assert kept(method, epoch + 1) == {}  # the middle of a round

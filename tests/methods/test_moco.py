"""Fidelity of MoCo (He et al. 2020, eq. 1 and algorithm 1; Chen et al. 2021, algorithm 1)."""

import copy
import dataclasses
import math

import pytest
import torch
import torch.nn.functional as F
from torch import nn
from torch.testing import assert_close

from pretask import api, data, encoders, methods
from pretask.config import lr_factor
from pretask.encoders.saved import save_encoder
from pretask.methods import moco
from pretask.methods.base.context import Context
from pretask.rng import Rng
from pretask.train.plan import Plan
from pretask.transforms import augment
from pretask.transforms.color import luma
from pretask.types import UserError

NOW = Plan.of(10, 10).at(0)


def unit(n, seed, d=8):
    return F.normalize(Rng(seed).normal(n, d), dim=1)


def made(**config):
    torch.manual_seed(0)
    source = data.open("synthetic:32:16")
    method = (
        dataclasses.replace(moco.Config(queue=64), **config)
        .build(encoders.build("resnet_small:width=16", 3, 16), source)
        .train()
    )
    method.begin(Context(source, [], NOW, Rng(0, "begin")))
    method.puzzle = method.pretext(source.__getitems__(torch.arange(32)), Rng(0))
    return method


def test_info_nce_is_equation_1():
    q, k, queue, t = unit(4, 1), unit(4, 2), unit(7, 3), 0.3
    slow = 0.0
    for i in range(4):
        right = math.exp(float(q[i] @ k[i]) / t)
        slow -= math.log(right / (right + sum(math.exp(float(q[i] @ other) / t) for other in queue))) / 4
    assert_close(moco.info_nce_queue(q, k, queue, t)[0].item(), slow)
    every = torch.cat([k, queue])
    slow = -sum(
        math.log(math.exp(float(q[i] @ k[i]) / t) / sum(math.exp(float(q[i] @ e) / t) for e in every))
        for i in range(4)
    )
    assert_close(moco.info_nce(q, every, torch.arange(4), t)[0].item(), slow / 4)


def test_values_and_gradients_match_lightly():
    lightly = pytest.importorskip("lightly.loss")
    theirs = lightly.NTXentLoss(temperature=0.2, memory_bank_size=(16, 8))
    queue = unit(16, 3)
    theirs.memory_bank.bank = queue.clone()
    theirs.memory_bank.bank_ptr = torch.zeros(1, dtype=torch.int64)
    a, b = Rng(1).normal(6, 8).requires_grad_(), Rng(2).normal(6, 8)
    c = a.detach().clone().requires_grad_()
    ours = moco.info_nce_queue(F.normalize(a, dim=1), F.normalize(b, dim=1), queue, 0.2)[0]
    other = theirs(c, b)
    ours.backward()
    other.backward()
    assert_close(ours, other)
    assert_close(a.grad, c.grad)


def test_loss_of_random_rows_is_at_chance():
    q, k, queue = unit(64, 1, 2048), unit(64, 2, 2048), unit(511, 3, 2048)
    loss, accuracy = moco.info_nce_queue(q, k, queue, 1.0)
    assert abs(loss - math.log(512)) < 0.02 and accuracy < 0.1


def test_queries_are_the_students_of_view1_and_keys_the_teachers_of_view2():
    method = made()
    with torch.no_grad():
        for p in method.teacher.parameters():
            p.mul_(1.3)
    method.eval()
    p, (encoder, projector) = method.puzzle, method.teacher
    q = F.normalize(method.projector(method.encoder(p.view1)["pool"]), dim=1)
    k = F.normalize(projector(encoder(p.view2)["pool"]), dim=1)
    assert_close(method.loss(p).total, moco.info_nce_queue(q, k, method.queue, 0.2)[0])
    assert_close(method.loss(p).carry, k)
    assert not method.loss(p).carry.requires_grad


def test_oldest_keys_leave_the_queue_first():
    method = made(queue=10)
    old, first, second = method.queue.clone(), unit(4, 5, 128), unit(8, 6, 128)
    assert_close(old.norm(dim=1), torch.ones(10))
    method.after_step(first, NOW)
    assert torch.equal(method.queue, torch.cat([first, old[4:]]))
    method.after_step(second, NOW)
    assert torch.equal(method.queue, torch.cat([second[6:], first[2:], second[:6]])) and method.queue_ptr == 2


def test_queue_keeps_the_last_keys_of_a_larger_batch():
    method, key = made(queue=10), unit(32, 5, 128)
    method.after_step(key, NOW)
    assert torch.equal(method.queue, key[-10:])


def test_ema_momentum_is_constant_with_a_queue():
    for queue, momentum in ((64, 0.99), (0, 0.995)):
        method = made(queue=queue)
        before = [p.clone() for p in method.teacher.parameters()]
        for p in (*method.encoder.parameters(), *method.projector.parameters()):
            p.data += 1
        method.after_step(unit(32, 1, 128), Plan.of(10, 10).at(5))
        for old, p in zip(before, method.teacher.parameters(), strict=True):
            assert_close(p, old + (1 - momentum), rtol=0, atol=1e-6)


def test_v3_loss_is_symmetric_with_in_batch_negatives_and_a_predictor():
    method = made(queue=0).eval()
    p, t, (encoder, projector) = method.puzzle, 0.2, method.teacher
    q1, q2 = (
        F.normalize(method.predictor(method.projector(method.encoder(x)["pool"])), dim=1)
        for x in (p.view1, p.view2)
    )
    k1, k2 = (F.normalize(projector(encoder(x)["pool"]), dim=1) for x in (p.view1, p.view2))
    own = torch.arange(32)
    expected = F.cross_entropy(q1 @ k2.T / t, own) + F.cross_entropy(q2 @ k1.T / t, own)
    assert_close(method.loss(p).total, 2 * t * expected)
    assert method.loss(p).carry is None


def test_v3_batch_norms_see_one_view_at_a_time():
    """Appendix A of v3: the two crops of an image are never in one batch."""
    method = made(queue=0).train()
    p, alone = method.puzzle, copy.deepcopy(method)
    total = method.loss(p).total
    encoder, projector = alone.teacher
    q1, q2 = (alone.predictor(alone.projector(alone.encoder(x)["pool"])) for x in (p.view1, p.view2))
    k1, k2 = (projector(encoder(x)["pool"]) for x in (p.view1, p.view2))
    q1, q2, k1, k2 = (F.normalize(x, dim=1) for x in (q1, q2, k1, k2))
    own = torch.arange(32)
    expected = F.cross_entropy(q1 @ k2.T / 0.2, own) + F.cross_entropy(q2 @ k1.T / 0.2, own)
    assert_close(total, 2 * 0.2 * expected)


def layers(net):
    return [
        (type(x).__name__, [tuple(p.shape) for p in x.parameters()])
        for x in net.modules()
        if not isinstance(x, nn.Sequential)
    ]


def test_v1_projector_is_one_linear_layer():
    """moco/builder.py:31 at 7397dfe: the last layer of the ResNet, for 128 classes."""
    config = methods.recipe("moco:paperv1")()
    method = made(hidden=config.hidden, hidden_bn=config.hidden_bn, width=config.width)
    expected = [("Linear", [(128, method.encoder.dim), (128,)])]
    assert layers(method.projector) == expected and layers(method.teacher[1]) == expected


def test_v2_projector_is_the_released_one_without_batch_norm():
    """moco/builder.py:36 at 7397dfe: Linear, ReLU, Linear, all with biases."""
    method = made(hidden=40, width=24, hidden_bn=moco.Paper().hidden_bn)
    expected = [("Linear", [(40, method.encoder.dim), (40,)]), ("ReLU", []), ("Linear", [(24, 40), (24,)])]
    assert layers(method.projector) == expected and layers(method.teacher[1]) == expected
    assert layers(method.predictor) == [("Identity", [])]


def test_v3_heads_of_a_resnet_are_the_released_ones():
    """moco/builder.py:36-52 and 105-109 at c349e6e: two matrices each; the projector ends in a batch norm without gain."""
    method = made(queue=0, hidden=40, width=24)

    def two_layers(i):
        return [("Linear", [(40, i)]), ("BatchNorm1d", [(40,), (40,)]), ("ReLU", []), ("Linear", [(24, 40)])]

    projector = [*two_layers(method.encoder.dim), ("BatchNorm1d", [])]
    assert layers(method.projector) == projector and layers(method.teacher[1]) == projector
    assert layers(method.predictor) == two_layers(24)
    out = method.train().projector(Rng(1).normal(64, method.encoder.dim))
    assert_close(out.mean(0), torch.zeros(24), atol=1e-5, rtol=0)
    assert_close(out.square().mean(0), torch.ones(24), atol=1e-2, rtol=0)


VIT = "vit_tiny_patch16_224:patch_size=4,embed_dim=48,depth=2"


def test_v3_heads_of_a_vit_are_the_released_ones():
    """moco/builder.py:36-52 and 112-122 at c349e6e: a third matrix in the projector, and both end in a batch norm."""
    config = moco.V3(hidden=40, width=24)
    source = data.open("synthetic:32:16")
    method = config.build(config.build_encoder(VIT, source), source)

    def hidden(i):
        return [("Linear", [(40, i)]), ("BatchNorm1d", [(40,), (40,)]), ("ReLU", [])]

    end = [("Linear", [(24, 40)]), ("BatchNorm1d", [])]
    assert layers(method.projector) == [*hidden(48), *hidden(40), *end] == layers(method.teacher[1])
    assert layers(method.predictor) == [*hidden(24), *end]


@pytest.fixture(scope="module")
def vit_small():
    """MoCo with the recipe's encoder, initialized by the recipe."""
    config, source = methods.recipe("moco:paperv3vit")(), data.open("synthetic:2:224")
    torch.manual_seed(0)
    return config.build(config.build_encoder(config.encoder, source), source)


def test_v3_vit_has_as_many_parameters_as_the_released_one(vit_small):
    """Counted by hand from vits.py and moco/builder.py at c349e6e."""
    block = 2 * 768 + (384 * 1152 + 1152) + (384 * 384 + 384) + (384 * 1536 + 1536) + (1536 * 384 + 384)
    patch_embed, pos_embed = 3 * 16 * 16 * 384 + 384, 197 * 384
    net = vit_small.encoder.net
    assert (
        sum(p.numel() for p in net.parameters())
        == patch_embed + 384 + pos_embed + 12 * block + 768
        == 21_665_664
    )
    assert sum(p.numel() for p in net.parameters() if p.requires_grad) == 21_665_664 - patch_embed - pos_embed
    assert [block.attn.num_heads for block in net.blocks] == [12] * 12
    assert {layer.eps for layer in net.modules() if isinstance(layer, nn.LayerNorm)} == {1e-6}
    projector = 384 * 4096 + 4096 * 4096 + 4096 * 256 + 2 * 2 * 4096
    assert sum(p.numel() for p in vit_small.projector.parameters()) == projector == 19_415_040
    assert sum(p.numel() for p in vit_small.predictor.parameters()) == 2 * 256 * 4096 + 2 * 4096 == 2_105_344


def test_v3_vit_is_initialized_as_the_released_one(vit_small):
    """vits.py:32-50 at c349e6e: all uniform, between -b and b."""
    bounds = {
        "patch_embed.proj.weight": math.sqrt(6 / (3 * 16 * 16 + 384)),
        "qkv.weight": math.sqrt(6 / (384 + 384)),  # query, key and value separately
        "attn.proj.weight": math.sqrt(6 / (384 + 384)),
        "fc1.weight": math.sqrt(6 / (384 + 1536)),
        "fc2.weight": math.sqrt(6 / (1536 + 384)),
    }
    for name, w in vit_small.encoder.net.named_parameters():
        for end, bound in bounds.items():
            if name.endswith(end):
                assert w.abs().max() <= bound and abs(w.std() * math.sqrt(3) / bound - 1) < 0.01, name
        if name.endswith("bias"):
            assert not w.any(), name
    assert vit_small.encoder.net.cls_token.abs().max() < 1e-5


def test_position_embeddings_are_the_released_ones_up_to_channel_order(vit_small):
    """vits.py:53-69 at c349e6e; the class token's is 0."""
    ours = vit_small.encoder.net.pos_embed[0].detach()
    theirs = []
    for row in range(14):
        for column in range(14):
            angles = [[at / 10_000 ** (i / 96) for i in range(96)] for at in (row, column)]
            theirs.append([f(a) for each in angles for f in (math.sin, math.cos) for a in each])
    assert not ours[0].any()
    assert_close(ours[1:].sort(0).values.sum(0).sort().values, torch.tensor(theirs).sum(0).sort().values)
    assert_close(ours[1:] @ ours[1:].T, torch.tensor(theirs) @ torch.tensor(theirs).T, atol=1e-3, rtol=0)


def fixed(encoder):
    """The tensors that no step may change, by name."""
    return {
        k: v.clone()
        for k, v in encoder.net.state_dict().items()
        if k.startswith(("patch_embed", "pos_embed"))
    }


def equal(one, other):
    return one.keys() == other.keys() and all(torch.equal(one[k], other[k]) for k in one)


@pytest.mark.parametrize("given", [False, True])
def test_patch_embedding_stays_frozen_also_after_a_resume(given, tmp_path):
    """--stop-grad-conv1 of the released commands; also in the teacher, and if weights are loaded."""
    config = moco.V3()
    torch.manual_seed(2)
    first = config.build_encoder(VIT, data.open("synthetic:64:16"))
    if given:
        (tmp_path / "given").mkdir()
        with torch.no_grad():
            for p in first.parameters():
                p.add_(0.1)
        save_encoder(first, tmp_path / "given")
    run = api.pretrain(
        "moco:v3", "synthetic:64:16", tmp_path / "run", encoder=VIT, seed=2, steps=3,
        init=tmp_path / "given" if given else None, config={"hidden": 32, "ema_momentum": 0.5}, quiet=True,
        batch=16, lr=0.01, weight_decay=0.1, warmup=0.0, decay_all=True,
    )  # fmt: skip
    early = run.encoder.net.blocks[0].mlp.fc1.weight.clone()
    assert not torch.equal(early, first.net.blocks[0].mlp.fc1.weight)
    assert len(fixed(first)) == 3 and equal(fixed(run.encoder), fixed(first))
    longer = api.pretrain(None, resume=tmp_path / "run", steps=6, quiet=True)
    assert not torch.equal(longer.encoder.net.blocks[0].mlp.fc1.weight, early)
    assert equal(fixed(longer.encoder), fixed(first))
    assert equal(fixed(longer.method.teacher[0]), fixed(first))


def test_all_parameters_of_a_vit_are_trained_with_a_queue():
    source, config = data.open("synthetic:32:16"), moco.Config(queue=64)
    torch.manual_seed(0)
    drawn = config.build_encoder(VIT, source)
    torch.manual_seed(0)
    plain = encoders.build(VIT, 3, 16)
    assert all(torch.equal(a, b) for a, b in zip(drawn.parameters(), plain.parameters(), strict=True))
    assert all(p.requires_grad for p in config.build(drawn, source).encoder.parameters())


def test_v3_requires_hidden_layers_and_a_width_divisible_by_4():
    source = data.open("synthetic:32:16")
    with pytest.raises(UserError, match="--hidden"):
        made(queue=0, hidden=0)
    with pytest.raises(UserError, match=r"width must be a multiple of 4; .* has 42"):
        moco.V3().build_encoder("vit_tiny_patch16_224:patch_size=4,embed_dim=42,depth=1", source)


def test_views_of_version_1_lose_their_colors_before_they_are_jittered(monkeypatch):
    """main_moco.py:342-345 at 7397dfe; jittering the hue has no effect on gray images."""
    drawn, inner = [], augment.color_jitter
    monkeypatch.setattr(
        augment, "color_jitter", lambda x, rng, *strengths, p: drawn.append((*strengths, p)) or inner(x, rng, *strengths, p=p)
    )  # fmt: skip
    x, whole = Rng(1).uniform(8, 3, 16, 16), {"crop": (1.0, 1.0), "flip": 0.0}
    one, other = methods.recipe("moco:paperv1")().augmentations()
    assert one == other and (one.crop, one.flip, one.gray) == ((0.2, 1.0), 0.5, 0.2)
    assert not one.blur and not one.solarize
    drawn.clear()
    one(x, 16, Rng(0))
    assert drawn == [pytest.approx((0.4, 0.4, 0.4, 0.4, 1.0))]
    with monkeypatch.context() as turning:
        turning.setattr(
            augment, "color_jitter", lambda x, rng, *strengths, p: inner(x, rng, 0, 0, 0, strengths[3], p)
        )
        gray, colored = (dataclasses.replace(one, **whole, gray=p)(x, 16, Rng(0)) for p in (1.0, 0.0))
    assert_close(gray, luma(x).expand_as(x), atol=1e-4, rtol=0)
    assert (luma(colored) - luma(x)).abs().max() > 0.1


@pytest.mark.parametrize("queue", [64, 0])
def test_no_gradient_reaches_the_teacher(queue):
    method = made(queue=queue)
    method.loss(method.puzzle).total.backward()
    assert all(p.grad is None for p in method.teacher.parameters())
    assert all(p.grad is not None for p in method.projector.parameters())


def test_recipes_match_the_released_versions():
    v2, v3 = moco.Paper(), moco.PaperV3()
    assert (v2.queue, v2.ema_momentum, v2.temperature, v2.train.optimizer, v2.train.lr) == (
        65_536,
        0.999,
        0.2,
        "sgd",
        0.03,
    )
    assert (v2.train.weight_decay, v2.train.decay_all, v2.train.nesterov) == (1e-4, True, False)
    # CONFIG.md of moco-v3: 300 epochs with the defaults 1e-6 and 0.99; 1.5e-6 and 0.996 are for 1000
    assert (v3.train.epochs, v3.train.weight_decay, v3.ema_momentum) == (300, 1e-6, 0.99)
    assert (v3.queue, v3.train.lr, v3.train.batch) == (0, 4.8, 4096)
    assert v3.augmentations()[0] != v3.augmentations()[1] and v2.augmentations()[0] == v2.augmentations()[1]
    v1, vit = moco.PaperV1(), moco.PaperV3ViT()
    assert (v1.queue, v1.ema_momentum, v1.temperature, v1.width, v1.encoder) == (
        65_536,
        0.999,
        0.07,
        128,
        v2.encoder,
    )
    rates = [v1.train.lr * lr_factor(v1.train, epoch / 200) for epoch in (0, 119, 120, 159, 160, 199)]
    assert rates == pytest.approx([0.03, 0.03, 0.003, 0.003, 0.0003, 0.0003])  # main_moco.py:494 at 7397dfe
    assert (vit.train.lr, vit.train.batch, vit.train.optimizer) == (1.5e-4 * 16, 4096, "adamw")
    assert (vit.temperature, vit.ema_momentum, vit.views.crop) == (0.2, 0.99, (0.08, 1.0))
    (method_groups,) = made(queue=0).optimizers(vit.train)
    assert {group["weight_decay"] for group in method_groups.param_groups} == {0.1}


def test_v2_residual_branches_are_not_zero_initialized():
    """v2 builds torchvision's ResNet; timm's initializes the last gain of each branch with 0."""
    norm = encoders.build(moco.Paper.encoder, 3, 32).net.layer1[0].bn3
    assert norm.weight.eq(1).all()
    assert encoders.build(moco.PaperV3.encoder, 3, 32).net.layer1[0].bn3.weight.eq(0).all()

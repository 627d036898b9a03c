"""EMA teachers have no dropout and no stochastic depth, and their batch norms use batch statistics."""

import pytest
import torch
from torch import nn
from torch.testing import assert_close

from pretask import data, encoders, methods
from pretask.encoders.heads import ema_copy
from pretask.rng import Rng

VIT = (
    "vit_tiny_patch16_224:patch_size=4,embed_dim=24,num_heads=2,depth=3,global_pool=avg,fc_norm=False,"
    "class_token=False,drop_path_rate=0.5,proj_drop_rate=0.3,attn_drop_rate=0.3,pos_drop_rate=0.3"
)


@pytest.mark.parametrize("name", ["byol", "moco", "moco:v3", "dino", "ibot", "dinov2", "ijepa", "densecl"])
def test_a_teacher_is_deterministic_and_its_student_is_not(name):
    source, config = data.open("synthetic:8:32"), methods.recipe(name)()
    torch.manual_seed(0)
    method = config.build(encoders.build(VIT, 3, 32), source).train()
    teacher = method.teacher if name == "ijepa" else method.teacher[0]
    x = Rng(0).uniform(8, 3, 32, 32)
    with torch.no_grad():
        first, again = (teacher(x)["pool"] for _ in range(2))
        student, other = (method.encoder(x)["pool"] for _ in range(2))
        whole = method.encoder.eval()(x)["pool"]
    assert torch.equal(first, again) and (student - other).abs().max() > 0.1
    assert_close(first, whole)


@pytest.mark.parametrize(
    "spec",
    ["resnet10t:drop_rate=0.5,drop_path_rate=0.5,drop_block_rate=0.5", "convnext_atto:drop_path_rate=0.5"],
)
def test_ema_copy_disables_all_dropout_of_timm_networks(spec):
    torch.manual_seed(0)
    encoder = encoders.build(spec, 3, 32).train()
    teacher, x = ema_copy(encoder), Rng(0).uniform(4, 3, 32, 32)
    with torch.no_grad():
        assert torch.equal(teacher(x)["pool"], teacher(x)["pool"])
        assert not torch.equal(encoder(x)["pool"], encoder(x)["pool"])
    assert not any(w.requires_grad for w in teacher.parameters())


def test_ema_copy_disables_patch_dropout():
    encoder = encoders.build(f"{VIT},patch_drop_rate=0.5", 3, 32)
    assert [part.prob for part in ema_copy(encoder).modules() if hasattr(part, "prob")] == [0.0]
    assert [part.prob for part in encoder.modules() if hasattr(part, "prob")] == [0.5]


def test_batch_norms_of_a_teacher_use_batch_statistics_in_training_mode():
    """`is_training=True` for BYOL's target network; DINO's and MoCo's teachers stay in training mode as well."""
    net = nn.Sequential(nn.BatchNorm1d(5), nn.Dropout(0.5), nn.Linear(5, 5))
    teacher, x = ema_copy(net).train(), 3 + 2 * Rng(0).normal(16, 5)
    normalized = (x - x.mean(0)) / (x.var(0, correction=0) + 1e-5).sqrt()
    assert_close(teacher(x), normalized @ net[2].weight.T + net[2].bias)
    assert net[1].p == 0.5

"""Continuing from weights: adapters, frozen stages and batch norms, the pull toward the start."""

import copy
import json
from dataclasses import replace

import pytest
import torch
from safetensors.torch import save_file
from torch.testing import assert_close

import pretask
from pretask import encoders
from pretask.config import TrainConfig, continued
from pretask.encoders import layers, origins
from pretask.errors import UserError
from pretask.methods import recipe
from pretask.train import continuing, run, trainer
from pretask.train.plan import Plan
from pretask.train.run import Run
from pretask.workflows import job as jobs
from pretask.workflows.pretrain import pretrain

VIT = "vit_tiny_patch16_224:patch_size=4,embed_dim=32,depth=8,num_heads=2"
REGISTERS = "vit_small_patch14_reg4_dinov2:patch_size=4,embed_dim=32,depth=3,num_heads=2"
NET = "resnet_small:width=16"
SHORT = {"steps": 6, "batch": 16, "quiet": True, "size": 16}


@pytest.fixture(scope="module")
def published(tmp_path_factory):
    """A file of weights for NET, and the encoder that holds them."""
    torch.manual_seed(7)
    made = encoders.build(NET, 3, 16)
    path = tmp_path_factory.mktemp("published") / "weights.safetensors"
    save_file(made.net.state_dict(), path)
    return path, made


def start(tmp_path, published, method="simclr", **more):
    path, _ = published
    return pretask.pretrain(
        method, "synthetic:64:16", tmp_path / "run", init=f"{NET}@{path}", **{**SHORT, **more}
    )


# ---- the recipe


def test_a_run_with_init_has_the_recipe_for_continuing_and_its_card_says_what_was_loaded(tmp_path, published):
    card = start(tmp_path, published).card
    usual = recipe("simclr").train
    assert (card["train"]["encoder_lr_scale"], card["train"]["layer_decay"]) == (0.1, 0.9)
    assert (card["train"]["lr"], card["train"]["warmup"]) == (usual.lr, 0.1)
    assert (card["train"]["head_first"], card["train"]["freeze_norms"]) == (0.1, True)
    assert card["loaded"].startswith("loaded ")
    assert card["encoder"] == NET


def test_the_encoder_of_the_weights_is_the_default_and_given_values_stay(tmp_path, published):
    card = start(tmp_path, published, encoder_lr_scale=1.0, warmup=0.3).card
    assert (card["train"]["encoder_lr_scale"], card["train"]["warmup"]) == (1.0, 0.3)


def test_a_recipe_that_moves_the_encoder_less_keeps_its_values():
    train = continued(TrainConfig(encoder_lr_scale=0.01, layer_decay=0.5, warmup=0.2))
    assert (train.encoder_lr_scale, train.layer_decay, train.warmup) == (0.01, 0.5, 0.2)


def test_training_starts_from_the_weights_and_so_does_a_teacher(tmp_path, published):
    made = start(tmp_path, published, "byol", lr=0.0, weight_decay=0.0, freeze_norms=False)
    teacher = made.method.teacher[0]
    for own in (made.initial, teacher):
        assert own is not None
        for name, x in published[1].net.named_parameters():
            assert_close(own.net.get_parameter(name), x)
    untrained = made.untrained.net.get_parameter("stem.0.weight")
    assert (untrained - published[1].net.get_parameter("stem.0.weight")).abs().max() > 0.01


def test_learning_rates_fall_with_depth_from_the_head_to_the_first_layer():
    source = pretask.data.open("synthetic:32:32")
    for spec in (NET, VIT, REGISTERS, "resnet18"):
        encoder = encoders.build(spec, 3, 32)
        method = recipe("simclr")().build(encoder, source)
        train = TrainConfig(lr=1.0, encoder_lr_scale=0.5, layer_decay=0.8)
        (optimizer,) = method.optimizers(train)
        rate = {p: group["lr"] for group in optimizer.param_groups for p in group["params"]}
        found = layers.layers(encoder)
        assert sorted(n for each in found for n in each) == sorted(
            n for n, _ in encoder.net.named_parameters()
        )
        for k, names in enumerate(found):
            expected = 0.5 * 0.8 ** (len(found) - 1 - k)
            for name in names:
                assert rate[encoder.net.get_parameter(name)] == pytest.approx(expected), name
        assert {rate[p] for p in method.projector.parameters()} == {1.0}
        assert len(rate) == sum(1 for _ in method.parameters())


def test_heads_are_trained_first_and_then_the_encoder_too():
    source, plan = pretask.data.open("synthetic:32:16"), Plan.of(100, 1)
    method = recipe("byol")().build(encoders.build(NET, 3, 16), source)
    train = TrainConfig(lr=1.0, warmup=0.05, head_first=0.2, encoder_lr_scale=0.5)
    (optimizer,) = method.optimizers(train)
    inside = set(method.encoder.parameters())
    for group in optimizer.param_groups:
        group["peak"] = group["lr"]
        kinds = {p in inside for p in group["params"]}
        for step, encoder_moves in ((10, False), (19, False), (20, True)):
            rate = trainer.group_lr(group, train, plan.at(step))
            assert kinds == {False} or (rate > 0) == encoder_moves
            assert kinds == {True} or rate > 0
        assert len(kinds) == 1


def test_weight_decay_of_vectors_stays_off_in_the_groups_by_depth():
    source = pretask.data.open("synthetic:32:16")
    method = recipe("simclr")().build(encoders.build(NET, 3, 16), source)
    (optimizer,) = method.optimizers(TrainConfig(weight_decay=0.3, layer_decay=0.9))
    for group in optimizer.param_groups:
        assert {p.ndim > 1 for p in group["params"]} == {group["weight_decay"] == 0.3}


# ---- freezing, adapters, pull


@pytest.mark.parametrize(("spec", "stages", "frozen"), [
    (NET, 2, ("stem", "stage1")),
    ("resnet18", 2, ("conv1", "bn1", "layer1")),
    (VIT, 2, ("cls_token", "pos_embed", "patch_embed", *(f"blocks.{i}" for i in range(4)))),
])  # fmt: skip
def test_the_first_stages_are_frozen(spec, stages, frozen):
    encoder = encoders.build(spec, 3, 32)
    layers.freeze(encoder, stages)
    for name, p in encoder.net.named_parameters():
        inside = any(name == part or name.startswith(f"{part}.") for part in frozen)
        assert p.requires_grad != inside, name


def test_frozen_stages_do_not_move(tmp_path, published):
    made = start(tmp_path, published, freeze=2, freeze_norms=False)
    for name, x in published[1].net.named_parameters():
        moved = not torch.equal(made.encoder.net.get_parameter(name), x)
        assert moved == (not name.startswith(("stem.", "stage1."))), name


def test_freezing_everything_is_an_error(tmp_path, published):
    with pytest.raises(UserError, match="--freeze 4 leaves nothing of resnet_small:width=16 to train"):
        start(tmp_path, published, freeze=4)


def test_the_pull_moves_weights_toward_their_start_by_its_formula():
    encoder = encoders.build(NET, 3, 16)
    pull = continuing.Pull(encoder, 0.5)
    before = {name: p.detach().clone() for name, p in encoder.named_parameters()}
    with torch.no_grad():
        for p in encoder.parameters():
            p += 1
    pull.apply(dict.fromkeys(encoder.parameters(), 0.1))
    for name, p in encoder.named_parameters():
        assert_close(p.detach(), before[name] + 1 - 0.1 * 0.5 * 1)


def test_a_pulled_encoder_stays_closer_to_its_start_and_resumes_exactly(tmp_path, published):
    def distance(run):
        own, start = (dict(e.net.named_parameters()) for e in (run.encoder, run.initial))
        return sum((own[name] - start[name]).square().sum().item() for name in own)

    free = start(tmp_path / "a", published, encoder_lr_scale=1.0, lr=0.01)
    pulled = start(tmp_path / "b", published, encoder_lr_scale=1.0, lr=0.01, pull=50.0)
    assert distance(pulled) < 0.5 * distance(free)
    for name in ("a", "b"):
        pretask.pretrain(None, resume=tmp_path / name / "run", steps=9, quiet=True)
    again = start(tmp_path / "c", published, encoder_lr_scale=1.0, lr=0.01, pull=50.0, steps=9)
    assert Run(tmp_path / "b" / "run").card["steps"] == again.card["steps"]


def test_a_pull_without_weights_is_an_error(tmp_path):
    with pytest.raises(UserError, match="--pull is toward the weights of --init"):
        pretask.pretrain("simclr", "synthetic:64:16", tmp_path / "run", pull=0.1, **SHORT)


def test_adapters_are_the_only_part_of_the_encoder_that_moves_and_merge_without_a_change(tmp_path):
    pytest.importorskip("peft")
    torch.manual_seed(0)
    encoder = encoders.build(VIT, 3, 16)
    save_file(encoder.net.state_dict(), tmp_path / "vit.safetensors")
    made = pretask.pretrain(
        "simclr", "synthetic:64:16", tmp_path / "run", init=f"{VIT}@{tmp_path / 'vit.safetensors'}", lora=4,
        lr=0.01, encoder_lr_scale=1.0, **SHORT,
    )  # fmt: skip
    moved = {
        n for n, x in encoder.net.named_parameters() if not torch.equal(x, made.encoder.net.get_parameter(n))
    }
    assert moved == {f"blocks.{i}.attn.{part}.weight" for i in range(8) for part in ("qkv", "proj")}
    inside = made.method.encoder
    x = torch.rand(2, 3, 16, 16)
    assert_close(made.encoder(x)["pool"], inside.eval()(x)["pool"], atol=1e-5, rtol=1e-5)
    assert [*made.untrained.net.state_dict()] == [*encoder.net.state_dict()]


def test_adapters_are_for_transformers(tmp_path, published):
    pytest.importorskip("peft")
    with pytest.raises(UserError, match="--lora adapts the attention of vision transformers"):
        start(tmp_path, published, lora=4)


# ---- batch norms


def test_batch_norms_hold_the_statistics_of_the_users_images():
    source = pretask.data.open("synthetic:64:16")
    encoder = encoders.build(NET, 3, 16)
    continuing.measure_batch_norms(encoder, source)
    seen = copy.deepcopy(encoder).train()
    first = next(m for m in seen.modules() if isinstance(m, torch.nn.BatchNorm2d))
    inputs = []
    first.register_forward_pre_hook(lambda _, x: inputs.append(x[0]))
    image = source.__getitems__(torch.arange(64)).image.float() / 255
    seen(image)
    own = next(m for m in encoder.modules() if isinstance(m, torch.nn.BatchNorm2d))
    assert not encoder.training
    assert_close(own.running_mean, inputs[0].mean((0, 2, 3)), atol=1e-4, rtol=1e-4)
    assert_close(own.running_var, inputs[0].transpose(0, 1).flatten(1).var(1), atol=1e-3, rtol=1e-3)


def test_batch_norms_are_frozen_and_all_else_is_trained(tmp_path, published):
    made = start(tmp_path, published, lr=0.01)
    before, after = (net.state_dict() for net in (published[1].net, made.encoder.net))
    assert list(before) == list(after)
    norms = [n for n, m in published[1].net.named_modules() if isinstance(m, torch.nn.BatchNorm2d)]
    for name, x in after.items():
        if not name.endswith("num_batches_tracked"):
            assert torch.equal(x, before[name]) == (name.rpartition(".")[0] in norms), name
    inside, x = made.method.encoder, torch.rand(4, 3, 16, 16)
    for training in (True, False):  # no statistics of batches
        assert_close(inside.train(training)(x)["pool"], made.encoder(x)["pool"], atol=1e-5, rtol=1e-5)


def test_run_with_frozen_batch_norms_resumes_exactly(tmp_path, published, monkeypatch):
    def interrupt(row):
        if row["step"] == 2:
            raise KeyboardInterrupt

    whole = start(tmp_path / "whole", published, steps=5)
    monkeypatch.setattr(trainer, "SAVE_EVERY", 0.0)
    _, settings, config, train = run.parse_card(whole.card)
    job = jobs.fresh("simclr", replace(settings, out=tmp_path / "cut"), config, train)
    with pytest.raises(KeyboardInterrupt):
        pretrain(job, on_log=interrupt)
    resumed = pretask.pretrain(None, resume=tmp_path / "cut", quiet=True)
    for name, x in whole.encoder.net.state_dict().items():
        assert torch.equal(x, resumed.encoder.net.state_dict()[name]), name


def test_a_run_from_random_weights_keeps_its_own_statistics(tmp_path):
    made = pretask.pretrain("simclr", "synthetic:64:16", tmp_path / "run", encoder=NET, **SHORT)
    own = made.method.encoder.state_dict()
    assert all(torch.equal(own[name], x) for name, x in made.encoder.state_dict().items())


# ---- size, channels, statistics


def test_weights_of_another_size_and_their_statistics_go_through_a_whole_run(tmp_path):
    torch.manual_seed(0)
    encoder = encoders.build(VIT, 3, 32)
    save_file(encoder.net.state_dict(), tmp_path / "model.safetensors")
    name, arguments = encoders.parse(VIT)
    settings = {"input_size": [3, 32, 32], "mean": [0.1, 0.2, 0.3], "std": [0.4, 0.5, 0.6]}
    config = {"architecture": name, "model_args": arguments, "pretrained_cfg": settings}
    (tmp_path / "config.json").write_text(json.dumps(config))
    made = pretask.pretrain("simclr", "synthetic:64:16", tmp_path / "run", init=tmp_path, **SHORT)
    assert "positions 8×8 → 4×4" in made.card["loaded"]
    for each in (made.encoder, made.method.encoder, made.untrained, made.initial):
        assert_close(each.mean.flatten(), torch.tensor([0.1, 0.2, 0.3]))
        assert_close(each.std.flatten(), torch.tensor([0.4, 0.5, 0.6]))


def test_views_of_several_sizes_get_a_transformer_that_takes_them(tmp_path):
    torch.manual_seed(0)
    save_file(encoders.build(VIT, 3, 16).net.state_dict(), tmp_path / "vit.safetensors")
    text = f"{VIT}@{tmp_path / 'vit.safetensors'}"
    config = {"prototypes": 16, "hidden": 16, "width": 8}
    made = pretask.pretrain("dino", "synthetic:64:16", tmp_path / "run", init=text, config=config, **SHORT)
    assert made.card["encoder"] == f"{VIT},dynamic_img_size=True"


def test_an_architecture_and_a_file_alone(tmp_path, published):
    path, _ = published
    made = pretask.pretrain("simclr", "synthetic:64:16", tmp_path / "run", init=path, encoder=NET, **SHORT)
    assert made.card["loaded"].startswith("loaded ")
    assert made.card["settings"]["init"] == str(path)


def test_partial_weights_need_a_flag_and_stay_in_the_card(tmp_path):
    torch.manual_seed(0)
    state = encoders.build(NET, 3, 16).net.state_dict()
    missing = [*state][-1]
    save_file({name: x for name, x in state.items() if name != missing}, tmp_path / "part.safetensors")
    text = f"{NET}@{tmp_path / 'part.safetensors'}"
    if missing.endswith("num_batches_tracked"):
        missing = next(n for n in reversed([*state]) if not n.endswith("num_batches_tracked"))
        save_file({name: x for name, x in state.items() if name != missing}, tmp_path / "part.safetensors")
    with pytest.raises(UserError, match=f"missing: {missing}"):
        pretask.pretrain("simclr", "synthetic:64:16", tmp_path / "a", init=text, **SHORT)
    made = pretask.pretrain(
        "simclr", "synthetic:64:16", tmp_path / "b", init=text, init_partial=True, **SHORT
    )
    assert f"NOT loaded: {missing}" in made.card["loaded"]


def test_a_moved_file_is_not_needed_to_resume_or_to_score(tmp_path, published):
    path, encoder = published
    copy_ = tmp_path / "gone.safetensors"
    copy_.write_bytes(path.read_bytes())
    made = pretask.pretrain("simclr", "synthetic:64:16", tmp_path / "run", init=f"{NET}@{copy_}", **SHORT)
    copy_.unlink()
    made = pretask.pretrain(None, resume=made.folder, steps=8, quiet=True)
    assert made.initial is not None
    x = torch.rand(2, 3, 16, 16)
    assert_close(made.initial(x)["pool"], encoder.eval()(x)["pool"])


@pytest.mark.parametrize("text", ["timm:resnet18", "resnet18@weights.pth", "weights.pth"])
def test_paths_of_weights_become_absolute(text, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    given = origins.absolute(text)
    assert given == {"timm:resnet18": text}.get(
        text, text.replace("weights.pth", str(tmp_path / "weights.pth"))
    )

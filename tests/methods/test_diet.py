"""DIET and DIET-CP against their authors' code (Balestriero 2023; Rodas et al. 2025)."""

import dataclasses
import math
import re

import pytest
import torch
import torch.nn.functional as F
from torch.testing import assert_close

from pretask import api, data, encoders
from pretask.cli.main import main
from pretask.config import RunConfig, TrainConfig, lr_factor
from pretask.encoders.saved import save_encoder
from pretask.errors import UserError
from pretask.methods import diet
from pretask.rng import Rng
from pretask.train.plan import Plan
from pretask.train.trainer import group_lr
from pretask.transforms import augment
from pretask.workflows.search import Trial

PLAIN = augment.HueAugmentation(crop=(1.0, 1.0), flip=0.0, jitter_p=0.0, gray=0.0)
TINY = f"{diet.Continued.encoder},patch_size=8,embed_dim=48,num_heads=3,depth=4"
"""a small network like that of DIET-CP"""


@pytest.fixture(scope="module")
def source():
    return data.open("synthetic:64:32")


def build(source, config, encoder="resnet_small:width=16"):
    torch.manual_seed(0)
    return config.build(encoders.build(encoder, 3, source.size), source).train()


def puzzle(method, source, n=16, seed=0):
    return method.pretext(source.__getitems__(torch.arange(n)), Rng(seed))


# ---- the task


def test_the_view_of_an_image_has_its_own_index(source):
    """Without augmentation the view is the image; the batch is in another order than the source."""
    order = torch.tensor([40, 3, 17, 63, 8])
    batch = source.__getitems__(order)
    method = build(source, diet.Config(side=1.0, views=PLAIN, erase=0.0))
    found = method.pretext(batch, Rng(0))
    assert torch.equal(found.index, order)
    for view, index in zip(found.image, found.index, strict=True):
        image = source.__getitems__(index[None]).image[0] / 255
        assert_close(view, image, atol=1e-5, rtol=0)


def test_every_image_is_one_class_of_one_linear_layer(source):
    for bias in (True, False):
        method = build(source, diet.Config(bias=bias))
        (layer,) = method.head
        assert layer.weight.shape == (64, method.encoder.dim) and (layer.bias is not None) == bias


def test_loss_is_the_cross_entropy_with_smoothed_targets(source):
    """Target: 1 - s on the own index, and s spread over all images, the own one included."""
    method, s = build(source, diet.Config(label_smoothing=0.3)), 0.3
    p = puzzle(method, source)
    pool = method.encoder(p.image)["pool"]
    weight, bias = method.head[0].weight.detach(), method.head[0].bias.detach()
    total = 0.0
    for z, index in zip(pool.detach(), p.index.tolist(), strict=True):
        logits = [float(weight[n] @ z + bias[n]) for n in range(64)]
        norm = math.log(sum(math.exp(x) for x in logits))
        total += sum(((1 - s) * (n == index) + s / 64) * (norm - logits[n]) for n in range(64)) / 16
    assert_close(method.loss(p).total.item(), total, rtol=1e-4, atol=0)


def test_smallest_loss_is_the_entropy_of_the_targets(source):
    """Logits that are the log of the smoothed target; without smoothing it would be 0."""
    method = build(source, diet.Config())
    p = puzzle(method, source)
    target = 0.8 / 64 + 0.2 * F.one_hot(p.index, 64)
    method.logits = lambda _: target.log()
    entropy = -(0.2125 * math.log(0.2125) + 63 * 0.0125 * math.log(0.0125))
    assert method.loss(p).total.item() == pytest.approx(entropy, rel=1e-4)
    assert method.loss(p).parts["accuracy"] == 1
    wrong = dataclasses.replace(p, index=p.index.roll(1))
    lost = 0.2 * math.log(0.2125 / 0.0125)  # of the 20 % that are not spread
    assert method.loss(wrong).total.item() == pytest.approx(entropy + lost, rel=1e-4)
    assert method.loss(wrong).parts["accuracy"] == 0


@pytest.mark.parametrize("config", [diet.Config(), diet.Config(normalize=True, bias=False)])
def test_untrained_loss_is_that_of_chance(source, config):
    method = build(source, config)
    assert method.loss(puzzle(method, source, 64)).total.item() == pytest.approx(math.log(64), abs=0.15)


def test_normalized_features_have_no_scale(source):
    scaled = []
    for normalize in (True, False):
        method = build(source, diet.Config(normalize=normalize))
        p, pool = puzzle(method, source), Rng(1).normal(16, method.encoder.dim)
        losses = []
        for scale in (1.0, 5.0):
            method.encoder.forward = lambda _, z=scale * pool: {"pool": z}
            losses.append(method.loss(p).total)
        scaled.append(not torch.allclose(*losses))
    assert scaled == [False, True]


def test_predictions_are_right_if_rows_are_the_features(source):
    method = build(source, diet.Config(bias=False)).eval()
    p = puzzle(method, source, 64)
    with torch.no_grad():
        z = method.encoder(p.image)["pool"]
        method.head[0].weight.copy_(F.normalize(z - z.mean(0), dim=1))
        method.encoder.forward = lambda _: {"pool": z - z.mean(0)}
        assert torch.equal(method.predict(p)["index"], p.index)


def test_erased_pixels_are_0_for_the_network(source):
    method = build(source, diet.Config(side=1.0, views=PLAIN, erase=1.0))
    seen = method.encoder.normalized(puzzle(method, source, 64).image)
    whole = method.encoder.normalized(source.__getitems__(torch.arange(64)).image / 255)
    gone = (seen == 0).all(1)
    kept = ~gone[:, None].expand_as(seen)
    assert_close(seen[kept], whole[kept], atol=1e-5, rtol=0)
    share = gone.float().mean((1, 2))
    assert share.min() > 0.005 and share.max() < 0.4 and 0.12 < share.mean() < 0.23


def test_two_images_in_batches_of_one_are_enough():
    assert diet.Config().fewest_images().value == 2 and diet.Config().smallest_batch().value == 1


def test_too_many_images_are_refused_in_one_line(source):
    class Many:
        size = 32

        def __init__(self, count):
            self.count = count

        def __len__(self):
            return self.count

    encoder = encoders.build("resnet_small:width=4,wide=512", 3, 32)
    every = diet.Config(num_classes=None)
    every.build(encoder, Many(diet.LARGEST))
    with pytest.raises(
        UserError, match=r"100000 images or fewer.*1281167.*2624 MB.*--num-classes 100000"
    ) as caught:
        every.build(encoder, Many(1_281_167))
    assert "\n" not in str(caught.value)
    assert diet.Config().build(encoder, Many(1_281_167)).head[0].out_features == 8000


def test_of_many_images_a_random_part_is_used(tmp_path, capsys):
    words = {
        "data": "synthetic:64:16",
        "encoder": "resnet_small:width=8",
        "steps": 2,
        "batch": 16,
        "quiet": True,
    }
    runs = [
        api.pretrain(
            "diet", out=tmp_path / f"{seed}-{most}", seed=seed, config={"num_classes": most}, **words
        )
        for seed, most in ((0, 40), (1, 40), (0, 64))
    ]
    assert "diet trains on 40 of 64 images" in capsys.readouterr().err
    assert [run.card["n"] for run in runs] == [40, 40, 64]
    one, other, whole = (run.source.__getitems__(torch.arange(40)).image for run in runs)
    assert not torch.equal(one, other) and not torch.equal(one, whole)
    assert diet.Paper().most_images() is diet.Continued().most_images() is None


def test_a_run_on_a_part_of_the_images_is_used_again_by_a_search(tmp_path):
    source = data.open("synthetic:64:16")
    settings = RunConfig("synthetic:64:16", out=tmp_path / "run", encoder="resnet_small:width=8", steps=2)
    trial = Trial("diet", settings, diet.Config(num_classes=40), TrainConfig(batch=16))
    first = trial.trained(source)
    assert first.card["n"] == 40 and trial.existing() is not None
    assert trial.trained(source).folder == first.folder


# ---- DIET-CP


def test_only_the_last_blocks_and_the_classifier_are_trained(source):
    config = diet.Continued(trained_blocks=2)
    method = build(source, config, TINY)
    before = {name: p.detach().clone() for name, p in method.named_parameters()}
    (optimizer,) = method.optimizers(dataclasses.replace(config.train, lr=1e-2))
    for seed in range(2):
        optimizer.zero_grad()
        method.loss(puzzle(method, source, seed=seed)).total.backward()
        optimizer.step()
    moved = {name for name, p in method.named_parameters() if not torch.equal(p, before[name])}
    assert {name.split(".")[0] for name in moved} == {"encoder", "head"}
    assert {".".join(name.split(".")[:4]) for name in moved - {"head.0.weight"}} == {
        "encoder.net.blocks.2",
        "encoder.net.blocks.3",
    }
    assert all(p.requires_grad for p in build(source, diet.Config(), TINY).parameters())


def test_a_run_from_given_weights_changes_only_their_last_blocks(tmp_path):
    torch.manual_seed(1)
    given = encoders.build(TINY, 3, 32)
    save_encoder(given, tmp_path)
    run = api.pretrain(
        "diet:continued", "synthetic:64:32", tmp_path / "run", encoder=TINY, init=tmp_path, steps=6, batch=16,
        lr=1e-2, quiet=True,
    )  # fmt: skip
    final = dict(run.encoder.named_parameters())
    moved = {name for name, p in given.named_parameters() if not torch.equal(p, final[name])}
    assert {".".join(name.split(".")[:3]) for name in moved} == {"net.blocks.2", "net.blocks.3"}


def test_features_have_unit_length_when_any_recipe_continues(tmp_path, capsys):
    torch.manual_seed(1)
    save_encoder(encoders.build("resnet_small:width=8", 3, 16), tmp_path)
    for init, normalize in ((tmp_path, True), (None, False)):
        run = api.pretrain("diet", "synthetic:64:16", tmp_path / f"{init is None}", encoder="resnet_small:width=8", init=init,
                           steps=2, batch=16, quiet=True)  # fmt: skip
        assert run.card["config"]["normalize"] is normalize
    with pytest.raises(SystemExit):
        main(["pretrain", "diet", "--init", str(tmp_path), "--help"])
    assert re.search(r"--normalize.*?default: True", capsys.readouterr().out, re.DOTALL)


def test_only_the_classifier_is_trained_at_first(source):
    config = diet.Continued()
    method, plan = build(source, config, TINY), Plan.of(150, 1, 1)
    (optimizer,) = method.optimizers(config.train)
    owner = {id(p): "head" if name.startswith("head") else "blocks" for name, p in method.named_parameters()}

    def rates(epoch):
        found = {"head": set(), "blocks": set()}
        for group in optimizer.param_groups:
            rate = group_lr({**group, "peak": group["lr"]}, config.train, plan.at(epoch))
            for p in group["params"]:
                found[owner[id(p)]].add(rate)
        return found

    for epoch in (1, 6):
        assert rates(epoch)["blocks"] == {0.0} and min(rates(epoch)["head"]) > 0
    (rate,) = rates(7)["head"] | rates(7)["blocks"]
    assert rate == pytest.approx(1e-4 * 7 / 15)


def test_blocks_of_a_network_without_blocks_are_refused(source):
    with pytest.raises(UserError, match="--trained-blocks 2 needs a vision transformer, and resnet_small"):
        build(source, diet.Continued())
    build(source, diet.Continued(trained_blocks=0))


def test_features_of_the_recipe_are_the_class_token(source):
    method = build(source, diet.Continued(), TINY).eval()
    x = puzzle(method, source).image
    tokens = method.encoder.net.forward_features(method.encoder.normalized(x))
    assert_close(method.encoder(x)["pool"], tokens[:, 0])


# ---- recipes


def test_paper_recipe_matches_the_released_scripts():
    """`executor_lsmoothing_CV.sh` and `executor_BS_CV.sh`, and the augmentation of strength 3."""
    paper, train = diet.Paper(), diet.Paper.train
    assert (paper.label_smoothing, train.lr, train.weight_decay, train.batch, train.epochs) == (
        0.8, 0.001, 0.05, 256, 4000,
    )  # fmt: skip
    assert paper.bias and not paper.normalize and paper.erase == 0.25
    assert (paper.views.crop, paper.views.jitter_p, paper.views.gray, paper.views.blur) == (
        (0.08, 1),
        0.3,
        0.2,
        0.2,
    )
    assert paper.views.jitter_strengths == pytest.approx((0.4, 0.4, 0.4, 0.2))
    net = encoders.build(paper.encoder, 3, 32)
    assert sum(p.numel() for p in net.parameters()) == 11_168_832 and net.sides["stage4"] == 4


def test_continued_recipe_matches_the_released_scripts():
    """`RC_2block_150e_da2_all_datasets_dinov3`, with the defaults of `main.py`."""
    config, train = diet.Continued(), diet.Continued.train
    assert (config.label_smoothing, train.lr, train.weight_decay, train.batch, train.epochs) == (
        0.2, 1e-4, 0.05, 32, 150,
    )  # fmt: skip
    assert (config.trained_blocks, config.bias, config.normalize, config.erase) == (2, False, True, 0.0)
    assert train.head_first == pytest.approx(int(150 * 0.05) / 150)
    assert config.views.blur == config.views.solarize == 0 and config.views.jitter_p == 0.3
    for epoch in range(0, 150, 5):  # utils/lr_schedule.py
        cosine = 0.5 * (1 + math.cos(math.pi * (epoch - 15) / 135))
        expected = 1e-4 * epoch / 15 if epoch < 15 else 1e-5 + (1e-4 - 1e-5) * cosine
        assert train.lr * lr_factor(train, epoch / 150) == pytest.approx(expected)

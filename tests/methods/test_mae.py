"""What a masked autoencoder must show (He et al. 2022, and the authors' released code)."""

import dataclasses
import math

import pytest
import torch
from torch.testing import assert_close

from pretask import data as sources
from pretask.methods import mae
from pretask.rng import Rng
from pretask.transforms import augment as images
from pretask.types import Batch, UserError

VIT = "vit_tiny_patch16_224:patch_size=4,embed_dim=48,depth=2"
FORMS = [
    VIT,
    f"{VIT},global_pool=avg",
    f"{VIT},global_pool=avg,fc_norm=False,class_token=False",
    f"{VIT},reg_tokens=2,no_embed_class=True,pre_norm=True",
    f"{VIT},dynamic_img_size=True",
]
"""class token or none, the last norm before or after pooling, registers, tokens in a row or as a map"""
IMAGENET = "vit_base_patch16_224.mae:patch_size=4,embed_dim=48,depth=1,num_heads=4"


@pytest.fixture(scope="module")
def source():
    return sources.open("synthetic:64:32")


def made(source, config=None, encoder=VIT):
    torch.manual_seed(0)
    config = config or mae.Config()
    return config.build(config.draw(encoder, source), source)


def batch(source, n=16):
    return source.__getitems__(torch.arange(n))


def by_hand(x, h, w):
    """(B, C, H, W) -> [image][patch] -> (C, h, w), row by row, in loops."""
    down, across = x.shape[2] // h, x.shape[3] // w
    return [
        [one[:, r * h : r * h + h, c * w : c * w + w] for r in range(down) for c in range(across)]
        for one in x
    ]


def painted_as(method, answer):
    """The method, whose decoder paints `answer` (B, M, D) whatever it is given."""
    method.painted = lambda pretext: answer
    return method


# ---- patches


@pytest.mark.parametrize("side", [(4, 4), (8, 4), (16, 32)])
def test_patches_are_cut_row_by_row_and_put_back(side):
    x = torch.rand(3, 3, 32, 32)
    cut = mae.patches(x, side)
    for i, of_one in enumerate(by_hand(x, *side)):
        for n, patch in enumerate(of_one):
            assert torch.equal(cut[i, n], patch.flatten())
    assert torch.equal(mae.unpatched(cut, (32 // side[0], 32 // side[1]), side), x)


def test_what_was_picked_can_be_put_back():
    x = torch.rand(3, 10, 5)
    which = Rng(0).orders(3, 10)[:, :4]
    rows = mae.pick(x, which)
    assert all(torch.equal(rows[i, m], x[i, n]) for i in range(3) for m, n in enumerate(which[i].tolist()))
    assert torch.equal(mae.put(torch.zeros_like(x), which, rows).any(2).sum(1), torch.tensor([4, 4, 4]))
    assert torch.equal(mae.put(x + 1, which, rows)[torch.arange(3)[:, None], which], rows)
    assert torch.equal(mae.put(x, which, rows), x)


# ---- the puzzle


@pytest.mark.parametrize(
    ("mask", "patches", "hidden"),
    [(0.75, 64, 48), (0.75, 196, 147), (0.75, 49, 37), (0.15, 64, 10), (0.7, 196, 138)],
)
def test_the_count_of_hidden_patches_is_exact(mask, patches, hidden):
    """49 of the 196 of a paper's image are visible; of 58.8, 58 (models_mae.py:130)."""
    assert mae.Config(mask=mask).hidden(patches) == hidden


# ---- which patches are hidden


SAMPLINGS = [
    {},
    {"mask_sampling": "block", "mask": 0.5},
    {"mask_sampling": "block"},
    {"mask_sampling": "grid"},
]


def masks(source, n=300, encoder=VIT, **fields):
    """(n, h, w) of zeros and ones, 1 for hidden."""
    method = made(source, mae.Config(**fields), encoder)
    p = method.pretext(Batch(torch.arange(n), batch(source, 4).image.repeat(n // 4, 1, 1, 1)), Rng(1))
    assert torch.equal(
        torch.cat([p.visible, p.hidden], 1).sort(1).values, torch.arange(math.prod(method.grid)).expand(n, -1)
    )
    return torch.zeros(n, math.prod(method.grid)).scatter(1, p.hidden, 1).view(-1, *method.grid)


def borders(mask):
    """(B,) pairs of neighbors of which one is hidden."""
    return mask.diff(dim=1).abs().sum((1, 2)) + mask.diff(dim=2).abs().sum((1, 2))


@pytest.mark.parametrize("fields", SAMPLINGS)
def test_all_images_hide_equally_many_patches(source, fields):
    count = 32 if "mask" in fields else 48
    assert (masks(source, **fields).sum((1, 2)) == count).all()
    high = sources.open("synthetic:4:224")  # 14 x 14 patches
    encoder = "vit_tiny_patch16_224:embed_dim=48,depth=1"
    assert (masks(high, 80, encoder, **fields).sum((1, 2)) == (98 if "mask" in fields else 147)).all()


@pytest.mark.parametrize("fields", SAMPLINGS)
def test_a_process_hides_in_its_own_images_what_one_process_would(source, fields):
    method = made(source, mae.Config(**fields))
    own = [method.order(6, Rng(1, share=(rank, 2))) for rank in (0, 1)]
    assert torch.equal(torch.cat(own), method.order(12, Rng(1)))


def test_a_grid_shows_the_same_one_of_every_four_all_over_an_image(source):
    """Slow: square by square."""
    seen = set()
    for mask in masks(source, mask_sampling="grid"):
        shown = {
            tuple((1 - mask[r : r + 2, c : c + 2]).nonzero().flatten().tolist())
            for r in range(0, 8, 2)
            for c in range(0, 8, 2)
        }
        (corner,) = shown
        assert len(corner) == 2  # one patch: its row and column
        seen.add(corner)
    assert seen == {(0, 0), (0, 1), (1, 0), (1, 1)}


@pytest.mark.parametrize("share", [0.5, 0.75])
def test_blocks_are_large_and_every_image_has_its_own(source, share):
    mask = masks(source, mask_sampling="block", mask=share)
    assert len(mask.unique(dim=0)) > 290
    one_by_one = masks(source, mask=share)
    assert borders(mask).mean() < 0.5 * borders(one_by_one).mean()
    whole = torch.nn.functional.avg_pool2d(mask[:, None], 3, 1) == 1  # somewhere 3 x 3 patches are hidden
    assert whole.flatten(1).any(1).float().mean() > 0.98
    often = mask.mean(0)
    assert (
        often.min() > 0.05 and often.max() < 0.99
    )  # no patch is always hidden, or never; those in the middle most


def test_what_blocks_leave_to_hide_lies_beside_them(source, monkeypatch):
    """Of a rectangle of 5 x 4 with a hole of one patch, and a patch far away: first the hole, which most surround."""
    block = torch.zeros(8, 8, dtype=torch.bool)
    block[:5, :4] = True
    block[2, 2], block[7, 7] = False, True
    monkeypatch.setattr(mae, "rectangles", lambda most, *_: block.expand(len(most), -1, -1))
    method = made(source, mae.Config(mask=25 / 64, mask_sampling="block"))
    around = torch.zeros(8, 8, dtype=torch.bool)
    around[:6, :5] = around[6:, 6:] = True
    for order in method.order(20, Rng(1)):
        assert set(order[:20].tolist()) == set(block.flatten().nonzero().flatten().tolist())
        assert order[20] == 2 * 8 + 2
        assert around.flatten()[order[21:25]].all()


def test_every_image_has_its_own_mask_and_every_patch_is_hidden_as_often(source):
    method, many = made(source), Batch(torch.arange(600), batch(source, 60).image.repeat(10, 1, 1, 1))
    p = method.pretext(many, Rng(1))
    assert p.visible.shape == (600, 16) and p.hidden.shape == (600, 48)
    both = torch.cat([p.visible, p.hidden], 1).sort(1).values
    assert torch.equal(both, torch.arange(64).expand(600, -1))
    assert len(p.hidden.unique(dim=0)) == 600
    often = torch.cat([method.pretext(many, Rng(k)).hidden.flatten() for k in range(10)]).bincount(
        minlength=64
    )
    assert (often / 6000 - 0.75).abs().max() < 0.025  # 4.5 standard deviations
    assert torch.equal(p.visible, p.visible.sort(1).values)


def test_the_puzzle_shows_visible_patches_as_they_are_and_hidden_ones_grey(source):
    p = made(source).pretext(batch(source), Rng(1))
    for shown, image, seen in zip(
        by_hand(p.shown, 4, 4), by_hand(p.image, 4, 4), p.visible.tolist(), strict=True
    ):
        for n in range(64):
            expected = image[n] if n in seen else torch.full_like(image[n], 0.5)
            assert torch.equal(shown[n], expected)


def test_the_image_is_a_crop_of_its_own_and_half_are_mirrored(source):
    whole = made(source, mae.Config(crop=1.0))
    one = Batch(torch.arange(200), batch(source, 1).image.repeat(200, 1, 1, 1))
    x = images.to_float(one.image)
    level = images.resized_crop(x, 32, Rng(1), (1.0, 1.0))  # the same draws, not mirrored
    p = whole.pretext(one, Rng(1))
    mirrored = torch.tensor([torch.equal(a, b.flip(-1)) for a, b in zip(p.image, level, strict=True)])
    straight = torch.tensor([torch.equal(a, b) for a, b in zip(p.image, level, strict=True)])
    assert (mirrored | straight).all() and 80 < mirrored.sum() < 120
    cropped = made(source).pretext(one, Rng(1)).image
    assert len(cropped.flatten(1).unique(dim=0)) == 200


# ---- the encoder sees the visible patches alone


@pytest.mark.parametrize("form", FORMS)
def test_with_nothing_hidden_the_tokens_are_those_of_the_whole_transformer(source, form):
    method = made(source, encoder=form).eval()
    encoder, x = method.encoder, images.to_float(batch(source, 4).image)
    everything = torch.arange(64).expand(4, -1)
    with torch.no_grad():
        tokens = mae.encode(method.encoder, x, everything)
        final = encoder.net.forward_features((x - encoder.mean) / encoder.std)
        assert_close(tokens, encoder.net.fc_norm(final), atol=1e-5, rtol=1e-4)
        stages = encoder(x)
        if "avg" in form and "fc_norm=False" in form:
            assert_close(
                tokens[:, method.vit.num_prefix_tokens :].mean(1), stages["pool"], atol=1e-5, rtol=1e-4
            )
        if form == VIT:
            assert_close(tokens[:, 0], stages["pool"], atol=1e-5, rtol=1e-4)


@pytest.mark.parametrize("form", FORMS)
def test_hidden_pixels_change_the_target_and_nothing_that_the_solver_sees(source, form):
    method = made(source, encoder=form).eval()
    p = method.pretext(batch(source), Rng(1))
    loud = mae.put(mae.patches(p.shown, (4, 4)), p.hidden, torch.rand(16, 48, 48))
    loud = mae.unpatched(loud, (8, 8), (4, 4))
    with torch.no_grad():
        tokens = mae.encode(method.encoder, p.shown, p.visible)
        assert tokens.shape == (16, 16 + method.vit.num_prefix_tokens, 48)
        assert torch.equal(tokens, mae.encode(method.encoder, loud, p.visible))
        other = dataclasses.replace(p, image=loud)
        assert torch.equal(method.painted(p), method.painted(other))
        assert method.loss(p).total != method.loss(other).total


def test_a_visible_patch_of_another_place_or_content_is_another_token(source):
    method = made(source).eval()
    p = method.pretext(batch(source, 2), Rng(1))
    moved = p.visible.clone()
    moved[:, 0] = p.hidden[:, 0]
    patch = mae.patches(p.shown, (4, 4))
    there = mae.put(patch, moved[:, :1], mae.pick(patch, p.visible[:, :1]))  # the same content elsewhere
    with torch.no_grad():
        tokens = mae.encode(method.encoder, p.shown, p.visible)
        elsewhere = mae.encode(method.encoder, mae.unpatched(there, (8, 8), (4, 4)), moved)
        assert (tokens - elsewhere).abs().max() > 0.1
        other = mae.put(patch, p.visible[:, :1], torch.rand(2, 1, 48))
        assert (
            tokens - mae.encode(method.encoder, mae.unpatched(other, (8, 8), (4, 4)), p.visible)
        ).abs().max() > 0.01


def test_the_order_in_which_patches_are_named_does_not_matter(source):
    method = made(source).eval()
    p = method.pretext(batch(source, 4), Rng(1))
    mixed, of_hidden = Rng(2).orders(16), Rng(3).orders(48)
    q = dataclasses.replace(p, visible=p.visible[:, mixed], hidden=p.hidden[:, of_hidden])
    with torch.no_grad():
        assert_close(method.painted(q), method.painted(p)[:, of_hidden], atol=1e-5, rtol=1e-4)
        assert_close(method.loss(q).total, method.loss(p).total)


def test_the_class_token_reaches_the_decoder(source, monkeypatch):
    method = made(source).eval()
    p = method.pretext(batch(source, 4), Rng(1))
    painted = method.painted(p)
    encode = mae.encode
    monkeypatch.setattr(mae, "encode", lambda *given: encode(*given) * (torch.arange(17) > 0)[:, None])
    assert (method.painted(p) - painted).abs().max() > 1e-4


# ---- places


def test_places_are_sines_and_cosines_of_row_and_column():
    """Slow, from the formula: the wavelengths are 2π · 10000^(k / (D / 4))."""
    rows, columns, width = 3, 5, 16
    found = mae.places((rows, columns), width)
    for r in range(rows):
        for c in range(columns):
            turns = [at / 10000 ** (k / (width / 4)) for at in (r, c) for k in range(width // 4)]
            expected = [*map(math.sin, turns), *map(math.cos, turns)]
            assert_close(found[r * columns + c], torch.tensor(expected))


@pytest.mark.parametrize("form", FORMS)
def test_both_halves_are_told_the_places_and_neither_learns_them(source, form):
    method = made(source, encoder=form)
    assert torch.equal(method.places, mae.places((8, 8), 64))
    assert torch.equal(method.vit.pos_embed[0, -64:], mae.places((8, 8), 48))
    method.loss(method.pretext(batch(source, 4), Rng(1))).total.backward()
    assert method.vit.pos_embed.grad is None
    assert all(w.grad is not None for w in method.parameters() if w.requires_grad)


def test_every_token_of_the_decoder_is_told_its_own_place(source):
    """Slow: one token after the other."""
    method = made(source).eval()
    p = method.pretext(batch(source, 3), Rng(1))
    given = []
    method.decoder.register_forward_pre_hook(lambda module, inputs: given.append(inputs[0]))
    with torch.no_grad():
        method.painted(p)
        tokens = method.narrow(mae.encode(method.encoder, p.shown, p.visible))
    where = mae.places((8, 8), 64)
    for i in range(3):
        expected = [tokens[i, 0]]
        expected += [tokens[i, 1 + k] + where[n] for k, n in enumerate(p.visible[i].tolist())]
        expected += [method.unknown[0, 0] + where[n] for n in p.hidden[i].tolist()]
        assert_close(given[0][i], torch.stack(expected))


# ---- the loss


def test_all_weights_begin_as_glorots(source):
    """Appendix A.1: uniform within sqrt(6 / (inputs + outputs)), in the encoder too; biases are 0 (models_mae.py:88)."""
    method = made(source)
    linear = [
        (name, m) for name, m in method.named_modules() if isinstance(m, torch.nn.Linear | torch.nn.Conv2d)
    ]
    assert sum(name.startswith("encoder.") for name, _ in linear) == 1 + 4 * 2  # patches; two blocks
    assert len(linear) == 1 + 4 * 2 + 1 + 4 + 1
    for _, module in linear:
        rows = module.weight.flatten(1)
        assert not module.bias.any()
        bound = math.sqrt(6 / sum(rows.shape))
        assert bound * 0.99 < rows.abs().max() <= bound
        assert rows.std().item() == pytest.approx(bound / math.sqrt(3), rel=0.05)


@pytest.mark.parametrize("config", [mae.Config(), mae.Paper(width=64, heads=4)])
def test_tokens_places_and_norms_begin_as_released(source, config):
    """models_mae.py: tokens are normal of deviation 0.02 (79), the class token's place is 0 (68), norms add 1e-6 (227)."""
    method = made(source, config, "vit_tiny_patch16_224:patch_size=4,embed_dim=1024,num_heads=4,depth=1")
    assert method.vit.cls_token.std().item() == pytest.approx(0.02, rel=0.1)  # 4.5 standard deviations
    assert method.unknown.std().item() == pytest.approx(0.02, rel=0.4)
    assert not method.vit.pos_embed[0, 0].any()
    norms = [m for m in method.modules() if isinstance(m, torch.nn.LayerNorm)]
    assert len(norms) == 2 + 1 + 2 * config.blocks + 1
    for norm in norms:
        assert norm.eps == 1e-6 and (norm.weight == 1).all() and not norm.bias.any()


@pytest.mark.parametrize("normalise", [True, False])
@pytest.mark.parametrize(
    ("encoder", "mean", "std"),
    [(VIT, (0.5,) * 3, (0.5,) * 3), (IMAGENET, (0.485, 0.456, 0.406), (0.229, 0.224, 0.225))],
)
def test_the_loss_is_the_mean_squared_error_over_hidden_patches(source, normalise, encoder, mean, std):
    """Slow, from the text: the mean and the unbiased variance of each patch are over its pixels and colours.

    Before that, pixels are less the mean of their channel and in units of its deviation (main_pretrain.py:127).
    """
    method = made(source, mae.Config(normalise=normalise), encoder).eval()
    p = method.pretext(batch(source, 4), Rng(1))
    with torch.no_grad():
        loss, painted = method.loss(p).total, method.painted(p)
    errors = []
    for i, of_one in enumerate(by_hand(p.image, 4, 4)):
        for m, n in enumerate(p.hidden[i].tolist()):
            target = [(v - mean[c]) / std[c] for c in range(3) for v in of_one[n][c].flatten().tolist()]
            if normalise:
                middle = sum(target) / 48
                variance = sum((v - middle) ** 2 for v in target) / 47
                target = [(v - middle) / (variance + 1e-6) ** 0.5 for v in target]
            answer = painted[i, m].tolist()
            errors.append(sum((a - t) ** 2 for a, t in zip(answer, target, strict=True)) / 48)
    assert_close(loss.item(), sum(errors) / len(errors), atol=1e-5, rtol=1e-4)


def test_visible_pixels_change_no_target(source):
    """For one and the same painting; those of a hidden patch do."""
    method = painted_as(made(source), torch.rand(16, 48, 48))
    p = method.pretext(batch(source), Rng(1))
    patch = mae.patches(p.image, (4, 4))
    for which, same in ((p.visible, True), (p.hidden[:, :1], False)):
        other = mae.put(patch, which, torch.rand(16, which.shape[1], 48))
        q = dataclasses.replace(p, image=mae.unpatched(other, (8, 8), (4, 4)))
        assert (method.loss(p).total == method.loss(q).total) == same


def test_at_the_start_the_loss_is_the_variance_of_the_targets_and_that_of_a_random_painting(source):
    """Targets have the variance 1, with 47 in the denominator; 64 inputs of mean square 1, times Glorot's weights of
    variance 2 / (64 + 48), are painted."""
    with torch.no_grad():
        method = made(source, encoder=mae.Config.encoder)
        loss = method.loss(method.pretext(batch(source, 64), Rng(1))).total
        assert (
            abs(loss - 47 / 48 - 64 * 2 / (64 + 48)) < 0.6
        )  # 2.6 standard deviations over 48 rows of weights


def test_a_plain_grey_patch_is_nothing_to_paint(source):
    """Rounding is not blown up to a pattern; the released code's 1e-6 sees to that."""
    plain = torch.randint(256, (64, 1, 1, 1), dtype=torch.uint8).repeat(1, 3, 32, 32)
    method = painted_as(made(source), torch.zeros(64, 48, 48))
    p = method.pretext(Batch(torch.arange(64), plain), Rng(1))
    assert method.loss(p).total < 1e-6


# ---- the answer


@pytest.mark.parametrize("normalise", [True, False])
def test_the_true_patches_cost_nothing_and_give_the_image_back(source, normalise):
    method = made(source, mae.Config(normalise=normalise), IMAGENET)
    p = method.pretext(batch(source), Rng(1))
    mean, std = torch.tensor([0.485, 0.456, 0.406, 0.229, 0.224, 0.225]).view(2, 3, 1, 1)
    true = mae.pick(mae.patches((p.image - mean) / std, (4, 4)), p.hidden)
    if normalise:
        true = (true - true.mean(2, keepdim=True)) / (true.var(2, keepdim=True) + 1e-6).sqrt()
    method = painted_as(method, true)
    assert method.loss(p).total < 1e-9
    assert_close(method.solve(p)["image"], p.image)


def test_the_answer_keeps_what_is_visible_and_paints_the_rest(source):
    method = made(source).eval()
    p = method.pretext(batch(source), Rng(1))
    with torch.no_grad():
        answer = method.solve(p)["image"]
    assert answer.shape == p.image.shape
    found, true = mae.patches(answer, (4, 4)), mae.patches(p.image, (4, 4))
    assert_close(mae.pick(found, p.visible), mae.pick(true, p.visible), atol=1e-6, rtol=0)
    assert ((mae.pick(found, p.hidden) - mae.pick(true, p.hidden)).abs().amax(2) > 0).all()


# ---- recipes and mistakes


def test_the_paper_recipe_is_that_of_table_8():
    paper, train = mae.Paper(), mae.Paper.train
    assert (paper.mask, paper.normalise, paper.crop) == (0.75, True, 0.2)
    assert (paper.width, paper.blocks, paper.heads) == (512, 8, 16)
    assert (train.epochs, train.batch, train.weight_decay) == (800, 4096, 0.05)
    assert train.optimizer == "adamw" and train.lr == pytest.approx(2.4e-3)
    assert train.warmup * train.epochs == pytest.approx(40) and not train.drops
    assert paper.encoder == "vit_base_patch16_224.mae" and paper.mask_sampling == "random"
    source = sources.open("synthetic:2:224")
    method = made(source, paper, "vit_tiny_patch16_224:embed_dim=48,depth=1")
    assert method.places.shape == (196, 512) and len(method.decoder) == 10
    assert method.decoder[0].attn.num_heads == 16
    assert method.pretext(batch(source, 2), Rng(1)).visible.shape == (2, 49)


def test_the_optimizer_has_the_papers_betas_and_spares_biases(source):
    """All that is no vector decays, tokens as well, which are (1, 1, D) (models_mae.py:36, 49)."""
    method = made(source)
    [optimizer] = method.optimizers(mae.Config.train)
    spared = {id(p) for p in optimizer.param_groups[1]["params"]}
    named = {name for name, p in method.named_parameters() if id(p) in spared}
    assert {name for name, p in method.named_parameters() if p.requires_grad} - named >= {
        "unknown", "encoder.net.cls_token", "narrow.weight", "encoder.net.patch_embed.proj.weight"
    }  # fmt: skip
    assert all(name.endswith("bias") or "norm" in name or name == "decoder.1.weight" for name in named)
    assert all(group["betas"] == (0.9, 0.95) for group in optimizer.param_groups)
    assert [group["weight_decay"] for group in optimizer.param_groups] == [0.05, 0.0]
    plain = dataclasses.replace(mae.Config.train, optimizer="sgd", lr=0.1)
    assert method.optimizers(plain)[0].param_groups[0]["momentum"] == 0.9


@pytest.mark.parametrize(
    ("config", "encoder", "words"),
    [
        ({}, "resnet_small:width=8", "resnet_small:width=8 is none; try --encoder vit_tiny"),
        ({}, "deit_tiny_distilled_patch16_224:patch_size=4,depth=1", "is none; try"),
        ({}, f"{VIT},pos_embed=none", "is none; try"),
        ({}, f"{VIT},global_pool=map", "is none; try"),
        ({}, VIT.replace("size=4", "size=5"), "32 px are no whole number of patches of 5"),
        (
            {"mask_sampling": "grid", "mask": 0.5},
            VIT,
            "--mask 0.75 and an even number of rows and columns; these",
        ),
        ({"mask": 1.0}, VIT, "--mask 1.0 of 64 patches leaves none"),
        ({"mask": 0.0}, VIT, "--mask 0.0 of 64 patches leaves none"),
        ({"width": 42, "heads": 2}, VIT, "--width 42 is no multiple of 4 and"),
        (
            {},
            "vit_tiny_patch16_224:patch_size=4,embed_dim=18,num_heads=3,depth=1",
            "width 18 is no multiple of 4",
        ),
        ({"width": 64, "heads": 3}, VIT, "and of --heads 3; try 48"),
    ],
)
def test_what_cannot_be_masked_is_said_in_one_line(source, config, encoder, words):
    with pytest.raises(UserError, match=words) as wrong:
        made(source, mae.Config(**config), encoder)
    assert "\n" not in str(wrong.value)


def test_a_grid_of_an_odd_number_of_rows_cannot_be_masked_by_fours():
    with pytest.raises(UserError, match=r"these are 0\.75 and 7 x 7"):
        made(sources.open("synthetic:4:28"), mae.Config(mask_sampling="grid"))


@pytest.mark.parametrize("given", ["grey", "lightness"])
def test_grey_images_and_an_encoder_that_sees_lightness_are_painted_too(source, given):
    if given == "grey":
        source = sources.open("synthetic:64:32", channels=1)
    method = made(source, encoder=f"{VIT},sees=lightness" if given == "lightness" else VIT)
    p = method.pretext(batch(source), Rng(1))
    method.loss(p).total.backward()
    assert method.solve(p)["image"].shape == p.image.shape


def test_the_export_is_the_encoder_and_remembers_the_places(source, tmp_path):
    method = made(source)
    assert method.export() is method.encoder
    assert torch.equal(method.encoder.state_dict()["net.pos_embed"], method.vit.pos_embed)

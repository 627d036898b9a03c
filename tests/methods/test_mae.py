"""Fidelity of MAE (He et al. 2022, and the authors' released code)."""

import dataclasses
import math

import pytest
import torch
from torch.testing import assert_close

from pretask import data
from pretask.methods import mae
from pretask.rng import Rng
from pretask.transforms import augment
from pretask.types import Batch, UserError

VIT = "vit_tiny_patch16_224:patch_size=4,embed_dim=48,depth=2"
FORMS = [
    VIT,
    f"{VIT},global_pool=avg",
    f"{VIT},global_pool=avg,fc_norm=False,class_token=False",
    f"{VIT},reg_tokens=2,no_embed_class=True,pre_norm=True",
    f"{VIT},dynamic_img_size=True",
]
"""class token or none, final norm before or after pooling, registers, tokens as a sequence or a map"""
IMAGENET = "vit_base_patch16_224.mae:patch_size=4,embed_dim=48,depth=1,num_heads=4"


@pytest.fixture(scope="module")
def source():
    return data.open("synthetic:64:32")


def made(source, config=None, encoder=VIT):
    torch.manual_seed(0)
    config = config or mae.Config()
    return config.build(config.build_encoder(encoder, source), source)


def batch(source, n=16):
    return source.__getitems__(torch.arange(n))


def by_hand(x, h, w):
    """(B, C, H, W) -> [image][patch] -> (C, h, w), in row-major order, in loops."""
    down, across = x.shape[2] // h, x.shape[3] // w
    return [
        [one[:, r * h : r * h + h, c * w : c * w + w] for r in range(down) for c in range(across)]
        for one in x
    ]


def reconstruct_as(method, answer):
    """The method with its decoder's output replaced by `answer` (B, M, D)."""
    method.reconstruct = lambda pretext: answer
    return method


# ---- patches


@pytest.mark.parametrize("side", [(4, 4), (8, 4), (16, 32)])
def test_unpatchify_inverts_patchify_in_row_major_order(side):
    x = torch.rand(3, 3, 32, 32)
    cut = mae.patchify(x, side)
    for i, of_one in enumerate(by_hand(x, *side)):
        for n, patch in enumerate(of_one):
            assert torch.equal(cut[i, n], patch.flatten())
    assert torch.equal(mae.unpatchify(cut, (32 // side[0], 32 // side[1]), side), x)


def test_scatter_tokens_inverts_gather_tokens():
    x = torch.rand(3, 10, 5)
    which = Rng(0).orders(3, 10)[:, :4]
    rows = mae.gather_tokens(x, which)
    assert all(torch.equal(rows[i, m], x[i, n]) for i in range(3) for m, n in enumerate(which[i].tolist()))
    assert torch.equal(
        mae.scatter_tokens(torch.zeros_like(x), which, rows).any(2).sum(1), torch.tensor([4, 4, 4])
    )
    assert torch.equal(mae.scatter_tokens(x + 1, which, rows)[torch.arange(3)[:, None], which], rows)
    assert torch.equal(mae.scatter_tokens(x, which, rows), x)


# ---- the number of masked patches


@pytest.mark.parametrize(
    ("mask_ratio", "patches", "masked"),
    [(0.75, 64, 48), (0.75, 196, 147), (0.75, 49, 37), (0.15, 64, 10), (0.7, 196, 138)],
)
def test_number_of_masked_patches_is_exact(mask_ratio, patches, masked):
    """49 of the 196 of a paper's image are visible; of 58.8, 58 (models_mae.py:130)."""
    assert mae.Config(mask_ratio=mask_ratio).num_masked(patches) == masked


# ---- masks


SAMPLINGS = [
    {},
    {"mask_sampling": "block", "mask_ratio": 0.5},
    {"mask_sampling": "block"},
    {"mask_sampling": "grid"},
]


def masks(source, n=300, encoder=VIT, **fields):
    """(n, h, w) of zeros and ones, 1 for masked."""
    method = made(source, mae.Config(**fields), encoder)
    p = method.pretext(Batch(torch.arange(n), batch(source, 4).image.repeat(n // 4, 1, 1, 1)), Rng(1))
    assert torch.equal(
        torch.cat([p.visible, p.masked], 1).sort(1).values, torch.arange(math.prod(method.grid)).expand(n, -1)
    )
    return torch.zeros(n, math.prod(method.grid)).scatter(1, p.masked, 1).view(-1, *method.grid)


def borders(mask):
    """(B,) number of neighboring pairs of which one is masked."""
    return mask.diff(dim=1).abs().sum((1, 2)) + mask.diff(dim=2).abs().sum((1, 2))


@pytest.mark.parametrize("fields", SAMPLINGS)
def test_all_images_have_equally_many_masked_patches(source, fields):
    count = 32 if "mask_ratio" in fields else 48
    assert (masks(source, **fields).sum((1, 2)) == count).all()
    high = data.open("synthetic:4:224")  # 14 x 14 patches
    encoder = "vit_tiny_patch16_224:embed_dim=48,depth=1"
    assert (masks(high, 80, encoder, **fields).sum((1, 2)) == (98 if "mask_ratio" in fields else 147)).all()


@pytest.mark.parametrize("fields", SAMPLINGS)
def test_masks_do_not_depend_on_the_number_of_processes(source, fields):
    method = made(source, mae.Config(**fields))
    own = [method.masking_order(6, Rng(1, shard=(rank, 2))) for rank in (0, 1)]
    assert torch.equal(torch.cat(own), method.masking_order(12, Rng(1)))


def test_grid_masks_keep_the_same_one_of_every_2x2_patches(source):
    """Slow reference: square by square."""
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


@pytest.mark.parametrize("mask_ratio", [0.5, 0.75])
def test_block_masks_are_large_and_differ_between_images(source, mask_ratio):
    mask = masks(source, mask_sampling="block", mask_ratio=mask_ratio)
    assert len(mask.unique(dim=0)) > 290
    one_by_one = masks(source, mask_ratio=mask_ratio)
    assert borders(mask).mean() < 0.5 * borders(one_by_one).mean()
    whole = torch.nn.functional.avg_pool2d(mask[:, None], 3, 1) == 1  # all of a 3 x 3 neighborhood is masked
    assert whole.flatten(1).any(1).float().mean() > 0.98
    frequency = mask.mean(0)
    assert (
        frequency.min() > 0.05 and frequency.max() < 0.99
    )  # no patch is always or never masked; central ones most


def test_patches_added_to_block_masks_are_their_neighbors(source, monkeypatch):
    """A rectangle of 5 x 4 with a hole of one patch, and a distant patch: the hole, with most neighbors, comes first."""
    block = torch.zeros(8, 8, dtype=torch.bool)
    block[:5, :4] = True
    block[2, 2], block[7, 7] = False, True
    monkeypatch.setattr(mae, "block_masks", lambda most, *_: block.expand(len(most), -1, -1))
    method = made(source, mae.Config(mask_ratio=25 / 64, mask_sampling="block"))
    around = torch.zeros(8, 8, dtype=torch.bool)
    around[:6, :5] = around[6:, 6:] = True
    for order in method.masking_order(20, Rng(1)):
        assert set(order[:20].tolist()) == set(block.flatten().nonzero().flatten().tolist())
        assert order[20] == 2 * 8 + 2
        assert around.flatten()[order[21:25]].all()


def test_random_masks_differ_between_images_and_cover_all_patches_evenly(source):
    method, many = made(source), Batch(torch.arange(600), batch(source, 60).image.repeat(10, 1, 1, 1))
    p = method.pretext(many, Rng(1))
    assert p.visible.shape == (600, 16) and p.masked.shape == (600, 48)
    both = torch.cat([p.visible, p.masked], 1).sort(1).values
    assert torch.equal(both, torch.arange(64).expand(600, -1))
    assert len(p.masked.unique(dim=0)) == 600
    often = torch.cat([method.pretext(many, Rng(k)).masked.flatten() for k in range(10)]).bincount(
        minlength=64
    )
    assert (often / 6000 - 0.75).abs().max() < 0.025  # 4.5 standard deviations
    assert torch.equal(p.visible, p.visible.sort(1).values)


def test_puzzle_shows_visible_patches_and_grays_masked_ones(source):
    p = made(source).pretext(batch(source), Rng(1))
    for shown, image, seen in zip(
        by_hand(p.shown, 4, 4), by_hand(p.image, 4, 4), p.visible.tolist(), strict=True
    ):
        for n in range(64):
            expected = image[n] if n in seen else torch.full_like(image[n], 0.5)
            assert torch.equal(shown[n], expected)


def test_images_are_cropped_individually_and_half_are_flipped(source):
    whole = made(source, mae.Config(crop=1.0))
    one = Batch(torch.arange(200), batch(source, 1).image.repeat(200, 1, 1, 1))
    x = augment.to_float(one.image)
    unflipped = augment.resized_crop(x, 32, Rng(1), (1.0, 1.0))  # the same draws, not flipped
    p = whole.pretext(one, Rng(1))
    flipped = torch.tensor([torch.equal(a, b.flip(-1)) for a, b in zip(p.image, unflipped, strict=True)])
    straight = torch.tensor([torch.equal(a, b) for a, b in zip(p.image, unflipped, strict=True)])
    assert (flipped | straight).all() and 80 < flipped.sum() < 120
    cropped = made(source).pretext(one, Rng(1)).image
    assert len(cropped.flatten(1).unique(dim=0)) == 200


# ---- the encoder sees visible patches only


@pytest.mark.parametrize("form", FORMS)
def test_tokens_without_a_mask_are_those_of_the_encoder(source, form):
    method = made(source, encoder=form).eval()
    encoder, x = method.encoder, augment.to_float(batch(source, 4).image)
    everything = torch.arange(64).expand(4, -1)
    with torch.no_grad():
        tokens = mae.encode_visible(method.encoder, x, everything)
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
def test_masked_pixels_change_the_target_but_not_the_reconstruction(source, form):
    method = made(source, encoder=form).eval()
    p = method.pretext(batch(source), Rng(1))
    noisy = mae.scatter_tokens(mae.patchify(p.shown, (4, 4)), p.masked, torch.rand(16, 48, 48))
    noisy = mae.unpatchify(noisy, (8, 8), (4, 4))
    with torch.no_grad():
        tokens = mae.encode_visible(method.encoder, p.shown, p.visible)
        assert tokens.shape == (16, 16 + method.vit.num_prefix_tokens, 48)
        assert torch.equal(tokens, mae.encode_visible(method.encoder, noisy, p.visible))
        other = dataclasses.replace(p, image=noisy)
        assert torch.equal(method.reconstruct(p), method.reconstruct(other))
        assert method.loss(p).total != method.loss(other).total


def test_tokens_depend_on_position_and_content(source):
    method = made(source).eval()
    p = method.pretext(batch(source, 2), Rng(1))
    moved = p.visible.clone()
    moved[:, 0] = p.masked[:, 0]
    patch = mae.patchify(p.shown, (4, 4))
    there = mae.scatter_tokens(
        patch, moved[:, :1], mae.gather_tokens(patch, p.visible[:, :1])
    )  # the same content elsewhere
    with torch.no_grad():
        tokens = mae.encode_visible(method.encoder, p.shown, p.visible)
        elsewhere = mae.encode_visible(method.encoder, mae.unpatchify(there, (8, 8), (4, 4)), moved)
        assert (tokens - elsewhere).abs().max() > 0.1
        other = mae.scatter_tokens(patch, p.visible[:, :1], torch.rand(2, 1, 48))
        assert (
            tokens - mae.encode_visible(method.encoder, mae.unpatchify(other, (8, 8), (4, 4)), p.visible)
        ).abs().max() > 0.01


def test_order_of_patch_indices_does_not_matter(source):
    method = made(source).eval()
    p = method.pretext(batch(source, 4), Rng(1))
    shuffled, shuffled_masked = Rng(2).orders(16), Rng(3).orders(48)
    q = dataclasses.replace(p, visible=p.visible[:, shuffled], masked=p.masked[:, shuffled_masked])
    with torch.no_grad():
        assert_close(method.reconstruct(q), method.reconstruct(p)[:, shuffled_masked], atol=1e-5, rtol=1e-4)
        assert_close(method.loss(q).total, method.loss(p).total)


def test_class_token_reaches_the_decoder(source, monkeypatch):
    method = made(source).eval()
    p = method.pretext(batch(source, 4), Rng(1))
    reconstructed = method.reconstruct(p)
    encode_visible = mae.encode_visible
    monkeypatch.setattr(
        mae, "encode_visible", lambda *given: encode_visible(*given) * (torch.arange(17) > 0)[:, None]
    )
    assert (method.reconstruct(p) - reconstructed).abs().max() > 1e-4


# ---- position embeddings


def test_position_embeddings_are_sines_and_cosines_of_row_and_column():
    """Slow reference, from the formula: the wavelengths are 2π · 10000^(k / (D / 4))."""
    rows, columns, width = 3, 5, 16
    found = mae.sincos_pos_embed((rows, columns), width)
    for r in range(rows):
        for c in range(columns):
            turns = [at / 10000 ** (k / (width / 4)) for at in (r, c) for k in range(width // 4)]
            expected = [*map(math.sin, turns), *map(math.cos, turns)]
            assert_close(found[r * columns + c], torch.tensor(expected))


@pytest.mark.parametrize("form", FORMS)
def test_encoder_and_decoder_have_fixed_position_embeddings(source, form):
    method = made(source, encoder=form)
    assert torch.equal(method.pos_embed, mae.sincos_pos_embed((8, 8), 64))
    assert torch.equal(method.vit.pos_embed[0, -64:], mae.sincos_pos_embed((8, 8), 48))
    method.loss(method.pretext(batch(source, 4), Rng(1))).total.backward()
    assert method.vit.pos_embed.grad is None
    assert all(w.grad is not None for w in method.parameters() if w.requires_grad)


def test_every_decoder_token_gets_its_own_position_embedding(source):
    """Slow reference: token by token."""
    method = made(source).eval()
    p = method.pretext(batch(source, 3), Rng(1))
    given = []
    method.decoder.register_forward_pre_hook(lambda module, inputs: given.append(inputs[0]))
    with torch.no_grad():
        method.reconstruct(p)
        tokens = method.decoder_embed(mae.encode_visible(method.encoder, p.shown, p.visible))
    where = mae.sincos_pos_embed((8, 8), 64)
    for i in range(3):
        expected = [tokens[i, 0]]
        expected += [tokens[i, 1 + k] + where[n] for k, n in enumerate(p.visible[i].tolist())]
        expected += [method.mask_token[0, 0] + where[n] for n in p.masked[i].tolist()]
        assert_close(given[0][i], torch.stack(expected))


# ---- the loss


def test_weights_are_xavier_initialized(source):
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


@pytest.mark.parametrize("config", [mae.Config(), mae.Paper(decoder_width=64, decoder_heads=4)])
def test_tokens_position_embeddings_and_norms_are_initialized_as_released(source, config):
    """models_mae.py: tokens are normal with standard deviation 0.02 (79), the class token's position is 0 (68), eps is 1e-6 (227)."""
    method = made(source, config, "vit_tiny_patch16_224:patch_size=4,embed_dim=1024,num_heads=4,depth=1")
    assert method.vit.cls_token.std().item() == pytest.approx(0.02, rel=0.1)  # 4.5 standard deviations
    assert method.mask_token.std().item() == pytest.approx(0.02, rel=0.4)
    assert not method.vit.pos_embed[0, 0].any()
    norms = [m for m in method.modules() if isinstance(m, torch.nn.LayerNorm)]
    assert len(norms) == 2 + 1 + 2 * config.decoder_depth + 1
    for norm in norms:
        assert norm.eps == 1e-6 and (norm.weight == 1).all() and not norm.bias.any()


@pytest.mark.parametrize("normalize", [True, False])
@pytest.mark.parametrize(
    ("encoder", "mean", "std"),
    [(VIT, (0.5,) * 3, (0.5,) * 3), (IMAGENET, (0.485, 0.456, 0.406), (0.229, 0.224, 0.225))],
)
def test_loss_is_the_mean_squared_error_over_masked_patches(source, normalize, encoder, mean, std):
    """Slow reference, from the text: mean and unbiased variance of each patch are over its pixels and channels.

    Pixels are normalized by the mean and standard deviation of their channel before (main_pretrain.py:127).
    """
    method = made(source, mae.Config(norm_pix_loss=normalize), encoder).eval()
    p = method.pretext(batch(source, 4), Rng(1))
    with torch.no_grad():
        loss, reconstructed = method.loss(p).total, method.reconstruct(p)
    errors = []
    for i, of_one in enumerate(by_hand(p.image, 4, 4)):
        for m, n in enumerate(p.masked[i].tolist()):
            target = [(v - mean[c]) / std[c] for c in range(3) for v in of_one[n][c].flatten().tolist()]
            if normalize:
                middle = sum(target) / 48
                variance = sum((v - middle) ** 2 for v in target) / 47
                target = [(v - middle) / (variance + 1e-6) ** 0.5 for v in target]
            answer = reconstructed[i, m].tolist()
            errors.append(sum((a - t) ** 2 for a, t in zip(answer, target, strict=True)) / 48)
    assert_close(loss.item(), sum(errors) / len(errors), atol=1e-5, rtol=1e-4)


def test_visible_pixels_do_not_change_the_targets(source):
    """For a fixed reconstruction; masked pixels do."""
    method = reconstruct_as(made(source), torch.rand(16, 48, 48))
    p = method.pretext(batch(source), Rng(1))
    patch = mae.patchify(p.image, (4, 4))
    for which, same in ((p.visible, True), (p.masked[:, :1], False)):
        other = mae.scatter_tokens(patch, which, torch.rand(16, which.shape[1], 48))
        q = dataclasses.replace(p, image=mae.unpatchify(other, (8, 8), (4, 4)))
        assert (method.loss(p).total == method.loss(q).total) == same


def test_initial_loss_is_the_variance_of_targets_plus_that_of_outputs(source):
    """Targets have variance 1, with 47 in the denominator; the output layer maps 64 inputs of mean square 1 with Xavier
    weights of variance 2 / (64 + 48)."""
    with torch.no_grad():
        method = made(source, encoder=mae.Config.encoder)
        loss = method.loss(method.pretext(batch(source, 64), Rng(1))).total
        assert (
            abs(loss - 47 / 48 - 64 * 2 / (64 + 48)) < 0.6
        )  # 2.6 standard deviations over 48 rows of weights


def test_target_of_a_constant_patch_is_0(source):
    """Rounding errors are not amplified, thanks to the released code's 1e-6."""
    plain = torch.randint(256, (64, 1, 1, 1), dtype=torch.uint8).repeat(1, 3, 32, 32)
    method = reconstruct_as(made(source), torch.zeros(64, 48, 48))
    p = method.pretext(Batch(torch.arange(64), plain), Rng(1))
    assert method.loss(p).total < 1e-6


# ---- the reconstruction


@pytest.mark.parametrize("normalize", [True, False])
def test_true_patches_have_loss_0_and_reconstruct_the_image(source, normalize):
    method = made(source, mae.Config(norm_pix_loss=normalize), IMAGENET)
    p = method.pretext(batch(source), Rng(1))
    mean, std = torch.tensor([0.485, 0.456, 0.406, 0.229, 0.224, 0.225]).view(2, 3, 1, 1)
    true = mae.gather_tokens(mae.patchify((p.image - mean) / std, (4, 4)), p.masked)
    if normalize:
        true = (true - true.mean(2, keepdim=True)) / (true.var(2, keepdim=True) + 1e-6).sqrt()
    method = reconstruct_as(method, true)
    assert method.loss(p).total < 1e-9
    assert_close(method.predict(p)["image"], p.image)


def test_predict_keeps_visible_patches_and_reconstructs_the_others(source):
    method = made(source).eval()
    p = method.pretext(batch(source), Rng(1))
    with torch.no_grad():
        answer = method.predict(p)["image"]
    assert answer.shape == p.image.shape
    found, true = mae.patchify(answer, (4, 4)), mae.patchify(p.image, (4, 4))
    assert_close(mae.gather_tokens(found, p.visible), mae.gather_tokens(true, p.visible), atol=1e-6, rtol=0)
    assert ((mae.gather_tokens(found, p.masked) - mae.gather_tokens(true, p.masked)).abs().amax(2) > 0).all()


# ---- recipes and errors


def test_paper_recipe_matches_table_8():
    paper, train = mae.Paper(), mae.Paper.train
    assert (paper.mask_ratio, paper.norm_pix_loss, paper.crop) == (0.75, True, 0.2)
    assert (paper.decoder_width, paper.decoder_depth, paper.decoder_heads) == (512, 8, 16)
    assert (train.epochs, train.batch, train.weight_decay) == (800, 4096, 0.05)
    assert train.optimizer == "adamw" and train.lr == pytest.approx(2.4e-3)
    assert train.warmup * train.epochs == pytest.approx(40) and not train.milestones
    assert paper.encoder == "vit_base_patch16_224.mae" and paper.mask_sampling == "random"
    source = data.open("synthetic:2:224")
    method = made(source, paper, "vit_tiny_patch16_224:embed_dim=48,depth=1")
    assert method.pos_embed.shape == (196, 512) and len(method.decoder) == 10
    assert method.decoder[0].attn.num_heads == 16
    assert method.pretext(batch(source, 2), Rng(1)).visible.shape == (2, 49)


def test_optimizer_has_the_papers_betas_and_no_weight_decay_on_biases(source):
    """All but vectors decay, also tokens, which are (1, 1, D) (models_mae.py:36, 49)."""
    method = made(source)
    [optimizer] = method.optimizers(mae.Config.train)
    undecayed = {id(p) for p in optimizer.param_groups[1]["params"]}
    named = {name for name, p in method.named_parameters() if id(p) in undecayed}
    assert {name for name, p in method.named_parameters() if p.requires_grad} - named >= {
        "mask_token", "encoder.net.cls_token", "decoder_embed.weight", "encoder.net.patch_embed.proj.weight"
    }  # fmt: skip
    assert all(name.endswith("bias") or "norm" in name or name == "decoder.1.weight" for name in named)
    assert all(group["betas"] == (0.9, 0.95) for group in optimizer.param_groups)
    assert [group["weight_decay"] for group in optimizer.param_groups] == [0.05, 0.0]
    plain = dataclasses.replace(mae.Config.train, optimizer="sgd", lr=0.1)
    assert method.optimizers(plain)[0].param_groups[0]["momentum"] == 0.9


@pytest.mark.parametrize(
    ("config", "encoder", "message"),
    [
        ({}, "resnet_small:width=8", "resnet_small:width=8 is not one; try --encoder vit_tiny"),
        ({}, "deit_tiny_distilled_patch16_224:patch_size=4,depth=1", "is not one; try"),
        ({}, f"{VIT},pos_embed=none", "is not one; try"),
        ({}, f"{VIT},global_pool=map", "is not one; try"),
        (
            {},
            VIT.replace("size=4", "size=5"),
            "patches of 5 px, which do not divide images of 32 px; set --size 30 or 35",
        ),
        (
            {"mask_sampling": "grid", "mask_ratio": 0.5},
            VIT,
            "--mask-ratio 0.75 and an even number of rows and columns; these",
        ),
        ({"decoder_width": 42, "decoder_heads": 2}, VIT, "--decoder-width 42 is not a multiple of 4 and"),
        (
            {},
            "vit_tiny_patch16_224:patch_size=4,embed_dim=18,num_heads=3,depth=1",
            "whose width must be a multiple of 4; .* has 18",
        ),
        ({"decoder_width": 64, "decoder_heads": 3}, VIT, "and of --decoder-heads 3; try 48"),
    ],
)
def test_unsupported_settings_are_refused_in_one_line(source, config, encoder, message):
    with pytest.raises(UserError, match=message) as wrong:
        made(source, mae.Config(**config), encoder)
    assert "\n" not in str(wrong.value)


def test_grid_masks_need_an_even_number_of_rows():
    with pytest.raises(UserError, match=r"these are 0\.75 and 7 x 7"):
        made(data.open("synthetic:4:28"), mae.Config(mask_sampling="grid"))


@pytest.mark.parametrize("given", ["gray", "lightness"])
def test_gray_images_and_lightness_encoders_are_reconstructed_too(source, given):
    if given == "gray":
        source = data.open("synthetic:64:32", channels=1)
    method = made(source, encoder=f"{VIT},sees=lightness" if given == "lightness" else VIT)
    p = method.pretext(batch(source), Rng(1))
    method.loss(p).total.backward()
    assert method.predict(p)["image"].shape == p.image.shape


def test_export_is_the_encoder_with_its_position_embeddings(source, tmp_path):
    method = made(source)
    assert method.export() is method.encoder
    assert torch.equal(method.encoder.state_dict()["net.pos_embed"], method.vit.pos_embed)

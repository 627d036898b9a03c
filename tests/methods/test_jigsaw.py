"""Jigsaw against the paper (Noroozi & Favaro 2016) and the released code."""

import dataclasses
import math

import pytest
import torch
from tiles import back, picture
from torch.testing import assert_close

from pretask import data, encoders
from pretask.config import lr_factor
from pretask.methods import jigsaw
from pretask.rng import Rng
from pretask.train import requirements
from pretask.transforms import augment
from pretask.types import Batch, UserError

PLAIN = jigsaw.Config(gray=0.0, flip=0.0, channel_shift=0)


@pytest.fixture(scope="module")
def source():
    return data.open("synthetic:64:48")


def build(source, config=PLAIN, encoder="resnet_small:width=16"):
    torch.manual_seed(0)
    return config.build(encoders.build(encoder, source.channels, source.size), source)


def batch(source, n=16):
    return source.__getitems__(torch.arange(n))


def distances(permutations):
    different = (permutations[:, None] != permutations[None]).sum(-1)
    return different[*torch.triu_indices(len(permutations), len(permutations), 1)]


# ---- the permutation set


@pytest.mark.parametrize(("count", "mean", "seed"), [(64, 8.125, 0), (100, 8.080, 0), (100, 8.080, 1)])
def test_mean_distance_is_that_of_a_balanced_set(count, mean, seed):
    """9 (1 - agreements / pairs): each tile is at each position ⌊N/9⌋ or ⌈N/9⌉ times."""
    permutations = jigsaw.permutation_set(count, seed=seed)
    assert_close(distances(permutations).double().mean().item(), mean, atol=5e-4, rtol=0)
    for slot in permutations.T:
        assert set(slot.bincount(minlength=9).tolist()) <= {count // 9, -(-count // 9)}


def test_mean_distance_of_1000_permutations_is_as_published():
    permutations = jigsaw.permutation_set(1000)
    assert_close(distances(permutations).double().mean().item(), 8.008, atol=5e-4, rtol=0)
    assert set(torch.cat([slot.bincount() for slot in permutations.T]).tolist()) == {111, 112}


def test_only_the_minimum_statistic_bounds_the_smallest_distance():
    assert distances(jigsaw.permutation_set(100)).min() == 2
    assert distances(jigsaw.permutation_set(64, distance_stat="minimum")).min() == 7
    assert distances(jigsaw.permutation_set(100, distance_stat="minimum")).min() == 6


@pytest.mark.parametrize("distance_stat", ["mean", "minimum"])
@pytest.mark.parametrize("seed", range(3))
def test_few_permutations_have_a_close_neighbor(distance_stat, seed):
    """In the released list of 100, one in ten has a neighbor at distance 2, and the mean nearest distance is 4.21."""
    permutations = jigsaw.permutation_set(100, distance_stat=distance_stat, seed=seed)
    distance = (permutations[:, None] != permutations[None]).sum(-1) + 9 * torch.eye(100).long()
    nearest = distance.min(1).values
    assert (nearest == 2).double().mean() <= 0.1 and nearest.double().mean() > 4.2
    assert (distances(permutations) <= 4).sum() < 35  # as many as in the released list


def test_mean_distances_of_middle_and_minimal_sets_are_as_published():
    """Table 4: 8 of 9, that of random permutations, for "middle" and about 4 for "minimal"."""
    assert distances(jigsaw.permutation_set(100, "middle")).double().mean() == pytest.approx(8.0, abs=0.05)
    assert distances(jigsaw.permutation_set(100, "minimal")).double().mean() == pytest.approx(3.998, abs=1e-3)


@pytest.mark.parametrize("distance", ["maximal", "middle", "minimal"])
@pytest.mark.parametrize("distance_stat", ["mean", "minimum"])
def test_entries_are_distinct_permutations(distance, distance_stat):
    permutations = jigsaw.permutation_set(80, distance, distance_stat)
    assert (permutations.sort(1).values == torch.arange(9)).all()
    assert len(permutations.unique(dim=0)) == 80


def test_more_permutations_than_exist_are_a_user_error(source):
    with pytest.raises(UserError, match="362,880"):
        build(source, jigsaw.Config(num_permutations=400_000))


# ---- the puzzle


def test_undoing_the_permutation_restores_the_image(source):
    method = build(source, jigsaw.Config(gray=0.0, flip=0.0, channel_shift=0, tile=1.0))
    p = method.pretext(batch(source), Rng(1))
    image = augment.to_float(batch(source).image)
    assert torch.equal(picture(p.tile, p.permutation), image)  # 48 px are nine cells of 16
    assert torch.equal(method.permutations[p.label], p.permutation)


def test_every_step_draws_a_new_permutation(source):
    method = build(source)
    entries = torch.cat([method.pretext(batch(source), Rng(k)).label for k in range(200)])
    assert len(entries.unique()) == 100
    assert entries.bincount().max() < 3 * len(entries) / 100


@pytest.mark.parametrize(
    ("config", "size", "cell", "side"),
    [(jigsaw.Paper(), 255, 85, 64), (jigsaw.Paper(window=225 / 256, tile=64 / 75), 256, 75, 64)],
)
def test_tile_positions_match_both_published_geometries(config, size, cell, side):
    grid = jigsaw.TileGrid.from_config(config, size)
    assert (grid.cell, grid.side) == (cell, side)
    coordinate = torch.stack(torch.meshgrid(torch.arange(size), torch.arange(size), indexing="ij")).float()
    tile = grid.cut(coordinate.expand(300, 2, -1, -1), 0, Rng(1))
    corner = tile[..., 0, 0]  # (300, 9, 2)
    spare = size - 3 * cell
    offset = corner.view(300, 3, 3, 2) - cell * torch.stack(
        torch.meshgrid(torch.arange(3), torch.arange(3), indexing="ij"), -1
    )
    assert offset.min() == 0 and offset.max() == spare + cell - side  # both extremes occur
    gap = corner.view(300, 3, 3, 2)[:, :, 1:, 1] - corner.view(300, 3, 3, 2)[:, :, :-1, 1] - side
    assert gap.min() >= 0 and gap.max() <= 2 * (cell - side)


def test_channels_of_color_images_are_shifted_by_whole_pixels_and_gray_images_are_not():
    ramp = torch.arange(48, dtype=torch.uint8).expand(1, 3, 48, 48) * 4  # the same in every channel
    source = Batch(torch.arange(64), ramp.repeat(64, 1, 1, 1))
    for gray, largest in ((0.0, 4), (1.0, 0)):
        method = build(data.open("synthetic:64:48"), jigsaw.Config(gray=gray, flip=0.0, channel_shift=2))
        tile = method.pretext(source, Rng(1)).tile[:, 4:5]  # far from the border
        level = tile * 255 / 4
        assert_close(level, level.round(), atol=0.01, rtol=0)  # gray is not the mean of shifted channels
        shift = ((tile[:, :, 0] - tile[:, :, 1]) * 255 / 4).flatten(1)
        assert_close(shift, shift[:, :1].expand_as(shift), atol=1e-3, rtol=0)
        assert_close(shift, shift.round(), atol=1e-3, rtol=0)
        assert shift.abs().max().round() == largest


def test_30_percent_of_images_are_gray_in_all_nine_tiles(source):
    tile = (
        build(source, jigsaw.Config(channel_shift=0))
        .pretext(Batch(torch.arange(600), batch(source, 60).image.repeat(10, 1, 1, 1)), Rng(1))
        .tile
    )
    gray = (tile[:, :, 0] == tile[:, :, 1]).flatten(2).all(2)
    assert (gray.all(1) | ~gray.any(1)).float().mean() > 0.95  # the content of a tile may be gray
    assert 0.24 < gray.all(1).float().mean() < 0.36


def test_half_of_the_images_are_flipped_as_a_whole(source):
    ramp = torch.arange(48, dtype=torch.uint8).expand(400, 3, 48, 48) * 4  # brighter to the right
    tile = build(source, jigsaw.Config(gray=0.0)).pretext(Batch(torch.arange(400), ramp), Rng(1)).tile
    flipped = (tile[..., -1] < tile[..., 0]).flatten(1)
    assert torch.equal(flipped.all(1), flipped.any(1))
    assert 0.42 < flipped.all(1).float().mean() < 0.58


def test_too_small_images_are_a_user_error_that_gives_the_size():
    config, source = jigsaw.Config(tile=0.5), data.open("synthetic:64:16")
    with pytest.raises(UserError, match="--size 45 or more, or a larger --tile or --window"):
        requirements.check(config, encoders.build("resnet_small:width=8", 3, 16), source)


# ---- the solver


def test_tiles_are_standardized_separately_and_a_constant_tile_is_0():
    x = augment.standardize(Rng(1).uniform(5, 3, 16, 16))
    assert x.mean((2, 3)).abs().max() < 1e-5
    assert (x.square().mean((2, 3)).sqrt() - 1).abs().max() < 1e-3
    assert augment.standardize(torch.full((2, 3, 8, 8), 0.3)).abs().max() < 1e-4


@pytest.mark.parametrize("encoder", ["resnet_small:width=8", "vit_tiny_patch16_224:patch_size=8,depth=2"])
def test_tiles_are_encoded_independently(source, encoder):
    method = build(source, encoder=encoder).eval()
    tile = method.pretext(batch(source, 2), Rng(1)).tile

    def encoded(tile):
        return method.tiles(augment.standardize(tile.flatten(0, 1)))[0].view(2, 9, -1)

    with torch.no_grad():
        before, other = encoded(tile), tile.clone()
        other[:, 3] = other[:, 3].flip(-1)
        after = encoded(other)
        swapped = encoded(tile[:, [1, 0, *range(2, 9)]])
    same = (before == after).all(-1)
    assert same[:, [0, 1, 2, 4, 5, 6, 7, 8]].all() and not same[:, 3].any()
    assert torch.equal(swapped[:, [1, 0]], before[:, :2])


def test_head_depends_on_the_tile_order(source):
    method = build(source).eval()
    p = method.pretext(batch(source, 2), Rng(1))
    reversed_tiles = dataclasses.replace(p, tile=p.tile.flip(1))
    with torch.no_grad():
        assert not torch.allclose(method.logits(p), method.logits(reversed_tiles))


def test_extra_permutations_score_as_if_the_tiles_had_been_shuffled_that_way(source):
    method = build(source).eval()
    p, rows = method.pretext(batch(source, 4), Rng(1)), torch.arange(4)[:, None]
    cell = back(p.tile, p.permutation)
    with torch.no_grad():
        logits = method.logits(p)
        assert logits.shape == (4, 8, 100)
        for k, label in enumerate(p.extra_labels.unbind(1)):
            permutation = method.permutations[label]
            single = dataclasses.replace(
                p, tile=cell[rows, permutation], permutation=permutation, label=label
            )
            assert_close(logits[:, k + 1], method.logits(single)[:, 0])


def test_all_permutations_have_equal_weight_in_the_loss(source):
    method = build(source, jigsaw.Config(shuffles=3)).eval()
    p = method.pretext(batch(source, 4), Rng(1))
    with torch.no_grad():
        scores, loss = method.logits(p).log_softmax(2), method.loss(p)
    truth = [[p.label[i], *p.extra_labels[i]] for i in range(4)]
    cost = [-scores[i, k, truth[i][k]] for i in range(4) for k in range(3)]
    assert_close(loss.total, torch.stack(cost).mean())


def test_permutations_of_an_image_are_independent_and_the_paper_has_one(source):
    p = build(source, jigsaw.Config(shuffles=4)).pretext(batch(source, 64), Rng(1))
    drawn = torch.cat([p.label[:, None], p.extra_labels], 1)
    assert drawn.shape == (64, 4) and (drawn[:, 1:] == drawn[:, :1]).float().mean() < 0.1
    assert len(drawn.unique()) > 80
    assert jigsaw.Paper().shuffles == 1


@pytest.mark.parametrize("config", [jigsaw.Config(), jigsaw.Config(num_permutations=1000)])
def test_untrained_loss_is_at_chance(source, config):
    method = build(source, config)
    with torch.no_grad():
        loss = method.loss(method.pretext(batch(source, 64), Rng(1)))
    assert abs(loss.total.item() - math.log(config.num_permutations)) < 0.1


def test_cfn_has_the_published_sides_and_parameter_count():
    """Sides 13, 6, 3 for tiles of 64 px with pooling rounded up; groups as in AlexNet."""
    net, x = encoders.build("cfn", 3, 64).eval(), torch.zeros(1, 3, 64, 64)
    assert [s.shape[-1] for name, s in net(x).items() if name != "pool"] == [13, 6, 6, 6, 3]
    assert sum(p.numel() for p in net.parameters()) == (
        (11 * 11 * 3 + 1) * 96 + (25 * 48 + 1) * 256 + (9 * 256 + 1) * 384 + (9 * 192 + 1) * (384 + 256)
    )


def test_cfn_input_is_scaled_to_gray_levels_and_its_outputs_depend_on_the_tiles(shared_data):
    """Pixels of 0 to 255 minus the mean of their tile (data_transformer.cpp:206-246) have a standard deviation of about 47
    in photographs; ours always do. With a standard deviation of 1, the released initialization (biases of 1) gives outputs
    that vary over tiles by a ten-thousandth of their size; with the released input they vary by a hundredth."""
    source = data.open(shared_data("imagenette224", "val"), size=255, channels=3)
    method = build(source, jigsaw.Paper(num_permutations=10, hidden=256, gray=0.0), "cfn").eval()
    shown = method.pretext(batch(source, 16), Rng(1))
    tiles = 255 * shown.tile.flatten(0, 1)
    released = tiles - tiles.mean((2, 3), keepdim=True)
    seen = []
    conv1 = next(m for m in method.modules() if isinstance(m, torch.nn.Conv2d))
    conv1.register_forward_pre_hook(lambda _, x: seen.append(x[0]))
    with torch.no_grad():
        logits = method.logits(shown)[:, 0]
    assert 0.8 < seen[0].square().mean().sqrt() / released.square().mean().sqrt() < 1.25
    assert_close(seen[0].mean((2, 3)), torch.zeros(len(tiles), 3), atol=1e-3, rtol=0)
    assert logits.std(0).mean() / logits.abs().mean() > 0.003


def test_paper_recipe_flattens_the_last_feature_map():
    source = data.open("synthetic:2:255")
    method = build(source, jigsaw.Paper(), "cfn")
    assert method.fc6.weight.shape == (1024, 3 * 3 * 256)
    assert method.fc7.weight.shape == (4096, 9 * 1024) and method.fc8.weight.shape == (1000, 4096)
    assert method.fc6.bias.eq(1).all() and not method.fc8.bias.any()


def test_learning_rate_drops_at_the_released_iterations():
    """solver_cfn_jps.prototxt at 8041c58: 0.01, divided by 10 every 100,000 of 350,000 steps, batch 256; biases at twice the
    learning rate and without decay, no Nesterov momentum."""
    train = jigsaw.Paper.train
    for step in (0, 99_999, 100_000, 100_500, 199_999, 200_000, 299_999, 300_000, 301_500, 349_999):
        released = 0.01 * 0.1 ** (step // 100_000)
        assert_close(train.lr * lr_factor(train, step / 350_000), released, rtol=1e-6, atol=0)
    assert abs(train.epochs * 1_281_167 / train.batch / 350_000 - 1) < 0.002
    assert (train.weight_decay, train.bias_lr_scale, train.decay_all) == (5e-4, 2.0, False)
    assert (train.momentum, train.nesterov) == (0.9, False)

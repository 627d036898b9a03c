"""Video triplets: the released layer's loss, negatives from other clips, random first and hard later."""

import pytest
import torch
import torch.nn.functional as F
from small import images_for
from torch.testing import assert_close

from pretask import data, encoders, methods
from pretask.data import loader
from pretask.data.arrays import Arrays
from pretask.methods import video_triplet
from pretask.methods.base.context import Context
from pretask.methods.video_triplet import Config, Paper, ranking_loss, sample_negatives, top_mask
from pretask.rng import Rng
from pretask.train.plan import Plan
from pretask.types import Batch, UserError


def rows(n: int, seed: int = 0, width: int = 8) -> torch.Tensor:
    return F.normalize(Rng(seed).normal(n, width), dim=1)


def released_loss(first, last, clip, draw, margin, hard) -> float:
    """The released layer in loops: sampled margin violators per pair, two hinges each, a fixed divisor."""
    b, total = len(first), 0.0
    everything, clips = [*first, *last], [*clip.tolist(), *clip.tolist()]

    def distance(x, y):
        return 1 - float(x @ y / (x.norm() * y.norm()))

    for i in range(b):
        near = distance(first[i], last[i])
        loss = {
            j: near - distance(first[i], other) + margin
            for j, other in enumerate(everything)
            if clips[j] != clip[i]
        }
        violators = [j for j in loss if loss[j] > 0]
        hardest = sorted(violators, key=lambda j: -loss[j])[:4]
        picked = sorted(hardest, key=lambda j: -float(draw[i, 0, j]))[:hard]
        left = sorted((j for j in violators if j not in picked), key=lambda j: -float(draw[i, 1, j]))
        for j in [*picked, *left[: 4 - hard]]:
            total += loss[j] + max(0.0, near - distance(last[i], everything[j]) + margin)
    return total / (4 * b * 2)


@pytest.mark.parametrize("hard", [0, 2, 4])
@pytest.mark.parametrize("margin", [0.1, 0.5, 1.0])
def test_loss_matches_the_released_layer(margin, hard):
    first, last = rows(12, 1), F.normalize(rows(12, 1) + 0.3 * rows(12, 2), dim=1)
    clip, draw = torch.arange(12) // 3, Rng(3).uniform(12, 2, 24)
    total, _ = ranking_loss(first, last, clip, draw, margin, hard)
    assert_close(total.item(), released_loss(first, last, clip, draw, margin, hard), rtol=1e-5, atol=1e-6)


def test_gradient_matches_finite_differences():
    first, last, clip, draw = (
        rows(4, 1).double(),
        rows(4, 2).double(),
        torch.arange(4),
        Rng(3).uniform(4, 2, 8),
    )
    x = torch.stack([first, last]).requires_grad_()
    torch.autograd.gradcheck(
        lambda x: ranking_loss(*F.normalize(x, dim=2), clip, draw, 0.5, 2)[0], x, atol=1e-6
    )


def test_identical_embeddings_have_a_loss_of_the_margin_per_hinge():
    same = rows(1).expand(6, 8)
    total, _ = ranking_loss(same, same, torch.arange(6), Rng(1).uniform(6, 2, 12), 0.5, 0)
    assert_close(total.item(), 0.5)  # 4 negatives of 2 hinges of 0.5, over 4 · 2


def test_orthogonal_negatives_have_no_loss_up_to_margin_1():
    first = torch.eye(6)
    for margin in (0.5, 1.0):
        assert ranking_loss(first, first, torch.arange(6), Rng(1).uniform(6, 2, 12), margin, 0)[0] == 0
    assert ranking_loss(first, first, torch.arange(6), Rng(1).uniform(6, 2, 12), 1.1, 0)[0] > 0


def test_negatives_are_from_other_clips_and_at_most_four():
    similarity, draw = Rng(1).normal(10, 20), Rng(2).uniform(10, 2, 20)
    clip = torch.arange(10) // 5
    others = clip[:, None] != torch.cat([clip, clip])
    for hard in (0, 2):
        negatives = sample_negatives(similarity, others, draw, hard)
        assert not (negatives & ~others).any() and (negatives.sum(1) == 4).all()
    few = others & (torch.arange(20) < 8)
    assert (sample_negatives(similarity, few, draw, 2).sum(1) == few.sum(1).clamp(max=4)).all()
    assert not sample_negatives(similarity, torch.zeros_like(others), draw, 2).any()


def test_two_hard_negatives_are_among_the_four_hardest():
    similarity, allowed = Rng(1).normal(50, 40), torch.ones(50, 40, dtype=torch.bool)
    hardest = torch.zeros_like(allowed).scatter(1, similarity.topk(4, 1).indices, True)
    negatives = sample_negatives(similarity, allowed, Rng(2).uniform(50, 2, 40), 2)
    assert ((negatives & hardest).sum(1) >= 2).all()
    assert ((negatives & hardest).sum(1) < 4).any()  # the others are from all that remain


def test_four_hard_negatives_are_the_four_hardest():
    similarity, allowed = Rng(1).normal(50, 40), Rng(3).uniform(50, 40) < 0.7
    negatives = sample_negatives(similarity, allowed, Rng(2).uniform(50, 2, 40), 4)
    for row, may, mine in zip(similarity.tolist(), allowed.tolist(), negatives.tolist(), strict=True):
        left = sorted((j for j in range(40) if may[j]), key=lambda j: -row[j])
        assert {j for j in range(40) if mine[j]} == set(left[:4])


def test_random_negatives_are_uniform_over_candidates():
    similarity, allowed = Rng(1).normal(1, 12).expand(6000, 12), torch.ones(6000, 12, dtype=torch.bool)
    share = sample_negatives(similarity, allowed, Rng(2).uniform(6000, 2, 12), 0).float().mean(0)
    assert_close(share, torch.full((12,), 4 / 12), atol=0.03, rtol=0)
    hard = sample_negatives(similarity, allowed, Rng(2).uniform(6000, 2, 12), 2).float().mean(0)
    order = similarity[0].argsort(descending=True)
    assert_close(hard[order[:4]], torch.full((4,), 0.5 + 0.5 * 2 / 10), atol=0.03, rtol=0)
    assert_close(hard[order[4:]], torch.full((8,), 2 / 10), atol=0.03, rtol=0)


def test_top_mask_has_only_allowed_candidates():
    value = torch.tensor([[3.0, 2.0, 1.0]])
    assert top_mask(value, torch.tensor([[False, True, True]]), 1).tolist() == [[False, True, False]]
    assert top_mask(value, torch.tensor([[False, False, True]]), 2).tolist() == [[False, False, True]]
    assert top_mask(value, torch.ones(1, 3, dtype=torch.bool), 0).tolist() == [[False] * 3]


def method(recipe: str = "video_triplet", **overrides):
    source = images_for("video_triplet")
    config = methods.recipe(recipe)(**overrides)
    return config.build(encoders.build("resnet_small:width=8", 3, source.size), source), source


def test_hard_mining_starts_after_hard_start_and_is_saved():
    made, source = method(hard_start=0.5)
    puzzle = made.puzzle(loader.sample(source, 16), 1)
    assert made.loss(puzzle).parts["hard_mining"] == 0
    for step in range(4):
        made.after_step(None, Plan.of(8, 8).at(step))
        assert bool(made.hard_mining) == (step == 3)
    assert made.loss(puzzle).parts["hard_mining"] == 1 and "hard_mining" in made.state_dict()


@pytest.mark.parametrize(("recipe", "hard"), [("video_triplet", 2), ("video_triplet:paper", 4)])
def test_with_hard_mining_the_loss_is_that_with_num_hard_negatives(recipe, hard):
    made, source = method(recipe)
    made.eval().hard_mining.fill_(True)
    puzzle = made.puzzle(loader.sample(source, 16), 1)
    with torch.no_grad():
        first, last = made.embed(puzzle)
        found = made.loss(puzzle).total.item()
    costs = {
        h: released_loss(first, last, puzzle.clip, puzzle.draw, made.config.margin, h) for h in (0, 2, 4)
    }
    assert_close(found, costs[hard], rtol=1e-4, atol=1e-5)
    assert all(abs(found - costs[h]) > 1e-3 * found for h in costs if h != hard), costs


def test_patches_of_a_pair_stay_together_and_are_flipped_independently():
    image = torch.arange(3 * 16 * 16).view(1, 3, 16, 16).remainder(251).to(torch.uint8)
    image = image + torch.arange(64).view(-1, 1, 1, 1).to(torch.uint8)
    batch = Batch(torch.arange(64), image, {"tracked": image, "clip": torch.arange(64)})
    made, _ = method("video_triplet:paper")
    puzzle = made.pretext(batch, Rng(1))
    whole = image.float() / 255
    flips = []
    for shown in (puzzle.image, puzzle.tracked):
        straight = (shown - whole).abs().amax((1, 2, 3)) < 1e-3
        mirrored = (shown - whole.flip(3)).abs().amax((1, 2, 3)) < 1e-3
        assert (straight ^ mirrored).all()
        flips.append(mirrored)
    alike = (flips[0] == flips[1]).float().mean()
    assert 0.25 < alike < 0.75
    assert torch.equal(puzzle.clip, batch.aux["clip"])


def test_both_patches_share_weights_and_embeddings_have_unit_length():
    made, source = method("video_triplet:paper")
    names = [name for name, _ in made.named_parameters()]
    assert all(name.startswith(("encoder.", "head.")) for name in names)
    first, last = made.eval().embed(made.puzzle(loader.sample(source, 8), 1))
    for z in (first, last):
        assert_close(z.norm(dim=1), torch.ones(8))
        assert (z >= 0).all()  # the paper's net ends in a ReLU


def test_tracks_of_one_clip_are_a_user_error():
    made, source = method()
    one = Arrays(
        "film", torch.zeros(8, 3, 16, 16, dtype=torch.uint8), aux={"clip": torch.zeros(8, dtype=torch.long)}
    )
    progress = Plan.of(1, 1).at(0)
    made.begin(Context(source, [], progress, Rng(0)))
    with pytest.raises(UserError, match="film has tracks of one clip"):
        made.begin(Context(one, [], progress, Rng(0)))


def test_paper_recipe_matches_the_released_settings():
    c, train = Paper(), Paper.train
    assert (c.margin, c.num_hard, c.hidden, video_triplet.NEGATIVES) == (0.5, 4, 0, 4)
    assert (train.batch, train.lr, train.weight_decay, train.optimizer) == (50, 1e-3, 5e-4, "sgd")
    assert train.milestones == (0.25, 0.5, 0.75)  # 100,000 of 400,000 steps each


def test_paper_network_is_caffenet_without_dropout_and_with_fc7_of_1024():
    """xiaolonw/caffe-video_triplet rank_scripts/rank_alexnet/imagenet_train.prototxt, at its patch size."""
    source = data.open("synthetic:8:227")
    torch.manual_seed(0)
    made = Paper().build(encoders.build(Paper.encoder, 3, 227), source)
    assert sum(p.numel() for p in made.parameters()) == 44_282_240
    assert list(made.encoder.widths) == [*(f"conv{i}" for i in range(1, 6)), "fc6", "fc7", "pool"]
    assert not any(isinstance(m, torch.nn.Dropout | torch.nn.BatchNorm2d) for m in made.modules())
    with torch.no_grad():
        puzzle = made.puzzle(loader.sample(source, 2), 1)
        assert puzzle.image.shape[-1] == 227
        first, _ = made.embed(puzzle)
        fc7 = made.encoder(puzzle.image)["fc7"]
    assert fc7.shape == (2, 1024, 1, 1)
    assert_close(first, F.normalize(fc7.flatten(1), dim=1))
    for group in made.optimizers(Paper.train)[0].param_groups:  # lr_mult 1, 2 and decay_mult 1, 0
        vectors = {p.ndim for p in group["params"]} == {1}
        assert group["lr"] == pytest.approx(2e-3 if vectors else 1e-3)
        assert group["weight_decay"] == pytest.approx(0.0 if vectors else 5e-4)
        assert group["momentum"] == 0.9 and not group["nesterov"]


def test_pairs_are_retrieved_after_training_despite_changes_of_color_and_position():
    """Recall of the later image among all unseen images, with a network of a few thousand weights."""
    source = data.open("synthetic:512:16")
    torch.manual_seed(0)
    made = Config().build(encoders.build("resnet_small:width=16", 3, 16), source)
    held = made.puzzle(source.__getitems__(torch.arange(448, 512)), "held")

    @torch.no_grad()
    def recall() -> float:
        first, last = (
            F.normalize(made.export().eval()(x)["pool"], dim=1) for x in (held.image, held.tracked)
        )
        made.train()
        return ((first @ last.T).argmax(1) == torch.arange(64)).float().mean().item()

    before = recall()
    optimizer = torch.optim.AdamW(made.parameters(), lr=2e-3)
    for step in range(400):
        index = Rng(step, "order").permutation(448)[:64]
        made.loss(made.puzzle(source.__getitems__(index), step)).total.backward()
        optimizer.step()
        optimizer.zero_grad()
    after = recall()
    assert after > before + 0.08, f"{before:.2f} {after:.2f}"

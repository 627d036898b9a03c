"""Drawings of the demo: only the shape of an object determines its class."""

import torch
from sklearn.linear_model import LogisticRegression

from pretask import data
from pretask.data import drawings
from pretask.rng import Rng


def some(n: int, size: int = 32) -> tuple[torch.Tensor, torch.Tensor]:
    label = Rng(0, "label").integers(n, high=len(drawings.KINDS))
    return drawings.drawings(label, size, Rng(0, "drawings")), label


def test_same_keys_give_the_same_images_in_chunks_of_any_size(monkeypatch):
    whole, _ = some(20)
    monkeypatch.setattr(drawings, "CHUNK", 7)
    assert torch.equal(some(20)[0], whole)
    assert len(whole.unique(dim=0)) == 20


def test_every_paint_contrasts_with_the_background():
    color = drawings.palettes(2000, Rng(0))
    assert color.min() >= 0 and color.max() <= 1
    difference = (color[:, 1:] - color[:, :1]).abs().mean(2)
    assert difference.min() >= drawings.CONTRAST


def test_every_kind_is_drawn_in_several_colors_and_leaves_background():
    u = [0.5] * 11
    for kind in drawings.KINDS:
        picture = drawings.draw(kind, u, 96)
        assert {0, 1, 2} <= {*picture.flatten().tolist()} <= {0, 1, 2, 3}
        assert 0.1 < (picture > 0).mean() < 0.8


def test_kinds_differ_in_shape_whatever_their_pose():
    """With equal pose and average proportions, no two kinds cover the same pixels."""
    for u in ([0.5] * 11, [0.9, 0.2, 0.8, 0.1, 0.2, 0.5, 0.5, 0.5, 0.5, 0.5, 0.5]):
        covered = [torch.from_numpy(drawings.draw(kind, u, 96) > 0) for kind in drawings.KINDS]
        for i, one in enumerate(covered):
            for other in covered[:i]:
                assert (one & other).sum() / (one | other).sum() < 0.75


def test_color_and_light_do_not_predict_the_kind():
    image, label = some(3000, 16)
    x = image.float().flatten(2)
    x = torch.cat([x.mean(2), x.std(2), x.quantile(0.1, 2), x.quantile(0.9, 2), image[..., 0, 0].float()], 1)
    fit = LogisticRegression(max_iter=500).fit((x[:2000] / 255).numpy(), label[:2000].numpy())
    assert fit.score((x[2000:] / 255).numpy(), label[2000:].numpy()) < 0.2  # chance: 0.1


def test_the_lens_shifts_green_away_from_the_center_and_nothing_else():
    plain, seen = (data.open_labeled(spec, size=32) for spec in ("demo", "demo:lens"))
    assert torch.equal(plain.label, seen.label)
    which = torch.arange(64)
    one, other = (source.__getitems__(which).image.float() for source in (plain, seen))
    assert torch.equal(one[:, [0, 2]], other[:, [0, 2]])
    moved = (one[:, 1] - other[:, 1]).abs().mean(0)  # (32, 32)
    assert moved[12:20, 12:20].mean() < 0.7 * moved.mean() > 0.5

"""Random numbers that belong to rows: the same in any batch, and otherwise like any others."""

import torch
from torch.testing import assert_close

from pretask.rng import RowRng
from pretask.transforms import augment


def test_a_row_gets_the_same_numbers_in_any_batch():
    key, order = torch.arange(40) * 7, torch.randperm(40)
    whole, parts = RowRng(key, "a"), RowRng(key[order], "a")
    for draw in (
        lambda rng: rng.uniform(40, 3, low=-1, high=2),
        lambda rng: rng.normal(40, 2, 2),
        lambda rng: rng.integers(40, high=9),
        lambda rng: rng.coin(40, 1, p=0.3),
    ):
        assert torch.equal(draw(whole)[order], draw(parts))


def test_a_view_of_an_image_is_the_same_in_any_batch():
    image, key = torch.rand(8, 3, 16, 16), torch.arange(8)
    views, order = augment.ViewAugmentation(blur=0.5, solarize=0.5), torch.tensor([5, 2, 7])
    whole = views(image, 12, RowRng(key, "b"))
    assert_close(views(image[order], 12, RowRng(key[order], "b")), whole[order], rtol=0, atol=1e-5)
    assert not torch.equal(views(image, 12, RowRng(key + 8, "b")), whole)


def test_draws_are_uniform_and_unrelated_between_rows_columns_and_streams():
    rng = RowRng(torch.arange(2000), "c")
    u = rng.uniform(2000, 50)
    assert u.min() >= 0 and u.max() < 1
    assert_close(u.flatten().histc(20, 0, 1) / u.numel(), torch.full((20,), 0.05), rtol=0, atol=0.003)
    for one, other in ((u[:-1], u[1:]), (u[:, :-1], u[:, 1:]), (u, rng.uniform(2000, 50)),
                       (u, rng.child("d").uniform(2000, 50)), (u, RowRng(torch.arange(2000), "d").uniform(2000, 50))):  # fmt: skip
        assert torch.corrcoef(torch.stack([one.flatten(), other.flatten()]))[0, 1].abs() < 0.015
    n = rng.normal(2000, 50)
    assert_close(n.mean(), torch.tensor(0.0), rtol=0, atol=0.02)
    assert_close(n.std(), torch.tensor(1.0), rtol=0, atol=0.02)
    assert set(rng.integers(2000, high=5).tolist()) == set(range(5))

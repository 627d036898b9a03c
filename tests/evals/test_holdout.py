"""Stratified splits: the same fraction of every class is held out, never the whole class."""

import pytest
import torch

from pretask import data
from pretask.data.subset import LabeledSubset
from pretask.evals import holdout
from pretask.evals.holdout import Splits, ranks, split, splits
from pretask.rng import Rng
from pretask.types import UserError

LABEL = torch.tensor([0] * 50 + [1] * 11 + [3] * 2 + [4])[Rng(0).permutation(64)]  # class 2 has no sample


def test_ranks_number_each_class_from_0():
    ranked = ranks(LABEL, Rng(1))
    for c in (0, 1, 3, 4):
        assert sorted(ranked[c == LABEL].tolist()) == list(range((c == LABEL).sum()))


def test_every_rank_is_as_likely_as_any_other():
    first = sum((ranks(LABEL, Rng(seed)) == 0).long() for seed in range(1000))
    expected = 1000 / LABEL.bincount()[LABEL]
    assert ((first - expected).abs() < 5 * expected.sqrt()).all()


def test_a_fifth_of_each_class_is_held_out_at_least_one_and_never_all():
    kept, held = split(LABEL, Rng(2))
    assert sorted([*kept.tolist(), *held.tolist()]) == list(range(64))
    assert LABEL[held].bincount(minlength=5).tolist() == [10, 2, 0, 1, 0]
    assert LABEL[kept].bincount(minlength=5).tolist() == [40, 9, 0, 1, 1]


def test_held_out_samples_are_limited_by_most():
    label = Rng(3).integers(10_000, high=10)
    assert len(split(label, Rng(4), most=500)[1]) == pytest.approx(500, abs=5)
    assert len(split(label, Rng(4), most=5000)[1]) == pytest.approx(2000, abs=5)


def test_splits_depend_on_the_keys_only():
    assert torch.equal(split(LABEL, Rng(5))[1], split(LABEL, Rng(5))[1])
    assert not torch.equal(split(LABEL, Rng(5))[1], split(LABEL, Rng(6))[1])


def test_single_images_cannot_be_split():
    with pytest.raises(UserError, match="single image"):
        split(torch.arange(5), Rng(0))


# ---- splits for choosing hyperparameters


@pytest.mark.parametrize(("n", "repeats"), [(40, 10), (250, 8), (1000, 2), (2000, 1)])
def test_each_repeat_holds_out_every_sample_once(n, repeats):
    label = Rng(n, "folds").integers(n, high=7)
    ways = splits(label, 0)
    assert ways.fit_mask.shape == ways.held_out_mask.shape == (5 * repeats, n)
    assert ways.held_out_mask.sum(0).tolist() == [repeats] * n
    for fit_mask, held_out_mask in zip(ways.fit_mask, ways.held_out_mask, strict=True):
        fit, held = ways.fit[fit_mask], ways.held_out[held_out_mask]
        assert sorted([*fit.tolist(), *held.tolist()]) == list(range(n))
        fraction = label[held].bincount(minlength=7) / label.bincount(minlength=7)
        assert ((fraction - 0.2).abs() * label.bincount(minlength=7) <= 1).all()  # stratified
    assert len({tuple(row.tolist()) for row in ways.held_out_mask}) == 5 * repeats


def test_folds_of_small_classes_have_similar_sizes():
    """Two samples of each of many classes: not all in the first two folds."""
    label = torch.arange(400) // 2
    held = splits(label, 0).held_out_mask.sum(1)
    assert held.min() > 50 and held.max() < 110


def test_a_class_of_one_sample_is_never_held_out():
    ways = splits(LABEL, 0)
    single = (LABEL == 4).nonzero().item()
    assert not ways.held_out_mask[:, ways.held_out == single].any()
    assert ways.fit_mask[:, ways.fit == single].float().mean() == pytest.approx(0.8)
    assert splits(torch.tensor([0, 0, 1, 1]), 0).held_out_mask.any(1).all()  # every fold holds out something


def test_many_samples_are_split_once_within_limits(monkeypatch):
    label = Rng(3).integers(3000, high=10)
    ways = splits(label, 0)
    assert ways.fit_mask.shape[0] == 1 and ways.fit_mask.all() and ways.held_out_mask.all()
    assert len(ways.held_out) == pytest.approx(600, abs=10) and len(ways.fit) + len(ways.held_out) == 3000
    assert ways.fit_fraction == 1
    assert not torch.isin(ways.held_out, ways.fit).any()
    monkeypatch.setattr(holdout, "MAX_HELD_OUT", 300)
    monkeypatch.setattr(holdout, "MAX_FIT", 1000)
    ways = splits(label, 0)
    assert len(ways.held_out) == pytest.approx(300, abs=10) and len(ways.fit) == pytest.approx(1000, abs=10)
    assert ways.fit_fraction == pytest.approx(1000 / 2700, rel=0.02)
    assert not torch.isin(ways.held_out, ways.fit).any()
    first = label[ways.held_out[:100]].bincount(minlength=10)
    assert (first > 0).all()  # in random order: the first ones are representative


def test_every_sample_has_the_same_weight_however_often_it_was_held_out():
    held_out_mask = torch.tensor([[1, 1, 0, 0], [1, 0, 1, 0]]).bool()
    ways = Splits(torch.arange(4), ~held_out_mask, torch.arange(4), held_out_mask)
    right = torch.tensor([[1, 0, 1, 1], [0, 1, 1, 1]]).bool()
    assert ways.accuracy(right) == pytest.approx((0.5 + 0 + 1) / 3)  # the last was never held out


def test_single_images_cannot_be_split_into_folds():
    with pytest.raises(UserError, match="single image"):
        splits(torch.arange(5), 0)


def test_a_part_is_a_source_of_some_samples():
    whole = data.open_labeled("synthetic:40:16")
    part = LabeledSubset(whole, torch.tensor([31, 4, 17]), "some")
    assert (len(part), part.name, part.classes, part.size, part.channels) == (3, "some", whole.classes, 16, 3)
    assert part.label.tolist() == whole.label[[31, 4, 17]].tolist()
    batch = part.__getitems__(torch.tensor([2, 0]))
    assert batch.index.tolist() == [2, 0]
    assert torch.equal(batch.image, whole.__getitems__(torch.tensor([17, 31])).image)

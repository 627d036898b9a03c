"""Splits class by class: of every class its share, never all of it."""

import pytest
import torch

from pretask import sources
from pretask.evals.holdout import Part, ranks, split
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


def test_large_sets_hold_out_no_more_than_they_are_told():
    label = Rng(3).integers(10_000, high=10)
    assert len(split(label, Rng(4), most=500)[1]) == pytest.approx(500, abs=5)
    assert len(split(label, Rng(4), most=5000)[1]) == pytest.approx(2000, abs=5)


def test_the_same_keys_split_alike_and_others_otherwise():
    assert torch.equal(split(LABEL, Rng(5))[1], split(LABEL, Rng(5))[1])
    assert not torch.equal(split(LABEL, Rng(5))[1], split(LABEL, Rng(6))[1])


def test_nothing_can_be_held_out_of_single_images():
    with pytest.raises(UserError, match="single image"):
        split(torch.arange(5), Rng(0))


def test_a_part_is_a_source_of_some_samples():
    whole = sources.open_labelled("synthetic:40:16")
    part = Part(whole, torch.tensor([31, 4, 17]), "some")
    assert (len(part), part.name, part.classes, part.size, part.channels) == (3, "some", whole.classes, 16, 3)
    assert part.label.tolist() == whole.label[[31, 4, 17]].tolist()
    batch = part.__getitems__(torch.tensor([2, 0]))
    assert batch.index.tolist() == [2, 0]
    assert torch.equal(batch.image, whole.__getitems__(torch.tensor([17, 31])).image)

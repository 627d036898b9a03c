"""Which images are chosen: of each strategy, on features whose answer is known."""

import torch

from pretask.collection import selection
from pretask.ops.neighbors import unit
from pretask.rng import Rng

NONE = torch.zeros(0, dtype=torch.long)


def groups(sizes=(40, 30, 20, 10), width=8):
    """Unit rows in well separated groups, and the group of each."""
    rng = Rng(0, "groups")
    centers = 5 * torch.eye(len(sizes), width)
    group = torch.repeat_interleave(torch.arange(len(sizes)), torch.tensor(sizes))
    return unit(centers[group] + 0.3 * rng.normal(len(group), width)), group


def test_typical_images_are_one_of_each_group_and_dense():
    z, group = groups()
    chosen = selection.typical(z, 4, NONE, 0)
    assert sorted(group[chosen].tolist()) == [0, 1, 2, 3]
    assert group[chosen[0]] == 0  # of the largest first
    for row in chosen.tolist():
        mine = (group == group[row]).nonzero().flatten()
        mean = z[mine].mean(0)
        assert (z[mine] @ mean > z[row] @ mean).float().mean() < 0.35


def test_typical_images_are_of_groups_without_a_label():
    z, group = groups()
    chosen = selection.typical(z, 2, torch.tensor([0, 45]), 0)  # of the groups 0 and 1
    assert sorted(group[chosen].tolist()) == [2, 3] and not {0, 45} & {*chosen.tolist()}


def test_k_center_covers_all_groups_whatever_their_size():
    z, group = groups((200, 5, 5, 5))
    assert sorted(group[selection.k_center(z, 4, NONE)].tolist()) == [0, 1, 2, 3]
    assert sorted(group[selection.k_center(z, 3, torch.tensor([3]))].tolist()) == [1, 2, 3]


def test_k_center_is_the_greedy_rule_written_out():
    z, _ = groups()
    labeled, chosen = [3, 50], []
    for _ in range(5):
        far = [min(1 - float(z[i] @ z[j]) for j in labeled + chosen) for i in range(len(z))]
        chosen.append(max(range(len(z)), key=far.__getitem__))
    assert selection.k_center(z, 5, torch.tensor(labeled)).tolist() == chosen


def test_small_margins_are_chosen_and_spread_over_groups():
    z, group = groups()
    probability = torch.full((100, 3), 0.02)
    probability[:, 0] = 0.96
    unsure = torch.tensor([1, 2, 41, 42, 71, 72, 91, 92])  # two of each group
    probability[unsure] = torch.tensor([0.45, 0.44, 0.11])
    chosen = selection.margin(z, probability, 4, torch.tensor([1]), 0)
    assert set(chosen.tolist()) <= {*unsure.tolist()} - {1}
    assert sorted(group[chosen].tolist()) == [0, 1, 2, 3]


def test_every_strategy_returns_as_many_different_images_as_asked():
    z = unit(torch.ones(30, 4))  # collapsed features
    for chosen in (
        selection.typical(z, 10, NONE, 0),
        selection.k_center(z, 10, NONE),
        selection.margin(z, torch.full((30, 2), 0.5), 10, NONE, 0),
    ):
        assert len(set(chosen.tolist())) == 10

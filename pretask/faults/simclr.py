"""Faults of SimCLR."""

import torch
import torch.nn.functional as F

from pretask.faults import Fault


def attraction(original):
    """A loss that only draws the two views together."""
    return lambda z1, z2, *_: (1 - (z1 * z2).sum(1).mean(), torch.zeros(()))


def with_itself(original):
    """Every view is also compared with itself."""

    def nt_xent(z1, z2, temperature, first=0):
        z, count = torch.cat([z1, z2]), len(z1)
        similarity = z @ z.T / temperature
        positive = torch.arange(2 * count).roll(count)
        return F.cross_entropy(similarity, positive), (similarity.argmax(1) == positive).float().mean()

    return nt_xent


FAULTS = (
    Fault(
        "negatives",
        "Views of other images count nothing.",
        patches={"nt_xent": attraction},
        named_by="monitor",
    ),
    Fault(
        "low-temperature",
        "The temperature of the softmax over views is 5.",
        config={"temperature": 5.0},
        paper=(
            "Chen et al. 2020, in the ablation of the loss: a temperature that is too high costs accuracy. "
            "Nothing collapses."
        ),
    ),
    Fault(
        "compared with itself",
        "The view itself is among those that its other view is looked for in.",
        patches={"nt_xent": with_itself},
    ),
)

"""Faults of BYOL."""

import torch

from pretask.faults import Fault
from pretask.types import Loss


def without_teacher(original):
    """Both sides are the student, and gradients flow through both."""

    def loss(self, pretext):
        z = self.projector(self.encoder(pretext.both)["pool"])
        similarity = torch.cosine_similarity(
            self.predictor(z).float(), torch.cat(z.chunk(2)[::-1]).float(), dim=1
        )
        return Loss(2 - 2 * similarity.mean())

    return loss


FAULTS = (
    Fault(
        "teacher",
        "The target is the student's own projection, through which gradients flow.",
        patches={"BYOL.loss": without_teacher},
        named_by="monitor",
        paper=(
            "Grill et al. 2020, on its behavior: constant outputs minimize the loss over both sides; only because the "
            "target is not trained does the method avoid them."
        ),
    ),
    Fault(
        "moving-teacher",
        "The teacher keeps its random initial weights.",
        patches={"update_ema": lambda _: lambda *_: None},
        paper=(
            "Grill et al. 2020, in the ablation of the target: features learned from a fixed random target "
            "are better than that target's own, and worse than with a moving one. Nothing collapses."
        ),
    ),
)

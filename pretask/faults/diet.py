"""Faults of DIET."""

import torch.nn.functional as F

from pretask.faults import Fault


def detached(original):
    """The logits of features through which no gradient flows."""
    return lambda self, pretext: self.head(self.encoder(pretext.image)["pool"].detach())


FAULTS = (
    Fault(
        "label-smoothing",
        "The target is the image's own index alone.",
        config={"label_smoothing": 0.0},
    ),
    Fault(
        "detached features",
        "Only the classifier is trained.",
        patches={"DIET.logits": detached},
    ),
    Fault(
        "unit-length features",
        "Features are scaled to unit length, as only the recipe for given weights does.",
        patches={
            "DIET.logits": lambda _: (
                lambda self, p: self.head(F.normalize(self.encoder(p.image)["pool"], dim=1))
            )
        },
    ),
)

"""Faults of SimSiam."""

import torch.nn.functional as F
from torch import nn

from pretask.faults import Fault


def without_predictor(original):
    def init(self, config, encoder):
        original(self, config, encoder)
        self.predictor = nn.Identity()

    return init


FAULTS = (
    Fault(
        "stop-gradient",
        "Gradients flow through the target.",
        patches={
            "mean_cosine_similarity": lambda _: (
                lambda p, z: F.cosine_similarity(p.float(), z.float(), dim=1).mean()
            )
        },
        named_by="monitor",
        paper=(
            "Chen and He 2021, in the ablation of the stop-gradient: the loss falls to its minimum, -1, at once; "
            "the outputs become constant; a linear probe on ImageNet is at chance."
        ),
    ),
    Fault(
        "predictor",
        "Projections are compared directly.",
        patches={"SimSiam.__init__": without_predictor},
        named_by="monitor",
        paper=("Chen and He 2021, in the ablation of the predictor: without it the method does not work."),
    ),
    Fault(
        "swapped views",
        "The prediction is compared with the projection of the same view.",
        patches={
            "mean_cosine_similarity": lambda own: lambda p, z: own(p, z.roll(len(z) // 2, 0)),
        },
    ),
)

"""Faults of iBOT."""

from pretask.faults import Fault
from pretask.faults.dino import uncentered

FAULTS = (
    Fault(
        "centering",
        "The teacher's logits are not centered.",
        config={"ema_momentum": 0.9},
        patches={"teacher_probs": uncentered},
        named_by="monitor",
    ),
    Fault(
        "masks",
        "The student sees the patches whose assignments it predicts.",
        patches={
            "IBOT.tokens": lambda own: lambda self, encoder, image, mask=None: own(self, encoder, image)
        },
    ),
)

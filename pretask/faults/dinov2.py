"""Faults of DINOv2."""

from pretask.faults import Fault

FAULTS = (
    Fault(
        "even-assignments",
        "The teacher's assignments are a softmax, and features are not spread.",
        config={"ema_momentum": 0.9, "koleo": 0.0},
        patches={"sinkhorn": lambda _: lambda cosines, temperature, _: (cosines / temperature).softmax(1)},
        named_by="monitor",
    ),
    Fault(
        "masks",
        "The student sees the patches whose assignments it predicts.",
        patches={
            "masked_tokens": lambda own: lambda encoder, image, token, mask=None: own(encoder, image, token)
        },
    ),
    Fault(
        "wrong sign of KoLeo",
        "Features of different images are drawn together.",
        patches={"koleo": lambda own: lambda z, group: -own(z, group)},
    ),
)

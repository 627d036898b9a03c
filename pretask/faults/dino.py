"""Faults of DINO."""

from pretask.faults import Fault


def uncentered(original):
    return lambda logits, center, temperature: (logits / temperature).softmax(-1)


FAULTS = (
    Fault(
        "centering",
        "The teacher's logits are not centered.",
        config={"ema_momentum": 0.9},
        patches={"teacher_probs": uncentered},
        named_by="monitor",
        paper=(
            "Caron et al. 2021, in the study of collapse: without centering, one prototype takes all images: the "
            "entropy of the teacher's output goes to 0."
        ),
    ),
    Fault(
        "sharpening",
        "The teacher's softmax has a temperature of 1.",
        config={"ema_momentum": 0.9, "teacher_temp": (1.0, 1.0)},
        named_by="monitor",
        paper=(
            "Caron et al. 2021, in the study of collapse: without sharpening, all images get the same even output: "
            "its entropy goes to ln K."
        ),
    ),
    Fault(
        "moving-teacher",
        "The teacher keeps its random initial weights.",
        patches={"update_ema": lambda _: lambda *_: None},
    ),
)

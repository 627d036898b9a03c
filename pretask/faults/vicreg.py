"""Faults of VICReg."""

from pretask.faults import Fault

FAULTS = (
    Fault(
        "variance",
        "The term that keeps the embedding's dimensions from becoming constant has weight 0.",
        config={"variance": 0.0},
        named_by="monitor",
        paper=(
            "Bardes, Ponce, LeCun 2022, in the ablation of the loss: without the variance term, the embeddings "
            "collapse."
        ),
    ),
    Fault(
        "covariance",
        "The term that decorrelates the embedding's dimensions has weight 0.",
        config={"covariance": 0.0},
        paper=(
            "Bardes, Ponce, LeCun 2022, in the ablation of the loss: without the covariance term the method "
            "still learns, but less."
        ),
    ),
)

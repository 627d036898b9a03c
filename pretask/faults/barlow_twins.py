"""Faults of Barlow Twins."""

from pretask.faults import Fault

FAULTS = (
    Fault(
        "redundancy-reduction",
        "The term that decorrelates the embedding's dimensions has weight 0.",
        config={"lambda_": 0.0},
        paper=(
            "Zbontar et al. 2021, in the ablation of the loss: the invariance term alone gives much lower "
            "accuracy."
        ),
    ),
    Fault(
        "centering",
        "Embeddings are scaled but not centered, so that the matrix holds no correlations.",
        patches={"standardize": lambda _: lambda z: z / z.square().mean(0).add(1e-5).sqrt()},
    ),
)

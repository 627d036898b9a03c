"""Faults of colorization."""

from pretask.faults import Fault

FAULTS = (
    Fault(
        "rebalancing",
        "Rare colors weigh no more than frequent ones.",
        patches={"rebalancing_weights": lambda _: lambda prior, uniform: prior.new_ones(len(prior))},
        paper=(
            "Zhang, Isola, Efros 2016, sec. 2.2: most pixels are nearly gray, and without weights for rare "
            "colors so are the predictions."
        ),
    ),
    Fault(
        "soft-encoding",
        "The target is the nearest color alone, not the five nearest.",
        config={"num_neighbors": 1},
    ),
    Fault(
        "wrong flip",
        "Targets are mirrored against the image.",
        patches={"Colorization.target_ab": lambda own: lambda self, x: own(self, x).flip(-1)},
    ),
)

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
        "weights not normalized",
        "The weights of the colors average as many as there are colors, not 1.",
        patches={"rebalancing_weights": lambda own: lambda prior, uniform: len(prior) * own(prior, uniform)},
    ),
    Fault(
        "wrong flip",
        "Targets are mirrored against the image.",
        patches={"Colorization.target_ab": lambda own: lambda self, x: own(self, x).flip(-1)},
    ),
)

"""Faults of cross-domain multi-task learning."""

from pretask.faults import Fault

FAULTS = (
    Fault(
        "log-depth",
        "Depth is compared in meters, not by its logarithm.",
        patches={"depth_loss": lambda own: lambda predicted, depth, sign: own(predicted, depth.exp(), sign)},
    ),
    Fault(
        "frozen discriminator",
        "The adversarial loss also trains the discriminator, against its own task.",
        patches={"functional_call": lambda _: lambda net, frozen, inputs: net(*inputs)},
    ),
)

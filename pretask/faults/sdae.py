"""Faults of stacked denoising autoencoders."""

from pretask.faults import Fault


def scaled_up(original):
    """Components that remain are scaled up, as in dropout."""

    def corrupt(x, noise, level, *rest):
        corrupted, mask = original(x, noise, level, *rest)
        return corrupted / (1 - level), mask

    return corrupt


FAULTS = (
    Fault(
        "corruption",
        "Inputs are not corrupted.",
        config={"corruption_level": (0.0,)},
    ),
    Fault(
        "mean over components",
        "The loss is averaged over the input's components, not summed.",
        patches={"emphasized_loss": lambda own: lambda errors, *rest: own(errors, *rest) / errors.shape[1]},
    ),
    Fault(
        "scaled up as in dropout",
        "Components that remain are divided by their fraction.",
        patches={"corrupt": scaled_up},
    ),
)

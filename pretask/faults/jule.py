"""Faults of JULE."""

from pretask.faults import Fault


def only_own(original):
    """Distances to images of other clusters count nothing."""

    def loss(z, index, positive_weight, margin):
        from pretask.methods.jule import distances, mean

        return mean(distances(z, index)[0])

    return loss


FAULTS = (
    Fault(
        "other-clusters",
        "Images are only drawn to those of their own cluster.",
        patches={"margin_loss": only_own},
        named_by="monitor",
    ),
    Fault(
        "plain distances",
        "Triplets compare distances, not their squares.",
        patches={
            "distances": lambda own: lambda z, index: tuple(d.clamp(min=1e-6).sqrt() for d in own(z, index))
        },
    ),
)

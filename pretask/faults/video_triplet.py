"""Faults of video triplets."""

from pretask.faults import Fault


def of_all_clips(original):
    """Every patch counts as a clip of its own, so that patches of the same clip are negatives."""

    def loss(first, last, clip, *rest):
        return original(first, last, clip.new_tensor(range(len(clip))), *rest)

    return loss


FAULTS = (
    Fault(
        "other-clips",
        "Negatives are also taken from the clip itself.",
        patches={"ranking_loss": of_all_clips},
    ),
    Fault(
        "similarity for distance",
        "Negatives are drawn in and positives pushed away.",
        patches={"ranking_loss": lambda own: lambda first, last, *rest: own(first, -last, *rest)},
    ),
)

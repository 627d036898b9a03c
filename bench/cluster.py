"""Time and memory to cluster 70,000 images by their pixels (Linux).

Example: python bench/cluster.py --data mnist_train.npz

If the dataset has fewer images than requested, the first ones are repeated, shifted by one pixel to the right.
"""

import resource
from dataclasses import dataclass

import torch
from common import Goal, flags, seconds, show
from torch import Tensor

from pretask import data as sources
from pretask.evals import cluster_metrics as scoring
from pretask.methods.jule import flat_pixels
from pretask.ops import agglomerative
from pretask.transforms import augment


@dataclass(frozen=True)
class Flags:
    data: str
    """labeled images, in any form that pretask opens"""
    images: int = 70_000
    """number of images"""
    json: bool = False
    """print only JSON to standard output"""


def load(args: Flags) -> tuple[Tensor, Tensor, int]:
    """(N, D) pixels, (N,) classes, and the number of classes."""
    source = sources.open_labeled(args.data)
    count = min(args.images, len(source))
    image = source.__getitems__(torch.arange(count)).image
    image = torch.cat([image, image[: args.images - count].roll(1, 3)])
    label = torch.cat([source.label[:count], source.label[: args.images - count]])
    return (
        torch.cat([flat_pixels(augment.to_float(x)) for x in image.split(1024)]),
        label,
        len(source.classes),
    )


def main() -> None:
    args = flags(Flags, __doc__ or "")
    x, label, classes = load(args)
    agglomerative.cluster(x[:100], 2)  # numba compiles
    found: list[Tensor] = []
    took = seconds(lambda: found.append(agglomerative.cluster(x, classes)))
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**20
    table = scoring.contingency_table(label, found[0])
    numbers = {
        "images": len(x),
        "NMI, %": 100 * float(scoring.nmi(table, geometric=True)),
        "ACC, %": 100 * scoring.hungarian_correct(label, found[0]).float().mean().item(),
    }
    goals = [Goal("minutes", took / 60, 10, "min", less=True), Goal("peak memory", peak, 4, "GB", less=True)]
    show(f"{len(x):,} images in {classes} clusters by their pixels", numbers, goals, args.json)


if __name__ == "__main__":
    main()

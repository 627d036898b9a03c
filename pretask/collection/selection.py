"""Which images to label first: typical ones, those that cover the collection, or those that a first classifier is unsure of."""

import torch
from torch import Tensor

from pretask.ops import kmeans, neighbors

TYPICAL_OF = 20
"""nearest images by whose mean distance an image is typical"""
MOST_CLUSTERS = 500
CANDIDATES = 5
"""candidates for each image that is chosen by its margin"""


def typical(z: Tensor, count: int, covered: Tensor, seed: int) -> Tensor:
    """TypiClust (Hacohen, Dekel, Weinshall, ICML 2022, arXiv:2202.02794): the most typical image of each cluster.

    (N, D) unit rows, rows (M,) that have a label already -> (count,) rows. There are M + count clusters, at most MOST_CLUSTERS; each image
    is from the largest of the clusters with the fewest labels, and nearest to its neighbors there.
    """
    clusters = min(len(covered) + count, MOST_CLUSTERS, len(z))
    group = kmeans.fit(z, clusters, seed, restarts=1)(z)
    free = torch.ones(len(z), dtype=torch.bool)
    free[covered] = False
    labels, sizes = group[covered].bincount(minlength=clusters), group.bincount(minlength=clusters)
    chosen: list[int] = []
    while len(chosen) < count:
        open_groups = [c for c in range(clusters) if (free & (group == c)).any()]
        best = min(open_groups, key=lambda c: (int(labels[c]), -int(sizes[c])))
        row = most_typical(z, (group == best).nonzero().flatten(), free)
        chosen.append(row)
        free[row] = False
        labels[best] += 1
    return torch.tensor(chosen)


def most_typical(z: Tensor, members: Tensor, free: Tensor) -> int:
    """Of the members (M,) of a cluster that are free, the one nearest to its TYPICAL_OF nearest ones in the cluster."""
    candidates = members[free[members]]
    if len(members) == 1:
        return int(candidates[0])
    count = min(TYPICAL_OF, len(members) - 1)
    similarity, _ = neighbors.nearest(z[candidates], z[members], count + 1)
    return int(candidates[(similarity.sum(1) - 1).argmax()])  # itself is one of them


def k_center(z: Tensor, count: int, covered: Tensor) -> Tensor:
    """Greedy k-center (Sener and Savarese, ICLR 2018, arXiv:1708.00489): always the image farthest from all that have a label.

    (N, D) unit rows, (M,) rows with a label -> (count,) rows. Without any label it starts with the image nearest to the mean.
    """
    closest = torch.full((len(z),), -torch.inf)  # largest similarity to a row with a label
    for row in covered.tolist():
        closest = torch.maximum(closest, z @ z[row])
    chosen: list[int] = []
    for _ in range(count):
        first = not len(covered) and not chosen
        row = int((z @ z.mean(0)).argmax() if first else closest.argmin())
        chosen.append(row)
        closest = torch.maximum(closest, z @ z[row])
        closest[row] = torch.inf
    return torch.tensor(chosen)


def margin(z: Tensor, probability: Tensor, count: int, covered: Tensor, seed: int) -> Tensor:
    """The images whose two likeliest classes are closest, spread over clusters (Citovsky et al., Batch Active Learning at Scale, NeurIPS
    2021, arXiv:2107.14263).

    (N, D) unit rows, (N, K) probabilities, (M,) rows with a label -> (count,) rows: of the CANDIDATES · count smallest margins, grouped
    into `count` clusters, the smallest of each.
    """
    top = probability.topk(2, 1).values
    gap = top[:, 0] - top[:, 1]
    gap[covered] = torch.inf
    some = gap.argsort(stable=True)[: min(CANDIDATES * count, len(z) - len(covered))]
    group = kmeans.cluster(z[some], count, seed)
    firsts = [int((group == c).nonzero()[0, 0]) for c in group.unique().tolist()]  # sorted by margin
    rest = [i for i in range(len(some)) if i not in set(firsts)]
    order = [*sorted(firsts), *rest][:count]  # fewer distinct clusters if features are equal
    return some[torch.tensor(sorted(order))]

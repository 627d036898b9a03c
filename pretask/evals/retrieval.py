"""Retrieval: does a sample of the same class stand among the K most similar ones?

The hit rate that metric learning reports as Recall@K (Oh Song et al. 2016, arXiv:1511.06452), not the share of all
relevant samples found.
"""

from collections.abc import Sequence

from torch import Tensor

from pretask.evals.knn import nearest

AT = (1, 2, 4, 8)
"""K (Oh Song et al. 2016, for CUB-200)"""


def hits(x: Tensor, label: Tensor, at: Sequence[int] = AT) -> dict[int, Tensor]:
    """(N, D), (N,) -> for each K whether sample n finds its class (N,); every sample queries all others."""
    found = label[nearest(x, x, min(max(at), len(x) - 1), exclude_self=True)[1]] == label[:, None]
    return {k: found[:, :k].any(1) for k in at}

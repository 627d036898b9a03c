"""Retrieval: is there a sample of the same class among the K most similar ones?

This is the hit rate that metric learning reports as Recall@K (Oh Song et al. 2016, arXiv:1511.06452), not the fraction
of relevant samples that is retrieved.
"""

from collections.abc import Sequence

from torch import Tensor

from pretask.ops.neighbors import nearest

AT = (1, 2, 4, 8)
"""values of K (Oh Song et al. 2016, for CUB-200)"""


def hits(x: Tensor, label: Tensor, at: Sequence[int] = AT) -> dict[int, Tensor]:
    """(N, D), (N,) -> for each K, (N,) whether a sample has its class among its K nearest other samples."""
    same_class = label[nearest(x, x, min(max(at), len(x) - 1), exclude_self=True)[1]] == label[:, None]
    return {k: same_class[:, :k].any(1) for k in at}

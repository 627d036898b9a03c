"""Label-free metrics of features: effective rank, decay of the spectrum, collapse, stability of clusters.

RankMe (Garrido et al. 2023, arXiv:2210.02885), α-ReQ (Agrawal et al., NeurIPS 2022), LiDAR (Thilak et al. 2023,
arXiv:2312.04000), SimSiam's standard deviation (Chen, He 2021, arXiv:2011.10566: 1/√D if healthy, 0 if collapsed), the mean cosine
similarity, and the agreement of clusterings of different halves of the samples (Ben-Hur et al., PSB 2002).
"""

import math

import torch
from torch import Tensor

from pretask.data import loader
from pretask.encoders import Encoder, inference_batch
from pretask.evals import cluster_metrics
from pretask.ops import kmeans
from pretask.ops.neighbors import unit
from pretask.ops.span import span
from pretask.rng import Rng
from pretask.transforms import augment
from pretask.types import Source

EPSILON = 1e-7
"""added to each normalized singular value in RankMe"""
LIDAR_IMAGES, LIDAR_VIEWS = 100, 10
"""images and augmented views of each for LiDAR (stable-pretraining's defaults)"""
WITHIN, LIDAR_EPSILON = 1e-4, 1e-8
"""added to the variances within images, and to each eigenvalue, in LiDAR"""
VIEW = augment.ViewAugmentation()
"""SimCLR's views"""
CLUSTERS, HALVES, RESTARTS = 10, 5, 3
"""clusters, pairs of halves, and starts of k-means, for the stability of clusters; the number of classes is not used"""
CLUSTERED = 2_000
"""largest number of samples that are clustered"""
PROTOCOL = (
    "RankMe, α of the spectrum, and of unit-length rows the mean std per dimension (1/√D at best) and the mean cosine similarity; "
    f"pooled test features. lidar: {LIDAR_VIEWS} of SimCLR's views of {LIDAR_IMAGES} test images. stability: agreement (ARI, %) of "
    f"{CLUSTERS} clusters learned from two disjoint halves, mean of {HALVES}"
)
RANKS = (11, 100)
"""first and last eigenvalue that α-ReQ's line is fitted to (fitting code after Stringer et al. 2019)"""


def gram(x: Tensor) -> Tensor:
    """(N, D) -> the smaller of XᵀX and XXᵀ, in double precision; both have the same positive eigenvalues."""
    x = x.double()
    return x.T @ x if len(x) > x.shape[1] else x @ x.T


def rankme(x: Tensor) -> float:
    """(N, D), not centered -> exp of the entropy of the singular values: 1 … min(N, D), or 0 if all are 0."""
    singular = torch.linalg.eigvalsh(gram(x)).clamp(min=0).sqrt()
    if singular.sum() == 0:
        return 0.0
    p = singular / singular.sum() + EPSILON
    return math.exp(-(p * p.log()).sum().item())


def alpha(x: Tensor) -> float:
    """(N, D) -> α of the eigenvalues λ_i ~ i^-α of the covariance."""
    x = x.double()
    return decay_exponent(torch.linalg.eigvalsh(gram(x - x.mean(0))).flip(0))


def decay_exponent(eigenvalues: Tensor) -> float:
    """Descending (D,) -> minus the slope of ln λ against ln i, weighted by 1/i, over RANKS; NaN for fewer than 2.

    If the spectrum is too short for RANKS, the fit starts at the first eigenvalue.
    """
    rank = torch.arange(1, len(eigenvalues) + 1, dtype=torch.float64)
    first = RANKS[0] if len(eigenvalues) > 2 * RANKS[0] else 1
    floor = 1e-12 * eigenvalues[0].clamp(min=1e-300)  # smaller values are rounding errors
    used = (rank >= first) & (rank <= RANKS[1]) & (eigenvalues > floor)
    if used.sum() < 2:
        return math.nan
    t, y, w = rank[used].log(), eigenvalues[used].double().log(), 1 / rank[used]
    t = t - (w * t).sum() / w.sum()
    return -((w * t * y).sum() / (w * t * t).sum()).item()


def lidar(x: Tensor) -> float:
    """(N, Q, D) of Q views of N images -> effective rank of what differs between images relative to what differs between views.

    exp of the entropy of the eigenvalues of Σ_w^-½ Σ_b Σ_w^-½; at most min(D, N - 1); NaN for one image.
    """
    if len(x) < 2:
        return math.nan
    x = x.double()
    n, q, _ = x.shape
    mean = x.mean(1)  # (N, D)
    centered, inside = mean - mean.mean(0), (x - mean[:, None]).flatten(0, 1)
    between = centered.T @ centered / (n - 1)
    within = inside.T @ inside / (n * (q - 1)) + WITHIN * torch.eye(x.shape[2], dtype=x.dtype)
    values, vectors = torch.linalg.eigh(within)
    whiten = vectors * values.rsqrt() @ vectors.T
    eigenvalues = torch.linalg.eigvalsh(whiten @ between @ whiten).clamp(min=0) + LIDAR_EPSILON
    p = eigenvalues / eigenvalues.sum()
    return math.exp(-(p * p.log()).sum().item())


def stability(x: Tensor, seed: int) -> float:
    """(N, D) -> mean adjusted Rand index, in %, of all samples in the clusters of two disjoint halves; NaN for few samples."""
    if len(x) < 2 * CLUSTERS:
        return math.nan
    some = Rng(seed, "stability").permutation(len(x))[:CLUSTERED]
    rows, _ = span(unit(x[some].float()).cpu())
    agreement = []
    for number in range(HALVES):
        order = Rng(seed, "halves", number).permutation(len(rows))
        one, other = (
            kmeans.fit(rows[half], CLUSTERS, seed, RESTARTS)(rows) for half in order.tensor_split(2)
        )
        agreement.append(float(cluster_metrics.ari(cluster_metrics.contingency_table(one, other))))
    return 100 * sum(agreement) / HALVES


@torch.no_grad()
def views(encoder: Encoder, source: Source, seed: int, device: torch.device | str) -> Tensor:
    """(N, Q, D) pooled features of random views of some images, for `lidar`."""
    image = loader.sample(source, LIDAR_IMAGES, Rng(seed, "lidar", "which")).image
    found, was_training = [], encoder.training
    encoder.to(device).eval()
    for number in range(LIDAR_VIEWS):
        view = VIEW(augment.to_float(image), encoder.size, Rng(seed, "lidar", number))
        parts = view.split(inference_batch(encoder.size, device))
        found.append(torch.cat([encoder(part.to(device))["pool"].float().cpu() for part in parts]))
    encoder.train(was_training)
    return torch.stack(found, 1)


def std(x: Tensor) -> float:
    """Mean over columns of the standard deviation of unit-length rows: 1/√D at best."""
    return unit(x).std(0, correction=0).mean().item()


def cosine(x: Tensor) -> float:
    """Mean cosine similarity over pairs of different samples."""
    z, n = unit(x).double(), len(x)
    return ((z.sum(0).square().sum() - z.square().sum()) / (n * (n - 1))).item() if n > 1 else math.nan


def metrics(x: Tensor) -> dict[str, float]:
    """(N, D) -> all metrics of single features: neither `lidar` nor `stability`."""
    return {"rankme": rankme(x), "alpha": alpha(x), "std": std(x), "cosine": cosine(x)}

"""A two-dimensional map of features, of their first principal components: t-SNE, or UMAP of many images if it is installed (extra `map`)."""

import warnings
from importlib.util import find_spec

import numpy as np
import torch.nn.functional as F
from torch import Tensor

from pretask.errors import install_command
from pretask.runtime.console import about, say

AXES = 50
"""principal components"""
PERPLEXITY = 30.0
STEPS = 500
"""of t-SNE"""
PER_IMAGE = 4e-3
"""seconds of t-SNE for each image"""
FEW = 2000
"""images up to which t-SNE takes no longer than to load UMAP"""
LONG = 60.0
"""seconds from which on t-SNE says how long it will take"""


def layout(features: Tensor, seed: int = 0) -> tuple[np.ndarray, str]:
    """(N, D) -> (N, 2) positions, and the name of the algorithm."""
    if len(features) > FEW and find_spec("umap") is not None:
        return umap(features, seed), "UMAP"
    if (seconds := PER_IMAGE * len(features)) > LONG:
        say(
            f"t-SNE of {len(features):,} images takes {about(seconds)}; UMAP is faster: {install_command('map')}"
        )
    return tsne(features, seed), "t-SNE"


def tsne(features: Tensor, seed: int = 0) -> np.ndarray:
    """(N, D) -> (N, 2): t-SNE of the first principal components of unit rows."""
    from sklearn.manifold import TSNE
    from threadpoolctl import threadpool_limits

    z = principal(features, seed)
    if z.shape[1] < 4:  # too few images, or collapsed features
        return np.pad(z, ((0, 0), (0, 2)))[:, :2]
    perplexity = min(PERPLEXITY, (len(z) - 1) / 3)
    with threadpool_limits(1):  # more threads took ten times as long on a busy machine
        return TSNE(perplexity=perplexity, init="pca", max_iter=STEPS, random_state=seed).fit_transform(z)


def umap(features: Tensor, seed: int = 0) -> np.ndarray:
    """(N, D) -> (N, 2)"""
    from umap import UMAP  # pyright: ignore[reportMissingImports]

    z = principal(features, seed)
    if z.shape[1] < 4:
        return np.pad(z, ((0, 0), (0, 2)))[:, :2]
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # that a seed means one thread
        return UMAP(random_state=seed).fit_transform(z)


def principal(features: Tensor, seed: int) -> np.ndarray:
    """(N, D) -> (N, ≤ AXES) principal components of unit rows; fewer than 4 columns for few images or collapsed features."""
    from sklearn.decomposition import PCA

    z = F.normalize(features.double(), dim=1).numpy()
    if min(z.shape) < 4 or np.ptp(z, axis=0).max() < 1e-6:
        return z[:, :3]
    return PCA(min(AXES, *z.shape), random_state=seed).fit_transform(z)

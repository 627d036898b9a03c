"""Baselines of every score table: scores without the method being evaluated.

Raw pixels; k-means patches (Coates, Lee, Ng 2011, "An analysis of single-layer networks"), a strong and cheap baseline;
the same encoder untrained; the same encoder trained with labels.
"""

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from pretask import encoders
from pretask.config import TrainConfig
from pretask.encoders import Encoder
from pretask.evals import finetune
from pretask.evals.features import readable
from pretask.ops import kmeans
from pretask.rng import Rng
from pretask.transforms import augment
from pretask.types import LabeledSource, Source

CANVAS = 32
"""side in pixels to which larger images are reduced before their pixels or patches are used"""
CENTERS = 800
"""number of k-means centers; there are four times as many features"""
PATCH = 6
"""side of a patch, pixels (sec. 4.4)"""
CONTRAST = 10.0
"""added to the variance of a patch, in gray levels² (sec. 3.1.1, footnote)"""
WHITENING = 0.1
"""ε added to the eigenvalues of the patches' covariance (authors' code)"""
SAMPLES = 200_000
"""number of patches for k-means"""
SEEN = SAMPLES
"""number of patches that k-means processes in total; fewer patches are repeated"""
MAX_DISTANCES = 1 << 21
"""distances computed at once: few enough for the cache"""
SUPERVISED = TrainConfig(batch=128, lr=2e-3, weight_decay=0.05)
"""training of the supervised row; not tuned, so a lower bound for training with labels for as many steps"""


def reduce(image: Tensor) -> Tensor:
    """(B, C, H, W) in [0, 1] -> the same images, at most CANVAS high and wide."""
    if max(image.shape[2:]) <= CANVAS:
        return image
    return F.interpolate(image, size=(CANVAS, CANVAS), mode="bilinear", antialias=True)


class Pixels(nn.Module):
    """An encoder whose features are the pixels."""

    name = "raw pixels"

    def forward(self, image: Tensor) -> dict[str, Tensor]:
        return {"pool": reduce(image).flatten(1)}


class Patches(nn.Module):
    """The closeness of each patch of an image to each of K centers, summed over each quadrant: 4K features."""

    name = "k-means patches"
    mean: Tensor
    whitening: Tensor
    centers: Tensor

    def __init__(self, mean: Tensor, whitening: Tensor, centers: Tensor):
        super().__init__()
        self.register_buffer("mean", mean)  # (D,) mean of normalized patches; D = C · PATCH²
        self.register_buffer("whitening", whitening)  # (D, D)
        self.register_buffer("centers", centers)  # (K, D)

    def forward(self, image: Tensor) -> dict[str, Tensor]:
        x = reduce(image)
        h, w = (side - PATCH + 1 for side in x.shape[2:])
        few = max(1, MAX_DISTANCES // (h * w * len(self.centers)))
        quadrant = quadrants(h, w).to(x)  # (hw, 4)
        return {"pool": torch.cat([self.activations(part, quadrant).flatten(1) for part in x.split(few)])}

    def activations(self, x: Tensor, quadrant: Tensor) -> Tensor:
        """(b, C, H, W) -> (b, 4, K) summed triangle activations max(0, mean distance - distance) (sec. 3.2.2)."""
        z = self.whitened(255 * x).flatten(0, 1)  # (b hw, D)
        distance = squared_distances(z, self.centers).sqrt_()  # (b hw, K)
        mean = distance.mean(1, keepdim=True)
        activation = torch.sub(mean, distance, out=distance).relu_()
        return quadrant.T @ activation.view(len(x), len(quadrant), -1)

    def whitened(self, x: Tensor) -> Tensor:
        """(b, C, H, W) in gray levels -> (b, hw, D): every patch normalized and whitened.

        Multiplying a centered patch by the whitening matrix is a convolution; dividing by its contrast comes after it.
        """
        d, channels = len(self.whitening), x.shape[1]
        kernel = (self.whitening - self.whitening.mean(0)).T.reshape(d, channels, PATCH, PATCH)
        mean, square = (F.avg_pool2d(p, PATCH, 1).mean(1, keepdim=True) for p in (x, x.square()))
        variance = (square - mean.square()) * d / (d - 1)
        filtered = F.conv2d(x, kernel) * (variance + CONTRAST).rsqrt()  # (b, D, h, w)
        return filtered.flatten(2).transpose(1, 2) - self.mean @ self.whitening


def quadrants(h: int, w: int) -> Tensor:
    """(h w, 4) one-hot: the quadrant of a map in which each position lies."""
    bottom, right = torch.arange(h) >= (h + 1) // 2, torch.arange(w) >= (w + 1) // 2
    return F.one_hot((2 * bottom[:, None] + right[None]).flatten().long(), 4).float()


def normalized(patch: Tensor) -> Tensor:
    """(…, D) in gray levels -> the same with brightness and contrast normalized."""
    variance, mean = torch.var_mean(patch, -1, keepdim=True)
    return (patch - mean) * (variance + CONTRAST).rsqrt()


def squared_distances(x: Tensor, centers: Tensor) -> Tensor:
    """(N, D), (K, D) -> (N, K) squared distances, in one product."""
    one = x.new_ones(1)
    left = torch.cat([x, x.square().sum(1, keepdim=True), one.expand(len(x), 1)], 1)
    right = torch.cat([-2 * centers, one.expand(len(centers), 1), centers.square().sum(1, keepdim=True)], 1)
    return (left @ right.T).clamp_(min=0)


def sample_patches(source: Source, n: int, rng: Rng) -> Tensor:
    """(n, D) distinct patches in gray levels from at most n / 20 images; fewer if the images have fewer."""
    some = rng.permutation(len(source))[: max(1, n // 20)].sort().values
    canvas = torch.cat(
        [reduce(augment.to_float(source.__getitems__(index).image)) for index in some.split(256)]
    )
    m, c, h, w = canvas.shape
    rows, columns = h - PATCH + 1, w - PATCH + 1
    place = rng.permutation(m * rows * columns)[:n]
    which, top, left = place // (rows * columns), place // columns % rows, place % columns
    at = torch.arange(PATCH)
    down, across = (top[:, None] + at)[:, None, :, None], (left[:, None] + at)[:, None, None, :]
    channel = torch.arange(c)[None, :, None, None]
    return 255 * canvas[which[:, None, None, None], channel, down, across].flatten(1)


def whiten(patch: Tensor) -> tuple[Tensor, Tensor]:
    """(N, D) -> mean (D,) and ZCA matrix (D, D)."""
    mean = patch.mean(0)
    values, vectors = torch.linalg.eigh((patch - mean).T.cov().double())
    zca = vectors @ (values.clamp(min=0) + WHITENING).rsqrt().diag() @ vectors.T
    return mean, zca.to(patch.dtype)


def patches(source: Source, centers: int = CENTERS, seed: int = 0) -> Patches:
    """k-means patches with whitening and centers from the images of `source`, without labels."""
    rng = Rng(seed, "patches")
    sample = normalized(sample_patches(source, SAMPLES, rng))
    mean, zca = whiten(sample)
    return Patches(mean, zca, kmeans.centers((sample - mean) @ zca, centers, seed, SEEN))


@torch.random.fork_rng(devices=[])
def untrained(encoder: Encoder, seed: int) -> Encoder:
    """The encoder with newly initialized weights; a run's own `untrained` has its initial weights instead."""
    torch.manual_seed(seed)
    return encoders.build(encoder.name, encoder.channels, encoder.size)


def supervised(
    encoder: Encoder,
    source: LabeledSource,
    steps: int,
    seed: int,
    device: torch.device | str = "cpu",
    progress: bool = True,
    name: str = "supervised",
) -> Encoder:
    """The same encoder trained from scratch for `steps` on images and labels, as in fine-tuning."""
    net, usable = untrained(encoder, seed), readable(source)
    usable = torch.arange(len(source)) if usable is None else usable
    options = {"name": name, "device": device, "progress": progress}
    finetune.fit(net, source, usable, SUPERVISED, steps, seed, decay=1.0, **options)
    return net.eval()

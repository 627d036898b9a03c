"""The rows that every table carries: what the score would be without the method that is being judged.

Raw pixels; k-means patches (Coates, Lee, Ng 2011, "An analysis of single-layer networks"), the strong cheap rival;
the same encoder untrained; the same encoder trained with the labels.
"""

import warnings
from collections.abc import Callable

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from pretask import encoders
from pretask.config import TrainConfig
from pretask.encoders import Encoder
from pretask.evals import finetune
from pretask.rng import Rng
from pretask.transforms import augment as images
from pretask.types import Labelled, Source

CANVAS = 32
"""pixels to which larger images are reduced, before their pixels or patches are looked at"""
CENTRES = 800
"""k-means centres; features are four times as many"""
PATCH = 6
"""side of a patch, pixels (sec. 4.4)"""
CONTRAST = 10.0
"""added to the variance of a patch, in grey levels² (sec. 3.1.1, footnote)"""
WHITENING = 0.1
"""ε added to the eigenvalues of the patches' covariance (authors' code)"""
SAMPLES = 200_000
"""patches that k-means sees"""
BATCH = 4096
"""of them, between two steps of its centres"""
SHOWN = SAMPLES
"""that it is shown in all: fewer of them more often"""
AT_ONCE = 1 << 21
"""distances held at once: few enough for the cache"""
SUPERVISED = TrainConfig(batch=128, lr=2e-3, weight_decay=0.05)
"""how the supervised row is trained; not tuned: a floor for what labels give in as many steps"""


def reduced(image: Tensor) -> Tensor:
    """(B, C, H, W) in [0, 1] -> the same, at most CANVAS high and wide."""
    if max(image.shape[2:]) <= CANVAS:
        return image
    return F.interpolate(image, size=(CANVAS, CANVAS), mode="bilinear", antialias=True)


class Pixels(nn.Module):
    """An encoder that passes the pixels on."""

    name = "raw pixels"

    def forward(self, image: Tensor) -> dict[str, Tensor]:
        return {"pool": reduced(image).flatten(1)}


class Patches(nn.Module):
    """How near each patch of an image is to each of K centres, summed over the image's quadrants: 4K numbers."""

    name = "k-means patches"
    mean: Tensor
    whitening: Tensor
    centres: Tensor

    def __init__(self, mean: Tensor, whitening: Tensor, centres: Tensor):
        super().__init__()
        self.register_buffer("mean", mean)  # (D,) of the normalised patches; D = C · PATCH²
        self.register_buffer("whitening", whitening)  # (D, D)
        self.register_buffer("centres", centres)  # (K, D)

    def forward(self, image: Tensor) -> dict[str, Tensor]:
        x = reduced(image)
        h, w = (side - PATCH + 1 for side in x.shape[2:])
        few = max(1, AT_ONCE // (h * w * len(self.centres)))
        quadrant = quadrants(h, w).to(x)  # (hw, 4)
        return {"pool": torch.cat([self.near(part, quadrant).flatten(1) for part in x.split(few)])}

    def near(self, x: Tensor, quadrant: Tensor) -> Tensor:
        """(b, C, H, W) -> (b, 4, K) summed triangle activations max(0, mean distance - distance) (sec. 3.2.2)."""
        z = self.white(255 * x).flatten(0, 1)  # (b hw, D)
        far = distances(z, self.centres).sqrt_()  # (b hw, K)
        middle = far.mean(1, keepdim=True)
        activation = torch.sub(middle, far, out=far).relu_()
        return quadrant.T @ activation.view(len(x), len(quadrant), -1)

    def white(self, x: Tensor) -> Tensor:
        """(b, C, H, W) in grey levels -> (b, hw, D): every patch normalised and whitened.

        Without its mean, a patch times the whitening is a convolution; its contrast is a factor after it.
        """
        d, channels = len(self.whitening), x.shape[1]
        kernel = (self.whitening - self.whitening.mean(0)).T.reshape(d, channels, PATCH, PATCH)
        mean, square = (F.avg_pool2d(p, PATCH, 1).mean(1, keepdim=True) for p in (x, x.square()))
        variance = (square - mean.square()) * d / (d - 1)
        filtered = F.conv2d(x, kernel) * (variance + CONTRAST).rsqrt()  # (b, D, h, w)
        return filtered.flatten(2).transpose(1, 2) - self.mean @ self.whitening


def quadrants(h: int, w: int) -> Tensor:
    """(h w, 4): in which quarter of a map each of its places lies."""
    bottom, right = torch.arange(h) >= (h + 1) // 2, torch.arange(w) >= (w + 1) // 2
    return F.one_hot((2 * bottom[:, None] + right[None]).flatten().long(), 4).float()


def normalised(patch: Tensor) -> Tensor:
    """(…, D) in grey levels -> brightness and contrast taken out."""
    variance, mean = torch.var_mean(patch, -1, keepdim=True)
    return (patch - mean) * (variance + CONTRAST).rsqrt()


def distances(x: Tensor, centres: Tensor) -> Tensor:
    """(N, D), (K, D) -> (N, K) squared distances, in one product."""
    one = x.new_ones(1)
    left = torch.cat([x, x.square().sum(1, keepdim=True), one.expand(len(x), 1)], 1)
    right = torch.cat([-2 * centres, one.expand(len(centres), 1), centres.square().sum(1, keepdim=True)], 1)
    return (left @ right.T).clamp_(min=0)


def sample_patches(source: Source, n: int, rng: Rng) -> Tensor:
    """(n, D) patches in gray levels, no place twice, from at most n / 20 images; fewer where these hold fewer."""
    some = rng.permutation(len(source))[: max(1, n // 20)].sort().values
    canvas = torch.cat(
        [reduced(images.to_float(source.__getitems__(index).image)) for index in some.split(256)]
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
    """(N, D) -> mean (D,) and the ZCA matrix (D, D)."""
    mean = patch.mean(0)
    values, vectors = torch.linalg.eigh((patch - mean).T.cov().double())
    zca = vectors @ (values.clamp(min=0) + WHITENING).rsqrt().diag() @ vectors.T
    return mean, zca.to(patch.dtype)


def kmeans(x: Tensor, k: int, seed: int) -> Tensor:
    """(N, D) -> (K, D) centres, K = min(k, N), by mini-batches (Sculley 2010, "Web-scale k-means clustering")."""
    from sklearn.cluster import MiniBatchKMeans
    from sklearn.exceptions import ConvergenceWarning

    rule = {"batch_size": BATCH, "max_iter": -(-SHOWN // len(x)), "max_no_improvement": None}
    known = {"init": "random", "n_init": 1, "compute_labels": False, "random_state": seed}
    means = MiniBatchKMeans(min(k, len(x)), **rule, **known)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", ConvergenceWarning)  # few images hold few distinct patches
        return torch.from_numpy(means.fit(x.numpy()).cluster_centers_)


def patches(source: Source, centres: int = CENTRES, seed: int = 0) -> Patches:
    """Whitening and centres learned from the images of `source`, without labels."""
    rng = Rng(seed, "patches")
    sample = normalised(sample_patches(source, SAMPLES, rng))
    mean, zca = whiten(sample)
    return Patches(mean, zca, kmeans((sample - mean) @ zca, centres, seed))


@torch.random.fork_rng(devices=[])
def untrained(encoder: Encoder, seed: int) -> Encoder:
    """The encoder with weights drawn by its own rule; a run's `untrained` is the one with which it began."""
    torch.manual_seed(seed)
    return encoders.build(encoder.name, encoder.channels, encoder.size)


def supervised(
    encoder: Encoder,
    source: Labelled,
    steps: int,
    seed: int,
    device: torch.device | str = "cpu",
    progress: bool = True,
    loss: Callable[[Tensor, Tensor], Tensor] = F.cross_entropy,
    name: str = "supervised",
) -> Encoder:
    """The same encoder, trained for `steps` on images and labels: fine-tuning of one that has learnt nothing.

    `loss` is that of logits (B, K) and labels (B, …).
    """
    net, every = untrained(encoder, seed), torch.arange(len(source))
    known = {"name": name, "device": device, "progress": progress, "loss": loss}
    finetune.fit(net, source, every, SUPERVISED, steps, seed, decay=1.0, **known)
    return net.eval()

"""Linear SVMs on all layers, max-pooled over quadrants: the read-out of Exemplar-CNN.

Dosovitskiy et al., PAMI 2016, arXiv:1406.6909v2 (p. 4, as two page-referenced notes have it): the net, without its
classifier, looks at the whole image; each map of each layer is max-pooled over its four quadrants (STL-10, CIFAR-10),
and one-vs-all linear SVMs are trained on all of that. Released: code/testing of asanakoy/Exemplar_CNN@e1a6070. A side of
17 is cut into 9 and 8 (test_conv_STL.prototxt), and a map of one place is one number (spm_pool_sizes_for_different_sizes
in run_net_on_STL_matcaffe_distr.m). The numbers of a layer are divided by their 99.99th percentile, and nothing is
centered (make_features_from_maps_f1.m:16-27). The machines are liblinear's default ones, squared hinge with an L2 penalty
(svm_params_search.m:94-97; the README of liblinear), and the largest decision wins (my_predict.m).

**Differs:**
- the percentile is that of all training images; released: of each batch of 64, of test images as well;
- of absolute values, as a stage may be negative;
- the bias is free; released: the weight of one more feature, which is 5 (STL-10) or 1 (CIFAR-10, Caltech-101);
- released: C is the best of 50 draws from 2e-4 to 0.2 (STL-10) or 1e-3 to 1 (CIFAR-10), fitted to the first fold of 1,000
  and tried on the 4,000 other training images, then used for all ten folds, whose mean and deviation are the score; here
  it is chosen on training images like every other setting (evaluate.py), and one machine learns from all of them;
- a stage that ends with pooling is looked at behind it; released: conv1 and conv2 before theirs;
- images of the encoder's size; released: CIFAR-10 enlarged to 64 px. Caltech-101's pyramid of 1 + 4 + 16 cells is left out.

Solved as the linear probe is (linear.py): to the optimum, all folds at once, and in the span of the training images where
there are fewer of them than features. scikit-learn's liblinear in the primal took 2 to 10 times as long for 2,000 x 3,072
numbers on one busy core, makes a double of each number, and does not start one penalty from the last.
"""

from collections.abc import Iterator

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from pretask.encoders import Encoder
from pretask.evals import linear_probe as linear
from pretask.evals.features import embed
from pretask.evals.holdout import splits
from pretask.evals.measure import Result, accuracy
from pretask.types import Labelled

PERCENTILE = 99.99
"""of a stage's numbers, that becomes 1 (released)"""
MEMORY = 1 << 31
"""bytes that the features of a training set may take; maps of more are max-pooled to a single number each"""


def cells(x: Tensor, side: int = 2) -> Tensor:
    """(B, C, h, w) -> (B, ≤ C side²), the maximum over each of side x side cells, the upper and left ones larger where a
    side is odd; (B, D) as it is."""
    if x.ndim == 2:
        return x
    return F.max_pool2d(x, [-(-length // side) for length in x.shape[2:]], ceil_mode=True).flatten(1)


class Cells(nn.Module):
    """The stages of an encoder in the form that `embed` takes. Its "pool" pools what the last stage shows in another way."""

    def __init__(self, encoder: Encoder, side: int):
        super().__init__()
        self.encoder, self.side = encoder, side
        self.train(encoder.training)  # to which `embed` returns

    def forward(self, image: Tensor) -> dict[str, Tensor]:
        stages = self.encoder(image)
        return {stage: x if stage == "pool" else cells(x, self.side) for stage, x in stages.items()}


class Hinge(linear.Problem):
    """Mean over samples of Σ_k max(0, 1 - y_k z_k)², y_k = 1 for the sample's own class and -1 for the others."""

    @property
    def flatness(self) -> float:
        """The Hessian is 2 XᵀX/N + λI at most."""
        return 0.5

    def cost(self, logits: Tensor, target: Tensor) -> tuple[Tensor, Tensor]:
        sign = 2 * target - 1
        short = (1 - sign * logits).clamp(min=0)
        return short.square().sum(-1), -2 * sign * short


def by_quadrants(
    encoder: Encoder,
    train: Labelled,
    test: Labelled,
    *,
    seed: int,
    device: torch.device | str = "cpu",
    progress: bool = True,
) -> Iterator[Result]:
    """The machines that all training images make, with the penalty that does best on held-out ones."""
    stages = [stage for stage in encoder.widths if stage != "pool"]
    count = sum(encoder.widths[s] * min(2, encoder.sides.get(s, 1)) ** 2 for s in stages)
    net = Cells(encoder, 2 if 2 * count * len(train) <= MEMORY else 1)
    known = {"device": device, "progress": progress}
    shown, unseen = (embed(net, part, **known) for part in (train, test))
    top = {s: percentile(shown.stages[s].abs()) for s in stages}
    x, held = (torch.cat([scaled(part.stages[s], top[s]) for s in stages], 1) for part in (shown, unseen))
    there, label = shown.label.unique(return_inverse=True)
    choice = choose(x, label, len(there), seed)
    right = there[choice.probe.predict(held)] == unseen.label
    yield accuracy("svm", "", right, {"penalty": choice.penalty, "features": x.shape[1]})


def percentile(x: Tensor) -> float:
    """Of all numbers of a tensor; the one at that place, none between two."""
    x = x.flatten().float()
    return x.kthvalue(max(1, round(PERCENTILE / 100 * len(x)))).values.item()


def scaled(x: Tensor, top: float) -> Tensor:
    """In half precision; a stage that is 0 stays so."""
    return (x.float() / top if top > 0 else torch.zeros_like(x)).half()


def choose(x: Tensor, label: Tensor, classes: int, seed: int) -> linear.Choice:
    """(N, D), (N,) -> the penalty that does best on held-out samples; the columns are centered, which the free bias
    undoes, and nothing else."""
    mean, _ = linear.standard(x)
    return linear.choose(x, label, classes, splits(label, seed), Hinge, (mean, torch.ones_like(mean)))

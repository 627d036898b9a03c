"""Linear SVMs on all layers, max-pooled over quadrants: the evaluation protocol of Exemplar-CNN.

Dosovitskiy et al., PAMI 2016, arXiv:1406.6909v2 (p. 4, according to two sets of page-referenced notes): the network
without its classifier is applied to the whole image; each map of each layer is max-pooled over its four quadrants
(STL-10, CIFAR-10), and one-vs-all linear SVMs are trained on all of these features. Released: code/testing of
asanakoy/Exemplar_CNN@e1a6070. A side of 17 is split into 9 and 8 (test_conv_STL.prototxt), and a 1 x 1 map gives one
feature (spm_pool_sizes_for_different_sizes in run_net_on_STL_matcaffe_distr.m). The features of a layer are divided by
their 99.99th percentile, without centering (make_features_from_maps_f1.m:16-27). The SVMs are liblinear's default: squared
hinge loss with an L2 penalty (svm_params_search.m:94-97; the README of liblinear). The class with the largest decision
value is predicted (my_predict.m).

**Differs:**
- the percentile is over all training images; released: over each batch of 64, including test images;
- it is of absolute values, since features may be negative;
- the bias is not penalized; released: the weight of an extra feature with value 5 (STL-10) or 1 (CIFAR-10, Caltech-101);
- released: C is the best of 50 draws from 2e-4 to 0.2 (STL-10) or 1e-3 to 1 (CIFAR-10), fitted to the first fold of 1,000
  and tested on the 4,000 other training images, then used for all ten folds, whose mean and deviation are the score; here
  it is chosen on training images like all hyperparameters (protocol.py), and one SVM is trained on all of them;
- features of a stage that ends with pooling are taken after it; released: those of conv1 and conv2 before theirs;
- images have the encoder's size; released: CIFAR-10 enlarged to 64 px. Caltech-101's pyramid of 1 + 4 + 16 cells is omitted.

The solver is that of the linear probe (linear_probe.py): to the optimum, all folds at once, and in the span of the training
images if there are fewer of them than features. scikit-learn's liblinear in the primal took 2 to 10 times as long for
2,000 x 3,072 features on one busy core, copies them to double precision, and does not warm-start one penalty from the last.
"""

from collections.abc import Iterator

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from pretask.encoders import Encoder
from pretask.evals import linear_probe
from pretask.evals.features import embed
from pretask.evals.holdout import splits
from pretask.evals.measure import Result, accuracy
from pretask.types import LabeledSource

PERCENTILE = 99.99
"""percentile of a stage's features that is scaled to 1 (released)"""
MEMORY = 1 << 31
"""maximum bytes for the features of a training set; otherwise each map is max-pooled to a single value"""


def max_pool_cells(x: Tensor, side: int = 2) -> Tensor:
    """(B, C, h, w) -> (B, ≤ C side²), the maximum over each of side x side cells, of which the upper and left ones are
    larger if a side is odd; (B, D) is returned unchanged."""
    if x.ndim == 2:
        return x
    return F.max_pool2d(x, [-(-length // side) for length in x.shape[2:]], ceil_mode=True).flatten(1)


class MaxPooledStages(nn.Module):
    """The max-pooled stages of an encoder, in the form that `embed` takes; "pool" is unchanged."""

    def __init__(self, encoder: Encoder, side: int):
        super().__init__()
        self.encoder, self.side = encoder, side
        self.train(encoder.training)  # the mode that `embed` restores

    def forward(self, image: Tensor) -> dict[str, Tensor]:
        stages = self.encoder(image)
        return {stage: x if stage == "pool" else max_pool_cells(x, self.side) for stage, x in stages.items()}


class SquaredHinge(linear_probe.Problem):
    """Mean over samples of Σ_k max(0, 1 - y_k z_k)², y_k = 1 for the sample's own class and -1 for the others."""

    @property
    def flatness(self) -> float:
        """The Hessian is at most 2 XᵀX/N + λI."""
        return 0.5

    def cost(self, logits: Tensor, target: Tensor) -> tuple[Tensor, Tensor]:
        sign = 2 * target - 1
        slack = (1 - sign * logits).clamp(min=0)
        return slack.square().sum(-1), -2 * sign * slack


def score_svm(
    encoder: Encoder,
    train: LabeledSource,
    test: LabeledSource,
    *,
    seed: int,
    device: torch.device | str = "cpu",
    progress: bool = True,
) -> Iterator[Result]:
    """SVMs trained on all training images, with the penalty that does best on held-out ones."""
    stages = [stage for stage in encoder.widths if stage != "pool"]
    count = sum(encoder.widths[s] * min(2, encoder.sides.get(s, 1)) ** 2 for s in stages)
    net = MaxPooledStages(encoder, 2 if 2 * count * len(train) <= MEMORY else 1)
    options = {"device": device, "progress": progress}
    train_features, test_features = (embed(net, source, **options) for source in (train, test))
    top = {s: percentile(train_features.stages[s].abs()) for s in stages}
    x, x_test = (
        torch.cat([scale_stage(each.stages[s], top[s]) for s in stages], 1)
        for each in (train_features, test_features)
    )
    present, label = train_features.label.unique(return_inverse=True)
    choice = choose(x, label, len(present), seed)
    correct = present[choice.probe.predict(x_test)] == test_features.label
    yield accuracy("svm", "", correct, {"penalty": choice.penalty, "features": x.shape[1]})


def percentile(x: Tensor) -> float:
    """The PERCENTILE of all values of a tensor: one of its values, without interpolation."""
    x = x.flatten().float()
    return x.kthvalue(max(1, round(PERCENTILE / 100 * len(x)))).values.item()


def scale_stage(x: Tensor, top: float) -> Tensor:
    """x / top in half precision; zeros if `top` is 0."""
    return (x.float() / top if top > 0 else torch.zeros_like(x)).half()


def choose(x: Tensor, label: Tensor, classes: int, seed: int) -> linear_probe.Choice:
    """(N, D), (N,) -> the penalty that does best on held-out samples. Columns are centered, which the bias absorbs, but not
    scaled."""
    mean, _ = linear_probe.standardization(x)
    moments = (mean, torch.ones_like(mean))
    return linear_probe.choose(x, label, classes, splits(label, seed), SquaredHinge, moments)

"""A classifier on frozen features: a linear probe with calibrated probabilities, and what it predicts of samples that it did not see."""

from collections.abc import Mapping
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from pretask.evals import calibration, linear_probe, stage_probe
from pretask.evals.calibration import Isotonic, Temperature
from pretask.evals.features import Features
from pretask.evals.holdout import folds
from pretask.rng import Rng
from pretask.runtime.console import bar

FOLDS = 10
"""parts of the labeled samples; each is predicted by a head that is fitted to the others"""


class Head(nn.Module):
    """(N, D) features -> (N, K) probabilities."""

    weight: Tensor  # (K, D)
    bias: Tensor  # (K,)

    def __init__(self, weight: Tensor, bias: Tensor, calibration: Temperature | Isotonic):
        super().__init__()
        self.register_buffer("weight", weight)
        self.register_buffer("bias", bias)
        self.calibration = calibration

    def forward(self, x: Tensor) -> Tensor:
        return self.calibration(F.linear(x, self.weight, self.bias))

    def rows(self, x: Tensor) -> Tensor:
        """The same in blocks, for many rows."""
        return torch.cat([self(part.to(self.weight.dtype)) for part in linear_probe.blocks(x)])


def from_state(state: Mapping[str, Tensor]) -> Head:
    """A head from its state_dict."""
    if "calibration.inverse" in state:
        calibrated = Temperature(state["calibration.inverse"].item())
    else:
        calibrated = Isotonic(state["calibration.x"], state["calibration.y"])
    return Head(state["weight"], state["bias"], calibrated)


@dataclass(frozen=True)
class Fitted:
    """A head, and what heads that did not see a sample predict of it."""

    head: Head
    stage: str
    penalty: float
    out_of_fold: Tensor  # (N, K) probabilities


def fit(train: Features, seed: int, progress: bool = True) -> Fitted:
    """A head on the stage that does best on held-out samples, with the penalty that does best there.

    Stage, penalty and weights are found anew without each fold, so that its logits owe nothing to its labels; they are calibrated by
    the out-of-fold logits and labels of the other folds.
    """
    chosen = stage_probe.fit(train, seed)
    fold = folds(train.label, Rng(seed, "head"), FOLDS)
    logits = torch.zeros(len(fold), len(train.classes))
    with bar(progress) as shown:
        for k in shown.track(fold.unique().tolist(), description="predicting each label by the others"):
            found = stage_probe.fit(subset(train, fold != k), seed)
            logits[fold == k] = found.choice.probe.logits(train.stages[found.stage][fold == k]).float()
    out_of_fold = torch.zeros_like(logits)
    for k in fold.unique().tolist():
        out_of_fold[fold == k] = calibration.fit(logits[fold != k], train.label[fold != k])(logits[fold == k])
    probe = chosen.choice.probe
    head = Head(probe.weight.float(), probe.bias.float(), calibration.fit(logits, train.label))
    return Fitted(head, chosen.stage, chosen.choice.penalty, out_of_fold)


def subset(of: Features, mask: Tensor) -> Features:
    return Features({stage: x[mask] for stage, x in of.stages.items()}, of.label[mask], of.classes, of.source)

"""A linear probe on the stage of an encoder that does best on held-out training samples: "best linear" with its single answers."""

from dataclasses import dataclass

from torch import Tensor

from pretask.evals import linear_probe
from pretask.evals.features import Features
from pretask.evals.holdout import Splits, splits


@dataclass(frozen=True)
class StageProbe:
    stage: str
    choice: linear_probe.Choice
    held_out: Tensor  # (H,) accuracy on each held-out training sample, 0 … 1

    def correct(self, test: Features) -> Tensor:
        """(N,) bool: whether it is right on each test sample."""
        return self.choice.probe.predict(test.stages[self.stage]) == test.label


def fit(train: Features, seed: int) -> StageProbe:
    """The stage and penalty that do best on held-out samples; the deepest of equal stages."""
    parts = splits(train.label, seed)
    probes = [fit_stage(stage, x, train, parts) for stage, x in train.stages.items()]
    return max(reversed(probes), key=lambda probe: probe.choice.score)


def fit_stage(stage: str, x: Tensor, train: Features, parts: Splits) -> StageProbe:
    held_out: dict[float, Tensor] = {}

    def metric(logits: Tensor, label: Tensor, parts: Splits) -> float:
        correct = (logits.argmax(2) == label[:, None]).T
        score = parts.accuracy(correct)
        held_out[score] = parts.per_sample(correct)
        return score

    choice = linear_probe.choose(x, train.label, len(train.classes), parts, metric=metric)
    return StageProbe(stage, choice, held_out[choice.score])

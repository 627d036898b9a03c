"""What scores mean, in sentences: is a run better than the strongest baseline, and by how much?"""

from collections.abc import Iterator

import numpy as np

from pretask.evals.scores import Difference, Measurement, Role, Scores
from pretask.workflows.subject import TEACHER

HEADLINES = {
    Measurement("knn", "pool"): "kNN",
    Measurement("linear", "pool"): "Linear probe",
    Measurement("best linear"): "Linear probe on the best stage",
    Measurement("knn mAP", "pool"): "kNN, mAP",
    Measurement("linear mAP", "pool"): "Linear probe, mAP",
    Measurement("best linear mAP"): "Linear probe on the best stage, mAP",
}
"""the scores that get a sentence"""
BASELINES: tuple[Role, ...] = ("untrained", "pixels", "patches")
"""rows without any pretraining"""
TRAINING = "training helped", "training harmed", "training has no clear effect"
STUDENT = "the student is better", "the student is worse", "no clear difference"
"""effects in words: of training, and of learning from a teacher"""
FEW = 10
"""labels a class at which runs and published weights are compared"""


def sentences(scores: Scores) -> Iterator[str]:
    """For kNN and linear probes, the score compared with the strongest baseline; nothing without baselines."""
    for what, name in HEADLINES.items():
        against = [d for d in scores.differences if d.key == what.key and d.minus_role in BASELINES]
        own = next((row for row in scores.rows if row.key == what.key), None)
        if own is not None and against:
            strongest = min(against, key=lambda d: d.value)
            yield f"{name} {own.value:.1f} %: {compared(strongest)}."


def against_published(scores: Scores) -> Iterator[str]:
    """Whether a run is better than the frozen weights that it started or learned from, and how many labels that saves."""
    for what, name in HEADLINES.items():
        for d in scores.differences:
            if d.key == what.key and d.minus_role == "published":
                yield f"{name} compared with {d.minus}: {effect(d)}."
    for title in dict.fromkeys(d.minus for d in scores.differences if d.minus_role == "published"):
        if worth := label_equivalent(scores, title):
            yield worth


def effect(d: Difference) -> str:
    """ "training helped, +4.2 points [1.0, 7.4]"; "harmed"; "has no clear effect" if the interval includes 0."""
    better, worse, level = STUDENT if d.minus == TEACHER else TRAINING
    if d.low is None or d.high is None:
        return f"{d.value:+.1f} points, without an interval"
    said = better if d.low > 0 else worse if d.high < 0 else level
    return f"{said}, {d.value:+.1f} points [{d.low:+.1f}, {d.high:+.1f}]"


def label_equivalent(scores: Scores, published: str) -> str:
    """How many labels the published weights alone need to equal the run with a few; "" without few-shot scores."""
    own = {row.shots: row.value for row in scores.rows if row.role == "run" and row.metric == "few-shot"}
    other = {
        row.shots: row.value for row in scores.rows if row.name == published and row.metric == "few-shot"
    }
    shots = sorted(s for s in own if s is not None and s in other)
    if len(shots) < 2:
        return ""
    few = max((s for s in shots if s <= FEW), default=shots[0])
    curve = np.maximum.accumulate([other[s] for s in shots])  # more labels are not worse
    needed = np.exp(np.interp(own[few], curve, np.log(shots)))
    bound = "more than " if own[few] > curve[-1] else "fewer than " if own[few] < curve[0] else ""
    return f"With {few} labels a class it reaches {own[few]:.1f} %; {published}, reach that with {bound}{needed:.3g} labels a class."


def compared(d: Difference) -> str:
    """ "better than raw pixels, the best baseline, by 4.2 points [1.0, 7.4]"; "not better" unless the interval is above 0."""
    if d.low is None or d.high is None or d.low <= 0:
        interval = "" if d.low is None or d.high is None else f" [{d.low:+.1f}, {d.high:+.1f}]"
        return f"not better than {d.minus}, the best baseline ({d.value:+.1f} points{interval})"
    return f"better than {d.minus}, the best baseline, by {d.value:.1f} points [{d.low:.1f}, {d.high:.1f}]"

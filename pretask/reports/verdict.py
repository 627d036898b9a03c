"""What scores mean, in sentences: is a run better than the strongest baseline, and by how much?"""

from collections.abc import Iterator

from pretask.evals.scores import Difference, Measurement, Role, Scores

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


def sentences(scores: Scores) -> Iterator[str]:
    """For kNN and linear probes, the score compared with the strongest baseline; nothing without baselines."""
    for what, name in HEADLINES.items():
        against = [d for d in scores.differences if d.key == what.key and d.minus_role in BASELINES]
        own = next((row for row in scores.rows if row.key == what.key), None)
        if own is not None and against:
            strongest = min(against, key=lambda d: d.value)
            yield f"{name} {own.value:.1f} %: {compared(strongest)}."


def compared(d: Difference) -> str:
    """ "better than raw pixels, the best baseline, by 4.2 points [1.0, 7.4]"; "not better" unless the interval is above 0."""
    if d.low is None or d.high is None or d.low <= 0:
        interval = "" if d.low is None or d.high is None else f" [{d.low:+.1f}, {d.high:+.1f}]"
        return f"not better than {d.minus}, the best baseline ({d.value:+.1f} points{interval})"
    return f"better than {d.minus}, the best baseline, by {d.value:.1f} points [{d.low:.1f}, {d.high:.1f}]"

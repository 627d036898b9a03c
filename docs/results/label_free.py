"""Can methods be ranked without labels? Label-free metrics of stored experiments beside their labeled scores."""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import experiments
import numpy as np
from experiments import Experiment

from pretask.evals.confidence import quantiles

METRICS = ("rankme", "alpha", "lidar", "stability")
"""label-free metrics that could rank methods"""
LABELED = ("knn", "linear")
COMPARISONS = "comparisons"
"""folder of the stored comparisons"""
FEWEST = 6
"""methods in a group that is worth a correlation"""
RESAMPLES = 5000
ENOUGH = 0.5
"""|ρ| that the interval must exclude from below for a ranking without labels"""


@dataclass(frozen=True)
class Correlation:
    """Spearman's ρ over methods, with its 95 % interval from resampled methods."""

    metric: str
    labeled: str
    methods: int
    rho: float
    low: float
    high: float

    @property
    def ranks(self) -> bool:
        return min(abs(self.low), abs(self.high)) > ENOUGH and self.low * self.high > 0


Values = Mapping[str, Any]
"""a method with its label-free metrics and accuracies; None where one was not measured"""


def groups(folder: Path) -> dict[str, list[Values]]:
    """Methods with the same encoder and the same images: of the experiments, and of the comparisons' first rungs."""
    together: dict[str, list[Values]] = {}
    for each in experiments.find(folder):
        data, card = each.scores.data, each.card
        name = f"{card['encoder']} at {card['size']} px, {data['n_train']:,} labels of {data['train']}"
        measured = {metric: value(each, metric) for metric in (*METRICS, *LABELED)}
        together.setdefault(name, []).append({"method": card["method"], **measured})
    for path in sorted((folder / COMPARISONS).glob("*.json")):
        found = experiments.read(path)
        about = found["compare"]["data"]
        for row in found["label_free"]:
            name = f"{row['encoder']}, `pretask compare` with {about['n_labeled']:,} labels of {about['labeled']}"
            together.setdefault(name, []).append({**row, "linear": row["accuracy"]})
    known = {
        name: [row for row in rows if row["linear"] is not None and row["rankme"] is not None]
        for name, rows in together.items()
    }
    return {name: rows for name, rows in known.items() if len(rows) >= FEWEST}


def value(of: Experiment, metric: str) -> float | None:
    """The metric of the run's pooled features."""
    rows = (row for row in of.scores.rows if row.role == "run" and row.metric == metric)
    return next((row.value for row in rows if row.stage in ("pool", "")), None)


def correlations(group: Sequence[Values]) -> Iterator[Correlation]:
    for metric in METRICS:
        for labeled in LABELED:
            pairs = [(each.get(metric), each.get(labeled)) for each in group]
            known = np.array([pair for pair in pairs if None not in pair], float)
            if len(known) >= FEWEST:
                yield correlation(metric, labeled, known)


def correlation(metric: str, labeled: str, pairs: np.ndarray) -> Correlation:
    """(N, 2) values of a label-free metric and of a score."""
    draws = np.random.default_rng(0).integers(len(pairs), size=(RESAMPLES, len(pairs)))
    resampled = np.array([spearman(pairs[draw]) for draw in draws])
    low, high = quantiles(resampled[np.isfinite(resampled)])
    return Correlation(metric, labeled, len(pairs), spearman(pairs), low, high)


def spearman(pairs: np.ndarray) -> float:
    from scipy.stats import rankdata

    one, other = (rankdata(column) for column in pairs.T)
    return float(np.corrcoef(one, other)[0, 1]) if one.std() and other.std() else float("nan")


def body(folder: Path) -> str:
    """The page: a table for each group of experiments in the folder above."""
    lines = [
        "Spearman's rank correlation over methods between a label-free metric of their features and the accuracy of the same features, "
        "within one encoder and one set of images, with a 95 % interval over methods (bootstrap). A metric that ranks methods "
        f"without labels would have |ρ| above {ENOUGH} with its whole interval.\n",
    ]
    ranking = False
    for name, group in groups(folder.parent).items():
        found = list(correlations(group))
        ranking |= any(each.ranks for each in found)
        lines += [
            f"## {name}\n",
            f"{len(group)} methods: {', '.join(sorted(str(each['method']) for each in group))}.\n",
            "| metric | accuracy | methods | ρ |",
            "|---|---|---:|---:|",
            *(
                f"| {each.metric} | {each.labeled} | {each.methods} | {each.rho:+.2f} [{each.low:+.2f}, {each.high:+.2f}] |"
                for each in found
            ),
            "",
        ]
    lines.append(
        "Metrics whose interval lies beyond the bound rank these methods; on other encoders and images they may not.\n"
        if ranking
        else "Without labels we cannot rank these methods. Label-free metrics still show whether features have "
        "[collapsed](../../collapse.md).\n"
    )
    return "\n".join(lines)

"""Is a method implemented right? One short run is held against those of five seeds that are known to be right.

One test with an error of ERROR: the largest distance of any point or number from the reference, in units of its prediction interval.
"""

import dataclasses
import json
import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import cache
from typing import Any

import numpy as np

from pretask import faults, methods, reference
from pretask.evals import bands
from pretask.evals.bands import Prior
from pretask.faults import Fault
from pretask.limits import Seed
from pretask.methods import MethodConfig
from pretask.reference import Reference
from pretask.types import UserError
from pretask.workflows import recording
from pretask.workflows.recording import Recording, Setup

CURVES = {"loss": 1e-3, "accuracy": 0.5}
"""quantities with a value at each point -> smallest standard deviation that is believed: a fraction of the range, or points"""
NUMBERS = {"gradient": 0.01, "spread": 0.01, "knn": 0.5, "linear": 0.5, "moved": 0.01}
"""quantities with one value -> the same: a fraction of the value, or points"""
LOGARITHMIC = ("gradient", "spread", "moved")
"""numbers that are compared by their ratio"""
LEAST = 1e-6
"""smaller numbers count as this in a ratio"""
TITLES = {
    "loss": "loss",
    "accuracy": "pretext accuracy",
    "gradient": "gradient norm",
    "spread": "feature spread",
    "knn": "kNN accuracy, %",
    "linear": "linear accuracy, %",
    "moved": "change of {}",
}
SCALE = "another loss may have another scale; same_loss = True in the file compares it"
SEED = 100
"""default seed; the reference has 0 to 4"""


@dataclass(frozen=True)
class Compared:
    """One quantity of the run beside the reference."""

    quantity: str
    values: tuple[float, ...]
    low: tuple[float, ...]
    high: tuple[float, ...]
    """prediction interval at each point"""
    distance: float
    """largest distance from the mean; above 1 is outside"""
    of: str = ""
    """what moved"""

    @property
    def title(self) -> str:
        return TITLES[self.quantity].format(self.of)

    @property
    def inside(self) -> int:
        """Number of points inside."""
        return sum(low <= x <= high for x, low, high in zip(self.values, self.low, self.high, strict=True))


@dataclass(frozen=True)
class Verification:
    """A run of a method, compared with the reference of `against`."""

    method: str
    against: str
    seed: int
    error: float
    """probability that a correct run is outside"""
    setup: Setup
    compared: tuple[Compared, ...]
    left_out: Mapping[str, str]
    """quantities that were not compared -> why"""
    commit: str | None
    """of the reference"""

    @property
    def farthest(self) -> Compared:
        return max(self.compared, key=lambda each: each.distance)

    @property
    def passed(self) -> bool:
        return self.farthest.distance <= 1

    def as_dict(self) -> dict[str, Any]:
        return {"passed": self.passed} | dataclasses.asdict(self)


def constants(config: MethodConfig) -> dict[str, Any]:
    """The fields of a config and of its training recipe that decide how it trains, as JSON holds them: all but length and teacher."""
    config_fields = dataclasses.asdict(config)
    config_fields.pop("teacher", None)
    train = dataclasses.asdict(config.train)
    train.pop("epochs")
    return json.loads(json.dumps({"config": config_fields, "train": train}))


def verify(
    method: str,
    *,
    against: str = "",
    seed: Seed = SEED,
    error: float = bands.ERROR,
    on_step: Callable[[int, int], None] = lambda *_: None,
) -> Verification:
    """Train a method once, for less than half a minute, and compare what it shows with the reference: its own, or that of `against`.

    A method of your own trains by the recipe of the one that it is compared with. Its loss and gradient are compared only if its file
    says `same_loss = True`, and so is what it remembers between steps. Raises UserError.
    """
    if method.endswith(".py") and not against:
        raise UserError(
            f"{method} has no reference of its own; give --against METHOD, such as --against simclr"
        )
    known, setup = load(against or method)
    if against:
        module = methods.module(method)
        with recording.constants(against) as theirs:
            found = recording.record(methods.recipe(method)(), setup, seed, on_step, theirs.train)
        same_loss = bool(getattr(module, "same_loss", False))
    else:
        with recording.constants(method) as config:
            found = recording.record(config, setup, seed, on_step)
        same_loss = True
    return compare(found, known, method, seed, error, setup, same_loss)


def verify_planted(method: str, fault: Fault, seed: int = SEED) -> Verification:
    """The same run with a fault planted, compared with the method's own reference."""
    known, setup = load(method)
    with recording.constants(method) as config, faults.planted(method, config, fault) as broken:
        found = recording.record(broken, setup, seed)
    return compare(found, known, method, seed, bands.ERROR, setup)


def load(method: str) -> tuple[Reference, Setup]:
    """The reference of a method, and its setup. Raises UserError."""
    known = reference.load(method)
    return known, Setup(**known.setup)


def compare(
    found: Recording,
    known: Reference,
    method: str,
    seed: int,
    error: float,
    setup: Setup,
    same_loss: bool = True,
) -> Verification:
    """A recording beside the reference. Each quantity gets an equal part of the error."""
    left_out: dict[str, str] = {}
    if not same_loss:
        left_out |= dict.fromkeys(("loss", "gradient", "moved"), SCALE)
    if not found.accuracy and known.runs[0]["accuracy"]:
        left_out["accuracy"] = f"{method} logs no accuracy"
    pairs = [(q, of) for q, of in quantities(known.runs[0]) if q not in left_out]
    rows = [row(quantity, of, found, known, error / len(pairs)) for quantity, of in pairs]
    return Verification(method, known.method, seed, error, setup, tuple(rows), left_out, known.commit)


def quantities(run: Mapping[str, Any]) -> list[tuple[str, str]]:
    """The quantities of a reference run, with what moved."""
    found = [(name, "") for name in CURVES if run[name]]
    found += [(name, "") for name in NUMBERS if name != "moved"]
    return found + [("moved", of) for of in run["moved"]]


def row(quantity: str, of: str, found: Recording, known: Reference, error: float) -> Compared:
    runs = table(known, quantity, of)
    if quantity in CURVES:
        spread = float(np.ptp(runs.mean(0))) if quantity == "loss" else 1.0
        band = bands.curve(runs, error, CURVES[quantity] * spread)
    else:
        band = bands.number(runs[:, 0], prior(quantity), error, NUMBERS[quantity])
    measured = getattr(found, quantity)
    if quantity == "moved":
        measured = measured.get(of, math.nan)
    values = np.atleast_1d(np.array(measured, float))
    scaled, back = values, np.array
    if quantity in LOGARITHMIC:
        scaled, back = np.log(np.maximum(values, LEAST)), from_log
    low, high = (tuple(back(edge).tolist()) for edge in (band.mean - band.half, band.mean + band.half))
    return Compared(quantity, tuple(values.tolist()), low, high, float(band.distance(scaled).max()), of)


def from_log(edge: np.ndarray) -> np.ndarray:
    """The inverse of a logarithm of numbers of which those up to LEAST count as LEAST."""
    return np.where(edge <= math.log(LEAST), 0.0, np.exp(edge))


def table(known: Reference, quantity: str, of: str = "") -> np.ndarray:
    """(S, K) values of a quantity in the reference runs, logarithms for some."""
    values = [run[quantity][of] if quantity == "moved" else run[quantity] for run in known.runs]
    rows = np.array([np.atleast_1d(value) for value in values], float)
    return np.log(np.maximum(rows, LEAST)) if quantity in LOGARITHMIC else rows


@cache
def prior(quantity: str) -> Prior:
    """Variance of a number over seeds, from all references."""
    tables = [
        table(known, quantity, of)[:, 0]
        for known in map(reference.load, reference.names())
        for name, of in quantities(known.runs[0])
        if name == quantity
    ]
    variances = [max(float(runs.var(ddof=1)), NUMBERS[quantity] ** 2) for runs in tables]
    return bands.prior_of(variances, len(tables[0]) - 1)

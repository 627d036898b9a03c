"""The value range that becomes black … white in images that are not 8-bit.

8-bit values are used unchanged. Other values are mapped by one range per run or store, never per image, so that relative
brightness between images is the same in training and whenever the encoder is used. The range is measured
once, on a sample of the first source:

- floats within 0 … 1: 0 … 1;
- nonnegative integers: 0 … 2^k - 1 with the smallest k ≥ 8 that holds the largest value;
- negative integers and other floats: the quantiles 0.1 % and 99.9 %;
- a range declared in a file replaces the measured one.

No-data values are ignored in the measurement and become black.
"""

import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

Span = tuple[float, float]
"""values that become black and white"""

UNIT: Span = (0.0, 1.0)
QUANTILES = (0.001, 0.999)
VALUES = 2**16
"""values per sampled image from which quantiles are computed, evenly spaced"""
MAX_CLIPPED = 0.01
"""largest fraction of values outside of the range that is not reported to the user"""


class UnknownRange(Exception):
    """An image cannot be mapped because no image of its type was in the sample; the message is a short reason."""


@dataclass(frozen=True)
class Range:
    """The range of a run, a store or a source; None: it has no images of that type. 8-bit integers need no range."""

    integers: Span | None = None
    floats: Span | None = None

    @classmethod
    def fixed(cls, span: Span) -> "Range":
        """A range given by the user, for integers and floats."""
        return cls(span, span)

    @classmethod
    def from_card(cls, card: Mapping[str, Sequence[float]]) -> "Range":
        """The inverse of `card`."""
        return cls(**{kind: (span[0], span[1]) for kind, span in card.items()})

    def card(self) -> dict[str, list[float]]:
        """The known spans, for JSON."""
        spans = {"integers": self.integers, "floats": self.floats}
        return {kind: [as_number(x) for x in span] for kind, span in spans.items() if span}

    def span(self, dtype: np.dtype[Any]) -> Span:
        """The span of one dtype. Raises UnknownRange."""
        if dtype == np.uint8:
            return (0.0, 255.0)
        if span := self.floats if dtype.kind == "f" else self.integers:
            return span
        raise UnknownRange(f"{dtype.name} without a range (give --range LOW HIGH)")

    def rescales(self) -> bool:
        """Whether any values are changed."""
        return any(span not in (None, UNIT) for span in (self.integers, self.floats))

    def __str__(self) -> str:
        known = dict.fromkeys(filter(None, (self.integers, self.floats)))
        return ", ".join(f"{low:.10g} … {high:.10g}" for low, high in known)


UNKNOWN = Range()


@dataclass(frozen=True)
class PixelStats:
    """Values of one image or array that is not 8-bit."""

    floats: bool
    low: float
    high: float
    values: np.ndarray  # (≤ VALUES,) a subsample without no-data values
    declared: Span | None = None

    @classmethod
    def from_pixels(
        cls, pixels: np.ndarray, valid: np.ndarray | None = None, declared: Span | None = None
    ) -> "PixelStats":
        """`valid`, of the shape of `pixels`, is False where there is no data."""
        valid = valid_mask(pixels, valid)
        known = pixels.ravel() if valid is None else pixels[valid]
        if not known.size:
            return cls(pixels.dtype.kind == "f", math.inf, -math.inf, known)
        low, high = float(known.min()), float(known.max())
        if declared and not declared[0] <= low <= high <= declared[1]:
            declared = None  # the declaration does not describe the values
        stride = max(1, math.ceil(known.size / VALUES))
        return cls(pixels.dtype.kind == "f", low, high, known[::stride], declared)


def valid_mask(pixels: np.ndarray, valid: np.ndarray | None) -> np.ndarray | None:
    """Where there is data, nonfinite values excluded; None: everywhere."""
    if pixels.dtype.kind == "f" and not (finite := np.isfinite(pixels)).all():
        return finite if valid is None else finite & valid
    return valid


# ---- from a sample to a range


def complete(known: Range, sample: Iterable[PixelStats]) -> Range:
    """Fill the missing spans of `known` from a sample.

    If only one of integers and floats has a span, the other gets the same one, unless the floats lie within 0 … 1.
    """
    sample = [stats for stats in sample if stats.values.size]
    integer_stats = [stats for stats in sample if not stats.floats]
    float_stats = [stats for stats in sample if stats.floats]
    integers, floats = known.integers, known.floats
    if integers is None and integer_stats:
        integers = known.floats if known.floats not in (None, UNIT) else measure(integer_stats)
    if floats is None and float_stats:
        floats = measure(float_stats)
        if floats != UNIT and known.integers is not None:
            floats = known.integers
    return Range(integers, floats)


def measure(sample: Sequence[PixelStats]) -> Span:
    """The span of a sample that holds only integers or only floats."""
    if sample[0].floats and all(stats.low >= 0 and stats.high <= 1 for stats in sample):
        return UNIT
    spans = [stats.declared for stats in sample if stats.declared]
    if undeclared := [stats for stats in sample if not stats.declared]:
        low, high = min(stats.low for stats in undeclared), max(stats.high for stats in undeclared)
        if low >= 0 and not sample[0].floats:
            spans.append((0.0, float(2 ** max(8, int(high).bit_length()) - 1)))
        else:
            spans.append(quantile_span(undeclared, low, high))
    return min(low for low, _ in spans), max(high for _, high in spans)


def quantile_span(sample: Sequence[PixelStats], low: float, high: float) -> Span:
    """The span between the quantiles, or low … high if the quantiles are equal."""
    values = np.concatenate([stats.values.astype(np.float64) for stats in sample])
    first, last = np.quantile(values, QUANTILES).tolist()
    if first < last:
        return first, last
    return (low, high) if low < high else (low, low + 1)


def clipped_fraction(known: Range, sample: Iterable[PixelStats]) -> float:
    """The fraction of a sample's values outside of the range."""
    outside = total = 0
    for stats in sample:
        if span := known.floats if stats.floats else known.integers:
            outside += int(((stats.values < span[0]) | (stats.values > span[1])).sum())
            total += stats.values.size
    return outside / max(1, total)


def resolve_range(name: str, known: Range, sample: Sequence[PixelStats]) -> Range:
    """The range of a source, from a sample of it; prints a warning if many values are clipped."""
    from pretask.runtime.console import say

    resolved = complete(known, sample)
    if (clipped := clipped_fraction(resolved, sample)) > MAX_CLIPPED:
        say(f"{name}: {clipped:.0%} of the values lie outside of the range {resolved} and are clipped")
    return resolved


def warn_if_prepared_differently(name: str, current: Range, stored: Range) -> None:
    """Print a warning if images were stored with another range than the current one."""
    from pretask.runtime.console import say

    pairs = (current.integers, stored.integers), (current.floats, stored.floats)
    if any(a and b and a != b for a, b in pairs):
        say(
            f"{name} was prepared with the range {stored}, not {current}, so equal values differ in brightness; "
            "prepare it again with --range LOW HIGH"
        )


# ---- from values to brightness


def to_unit(pixels: np.ndarray, span: Span, valid: np.ndarray | None = None) -> np.ndarray:
    """Any values -> float32 in 0 … 1, of the same shape; black where there is no data."""
    low, high = span
    valid = valid_mask(pixels, valid)
    if valid is not None:
        pixels = np.where(valid, pixels, low)
    if pixels.dtype.itemsize < 4:  # float32 holds these exactly
        pixels = pixels.astype(np.float32)
    return np.clip((pixels - low) / (high - low), 0, 1).astype(np.float32, copy=False)


def to_uint8(unit: np.ndarray) -> np.ndarray:
    """0 … 1 -> uint8. The only place where bit depth is lost."""
    return (unit * 255).round().clip(0, 255).astype(np.uint8)


def as_number(x: float) -> float:
    """Integral floats as int, for readable JSON."""
    return int(x) if float(x).is_integer() else x

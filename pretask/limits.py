"""Which numbers are allowed where: types that carry their limits, as the command line, the Python API, run.json and method
files all read them. `check` is what compares; a flag's help shows the limits in the place of a type.
"""

import dataclasses
import math
from collections.abc import Callable
from types import NoneType, UnionType
from typing import Annotated, Any, Literal, Union, get_args, get_origin, get_type_hints

from annotated_types import BaseMetadata, Ge, Gt, Interval, Le, Lt
from tyro.constructors import PrimitiveConstructorSpec

from pretask.errors import UserError


def number(kind: type[int] | type[float], told: str) -> PrimitiveConstructorSpec[Any]:
    """How tyro reads such a number, and what its help calls it."""
    what = "a whole number" if kind is int else "a number"

    def read(words: list[str]) -> int | float:
        try:
            return kind(words[0])
        except ValueError:
            raise ValueError(f"{words[0]!r} is not {what}") from None

    return PrimitiveConstructorSpec(1, told, read, lambda x: isinstance(x, int | kind), lambda x: [str(x)])


@dataclasses.dataclass(frozen=True)
class Says:
    """Limits in words."""

    words: str


class Rising:
    """Of a pair: the second number is no smaller than the first."""


def between(low: int, high: int) -> tuple[Any, ...]:
    """Of a whole number: `Annotated[int, *between(1, 40)]`."""
    return (
        Interval(ge=low, le=high),
        number(int, f"{low}…{high}"),
        Says(f"a whole number from {low} to {high}"),
    )


Count = Annotated[int, Ge(1), number(int, "INT≥1"), Says("a whole number, 1 or more")]
Natural = Annotated[int, Ge(0), number(int, "INT≥0"), Says("a whole number, 0 or more")]
Several = Annotated[int, Ge(2), number(int, "INT≥2"), Says("a whole number, 2 or more")]
Seed = Annotated[
    int, Interval(ge=0, lt=2**32), number(int, "INT≥0"), Says("a whole number from 0 to 4294967295")
]
Degrees = Annotated[int, Interval(ge=-360, le=360), number(int, "INT"), Says("-360 to 360")]
Weight = Annotated[float, Ge(0), number(float, "NUMBER≥0"), Says("0 or more")]
Positive = Annotated[float, Gt(0), number(float, "NUMBER>0"), Says("a number above 0")]
Share = Annotated[float, Interval(ge=0, le=1), number(float, "0…1"), Says("0 to 1")]
Part = Annotated[float, Interval(gt=0, le=1), number(float, ">0…1"), Says("a number above 0, and 1 at most")]
Below = Annotated[float, Interval(ge=0, lt=1), number(float, "0…<1"), Says("0 or more, and less than 1")]
Within = Annotated[float, Interval(gt=0, lt=1), number(float, ">0…<1"), Says("a number between 0 and 1")]
Shares = Annotated[tuple[Share, Share], Rising()]
Parts = Annotated[tuple[Part, Part], Rising()]
Positives = Annotated[tuple[Positive, Positive], Rising()]


def check(values: Any) -> None:
    """UserError, in one line, if a field of a dataclass, or of one inside it, is not what its type allows."""
    hints = get_type_hints(type(values), include_extras=True)
    for field in dataclasses.fields(values):
        value, hint = getattr(values, field.name), hints[field.name]
        if dataclasses.is_dataclass(value):
            check(value)
        elif not fits(value, hint):
            flag = field.name.replace("_", "-")
            raise UserError(f"--{flag} {written(value)} is out of range; expected {told(hint)}")


def fits(value: Any, hint: Any) -> bool:
    """Whether a value is a number, or a row of numbers, as the type says; of types that are about no numbers, always."""
    kind, inside = get_origin(hint), get_args(hint)
    if kind is Annotated:
        return fits(value, inside[0]) and all(meets(value, limit) for limit in inside[1:])
    if kind in (Union, UnionType):
        return any(fits(value, each) for each in inside)
    if kind is Literal:
        return value in inside
    if kind is tuple and isinstance(value, tuple | list):
        each = [inside[0]] * len(value) if inside[1:] == (...,) else inside
        return len(value) == len(each) and all(map(fits, value, each))
    if hint is NoneType:
        return value is None
    if hint in (int, float):
        is_number = isinstance(value, int | hint) and not isinstance(value, bool)
        return is_number and math.isfinite(value)
    return kind is not tuple


COMPARED: dict[type, Callable[[Any, Any], bool]] = {
    Ge: lambda x, limit: x >= limit.ge,
    Gt: lambda x, limit: x > limit.gt,
    Le: lambda x, limit: x <= limit.le,
    Lt: lambda x, limit: x < limit.lt,
}


def meets(value: Any, limit: Any) -> bool:
    if isinstance(limit, Interval):
        return all(meets(value, each) for each in limit)
    if isinstance(limit, Rising):
        return value[0] <= value[1]
    return not isinstance(limit, BaseMetadata) or COMPARED[type(limit)](value, limit)


def told(hint: Any) -> str:
    """What a type allows, in words."""
    kind, inside = get_origin(hint), get_args(hint)
    if kind is Annotated:
        rising = ", the smaller one first" if any(isinstance(each, Rising) for each in inside) else ""
        named = [each.words for each in inside if isinstance(each, Says)]
        return named[0] if named else told(inside[0]) + rising
    if kind in (Union, UnionType):
        return ", or ".join(told(each) for each in inside if each is not NoneType)
    if kind is Literal:
        return " or ".join(map(str, inside))
    if kind is tuple:
        count = "" if inside[1:] == (...,) else f"{len(inside)} "
        return f"{count}numbers, each {told(inside[0])}"
    return {int: "a whole number", float: "a number"}.get(hint, getattr(hint, "__name__", str(hint)))


def written(value: Any) -> str:
    """As on the command line."""
    return " ".join(map(str, value)) if isinstance(value, tuple | list) else str(value)

"""Number types with limits, shared by the command line, the Python API, run.json and method files.

`check` compares values with these limits; a flag's help shows the limits in place of the type.
"""

import dataclasses
import functools
import inspect
import math
import re
from collections.abc import Callable
from types import NoneType, UnionType
from typing import (
    Annotated,
    Any,
    Literal,
    ParamSpec,
    TypeVar,
    Union,
    get_args,
    get_origin,
    get_type_hints,
)

from annotated_types import BaseMetadata, Ge, Gt, Interval, Le, Lt
from tyro.constructors import PrimitiveConstructorSpec

from pretask.errors import UserError

P = ParamSpec("P")
T = TypeVar("T")


def number(kind: type[int] | type[float], metavar: str) -> PrimitiveConstructorSpec[Any]:
    """How tyro parses a number, and what its help shows for it."""
    what = "a whole number" if kind is int else "a number"

    def read(words: list[str]) -> int | float:
        try:
            return kind(words[0])
        except ValueError:
            raise ValueError(f"{words[0]!r} is not {what}") from None

    return PrimitiveConstructorSpec(1, metavar, read, lambda x: isinstance(x, int | kind), lambda x: [str(x)])


@dataclasses.dataclass(frozen=True)
class Description:
    """Limits in words, for error messages."""

    text: str


class Ascending:
    """A pair of numbers of which the second is no smaller than the first."""


class StrictlyAscending:
    """A pair of numbers of which the second is larger than the first."""


def between(low: int, high: int) -> tuple[Any, ...]:
    """Limits of an integer: `Annotated[int, *between(1, 40)]`."""
    return (
        Interval(ge=low, le=high),
        number(int, f"{low}…{high}"),
        Description(f"a whole number from {low} to {high}"),
    )


PositiveInt = Annotated[int, Ge(1), number(int, "INT≥1"), Description("a whole number, 1 or more")]
NonNegativeInt = Annotated[int, Ge(0), number(int, "INT≥0"), Description("a whole number, 0 or more")]
AtLeastTwo = Annotated[int, Ge(2), number(int, "INT≥2"), Description("a whole number, 2 or more")]
Seed = Annotated[
    int, Interval(ge=0, lt=2**32), number(int, "INT≥0"), Description("a whole number from 0 to 4294967295")
]
Degrees = Annotated[int, Interval(ge=-360, le=360), number(int, "INT"), Description("-360 to 360")]
NonNegativeFloat = Annotated[float, Ge(0), number(float, "NUMBER≥0"), Description("0 or more")]
PositiveFloat = Annotated[float, Gt(0), number(float, "NUMBER>0"), Description("a number above 0")]
UnitInterval = Annotated[float, Interval(ge=0, le=1), number(float, "0…1"), Description("0 to 1")]
PositiveFraction = Annotated[
    float, Interval(gt=0, le=1), number(float, ">0…1"), Description("a number above 0, and 1 at most")
]
FractionBelowOne = Annotated[
    float, Interval(ge=0, lt=1), number(float, "0…<1"), Description("0 or more, and less than 1")
]
OpenUnitInterval = Annotated[
    float, Interval(gt=0, lt=1), number(float, ">0…<1"), Description("a number between 0 and 1")
]
UnitIntervals = Annotated[tuple[UnitInterval, UnitInterval], Ascending()]
PositiveFractions = Annotated[tuple[PositiveFraction, PositiveFraction], Ascending()]
PositiveFloats = Annotated[tuple[PositiveFloat, PositiveFloat], Ascending()]


@functools.cache
def hints_of(what: Callable[..., Any]) -> dict[str, Any]:
    """The types of a class's fields, or of a function's arguments, with their limits; cached, since finding them takes long."""
    return get_type_hints(what, include_extras=True)


def check(values: Any) -> None:
    """Raise a UserError of one line if a field of a dataclass, nested ones included, violates its type."""
    hints = hints_of(type(values))
    for field in dataclasses.fields(values):
        value, hint = getattr(values, field.name), hints[field.name]
        check_value(field.name, value, hint)


def flag(name: str) -> str:
    """The command-line flag of a field: tyro turns underscores into hyphens, except a trailing one."""
    return "--" + re.sub(r"_(?=.)", "-", name)


def check_value(name: str, value: Any, hint: Any) -> None:
    """Raise a UserError of one line if a value, or a field inside it, violates its type."""
    if dataclasses.is_dataclass(value) and not isinstance(value, type):
        check(value)
    elif not fits(value, hint):
        raise UserError(f"{flag(name)} {format_value(value)} is out of range; expected {describe(hint)}")


def checked(function: Callable[P, T]) -> Callable[P, T]:
    """Decorator that checks a function's arguments against their annotations at every call."""
    signature = inspect.signature(function)

    @functools.wraps(function)
    def called(*args: P.args, **kwargs: P.kwargs) -> T:
        hints = hints_of(function)
        for name, value in signature.bind(*args, **kwargs).arguments.items():
            check_value(name, value, hints[name])
        return function(*args, **kwargs)

    return called


def fits(value: Any, hint: Any) -> bool:
    """Whether a number, or a tuple of numbers, satisfies a type; True for types that are not about numbers."""
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


COMPARISONS: dict[type, Callable[[Any, Any], bool]] = {
    Ge: lambda x, limit: x >= limit.ge,
    Gt: lambda x, limit: x > limit.gt,
    Le: lambda x, limit: x <= limit.le,
    Lt: lambda x, limit: x < limit.lt,
}


def meets(value: Any, limit: Any) -> bool:
    if isinstance(limit, Interval):
        return all(meets(value, each) for each in limit)
    if isinstance(limit, Ascending):
        return value[0] <= value[1]
    if isinstance(limit, StrictlyAscending):
        return value[0] < value[1]
    return not isinstance(limit, BaseMetadata) or COMPARISONS[type(limit)](value, limit)


def describe(hint: Any) -> str:
    """What a type allows, in words."""
    kind, inside = get_origin(hint), get_args(hint)
    if kind is Annotated:
        ascending = any(isinstance(each, Ascending | StrictlyAscending) for each in inside)
        texts = [each.text for each in inside if isinstance(each, Description)]
        return texts[0] if texts else describe(inside[0]) + ", the smaller one first" * ascending
    if kind in (Union, UnionType):
        return ", or ".join(describe(each) for each in inside if each is not NoneType)
    if kind is Literal:
        return " or ".join(map(str, inside))
    if kind is tuple:
        count = "" if inside[1:] == (...,) else f"{len(inside)} "
        return f"{count}numbers, each {describe(inside[0])}"
    return {int: "a whole number", float: "a number", str: "text", bool: "true or false"}.get(
        hint, getattr(hint, "__name__", str(hint))
    )


def format_value(value: Any) -> str:
    """A value as it is written on the command line."""
    return " ".join(map(str, value)) if isinstance(value, tuple | list) else str(value)

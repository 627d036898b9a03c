"""Strict file formats: a file has a format number and exactly the expected fields, each of its type.

This holds for run.json, encoder.json, store.json, topics.json and checkpoints, which share one number, since they are
converted together. A file of another format or with other fields is refused in one line that names the file and the fields:
if a field were silently dropped or filled in, a resumed run would continue with other settings.
"""

import dataclasses
import json
import reprlib
from collections.abc import Collection, Mapping
from functools import cache
from pathlib import Path
from shlex import quote
from types import NoneType, UnionType
from typing import Annotated, Any, Literal, Union, get_args, get_origin, get_type_hints

from pretask import limits
from pretask.errors import UserError

KEY, FORMAT = "format", 3
"""incremented whenever a field of any file gets another name or meaning; files of format 1 have no number; format 3 adds what runs
with --init need. scripts/convert_runs.py converts older files"""
RANGE = dict[Literal["integers", "floats"], tuple[float, float]]
"""the type of a Range in JSON"""

Fields = Mapping[str, Any]
"""name -> type"""


def read_json(path: Path, fields: Fields) -> dict[str, Any]:
    """A JSON document that has a format number and these fields. Raises UserError."""
    try:
        found = json.loads(path.read_text())
    except (OSError, ValueError) as wrong:
        raise UserError(f"{path} cannot be read: {wrong}") from None
    check(path, found, fields)
    return found


def check(path: Path, found: Any, fields: Fields) -> None:
    """UserError unless the content of `path` has this format number and these fields, each of its type."""
    if not isinstance(found, dict):
        raise UserError(f"{path} is damaged: it holds a {type(found).__name__}, not fields with names")
    number = found.get(KEY, 1)
    if not isinstance(number, int) or number < FORMAT:
        said = f"{KEY} {number!r}" if KEY in found else f"no {KEY} number"
        raise UserError(
            f"{path} has {said}: an older version of pretask wrote it; convert it once: "
            f"python scripts/convert_runs.py {quote(str(path.parent))}"
        )
    if number > FORMAT:
        raise UserError(
            f"{path} has {KEY} {number}, and this version of pretask reads {FORMAT}: a newer one wrote it; update pretask"
        )
    expected = {KEY: int, **fields}
    wrong = name_differences(expected, found)
    wrong += [
        said
        for name in expected
        if name in found
        for said in type_errors(name, found[name], fields.get(name, int))
    ]
    refuse(path, wrong)


def refuse(
    path: Path | str, wrong: Collection[str], advice: str = "restore the file as it was written"
) -> None:
    """UserError if anything is wrong with a file."""
    if wrong:
        raise UserError(f"{path}: {'; '.join(wrong)}. What to do: {advice}")


def name_differences(expected: Collection[str], found: Collection[str], place: str = "") -> list[str]:
    """How names differ from the expected ones, in words."""
    lists = {
        "unknown": [name for name in found if name not in expected],
        "missing": [name for name in expected if name not in found],
    }
    return [
        f"{what} {', '.join(f'{place}{name}' for name in names)}" for what, names in lists.items() if names
    ]


def type_errors(place: str, value: Any, hint: Any) -> list[str]:
    """A sentence if the value does not have the type, otherwise an empty list."""
    if fits(value, hint):
        return []
    shown = " ".join(reprlib.repr(value).split())  # a tensor takes several lines
    return [f"{place} is {shown}, expected {limits.describe(hint)}"]


def fits(value: Any, hint: Any) -> bool:
    """Whether a plain value has a type. Unlike `limits.fits`, it also checks types that are not numbers."""
    kind, inside = get_origin(hint), get_args(hint)
    if kind is Annotated:  # limits of numbers, or what the command line adds for its help
        return fits(value, inside[0]) and limits.fits(value, hint)
    if kind in (Union, UnionType):
        return any(fits(value, each) for each in inside)
    if kind is dict:
        return isinstance(value, dict) and all(
            fits(k, inside[0]) and fits(v, inside[1]) for k, v in value.items()
        )
    if hint is Path:
        return isinstance(value, str)
    if hint in (str, bool, dict, list):
        return isinstance(value, hint)
    return limits.fits(value, hint)


@cache
def plain_hints(kind: type) -> dict[str, Any]:
    """The types of a dataclass's fields, without limits."""
    return get_type_hints(kind)


def instance(kind: type, values: Any, place: str, wrong: list[str]) -> Any:
    """A frozen dataclass from plain JSON values: nested ones, tuples and paths get their types back.

    All fields are required. Errors are added to `wrong`, as text that begins with the `place`; the result is then None.
    """
    if not isinstance(values, dict):
        wrong.append(f"{place} is {reprlib.repr(values)}, expected fields with names")
        return None
    before = len(wrong)
    names = [field.name for field in dataclasses.fields(kind)]
    wrong += name_differences(names, values, f"{place}.")
    plain, exact = plain_hints(kind), limits.hints_of(kind)
    known = {
        name: typed(plain[name], exact[name], values[name], f"{place}.{name}", wrong)
        for name in names
        if name in values
    }
    return kind(**known) if len(wrong) == before else None


def typed(plain: Any, exact: Any, value: Any, place: str, wrong: list[str]) -> Any:
    """The value of one field; `plain` is its type without limits, `exact` with them."""
    allowed = (plain, *get_args(plain))
    nested = [each for each in allowed if isinstance(each, type) and dataclasses.is_dataclass(each)]
    if nested and not (value is None and NoneType in allowed):
        return instance(nested[0], value, place, wrong)
    wrong += type_errors(place, value, exact)
    if isinstance(value, list) and tuple in [get_origin(each) for each in allowed]:
        return tuple(value)
    if isinstance(value, str) and Path in allowed:
        return Path(value)
    return value

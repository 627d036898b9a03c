"""Numbers are checked where they come in, by limits that stand beside the fields."""

import dataclasses
import importlib
import pkgutil
from types import NoneType, UnionType
from typing import Annotated, Any, Literal, Union, get_args, get_origin, get_type_hints

import pytest
from annotated_types import BaseMetadata, Ge, Gt, Interval, Le, Lt

from pretask import limits, methods
from pretask.cli import commands
from pretask.cli import main as cli
from pretask.config import TrainConfig
from pretask.datagen import tracking
from pretask.errors import UserError
from pretask.train import run
from pretask.workflows.pretrain import Settings, pretrain


def kinds() -> dict[str, type]:
    """Every dataclass whose fields a user sets."""
    found: dict[str, type] = {"train": TrainConfig, "settings": Settings, "tracking": tracking.Settings}
    for name in methods.names():
        for recipe, config in methods.recipes(methods.module(name)).items():
            found[f"{name}:{recipe}"] = config
            for field, hint in get_type_hints(config).items():
                if dataclasses.is_dataclass(hint):
                    found[f"{name}:{recipe}.{field}"] = hint
    for info in pkgutil.iter_modules(commands.__path__):
        module = importlib.import_module(f"{commands.__name__}.{info.name}")
        flags = {k: v for k, v in vars(module).items() if dataclasses.is_dataclass(v)}
        found |= {f"{info.name} {k}": v for k, v in flags.items() if v.__module__ == module.__name__}
    return found


def fields() -> list[Any]:
    rows = []
    for name, kind in kinds().items():
        hints = get_type_hints(kind, include_extras=True)
        rows += [
            pytest.param(kind, field.name, hints[field.name], id=f"{name}-{field.name}")
            for field in dataclasses.fields(kind)
            if "int" in str(hints[field.name]) or "float" in str(hints[field.name])
        ]
    return rows


def leaves(hint: Any) -> list[Any]:
    """The types of single numbers inside a type."""
    if get_origin(hint) is Annotated and get_args(hint)[0] in (int, float):
        return [hint]
    if hint in (int, float):
        return [hint]
    inside = get_args(hint)[:1] if get_origin(hint) is Annotated else get_args(hint)
    return [leaf for each in inside if get_origin(each) is not Literal for leaf in leaves(each)]


def sides(leaf: Any) -> tuple[list[Any], list[Any]]:
    """Numbers just inside and just outside of what a type allows."""
    whole = get_args(leaf)[0] is int
    step = 1 if whole else 1e-9
    inside, outside = [], [float("nan"), float("inf"), True, "3"]
    given = [x for x in get_args(leaf)[1:] if isinstance(x, BaseMetadata | Interval)]
    for limit in (each for one in given for each in (one if isinstance(one, Interval) else [one])):
        match limit:
            case Ge(ge=edge):
                inside, outside = [*inside, edge], [*outside, edge - step]
            case Gt(gt=edge):
                inside, outside = [*inside, edge + step], [*outside, edge]
            case Le(le=edge):
                inside, outside = [*inside, edge], [*outside, edge + step]
            case Lt(lt=edge):
                inside, outside = [*inside, edge - step], [*outside, edge]
    return inside, outside + ([0.5] if whole else [])


def shaped(hint: Any, value: Any) -> Any:
    """The number as a value of the field: alone, or as often as a row has numbers."""
    kind, inside = get_origin(hint), get_args(hint)
    if kind is Annotated and get_origin(inside[0]) is tuple:
        return shaped(inside[0], value)
    if kind in (Union, UnionType):
        return shaped(next(x for x in inside if x is not NoneType and get_origin(x) is not Literal), value)
    if kind is tuple:
        return (value,) * (1 if inside[1:] == (...,) else len(inside))
    return value


def made(kind: type, **values: Any) -> Any:
    needed = {
        f.name: {"data": "x", "clusters": 2, "scenes": 2, "task": "depth", "to": "torch"}.get(f.name, "x")
        for f in dataclasses.fields(kind)
        if f.default is f.default_factory is dataclasses.MISSING
    }
    return kind(**needed | values)


@pytest.mark.parametrize(("kind", "name", "hint"), fields())
def test_every_number_has_limits_that_are_kept_on_both_sides(kind, name, hint):
    found = leaves(hint)
    assert found, hint
    for leaf in found:
        assert get_origin(leaf) is Annotated, f"{kind.__qualname__}.{name} has no limits"
        inside, outside = sides(leaf)
        assert inside
        for value in inside:
            limits.check(made(kind, **{name: shaped(hint, value)}))
        for value in outside:
            flag = f"--{name.replace('_', '-')} "
            with pytest.raises(UserError, match=flag) as told:
                limits.check(made(kind, **{name: shaped(hint, value)}))
            assert "\n" not in str(told.value)


@pytest.mark.parametrize("kind", kinds().values(), ids=kinds())
def test_defaults_are_within_their_own_limits(kind):
    limits.check(made(kind))


def test_a_pair_rises():
    views = methods.recipe("simclr")().views
    with pytest.raises(UserError, match=r"--crop 0.8 0.2.*the smaller one first"):
        limits.check(methods.recipe("simclr")(views=dataclasses.replace(views, crop=(0.8, 0.2))))


@pytest.mark.parametrize(
    "flags",
    ["--batch -1", "--batch 0", "--rounds 0", "--lr -1", "--devices 0", "--seed 1e20", "--warmup 2", "--max-bad -1",
     "--lr nan", "--share 0", "--steps 0", "--size 0", "--workers 0", "--clip -1", "--drops 0.5 1.5", "--crop 2"],
)  # fmt: skip
def test_the_command_line_refuses_in_one_line_what_makes_no_sense(flags, capfd):
    assert cli.main(["pretrain", "rotnet", "--data", "synthetic:8:16", *flags.split()]) == 2
    told = capfd.readouterr().err
    assert told.startswith("pretask: ") and told.count("\n") == 1 and flags.split()[0] in told


def test_the_python_interface_and_run_json_are_held_to_the_same(tmp_path):
    settings = Settings("synthetic:64:16", out=tmp_path / "run", steps=2, encoder="resnet_small:width=4")
    with pytest.raises(UserError, match="--batch 0"):
        pretrain("rotnet", settings, train=TrainConfig(batch=0))
    with pytest.raises(UserError, match="--crop 2"):
        pretrain("rotnet", settings, methods.recipe("rotnet")(crop=2.0))
    made = pretrain("rotnet", settings, train=TrainConfig(batch=8))
    text = (made.folder / run.CARD).read_text()
    (made.folder / run.CARD).write_text(text.replace('"lr": 0.001', '"lr": -0.001'))
    with pytest.raises(UserError, match=r"--lr -0\.001"):
        pretrain(None, Settings("", steps=4), resume=made.folder)


def test_a_method_file_may_set_limits_of_its_own(tmp_path, capfd):
    file = tmp_path / "mine.py"
    file.write_text(
        "from dataclasses import dataclass\n"
        "from pretask.limits import Count\n"
        "from pretask.methods import rotnet\n\n"
        "@dataclass(frozen=True)\n"
        "class Config(rotnet.Config):\n"
        '    """Turn."""\n\n'
        "    many: Count = 3\n"
        '    """of them"""\n'
    )
    assert cli.main(["pretrain", str(file), "--data", "synthetic:8:16", "--many", "0"]) == 2
    assert "--many 0 is out of range; expected a whole number, 1 or more" in capfd.readouterr().err

"""Numbers are checked where they enter, against the limits in the types of their fields."""

import dataclasses
import importlib
import pkgutil
from pathlib import Path
from types import NoneType, UnionType
from typing import Annotated, Any, Literal, Union, get_args, get_origin, get_type_hints

import pytest
from annotated_types import BaseMetadata, Ge, Gt, Interval, Le, Lt

from pretask import limits, methods
from pretask.cli import commands, main
from pretask.config import Changes, RunConfig, TrainConfig
from pretask.datagen import tracking
from pretask.encoders.readout import Readout
from pretask.errors import UserError
from pretask.reading import DEFAULT_READING
from pretask.train import run
from pretask.workflows.job import fresh, resumed
from pretask.workflows.pretrain import pretrain


def kinds() -> dict[str, type]:
    """Every dataclass whose fields users can set."""
    found: dict[str, type] = {"train": TrainConfig, "settings": RunConfig, "tracking": tracking.TrackConfig}
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
    """Numbers just inside and just outside of a type's limits."""
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
    """The number as a value of the field, repeated if the field is a tuple."""
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
        f.name: {
            "data": "x",
            "clusters": 2,
            "scenes": 2,
            "count": 2,
            "query": ("x",),
            "task": "depth",
            "to": "torch",
        }.get(f.name, "x")
        for f in dataclasses.fields(kind)
        if f.default is f.default_factory is dataclasses.MISSING
    }
    return kind(**needed | values)


@pytest.mark.parametrize(("kind", "name", "hint"), fields())
def test_every_number_has_limits_that_are_enforced_on_both_sides(kind, name, hint):
    found = leaves(hint)
    assert found, hint
    for leaf in found:
        assert get_origin(leaf) is Annotated, f"{kind.__qualname__}.{name} has no limits"
        inside, outside = sides(leaf)
        assert inside
        for value in inside:
            limits.check(made(kind, **{name: shaped(hint, value)}))
        for value in outside:
            with pytest.raises(UserError, match=f"{limits.flag(name)} ") as caught:
                limits.check(made(kind, **{name: shaped(hint, value)}))
            assert "\n" not in str(caught.value)


@pytest.mark.parametrize("kind", kinds().values(), ids=kinds())
def test_defaults_are_within_their_own_limits(kind):
    limits.check(made(kind))


def test_pair_must_ascend():
    views = methods.recipe("simclr")().views
    with pytest.raises(UserError, match=r"--crop 0.8 0.2.*the smaller one first"):
        limits.check(methods.recipe("simclr")(views=dataclasses.replace(views, crop=(0.8, 0.2))))


def test_the_flag_in_a_message_is_the_one_on_the_command_line(capfd):
    words = ["pretrain", "barlow_twins", "--data", "synthetic:8:16", "--lambda_", "-1"]
    assert main.main(words) == 2
    assert capfd.readouterr().err.startswith("pretask: --lambda_ -1.0 is out of range")


@pytest.mark.parametrize(
    "flags",
    ["--batch -1", "--batch 0", "--cycles 0", "--lr -1", "--devices 0", "--seed 1e20", "--warmup 2", "--max-bad -1",
     "--lr nan", "--fraction 0", "--steps 0", "--size 0", "--workers 0", "--clip -1", "--milestones 0.5 1.5", "--crop 2"],
)  # fmt: skip
def test_command_line_refuses_invalid_numbers_in_one_line(flags, capfd):
    assert main.main(["pretrain", "rotnet", "--data", "synthetic:8:16", *flags.split()]) == 2
    err = capfd.readouterr().err
    assert err.startswith("pretask: ") and err.count("\n") == 1 and flags.split()[0] in err


def test_python_interface_and_run_json_have_the_same_limits(tmp_path):
    settings = RunConfig("synthetic:64:16", out=tmp_path / "run", steps=2, encoder="resnet_small:width=4")
    with pytest.raises(UserError, match="--batch 0"):
        pretrain(fresh("rotnet", settings, train=TrainConfig(batch=0)))
    with pytest.raises(UserError, match="--crop 2"):
        pretrain(fresh("rotnet", settings, methods.recipe("rotnet")(crop=2.0)))
    made = pretrain(fresh("rotnet", settings, train=TrainConfig(batch=8)))
    text = (made.folder / run.CARD).read_text()
    (made.folder / run.CARD).write_text(text.replace('"lr": 0.001', '"lr": -0.001'))
    with pytest.raises(UserError, match=r"run\.json: train\.lr is -0\.001, expected 0 or more"):
        pretrain(resumed(made.folder, Changes(steps=4)))


def test_method_file_may_set_its_own_limits(tmp_path, capfd):
    file = tmp_path / "mine.py"
    file.write_text(
        "from dataclasses import dataclass\n"
        "from pretask.limits import PositiveInt\n"
        "from pretask.methods import rotnet\n\n"
        "@dataclass(frozen=True)\n"
        "class Config(rotnet.Config):\n"
        '    """Turn."""\n\n'
        "    many: PositiveInt = 3\n"
        '    """of them"""\n'
    )
    assert main.main(["pretrain", str(file), "--data", "synthetic:8:16", "--many", "0"]) == 2
    assert "--many 0 is out of range; expected a whole number, 1 or more" in capfd.readouterr().err


SMALL_RUN = "synthetic:8:16"


@pytest.fixture(scope="module")
def small_run(tmp_path_factory):
    folder = tmp_path_factory.mktemp("runs") / "run"
    settings = RunConfig(SMALL_RUN, out=folder, steps=1, encoder="resnet_small:width=4")
    return pretrain(fresh("rotnet", settings, train=TrainConfig(batch=8)))


def calls(made: run.Run) -> dict[str, Any]:
    """Calls of public functions with one invalid argument each, which is not a dataclass field."""
    from pretask import api
    from pretask import data as sources
    from pretask.datagen import mine_tracks, render
    from pretask.workflows import audit, cluster, colorize, embed, evaluate, preview, study, transfer

    data, nowhere = SMALL_RUN, Path("nowhere")
    images = sources.open(data)
    reading = dataclasses.replace(DEFAULT_READING, max_bad=2.0)
    subject = cluster.Subject("none", 16, 3, lambda _: pytest.fail("images were read"))
    opened = cluster.Opened(images)
    settings = tracking.TrackConfig()
    return {
        "--batch 0": lambda: api.embed(made, data, batch=0),
        "--size -1": lambda: api.embed("timm:resnet18", data, size=-1),
        "--max-bad 2.0": lambda: api.embed(made, data, reading=reading),
        "--seeds 0": lambda: evaluate.evaluate(made, data, seeds=0),
        "--seeds True": lambda: study.study(made, data, seeds=True),
        "--steps 0": lambda: transfer.transfer(made, data, task="depth", steps=0),
        "--size 0": lambda: evaluate.evaluate(made, data, size=0),
        "--count 0": lambda: audit.audit(made, 0),
        "--batch -1": lambda: embed.write(Readout(made.encoder), images, nowhere, batch=-1),
        "--clusters 0": lambda: cluster.cluster(subject, opened, 0, nowhere),
        "--seed -1": lambda: cluster.cluster(subject, opened, 2, nowhere, seed=-1),
        "--neighbors 0": lambda: cluster.cluster(subject, opened, 2, nowhere, neighbors=0),
        "--smallest 1.5": lambda: cluster.cluster(subject, opened, 2, nowhere, smallest=1.5),
        "--temperature nan": lambda: colorize.colorize(made, images, nowhere, float("nan")),
        "--workers 0": lambda: mine_tracks.mine(nowhere, nowhere, settings, 0),
        "--size -5": lambda: mine_tracks.mine(nowhere, nowhere, dataclasses.replace(settings, size=-5)),
        "--scenes 0": lambda: render.render(nowhere, 0, render.RenderConfig()),
        "--samples 0": lambda: render.render(nowhere, 1, render.RenderConfig(samples=0)),
        "--rows 0": lambda: preview.preview(data, methods.recipe("rotnet")(), "x", rows=0),
        "--batch -2": lambda: api.pretrain("rotnet", data, batch=-2, quiet=True),
        "--lr inf": lambda: api.pretrain("rotnet", data, lr=float("inf"), quiet=True),
        "--fraction nan": lambda: api.pretrain("rotnet", data, fraction=float("nan"), quiet=True),
        "--steps -1": lambda: api.pretrain("rotnet", data, steps=-1, quiet=True),
        "--budget '0s'": lambda: api.pretrain("rotnet", data, budget="0s", quiet=True),
        "--budget 'nan'": lambda: api.pretrain("rotnet", data, budget="nan", quiet=True),
    }  # fmt: skip


def test_functions_check_their_arguments(small_run, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    for flag, call in calls(small_run).items():
        with pytest.raises(UserError, match=flag) as caught:
            call()
        assert "\n" not in str(caught.value)
    assert not list(tmp_path.iterdir())


def test_unknown_stage_error_lists_the_stages(small_run):
    from pretask import api

    with pytest.raises(UserError, match="no stage 'pol'; it has stem, stage1"):
        api.embed(small_run, SMALL_RUN, stage="pol")


def test_scikit_learn_transformer_raises_value_error(small_run):
    import numpy as np

    from pretask import PretaskFeatures

    with pytest.raises(ValueError, match="--batch 0 is out of range"):
        PretaskFeatures(small_run, batch=0).fit(np.zeros((2, 16, 16, 3), np.uint8))


def test_checked_keeps_signature_and_docstring():
    @limits.checked
    def twice(x: limits.PositiveInt, *, what: str = "x") -> int:
        """Double."""
        return 2 * x

    assert (twice(3), twice(x=3), twice.__doc__) == (6, 6, "Double.")
    with pytest.raises(UserError, match=r"--x 0 is out of range; expected a whole number, 1 or more"):
        twice(0)
    with pytest.raises(TypeError):
        twice()  # pyright: ignore[reportCallIssue]

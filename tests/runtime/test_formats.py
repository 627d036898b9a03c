"""Files have a format number and exactly the expected fields; anything else is refused in one line."""

import dataclasses
import json
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Annotated, Any

import cards
import pytest
import torch

import pretask
from pretask import data, encoders, methods
from pretask.config import RunConfig
from pretask.data import store
from pretask.encoders import saved
from pretask.errors import UserError
from pretask.limits import PositiveInt
from pretask.runtime import formats
from pretask.text import topics
from pretask.train import checkpoint, run

Document = dict[str, Any]
KINDS = {
    run.CARD: run.FIELDS,
    saved.SHAPE: saved.FIELDS,
    store.CARD: store.FIELDS,
    topics.CARD: topics.FIELDS,
    checkpoint.LATEST: checkpoint.FIELDS,
}


def write(path: Path, document: Document) -> None:
    if path.suffix == ".pt":
        torch.save(document, path)
    else:
        path.write_text(json.dumps(document))


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run of text_topic, which has every kind of file, and a store."""
    folder = tmp_path_factory.mktemp("made")
    options = {"encoder": "resnet_small:width=4", "steps": 2, "batch": 16, "quiet": True}
    pretask.pretrain("text_topic", "synthetic:64:16", folder / "run", **options)
    store.prepare(data.open("synthetic:8:16"), folder / "store", progress=False)
    return folder


@pytest.fixture(params=KINDS)
def kept(request: pytest.FixtureRequest, made: Path) -> Iterator[tuple[Path, Document, Callable[[], Any]]]:
    """A file of each kind, its content, and a function that reads it."""
    name = request.param
    path = made / ("store" if name == store.CARD else "run") / name
    readers: dict[str, Callable[[], Any]] = {
        run.CARD: lambda: run.Run(path.parent),
        saved.SHAPE: lambda: run.Run(path.parent).encoder,
        store.CARD: lambda: data.open(path.parent),
        topics.CARD: lambda: topics.Topics.load(path.parent),
        checkpoint.LATEST: lambda: run.Run(path.parent).method,
    }
    before = path.read_bytes()
    document = torch.load(path) if path.suffix == ".pt" else json.loads(before)
    readers[name]()
    yield path, document, readers[name]
    path.write_bytes(before)


def refusal(path: Path, document: Document, read: Callable[[], Any]) -> str:
    """The one-line error for a document."""
    write(path, document)
    with pytest.raises(UserError) as refused:
        read()
    assert "\n" not in str(refused.value) and str(path) in str(refused.value)
    return str(refused.value)


def test_a_field_that_is_missing_unknown_or_of_another_type_is_named(kept):
    path, document, read = kept
    assert set(document) == {formats.KEY, *KINDS[path.name]}
    for name, hint in KINDS[path.name].items():
        less = {key: value for key, value in document.items() if key != name}
        assert f"missing {name}" in refusal(path, less, read)
        for value in ("text", 3):
            if not formats.fits(value, hint):
                assert f"{name} is {value!r}, expected" in refusal(path, document | {name: value}, read)
    assert "unknown more, others" in refusal(path, document | {"more": 1, "others": 2}, read)


def test_an_older_file_names_the_conversion_and_a_newer_one_the_update(kept):
    path, document, read = kept
    without = {key: value for key, value in document.items() if key != formats.KEY}
    convert = f"python scripts/convert_runs.py {path.parent}"
    assert convert in refusal(path, without, read) and "no format number" in refusal(path, without, read)
    assert convert in refusal(path, document | {formats.KEY: 1}, read)
    assert (
        f"format {formats.FORMAT + 1}"
        in (newer := refusal(path, document | {formats.KEY: formats.FORMAT + 1}, read))
        and "update pretask" in newer
    )


def test_an_annotation_does_not_loosen_a_type():
    """The command line annotates optional fields for its help."""
    hint = Annotated[str | None, "for the help"]
    assert formats.fits("text", hint) and formats.fits(None, hint)
    assert not formats.fits({"no": "such value"}, hint) and not formats.fits(3, hint)
    positive = Annotated[PositiveInt | None, "for the help"]
    assert formats.fits(3, positive) and formats.fits(None, positive) and not formats.fits(0, positive)


# ---- the dataclasses of a card


RECIPES = [
    f"{name}:{recipe}".removesuffix(":default")
    for name in methods.names()
    for recipe in methods.recipes(methods.module(name))
]


def nested(values: Any, kind: type, place: str) -> Iterator[tuple[Document, str, type]]:
    """Each dataclass of a card as plain values, with its name in messages and its type."""
    yield values, place, kind
    for field in dataclasses.fields(kind):
        inner = getattr(kind(**({"data": ""} if kind is RunConfig else {})), field.name)
        if dataclasses.is_dataclass(inner):
            yield from nested(values[field.name], type(inner), f"{place}.{field.name}")


@pytest.mark.parametrize("recipe", RECIPES)
def test_every_dataclass_in_a_card_needs_exactly_its_fields(recipe: str):
    kind = methods.recipe(recipe)
    name, _, which = recipe.partition(":")
    parts = {"config": kind(), "train": kind.train, "settings": RunConfig("synthetic:8:16")}
    values = {part: dataclasses.asdict(value) for part, value in parts.items()}
    card = cards.card(method=name, recipe=which or "default", **values)
    assert run.parse_card(card)[1:] == (parts["settings"], parts["config"], parts["train"])
    for part, value in parts.items():
        for inside, place, of in nested(card[part], type(value), part):
            for field in dataclasses.fields(of):
                kept = inside.pop(field.name)
                assert card_error(card) == f"runs/a/run.json: missing {place}.{field.name}"
                inside[field.name] = {"no": "such value"}
                assert card_error(card).startswith(
                    "runs/a/run.json: "
                ) and f"{place}.{field.name}" in card_error(card)
                inside[field.name] = kept
            inside["more"] = 1
            assert card_error(card) == f"runs/a/run.json: unknown {place}.more"
            del inside["more"]


def card_error(card: Document) -> str:
    with pytest.raises(UserError) as refused:
        run.parse_card(card, "runs/a/run.json")
    assert "\n" not in str(refused.value)
    return str(refused.value).partition(". What to do")[0]


def test_all_errors_are_reported_at_once():
    card = cards.card()
    del card["train"]["lr"], card["settings"]["reading"]["max_bad"]
    card["config"]["keep"] = 0.9
    card["settings"]["monitor"] = 3
    card["train"]["nesterov"] = "no"
    assert card_error(card) == (
        "runs/a/run.json: unknown config.keep; settings.monitor is 3, expected text; missing settings.reading.max_bad; "
        "missing train.lr; train.nesterov is 'no', expected true or false"
    )


def test_a_changed_config_of_a_method_file_is_reported_with_the_file(tmp_path: Path):
    file = tmp_path / "mine.py"
    text = (
        "from dataclasses import dataclass\n"
        "from pretask.methods import rotnet\n\n"
        "@dataclass(frozen=True)\n"
        "class Config(rotnet.Config):\n"
        "    turns: int = 4\n"
    )
    file.write_text(text)
    made = pretask.pretrain(
        str(file),
        "synthetic:32:16",
        tmp_path / "run",
        encoder="resnet_small:width=4",
        steps=1,
        batch=16,
        quiet=True,
    )
    made.method  # noqa: B018
    file.write_text(text.replace("turns", "quarters"))
    with pytest.raises(UserError) as refused:
        pretask.pretrain(None, resume=made.folder, steps=2, quiet=True)
    said = f"{made.folder / run.CARD}: unknown config.turns; missing config.quarters. What to do: restore the fields that Config in {file} had "
    assert str(refused.value).startswith(said)


# ---- the state in a checkpoint


def test_a_tensor_that_is_missing_unknown_or_of_another_shape_is_named(made: Path):
    path = made / "run" / checkpoint.LATEST
    before, state = path.read_bytes(), torch.load(path)
    first, *_, last = state["method"]
    lost = state["method"].pop(first)
    state["method"] |= {"more": lost, last: torch.zeros(7, 5)}
    said = refusal(path, state, lambda: run.Run(made / "run").method)
    assert f"unknown method.more; missing method.{first}; method.{last} is (7, 5), expected" in said
    assert said == refusal(
        path, state, lambda: pretask.pretrain(None, resume=made / "run", steps=4, quiet=True)
    )
    path.write_bytes(before)


def test_missing_optimizer_state_is_named(made: Path):
    path = made / "run" / checkpoint.LATEST
    before, state = path.read_bytes(), torch.load(path)
    (optimizer,) = state["optimizers"]
    del optimizer["param_groups"][0]["peak"], optimizer["state"][1]["exp_avg"]
    said = refusal(path, state, lambda: pretask.pretrain(None, resume=made / "run", steps=4, quiet=True))
    assert "missing optimizers.0.param_groups.0.peak; missing optimizers.0.state.1.exp_avg" in said
    path.write_bytes(before)


def test_a_saved_encoder_loads_with_the_same_weights(tmp_path: Path):
    encoder = encoders.build("resnet_small:width=4", 3, 16)
    saved.save_encoder(encoder, tmp_path)
    again = saved.load_encoder(tmp_path)
    assert all(torch.equal(x, again.state_dict()[name]) for name, x in encoder.state_dict().items())

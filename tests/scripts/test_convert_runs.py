"""A run of each method as it was made before files had format numbers (tests/old_runs) is converted, read and resumed."""

import base64
import importlib.util
import json
import subprocess
import sys
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest
import torch
from safetensors.torch import save_file

import pretask
from pretask import data, encoders, methods
from pretask.data import store
from pretask.errors import UserError
from pretask.runtime import files, formats
from pretask.train import checkpoint, run
from pretask.train.run import Run

ROOT = Path(__file__).parents[2]
OLD = ROOT / "tests" / "old_runs"
SCRIPT = ROOT / "scripts" / "convert_runs.py"
METHODS = sorted(path.stem for path in OLD.glob("*.json"))
"""the methods of that time; later ones have no such runs"""


@pytest.fixture(scope="module")
def script() -> ModuleType:
    spec = importlib.util.spec_from_file_location("convert_runs", SCRIPT)
    assert spec is not None and spec.loader is not None
    made = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(made)
    return made


def restored(x: Any, generator: torch.Generator) -> Any:
    """The inverse of `described` in tests/old_runs/make.py, with small positive random floats."""
    if not isinstance(x, dict):
        return x
    if "tensor" in x:
        kind, shape = getattr(torch, x["tensor"]), x["shape"]
        if x["values"] is None:
            return (0.01 + 0.01 * torch.rand(shape, generator=generator)).to(kind)
        return torch.tensor(x["values"], dtype=kind).view(shape)
    ((kind, inside),) = x.items()
    if kind == "dict":
        return {restored(key, generator): restored(value, generator) for key, value in inside}
    return {"list": list, "tuple": tuple}[kind](restored(each, generator) for each in inside)


def content(method: str) -> dict[str, Any]:
    return json.loads((OLD / f"{method}.json").read_text())


def read_card(method: str) -> dict[str, Any]:
    return json.loads(content(method)["run.json"])


def built(method: str, folder: Path) -> Path:
    """The folder of an old run."""
    for name, inside in content(method).items():
        path = folder / name
        path.parent.mkdir(parents=True, exist_ok=True)
        if name == checkpoint.LATEST:
            torch.save(restored(inside, torch.Generator().manual_seed(0)), path)
        elif isinstance(inside, str):
            path.write_text(inside)
        else:
            path.write_bytes(base64.b64decode(inside["bytes"]))
    card = json.loads((folder / run.CARD).read_text())
    if card.get("fingerprint"):  # of images whose last bit depends on the processor that drew them
        source = data.open(card["data"], size=card["size"], channels=card["channels"], progress=False)
        (folder / run.CARD).write_text(json.dumps(card | {"fingerprint": source.fingerprint().digest}))
    shape = json.loads((folder / "encoder.json").read_text())
    save_file(
        encoders.build(shape["name"], shape["channels"], shape["size"]).net.state_dict(),
        folder / "encoder.safetensors",
    )
    return folder


def leaves(x: Any, place: str = "") -> dict[str, Any]:
    """Values of nested fields by their dotted paths."""
    if not isinstance(x, dict):
        return {place: x}
    return {
        path: value for name, each in x.items() for path, value in leaves(each, f"{place}.{name}").items()
    }


def test_there_is_an_old_run_of_every_method_of_that_time():
    assert len(METHODS) == 26 and {*METHODS} <= {*methods.names()}


@pytest.mark.parametrize("method", METHODS)
def test_an_old_run_is_refused_converted_read_and_resumed(method: str, tmp_path: Path, script: ModuleType):
    folder = built(method, tmp_path / "run")
    with pytest.raises(UserError, match=rf"python scripts/convert_runs\.py {folder}"):
        Run(folder)
    before = {name: read(folder / name) for name in ("run.json", "encoder.json")}
    old = checkpoint.unpickled(folder / checkpoint.LATEST)
    assert f"converted to format {formats.FORMAT}" in script.convert(folder)

    made = Run(folder)
    for name, document in before.items():
        assert_kept(document, read(folder / (script.FILES.get(name, name))), script, name, method)
    state = checkpoint.load(folder / checkpoint.LATEST)
    assert len(state["method"]) == len(old["method"]) > 0
    names = [script.moved(name, script.STATE.get(method, {})) for name in old["method"]]
    assert all(
        torch.equal(state["method"][new], x) for new, x in zip(names, old["method"].values(), strict=True)
    )
    found = made.method.state_dict()
    assert all(torch.equal(found[name], x) for name, x in state["method"].items())
    assert made.encoder.name == made.card["encoder"]

    longer = pretask.pretrain(None, resume=folder, steps=state["step"] + 1, quiet=True)
    assert [row["step"] for row in files.read_rows(folder / run.LOG)] == list(range(state["step"] + 1))
    assert longer.card["config"] == made.card["config"] and (folder / run.DONE).exists()


def assert_kept(old: dict, new: dict, script: ModuleType, name: str, method: str) -> None:
    """Every value is under its new name, and only the listed fields are added."""
    table, values = script.FIELDS[name], script.VALUES.get(name, {})
    if name == "run.json":
        config = script.CONFIG.get("*", {}) | script.CONFIG.get(method, {})
        table = table | {f"config.{path}": now for path, now in config.items()}
    was = leaves(old)
    expected = {}
    for place, value in was.items():
        now = script.moved(place.removeprefix("."), table)
        expected[now] = values.get(place.removeprefix("."), {}).get(str(value), value)
    added = {formats.KEY: formats.FORMAT} | {
        k: v for k, v in script.ADDED.get(name, {}).items() if k not in new or k not in old
    }
    assert len(expected) == len(was) > 5
    assert {place.removeprefix("."): value for place, value in leaves(new).items()} == added | expected


def read(path: Path) -> dict[str, Any]:
    return json.loads(path.read_text())


def test_a_converted_run_is_not_changed_again(tmp_path: Path, script: ModuleType):
    folder = built("rotnet", tmp_path / "run")
    script.convert(folder)
    before = {path: path.read_bytes() for path in folder.rglob("*") if path.is_file()}
    assert script.convert(folder) == f"{folder}: nothing to do, it has format {formats.FORMAT}"
    assert before == {path: path.read_bytes() for path in folder.rglob("*") if path.is_file()}


def test_names_are_changed_in_every_file_of_a_run(
    tmp_path: Path, script: ModuleType, monkeypatch: pytest.MonkeyPatch
):
    """With example tables; checks that know the current names are disabled."""
    folder = built("byol", tmp_path / "run")
    log = files.read_rows(folder / "log.jsonl")
    monkeypatch.setattr(script, "FIELDS", {
        **script.FIELDS,
        "run.json": {"settings.watch": "monitor", "settings.reading.root": "torchvision"},
        "log.jsonl": {"waiting": "data_wait"},
        "encoder.json": {"stages": "widths"},
    })  # fmt: skip
    monkeypatch.setattr(script, "CONFIG", {"byol": {"keep": "ema_momentum"}, "*": {"views.grey": "gray"}})
    monkeypatch.setattr(script, "STATE", {"byol": {"head": "projector", "head.0": "first"}})
    monkeypatch.setattr(script, "VALUES", {"run.json": {"settings.devices": {"auto": "all"}}})
    monkeypatch.setattr(script, "FILES", {"watch.jsonl": "monitor.jsonl"})
    monkeypatch.setattr(script, "convert_scores", lambda document: document)
    for module, name in (
        (formats, "check"),
        (run, "parse_card"),
        (run, "build_method"),
        (checkpoint, "load_method"),
    ):
        monkeypatch.setattr(module, name, lambda *_: None)
    old, state = read(folder / "run.json"), checkpoint.unpickled(folder / checkpoint.LATEST)
    script.convert(folder)

    card = read(folder / "run.json")
    assert card["settings"]["monitor"] is None and "watch" not in card["settings"]
    assert "torchvision" in card["settings"]["reading"] and card["settings"]["devices"] == "all"
    assert card["config"]["ema_momentum"] == old["config"]["keep"] and "keep" not in card["config"]
    assert card["config"]["views"]["gray"] == old["config"]["views"]["grey"]
    assert list(card["config"]) == ["ema_momentum" if name == "keep" else name for name in old["config"]]
    rows = files.read_rows(folder / "log.jsonl")
    assert [row["data_wait"] for row in rows] == [row["waiting"] for row in log] and "waiting" not in rows[0]
    assert "widths" in read(folder / "encoder.json")
    assert (folder / "monitor.jsonl").exists() and not (folder / "watch.jsonl").exists()
    moved = checkpoint.unpickled(folder / checkpoint.LATEST)["method"]
    assert len(moved) == len(state["method"])
    heads = [name for name in state["method"] if name.startswith("head.")]
    assert heads and all(
        name.replace("head.0.", "head.first.").replace("head.", "projector.", 1) in moved for name in heads
    )
    assert not any(name.startswith("head.") for name in moved)


def test_a_run_that_cannot_be_resumed_is_not_converted(tmp_path: Path, script: ModuleType):
    folder = built("rotnet", tmp_path / "run")
    card = read(folder / "run.json")
    files.write_text(folder / "run.json", json.dumps(card | {"config": {}}))
    before = {path: path.read_bytes() for path in folder.rglob("*") if path.is_file()}
    with pytest.raises(UserError, match=r"run\.json: missing config\."):
        script.convert(folder)
    files.write_text(folder / "run.json", json.dumps(card))
    state = checkpoint.unpickled(folder / checkpoint.LATEST)
    name = next(iter(state["method"]))
    torch.save(
        state | {"method": {k: x for k, x in state["method"].items() if k != name}},
        folder / checkpoint.LATEST,
    )
    before = {path: path.read_bytes() for path in folder.rglob("*.json")}
    with pytest.raises(UserError, match=rf"checkpoint\.pt.*missing method\.{name}"):
        script.convert(folder)
    assert before == {path: path.read_bytes() for path in folder.rglob("*.json")}


def test_an_interrupted_conversion_is_completed_by_the_next(tmp_path: Path, script: ModuleType, monkeypatch):
    folder = built("rotnet", tmp_path / "run")
    with monkeypatch.context() as patch:
        patch.setattr(run, "write_card", lambda *_: (_ for _ in ()).throw(KeyboardInterrupt))
        with pytest.raises(KeyboardInterrupt):
            script.convert(folder)
    assert formats.KEY not in read(folder / "run.json") and formats.KEY in read(folder / "encoder.json")
    assert script.convert(folder).endswith(": run.json")
    assert Run(folder).method and Run(folder).encoder


def test_runs_inside_a_run_and_stores_are_converted_from_the_command_line(
    tmp_path: Path, script: ModuleType, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
):
    folder = built("rotnet", tmp_path / "run")
    built("rotnet", folder / "study" / "share-0.5")
    store.prepare(data.open("synthetic:8:16"), tmp_path / "store", progress=False)
    card = read(tmp_path / "store" / store.CARD)
    del card[formats.KEY]
    (tmp_path / "store" / store.CARD).write_text(json.dumps(card))
    with pytest.raises(UserError, match="scripts/convert_runs"):
        data.open(tmp_path / "store")

    done = subprocess.run(
        [sys.executable, SCRIPT, folder, tmp_path / "store"], capture_output=True, text=True
    )
    assert done.returncode == 0 and len(done.stdout.splitlines()) == 2
    assert "study/share-0.5 → fraction-0.5" in done.stdout and "store.json" in done.stdout
    assert (
        Run(folder).card["format"] == Run(folder / "study" / "fraction-0.5").card["format"] == formats.FORMAT
    )
    assert len(data.open(tmp_path / "store")) == 8
    monkeypatch.setattr(sys, "argv", ["convert_runs.py", str(tmp_path), str(folder)])
    assert script.main() == 2
    out, err = capsys.readouterr()
    assert err.count("\n") == 1 and "neither a run nor a store" in err and "nothing to do" in out
    monkeypatch.setattr(sys, "argv", ["convert_runs.py", "--help"])
    with pytest.raises(SystemExit):
        script.main()
    assert "in place" in capsys.readouterr().out


def test_a_newer_run_is_refused(tmp_path: Path, script: ModuleType):
    folder = built("rotnet", tmp_path / "run")
    files.write_text(
        folder / "run.json", json.dumps(read(folder / "run.json") | {formats.KEY: formats.FORMAT + 1})
    )
    with pytest.raises(UserError, match=f"has format {formats.FORMAT + 1}"):
        script.convert(folder)


def test_columns_and_fields_are_renamed_only_for_their_own_method(tmp_path: Path, script: ModuleType):
    """A user's method may use names that other methods no longer use."""
    row = {"step": 0, "images": 1.0, "left": 2.0, "waiting": 0.5}
    (tmp_path / "log.jsonl").write_text(json.dumps(row) + "\n")
    of = {
        name: json.loads(dict(script.documents(tmp_path, name))["log.jsonl"])
        for name in ("ibot", "sdae", "./mine.py")
    }
    assert of["ibot"] == {"step": 0, "cls": 1.0, "left": 2.0, "data_wait": 0.5}
    assert of["sdae"] == {"step": 0, "images": 1.0, "output_mse": 2.0, "data_wait": 0.5}
    assert of["./mine.py"] == {"step": 0, "images": 1.0, "left": 2.0, "data_wait": 0.5}
    card = read_card("jigsaw") | {"method": "./mine.py"}
    assert script.card_of(card)["config"] == card["config"]
    assert "gray" in script.card_of(read_card("jigsaw"))["config"]


def test_tables_contain_only_known_methods_and_no_name_is_both_old_and_new(script: ModuleType):
    for table in (script.CONFIG, script.LOG, script.ANSWERS, script.STATE):
        assert {*table} <= {*methods.names(), "*"}
        for names in table.values():
            assert not {*names} & {*names.values()}

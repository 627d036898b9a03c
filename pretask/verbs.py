"""What each verb of the command line does: read its flags, call the library, say what was made and what is next."""

import dataclasses
import json
import shlex
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from rich.console import Console
from rich.table import Table

from pretask.errors import UserError
from pretask.parse import parse

say = Console(stderr=True, highlight=False, soft_wrap=True).print


def named(arguments: list[str], verb: str, what: str) -> tuple[str, list[str]]:
    """The verb's first word, which is no flag, and the rest."""
    if not arguments or (arguments[0].startswith("-") and arguments[0] not in ("-h", "--help")):
        raise UserError(f"pretask {verb} needs a {what} first, then its flags; see pretask {verb} --help")
    return arguments[0], arguments[1:]


def flags(method: str) -> type:
    """All flags of one method: the run's, the method's own, and how it is trained, with its recipe's defaults."""
    from pretask import methods
    from pretask.config import TrainConfig
    from pretask.pretraining import Settings

    config = methods.recipe(method)
    fields: list[Any] = [
        ("run", Settings),
        ("method", config, dataclasses.field(default_factory=config)),
        ("train", TrainConfig, dataclasses.field(default=config.train)),
    ]
    made = dataclasses.make_dataclass("Flags", fields, frozen=True)
    made.__doc__ = f"{(config.__doc__ or '').splitlines()[0]} (encoder: {config.encoder})"
    return made


def pretrain(arguments: list[str]) -> None:
    from pretask.display import Display
    from pretask.pretraining import Settings
    from pretask.pretraining import pretrain as train

    command = shlex.join(["pretask", "pretrain", *arguments])
    if arguments[:1] == ["--resume"]:
        if len(arguments) < 2:
            raise UserError("--resume needs the folder of a run")
        folder = Path(arguments[1])
        more = parse(Devices, arguments[2:], "pretrain --resume RUN")
        with Display() as display:
            made = train(None, Settings("", devices=more.devices), resume=folder, tell=display)
    else:
        method, rest = named(arguments, "pretrain", "METHOD (pretask list shows them)")
        if method in ("-h", "--help"):
            print(PRETRAIN)
            return
        chosen = parse(flags(method), rest, f"pretrain {method}")
        with Display() as display:
            made = train(method, chosen.run, chosen.method, chosen.train, command=[command], tell=display)
    took = (made.folder / "DONE").read_text().strip()
    say(
        f"wrote {made.folder} ({made.card['steps']} steps, {took}). Next: pretask evaluate {made.folder} --data LABELLED"
    )


@dataclass(frozen=True)
class Devices:
    devices: int | Literal["auto"] = "auto"
    """processes to go on with"""


PRETRAIN = """\
pretask pretrain METHOD --data PATH [--out RUN] [flags]     pretask pretrain METHOD --help lists every flag
pretask pretrain --resume RUN                               goes on where a run was cut off

The length is --epochs, --steps or --budget (10m: as many steps as fit into ten minutes). METHOD is a name from
`pretask list`, a recipe such as rotnet:paper, or your own file ./my_puzzle.py."""


def listing(arguments: list[str]) -> None:
    chosen = parse(List, arguments, "list")
    if chosen.encoders:
        import timm

        from pretask.encoders import classic

        print("\n".join([*classic.NETS, *timm.list_models()]))
        return
    from pretask import methods

    rows = [row for name in methods.names() for row in described(name)]
    if chosen.json:
        print(json.dumps(rows, indent=2))
        return
    table = Table("method", "asks", "encoder", "needs", box=None, pad_edge=False)
    for row in rows:
        table.add_row(row["method"], row["asks"], row["encoder"], ", ".join(row["needs"]) or "images")
    Console().print(table)


@dataclass(frozen=True)
class List:
    """Methods and their recipes."""

    json: bool = False
    """print JSON"""
    encoders: bool = False
    """print the names that --encoder takes"""


def described(name: str) -> list[dict[str, Any]]:
    from pretask import methods

    module = methods.module(name)
    source = next(line for line in (module.__doc__ or "").splitlines()[1:] if line.strip())
    return [
        {
            "method": name if recipe == "default" else f"{name}:{recipe}",
            "asks": (config.__doc__ or "").splitlines()[0],
            "encoder": config.encoder,
            "needs": sorted(getattr(config, "needs", ())),
            "source": source,
        }
        for recipe, config in methods.recipes(module).items()
    ]


def preview(arguments: list[str]) -> None:
    from pretask import selfhelp

    method, rest = named(arguments, "preview", "METHOD")
    if method in ("-h", "--help"):
        parse(Preview, [method], "preview METHOD")
    chosen = parse(helped(method, Preview), rest, f"preview {method}")
    asked = chosen.run
    picture = selfhelp.preview(asked.data, chosen.method, method, asked.rows, asked.size, asked.seed)
    out = asked.out or Path(f"preview-{Path(method).stem.replace(':', '-')}.png")
    picture.save(out)
    say(f"wrote {out}. Next: pretask check {method} --data {asked.data}")


def check(arguments: list[str]) -> int:
    from pretask import selfhelp

    method, rest = named(arguments, "check", "METHOD")
    if method in ("-h", "--help"):
        parse(Check, [method], "check METHOD")
    chosen = parse(helped(method, Check), rest, f"check {method}")
    asked, failures = chosen.run, 0
    for sentence, failure in selfhelp.check(asked.data, chosen.method, asked.encoder, asked.size):
        failures += failure is not None
        say(f"[green]holds[/]   {sentence}" if failure is None else f"[red]broken[/]  {sentence}: {failure}")
    if failures:
        say(f"{failures} of the contract's sentences do not hold for {method} on {asked.data}")
        return 1
    say(
        f"{method} is sound on {asked.data}. Next: pretask pretrain {method} --data {asked.data} --budget 10m"
    )
    return 0


def helped(method: str, kind: type) -> type:
    """The flags of `preview` and `check`: their own and the method's knobs."""
    from pretask import methods

    config = methods.recipe(method)
    fields: list[Any] = [("run", kind), ("method", config, dataclasses.field(default_factory=config))]
    made = dataclasses.make_dataclass("Flags", fields, frozen=True)
    made.__doc__ = kind.__doc__
    return made


@dataclass(frozen=True)
class Preview:
    """Draw a method's puzzles with their answers."""

    data: str
    """images to make puzzles from"""
    out: Path | None = None
    """the picture (preview-METHOD.png)"""
    rows: int = 8
    """images"""
    size: int | None = None
    """side of the images, pixels"""
    seed: int = 0
    """of the puzzles"""


@dataclass(frozen=True)
class Check:
    """Hold a method to the contract on your images: purity, gradients, chance, collapse, exact resume."""

    data: str
    """images to try it on"""
    encoder: str | None = None
    """the network to try it with (the recipe's)"""
    size: int | None = None
    """side of the images, pixels"""


def report(arguments: list[str]) -> None:
    folder, rest = named(arguments, "report", "RUN")
    helping = folder in ("-h", "--help")
    chosen = parse(Report, ["--help"] if helping else rest, f"report {'RUN' if helping else folder}")
    from pretask.reports.compose import report as compose

    say(f"wrote {compose(Path(folder), chosen.data)}; open it in a browser, it needs no network")


@dataclass(frozen=True)
class Report:
    """Write a run's page: curves, puzzles and answers, neighbours, a map of the features, scores."""

    data: str | None = None
    """labelled images for the neighbours and the map (the images of the run, without labels)"""


def prepare(arguments: list[str]) -> None:
    data, rest = named(arguments, "prepare", "PATH")
    helping = data in ("-h", "--help")
    chosen = parse(Prepare, ["--help"] if helping else rest, f"prepare {'PATH' if helping else data}")
    from pretask import sources
    from pretask.sources import store

    found = sources.opened(data, sources.Asked(chosen.size, chosen.channels, chosen.root, cache_mb=0))
    source = found.images
    if found.label is not None:
        source = sources.Labelled(found.images, found.label, found.classes)
    store.prepare(source, chosen.out)
    bad = f"; {len(source.bad)} files could not be read" if source.bad else ""
    say(
        f"wrote {chosen.out} ({len(source)} images of {source.size} px{bad}). Next: give it as --data {chosen.out}"
    )


@dataclass(frozen=True)
class Prepare:
    """Decode images once into a memory-mapped store that opens at once and loads at the speed of the disk."""

    out: Path
    """the store's folder, which must not exist"""
    size: int | None = None
    """side of the images, pixels"""
    channels: Literal[1, 3] | None = None
    """1 for grey, 3 for colour"""
    root: Path | None = None
    """where a torchvision data set is"""


def embed(arguments: list[str]) -> None:
    what, rest = named(arguments, "embed", "RUN or timm:NAME")
    helping = what in ("-h", "--help")
    chosen = parse(Embed, ["--help"] if helping else rest, f"embed {'RUN' if helping else what}")
    from pretask import embedding, sources

    encoder = embedding.encoder_of(what, chosen.size)
    source = sources.open(
        chosen.data,
        size=encoder.size,
        channels=encoder.channels,
        root=chosen.root,
        max_bad=chosen.max_bad,
        cache_mb=0,  # each image is looked at once
    )
    made = embedding.write(encoder, source, chosen.out, chosen.stage, chosen.batch)
    left_out = f"; what could not be read is in {made.skipped}" if made.skipped else ""
    say(f"wrote {made.table} and {made.array} ({made.n} rows of {made.width}){left_out}")


@dataclass(frozen=True)
class Embed:
    """Write the frozen features of images to a table, with file names, and to a NumPy array."""

    data: str
    """images, as for pretrain"""
    out: Path = Path("features.parquet")
    """the table; the .npy is written beside it"""
    stage: str = "pool"
    """of the encoder; a map is averaged over its places"""
    batch: int = 256
    """images at once"""
    size: int | None = None
    """side of the images for timm:NAME, pixels (the size its weights were trained at); a run has its own"""
    root: Path | None = None
    """where a torchvision data set is"""
    max_bad: float = 0.1
    """share of unreadable files at which it stops"""


def export(arguments: list[str]) -> None:
    folder, rest = named(arguments, "export", "RUN")
    helping = folder in ("-h", "--help")
    chosen = parse(Export, ["--help"] if helping else rest, f"export {'RUN' if helping else folder}")
    from pretask import exporting, run

    made = exporting.export(run.Run(folder), chosen.to, chosen.out)
    print(made.usage)
    say(
        f"wrote {made.path}; loaded back, its features differ by {made.difference:.0e} at most ({made.compared})"
    )


@dataclass(frozen=True)
class Export:
    """Write the encoder for another program, and see that it computes the same there."""

    to: Literal["timm", "torch", "onnx", "hf"]
    """timm and hf: a folder that timm or transformers loads; torch: a program that needs PyTorch alone; onnx"""
    out: Path | None = None
    """what is written (timm, encoder.pt2, encoder.onnx or hf, in the run's folder)"""


VERBS: dict[str, Callable[[list[str]], Any]] = {
    "pretrain": pretrain,
    "list": listing,
    "preview": preview,
    "check": check,
    "report": report,
    "prepare": prepare,
    "embed": embed,
    "export": export,
}

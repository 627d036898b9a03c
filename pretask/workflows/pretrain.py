"""From a method's name and a folder of images to a trained encoder in a run folder."""

import dataclasses
import json
import logging
import math
import os
import platform
import subprocess
import time
import warnings
from collections.abc import Callable, Mapping, Sequence
from contextlib import ExitStack, nullcontext
from dataclasses import dataclass
from datetime import UTC, datetime
from functools import partial
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from shlex import quote
from typing import TYPE_CHECKING, Any, Literal

import torch
from PIL import Image

from pretask import data as sources
from pretask import limits, methods
from pretask.config import TrainConfig
from pretask.data import loader
from pretask.data.base import Images
from pretask.data.ledger import BAD
from pretask.data.subset import drawn
from pretask.limits import Count, Part, Seed, Share
from pretask.methods import Method, MethodConfig
from pretask.runtime import distributed
from pretask.runtime import files as checkpoint
from pretask.runtime import malloc as memory
from pretask.runtime.device import Precision, fastest, find_device
from pretask.train import run
from pretask.train.logger import Journal, Tell
from pretask.train.monitor import Watch
from pretask.train.pacing import ENTRIES, Budget, Pace
from pretask.train.plan import Plan
from pretask.train.progress import busy
from pretask.train.trainer import Trainer
from pretask.types import Source, UserError
from pretask.workflows import length

if TYPE_CHECKING:
    from lightning_fabric import Fabric


@dataclass(frozen=True)
class Settings:
    """What is trained on, how long, and where the result goes."""

    data: str
    """a folder of images, a .npz, .parquet or .tar file, hf:NAME, or a torchvision name such as cifar10"""
    out: Path | None = None
    """the run's folder, which must not exist (runs/METHOD-DATA-sSEED)"""
    encoder: str | None = None
    """any timm name or a classic net; timm arguments after a colon: vit_tiny_patch16_224:patch_size=4"""
    size: Count | None = None
    """side of the images, pixels (as stored in arrays; from the files of a folder, 160 at most)"""
    steps: Count | None = None
    """length of the run in steps, in the place of --epochs"""
    budget: str | None = None
    """length of the run in time, such as 90s, 10m or 2h, from start to report: as many steps as fit"""
    plan: Path | None = None
    """a run to take as many steps as, planned as they were there, in the place of --steps, --budget and --epochs"""
    share: Part = 1.0
    """of the images to train on, drawn at random by the seed"""
    seed: Seed = 0
    """of the weights, the order and the puzzles"""
    init: Path | None = None
    """weights to start from: a run's folder or an encoder.safetensors"""
    watch: str | None = None
    """labelled images for an online kNN score; training never sees them"""
    root: Path | None = None
    """where a torchvision data set is, or is downloaded to"""
    max_bad: Share = 0.1
    """share of unreadable files at which the run stops"""
    workers: Count | None = None
    """processes that decode images (one less than there are cores, 8 at most)"""
    devices: Count | Literal["auto"] = "auto"
    """processes to train with on this machine: GPUs, or 1 on a CPU"""
    strategy: Literal["ddp", "fsdp"] = "ddp"
    """of several processes: each holds the whole network (ddp), or they share it out among them (fsdp)"""
    accelerator: Literal["auto", "cpu", "gpu"] = "auto"
    """what to train on"""
    precision: Literal["auto", "bf16-mixed", "32-true"] = "auto"
    """bf16 where the hardware has it"""


def engine(settings: Settings, partial: bool, batch: int) -> "Fabric":
    """Lightning Fabric for these settings: one process, several on this machine, or many by torchrun."""
    from lightning_fabric import Fabric  # longer to import than torch; a run that is only read does without
    from lightning_fabric.strategies.ddp import DDPStrategy
    from lightning_fabric.strategies.model_parallel import ModelParallelStrategy

    world = int(os.environ.get("WORLD_SIZE", "1"))
    here = int(
        os.environ.get("LOCAL_WORLD_SIZE", world)
    )  # torchrun's; Fabric's own launcher stays on one machine
    on_cpu = device_type(settings) == "cpu"
    count = here if on_cpu else torch.cuda.device_count()
    if settings.devices != "auto":
        count = settings.devices
    logging.getLogger("lightning_fabric").setLevel(logging.ERROR)
    warnings.filterwarnings("ignore", ".*`broadcast_buffers` is deprecated")  # its successor is not in 2.5
    nodes = world // here
    if batch % (count * nodes):  # said before so many processes are started
        raise UserError(f"a batch of {batch} cannot be shared by {count * nodes} processes evenly")
    strategy: Any = "auto"
    if count * nodes > 1:
        strategy = DDPStrategy(find_unused_parameters=partial, broadcast_buffers=False)
    if settings.strategy == "fsdp":
        if count * nodes == 1:
            raise UserError("--strategy fsdp shares a network out among processes; give --devices 2 or more")
        strategy = ModelParallelStrategy(distributed.shard, count * nodes, tensor_parallel_size=1)
    return Fabric(
        accelerator="cpu" if on_cpu else settings.accelerator,
        devices=count,
        num_nodes=nodes,
        strategy=strategy,
        precision=precision_of(settings),
    )


def device_type(settings: Settings) -> Literal["cpu", "cuda"]:
    return "cpu" if settings.accelerator == "cpu" else find_device()


def precision_of(settings: Settings) -> Precision:
    return fastest(device_type(settings)) if settings.precision == "auto" else settings.precision


def named(method: str, settings: Settings) -> Path:
    """The folder of a run: the one that was asked for, or runs/METHOD-DATA-sSEED."""
    data = Path(settings.data.rstrip("/").split(":")[-1]).stem or "data"
    title = Path(method).stem if method.endswith(".py") else method.replace(":", "-")
    return settings.out or Path("runs") / f"{title}-{data}-s{settings.seed}"


def pretrain(
    method: str | None,
    settings: Settings,
    config: MethodConfig | None = None,
    train: TrainConfig | None = None,
    *,
    resume: Path | None = None,
    source: Images | None = None,
    command: Sequence[str] = (),
    tell: Tell | None = None,
    began: float | None = None,
    report: bool = False,
) -> run.Run:
    """Train `method` ("rotnet", "rotnet:paper" or "./my_puzzle.py") and leave everything in a run folder.

    `config` and `train` default to the recipe. With `resume`, the run in that folder goes on with its own settings but
    for `devices`, and for `steps` or `budget` where they are given. `source` stands in for what `settings.data` names,
    where the images are in memory. A budget counts from `began` (time.monotonic(); now), and leaves time for a `report`.
    """
    began = time.monotonic() if began is None else began
    asked = settings
    if resume is None:
        assert method is not None
        config = config or methods.recipe(method)()
        train = train or config.train
        folder = named(method, settings)
        check_out(folder)
        old: dict[str, Any] = {}
    else:
        folder, old = resume, run.Run(resume).card
        method, settings, config, train = run.revive(old)
        settings = dataclasses.replace(settings, devices=asked.devices)
    assert config is not None
    assert train is not None
    for part in (settings, config, train, asked):
        limits.check(part)
    allowed = None if asked.budget is None else length.seconds(asked.budget)

    opening = time.monotonic()
    if source is None:
        source = sources.open(settings.data, size=settings.size, root=settings.root, max_bad=settings.max_bad)
    source = drawn(source, settings.share, settings.seed)
    labelled = None
    if settings.watch:
        labelled = sources.open_labelled(
            settings.watch,
            size=source.size,
            channels=source.channels,
            root=settings.root,
            max_bad=settings.max_bad,
        )
    opening = time.monotonic() - opening
    torch.manual_seed(settings.seed)
    spec = config.spec(settings.encoder)
    encoder = config.draw(spec, source)
    if settings.init and resume is None:
        run.load_encoder_weights(encoder, settings.init)
    solver = config.build(encoder, source)
    fabric = engine(settings, solver.partial, train.batch)
    fabric.launch()
    trainer = Trainer(fabric, solver, source, train, folder, settings.seed, settings.workers)
    pace = Pace() if allowed is None else Pace(allowed / ENTRIES)
    budget = None if allowed is None or asked.steps is not None else Budget(allowed, began, pace)
    if report:
        pace.closing = reporting(time.monotonic() - began, opening, allowed)

    with distributed.together(), memory.kept(), ExitStack() as held:
        if resume is not None and fabric.is_global_zero:
            held.enter_context(checkpoint.locked(folder))
        with busy("getting ready") if tell and fabric.is_global_zero else nullcontext():
            if resume is None:
                trainer.begin()
                plan = length.planned(asked, trainer, budget)
            else:
                plan = length.resumed(asked, trainer, old, budget)
            if budget is None:
                pace.costs = trainer.costs(plan)
        watch = Watch(solver, source, folder, labelled) if fabric.is_global_zero else None
        if resume is None:
            with trainer.whole():  # a puzzle may be made with the encoder
                picture = preview(solver, source, folder.name, settings.seed)
            card = describe(method, settings, config, train, plan, source, fabric, spec, command)
            if fabric.is_global_zero:
                checkpoint.write_folder(
                    folder, partial(first_files, card=card, picture=picture, more=trainer.files)
                )
                held.enter_context(checkpoint.locked(folder))
            trainer.files.clear()
        else:
            card = old
            if fabric.is_global_zero:
                length.extend(folder, card, plan)
        fabric.barrier()
        journal = Journal(folder, train.batch, fabric.is_global_zero, watch, tell, trainer.whole)
        try:
            fit(trainer, plan, journal, pace, budget, partial(run.record, folder, card))
            run.save_encoder(solver.export(), folder)
            if fabric.is_global_zero:
                took = trainer.spent + time.monotonic() - began
                checkpoint.write_text(folder / run.DONE, f"{took:.1f} s\n")
        except checkpoint.Unwritable as full:
            raise UserError(
                f"{full}. Make room, then go on with: pretask pretrain --resume {quote(str(folder))}"
            ) from None
        fabric.barrier()
    return run.Run(folder)


def check_out(folder: Path) -> None:
    """UserError unless a run can be written there: nothing is in the way, and the disk lets us."""
    if folder.is_dir() and any(folder.iterdir()):
        raise UserError(
            f"{folder} exists; choose another --out, or go on with: pretask pretrain --resume {quote(str(folder))}"
        )
    there = next(p for p in (folder, *folder.absolute().parents) if p.exists())
    if not there.is_dir():
        raise UserError(f"{there} is a file, so no run can be written to {folder}; choose another --out")
    if not os.access(there, os.W_OK | os.X_OK):
        raise UserError(f"{there} may not be written to; choose another --out")


def reporting(ready: float, opening: float, budget: float | None) -> float:
    """Seconds that a report will take, by what was needed until a run was `ready`, and for `opening` its images.

    The report opens them again and works, like that start, on one core: measured, half as long. A first start from a
    cold disk says little, so more than a tenth of a budget is not put aside for that half.
    """
    return opening + min(0.5 * (ready - opening), 0.1 * (budget or math.inf))


def fit(
    trainer: Trainer,
    plan: Plan,
    journal: Journal,
    pace: Pace,
    budget: Budget | None,
    record: Callable[[Plan], None],
) -> None:
    """Train to the end; what could not be read is listed however it ends."""
    ledger = trainer.source.ledger
    try:
        trainer.fit(plan, journal, pace, budget, record)
        ledger.bad.update(distributed.union(ledger.bad))
    finally:
        if journal.writes:
            ledger.write(trainer.folder / BAD)


def describe(
    method: str,
    settings: Settings,
    config: MethodConfig,
    train: TrainConfig,
    plan: Plan,
    source: Source,
    fabric: "Fabric",
    encoder: str,
    command: Sequence[str],
) -> dict[str, Any]:
    """run.json: everything that decides the run, and where it was made."""
    name, _, recipe = method.partition(":")
    return {
        "method": str(Path(name).resolve()) if name.endswith(".py") else name,
        "recipe": recipe or "default",
        "config": dataclasses.asdict(config),
        "train": dataclasses.asdict(train),
        "settings": dataclasses.asdict(settings),
        "encoder": encoder,
        "data": settings.data,
        "n": len(source),
        "channels": source.channels,
        "size": source.size,
        "seed": settings.seed,
        **plan.as_card(),
        "precision": precision_of(settings),
        "device": torch.cuda.get_device_name()
        if fabric.device.type == "cuda"
        else platform.processor() or "cpu",
        "processes": fabric.world_size,
        "threads": torch.get_num_threads(),
        "versions": versions(),
        "commit": commit(),
        "command": " ".join(command) or None,
        "started": datetime.now(UTC).isoformat(timespec="seconds"),
    }


def versions() -> dict[str, str]:
    found = {"python": platform.python_version()}
    for package in ("pretask", "torch", "torchvision", "timm", "lightning-fabric", "numpy", "pillow"):
        try:
            found[package] = version(package)
        except PackageNotFoundError:
            found[package] = "not installed"
    return found


def commit() -> str | None:
    """The git commit of this package's source, if it is run from a checkout; "-dirty" if that was changed since."""
    try:
        told = subprocess.run(
            [
                "git",
                "-C",
                str(Path(__file__).parent),
                "describe",
                "--always",
                "--dirty",
                "--abbrev=40",
                "--exclude=*",
            ],
            capture_output=True,
            text=True,
            timeout=5,
        )
    except (OSError, subprocess.TimeoutExpired):
        return None
    return told.stdout.strip() or None


def preview(method: Method[Any], source: Source, title: str, seed: int) -> Image.Image:
    """The first puzzles with their answers."""
    from pretask.viz import puzzle as sheet

    puzzle = method.puzzle(loader.sample(source, 8), seed, "preview")
    return sheet.puzzles(puzzle, title=title, names=method.meanings())


def first_files(folder: Path, card: dict[str, Any], picture: Image.Image, more: Mapping[str, bytes]) -> None:
    """What a run's folder holds before the first step."""
    for name, content in more.items():
        checkpoint.write(folder / name, lambda file, content=content: file.write(content))
    checkpoint.write_text(folder / run.CARD, json.dumps(card, indent=2, default=str) + "\n")
    checkpoint.write(folder / "preview.png", lambda file: picture.save(file, format="PNG"))

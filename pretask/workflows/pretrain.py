"""Pretraining: from a new or resumed job to a trained encoder in a run's folder."""

import copy
import dataclasses
import logging
import math
import os
import platform
import subprocess
import time
import warnings
from collections.abc import Callable, Mapping
from contextlib import ExitStack, nullcontext
from dataclasses import replace
from datetime import UTC, datetime
from functools import partial
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from shlex import quote
from typing import TYPE_CHECKING, Any, Literal

import torch
from PIL import Image

from pretask.config import RunConfig
from pretask.data import fingerprint, loader
from pretask.data.fingerprint import Fingerprint
from pretask.data.ledger import BAD
from pretask.encoders import Encoder, origins, saved
from pretask.encoders.weights import Loaded, input_of
from pretask.methods import Method
from pretask.runtime import distributed, files, formats, malloc
from pretask.runtime.console import busy, say
from pretask.runtime.device import Precision, fastest_precision, find_device
from pretask.train import continuing, requirements, run
from pretask.train.logger import OnLog, RunLogger
from pretask.train.monitor import CollapseMonitor
from pretask.train.pacing import ENTRIES, Budget, Pace
from pretask.train.plan import Plan
from pretask.train.trainer import Trainer
from pretask.types import Source, UserError
from pretask.workflows import length
from pretask.workflows import resume as resuming
from pretask.workflows.job import Job

if TYPE_CHECKING:
    from pretask.runtime.lightning import Fabric


def build_fabric(settings: RunConfig, partial: bool, batch: int) -> "Fabric":
    """Lightning Fabric for these settings: one process, several on this machine, or many by torchrun."""
    # slow to import, and not needed to read a run
    from pretask.runtime.lightning import DDPStrategy, Fabric, ModelParallelStrategy

    world = int(os.environ.get("WORLD_SIZE", "1"))
    # set by torchrun; Fabric's own launcher stays on one machine
    here = int(os.environ.get("LOCAL_WORLD_SIZE", world))
    on_cpu = device_type(settings) == "cpu"
    count = here if on_cpu else torch.cuda.device_count()
    if settings.devices != "auto":
        count = settings.devices
    logging.getLogger("lightning_fabric").setLevel(logging.ERROR)
    warnings.filterwarnings("ignore", ".*`broadcast_buffers` is deprecated")  # its successor is not in 2.5
    nodes = world // here
    if batch % (count * nodes):  # before any process is started
        raise UserError(
            f"a batch of {batch} cannot be split evenly among {count * nodes} processes; give another --batch"
        )
    strategy: Any = "auto"
    if count * nodes > 1:
        strategy = DDPStrategy(find_unused_parameters=partial, broadcast_buffers=False)
    if settings.strategy == "fsdp":
        if count * nodes == 1:
            raise UserError("--strategy fsdp shards the network among processes; give --devices 2 or more")
        strategy = ModelParallelStrategy(distributed.shard, count * nodes, tensor_parallel_size=1)
    return Fabric(
        accelerator="cpu" if on_cpu else settings.accelerator,
        devices=count,
        num_nodes=nodes,
        strategy=strategy,
        precision=precision_of(settings),
    )


def device_type(settings: RunConfig) -> Literal["cpu", "cuda"]:
    return "cpu" if settings.accelerator == "cpu" else find_device()


def precision_of(settings: RunConfig) -> Precision:
    return fastest_precision(device_type(settings)) if settings.precision == "auto" else settings.precision


def pretrain(job: Job, *, on_log: OnLog | None = None, report: bool = False) -> run.Run:
    """Train, and write all results to the run's folder. With `report`, a budget includes time for writing the report."""
    job, loaded, trainer = build_trainer(job)
    settings, source, folder, fabric, method = (
        job.settings,
        job.source,
        job.folder,
        trainer.fabric,
        trainer.method,
    )
    allowed = job.budget
    pace = Pace() if allowed is None else Pace(allowed / ENTRIES)
    budget = None if allowed is None or job.requested.steps is not None else Budget(allowed, job.began, pace)
    if report:
        pace.closing = report_time(time.monotonic() - job.began, job.opening, allowed)

    with distributed.report_lost_peer(), malloc.keep_freed_memory(), ExitStack() as held:
        if job.card is not None and fabric.is_global_zero:
            held.enter_context(files.locked(folder))
            check_card(job)
        with busy("getting ready") if on_log and fabric.is_global_zero else nullcontext():
            if job.card is None:
                plan = length.new_plan(settings, trainer, budget)
            else:
                plan = length.resumed_plan(job.changes, trainer, job.card, budget)
            if budget is None:
                pace.costs = trainer.costs(plan)
        monitor = CollapseMonitor(method, source, folder, job.labeled) if fabric.is_global_zero else None
        card = (
            start_run(job, trainer, plan, loaded)
            if job.card is None
            else continue_run(job, trainer, plan, on_log)
        )
        if job.card is None and fabric.is_global_zero:
            held.enter_context(files.locked(folder))
        fabric.barrier()
        logger = RunLogger(
            folder, job.train.batch, fabric.is_global_zero, monitor, on_log, trainer.summon_full_params
        )
        try:
            train_and_report(trainer, plan, logger, pace, budget, partial(run.record, folder, card))
            changed = job.train.lora or job.train.freeze_norms
            made = continuing.merged(copy.deepcopy(method.export())) if changed else method.export()
            if settings.init and not job.train.freeze_norms:
                continuing.measure_batch_norms(made, source)
            made.range = source.range
            saved.save_encoder(made, folder)
            if fabric.is_global_zero:
                took = trainer.spent + time.monotonic() - job.began
                files.write_text(folder / run.DONE, f"{took:.1f} s\n")
        except files.Unwritable as full:
            raise UserError(
                f"{full}. Make room, then continue: pretask pretrain --resume {quote(str(folder))}"
            ) from None
        fabric.barrier()
    return run.Run(folder)


def build_trainer(job: Job) -> tuple[Job, Loaded | None, Trainer]:
    """The trainer of a job, the job with the input's statistics, and what was loaded."""
    settings, source = job.settings, job.source
    torch.manual_seed(settings.seed)
    encoder = job.config.build_encoder(job.encoder, source)
    encoder.normalize_by(settings.mean, settings.std)
    requirements.check(job.config, encoder, source, job.train.batch)
    job, loaded = load_weights(job, encoder)
    started_from = continuing.initial_bytes(encoder) if loaded else None
    continuing.prepare(encoder, job.train)
    method = job.config.build(encoder, source)
    fabric = build_fabric(job.settings, method.has_unused_params, job.train.batch)
    fabric.launch()
    trainer = Trainer(fabric, method, source, job.train, job.folder, settings.seed, settings.workers)
    trainer.files |= {continuing.INITIAL: started_from} if started_from else {}
    return job, loaded, trainer


def load_weights(job: Job, encoder: Encoder) -> tuple[Job, Loaded | None]:
    """Load the weights to start from, of a resumed run those that it started from. Returns the job with the input's statistics."""
    settings = job.settings
    if job.origin is None:
        if (job.folder / continuing.INITIAL).is_file():
            continuing.load_initial(encoder, job.folder)
        return job, None
    options = {"allow_missing": settings.init_partial, "mean": settings.mean, "std": settings.std}
    loaded = origins.load(encoder, job.origin, **options)
    say(f"{loaded}; {input_of(encoder)}")
    mean, std = (tuple(values.flatten().tolist()) for values in (encoder.mean, encoder.std))
    return replace(job, settings=replace(settings, mean=mean, std=std)), loaded


def check_card(job: Job) -> None:
    """Raises UserError if the card of a resumed run has changed since the job was made."""
    if resuming.relocated(run.Run(job.folder).card, job.changes) != job.card:
        raise UserError(f"another process has just changed {job.folder}; run the command again")


def start_run(job: Job, trainer: Trainer, plan: Plan, loaded: Loaded | None) -> dict[str, Any]:
    """Create the folder of a new run; returns its card."""
    with trainer.summon_full_params():  # making a puzzle may need the encoder
        picture = preview(trainer.method, job.source, job.folder.name, job.settings.seed)
    card = run_card(job, plan, trainer.fabric) | {"loaded": str(loaded) if loaded else None}
    if trainer.fabric.is_global_zero:
        data = job.images.fingerprint()
        card |= {fingerprint.KEY: data.digest}
        card |= {resuming.MONITORED: job.labeled.fingerprint().digest} if job.labeled else {}
        files.write_folder(
            job.folder, partial(first_files, card=card, picture=picture, data=data, more=trainer.files)
        )
    trainer.files.clear()
    return card


def continue_run(job: Job, trainer: Trainer, plan: Plan, on_log: OnLog | None) -> dict[str, Any]:
    """Update the card of a resumed run; returns it."""
    card = job.card
    assert card is not None
    if trainer.fabric.is_global_zero:
        if on_log:
            now = environment(job.settings, trainer.fabric)
            for remark in resuming.remarks(card, now, job.labeled):
                say(remark)
        if card != run.Run(job.folder).card:
            run.write_card(job.folder, card)
        length.update_plan(job.folder, card, plan)
    return card


def report_time(ready: float, opening: float, budget: float | None) -> float:
    """Estimated seconds for the report, given the seconds until the run was `ready`, of which `opening` for its images.

    The report opens the images again and then takes half as long as the other preparations (measured), which like the report
    use one core. A first start from a cold disk predicts little, so that half is limited to a tenth of the budget.
    """
    return opening + min(0.5 * (ready - opening), 0.1 * (budget or math.inf))


def train_and_report(
    trainer: Trainer,
    plan: Plan,
    logger: RunLogger,
    pace: Pace,
    budget: Budget | None,
    record: Callable[[Plan], None],
) -> None:
    """Train to the end; unreadable records are listed in bad.csv even if training fails."""
    ledger = trainer.source.ledger
    try:
        trainer.fit(plan, logger, pace, budget, record)
        for found in distributed.gather_objects(ledger.state()):
            ledger.restore(found)
    finally:
        if logger.writes:
            ledger.write(trainer.folder / BAD)
            run.record_data(trainer.folder, ledger)


def run_card(job: Job, plan: Plan, fabric: "Fabric") -> dict[str, Any]:
    """run.json: everything that determines the run, and the environment it was made in."""
    name, _, recipe = job.method.partition(":")
    settings, source = resuming.absolute(job.settings), job.source
    return {
        formats.KEY: formats.FORMAT,
        "method": str(Path(name).resolve()) if name.endswith(".py") else name,
        "recipe": recipe or "default",
        "config": dataclasses.asdict(job.config),
        "train": dataclasses.asdict(job.train),
        "settings": dataclasses.asdict(settings),
        "encoder": job.encoder,
        "data": settings.data,
        "n": len(source),
        "records": source.ledger.card(),
        "channels": source.channels,
        "size": source.size,
        "range": source.range.card(),
        "seed": settings.seed,
        **plan.as_card(),
        **environment(settings, fabric),
        "command": job.command,
        "started": datetime.now(UTC).isoformat(timespec="seconds"),
        fingerprint.KEY: None,  # added by the first process
        resuming.MONITORED: None,
        "loaded": None,
    }


def environment(settings: RunConfig, fabric: "Fabric") -> dict[str, Any]:
    """What exact results depend on besides the settings: hardware, precision, processes, versions."""
    on_gpu = fabric.device.type == "cuda"
    return {
        "precision": precision_of(settings),
        "device": torch.cuda.get_device_name() if on_gpu else platform.processor() or "cpu",
        "instructions": None if on_gpu else torch.backends.cpu.get_cpu_capability(),
        "processes": fabric.world_size,
        "threads": torch.get_num_threads(),
        "versions": versions(),
        "commit": commit(),
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
    """The git commit of this package in a checkout, with "-dirty" if there are uncommitted changes; otherwise None."""
    try:
        done = subprocess.run(
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
    return done.stdout.strip() or None


def preview(method: Method[Any], source: Source, title: str, seed: int) -> Image.Image:
    """A contact sheet of some puzzles with their answers."""
    from pretask.viz import sheet

    puzzles = method.illustrate(loader.sample(source, 8), seed, "preview")
    return sheet.puzzles(
        puzzles, title=method.pretext_task or title, about=title if method.pretext_task else ""
    )


def first_files(
    folder: Path, card: dict[str, Any], picture: Image.Image, data: Fingerprint, more: Mapping[str, bytes]
) -> None:
    """Write the files that a run's folder holds before the first step."""
    for name, content in more.items():
        files.write(folder / name, lambda file, content=content: file.write(content))
    run.write_card(folder, card)
    files.write(folder / fingerprint.FILE, data.write)
    files.write(folder / "preview.png", lambda file: picture.save(file, format="PNG"))

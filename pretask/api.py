"""The Python API on paths and arrays: pretrain, embed."""

import dataclasses
import difflib
from collections.abc import Mapping
from contextlib import nullcontext
from pathlib import Path
from typing import Any

import numpy as np

from pretask import data as sources
from pretask import limits, methods
from pretask.config import Changes, InputConfig, ReadoutConfig, RunConfig
from pretask.data import in_memory
from pretask.data.base import Images, canvas_fields
from pretask.data.folder import with_all_splits
from pretask.data.subset import subset_size
from pretask.encoders import Encoder
from pretask.limits import PositiveInt, checked
from pretask.methods import MethodConfig
from pretask.reading import DEFAULT_READING, Reading
from pretask.train.progress import Display
from pretask.train.run import CardSource, Run, parse_card
from pretask.types import UserError
from pretask.workflows import embed as embedding
from pretask.workflows import job as jobs
from pretask.workflows import pretrain as pretraining
from pretask.workflows.readout import open_readout


def pretrain(
    method: str | None,
    data: str | Path | Any = None,
    out: str | Path | None = None,
    *,
    config: MethodConfig | Mapping[str, Any] | None = None,
    encoder: str | None = None,
    size: int | None = None,
    steps: int | None = None,
    budget: str | None = None,
    plan: str | Path | None = None,
    fraction: float = 1.0,
    seed: int = 0,
    init: str | Path | None = None,
    init_partial: bool = False,
    mean: tuple[float, ...] | None = None,
    std: tuple[float, ...] | None = None,
    monitor: str | Path | None = None,
    resume: str | Path | None = None,
    reading: Reading = DEFAULT_READING,
    quiet: bool = False,
    **train: Any,
) -> Run:
    """Train an encoder on images without labels: `pretask pretrain METHOD --data PATH`.

        run = pretask.pretrain("rotnet", "photos/", budget="10m")
        run = pretask.pretrain("simclr", images, config={"temperature": 0.5}, epochs=20, lr=0.1)

    `data` is a path, a name, or an array of images: uint8, floats from 0 to 1, or other numbers, of shape (N, H, W),
    (N, H, W, C) or (N, C, H, W). `config` holds hyperparameters of the method, `train` those of training (epochs, batch,
    lr, …); the others are the command-line flags of the same names.

    `resume` continues the run in that folder with its own settings: pretrain(None, resume="runs/a"). A run trained on an
    array does not store it, so pass the same `data` again; a path gives the new location of images that were moved. `steps` or
    `budget` changes the planned length. `plan` uses the length of another run.
    """
    if plan and "epochs" in train:
        raise UserError("plan uses the length of another run; remove epochs")
    with nullcontext() if quiet else Display() as on_log:
        if resume is not None:
            limits.check(reading)
            changes = Changes(
                steps=steps,
                budget=budget,
                data=str(data) if is_spec(data) else None,
                monitor=str(monitor) if monitor else None,
                root=reading.root,
            )
            job = jobs.resumed(Path(resume), changes, images=reopen_array(Path(resume), data))
            return pretraining.pretrain(job, on_log=on_log)
        if method is None or data is None:
            raise UserError("pretrain needs a method and data, as in pretask.pretrain('rotnet', 'photos/')")
        settings = RunConfig(
            data=str(data) if is_spec(data) else in_memory.SPEC,
            out=Path(out) if out else None,
            encoder=encoder,
            size=size,
            steps=steps,
            budget=budget,
            plan=Path(plan) if plan else None,
            fraction=fraction,
            seed=seed,
            init=str(init) if init else None,
            init_partial=init_partial,
            mean=mean,
            std=std,
            monitor=str(monitor) if monitor else None,
            reading=reading,
        )
        kind = methods.recipe(method)
        base = kind().for_continuing() if init else kind()
        chosen = config if isinstance(config, MethodConfig) else adjusted(base, config or {}, method)
        recipe = chosen.train_for_continuing() if init else chosen.train
        trained = adjusted(recipe, train, "training")
        images = None if is_spec(data) else in_memory.from_array(data, size=size, reading=reading)
        job = jobs.fresh(method, settings, chosen, trained, images=images)
        return pretraining.pretrain(job, on_log=on_log)


@checked
def embed(
    run: Run | Encoder | str | Path,
    data: str | Path | Any,
    *,
    stage: str = "pool",
    grid: PositiveInt | None = None,
    batch: PositiveInt = 256,
    size: PositiveInt | None = None,
    mean: tuple[float, ...] | None = None,
    std: tuple[float, ...] | None = None,
    reading: Reading = DEFAULT_READING,
) -> np.ndarray:
    """(N, D) float32: frozen features of images, in their order; unreadable files have no row.

        x = pretask.embed("runs/rotnet-photos-s0", images)

    `run` may also be published weights, as in `evaluate`; `data` is as in `pretrain`. `stage` may be "best", the stage that scored
    best when the run was evaluated; its map is averaged to `grid` x `grid` cells, by default as in `evaluate`.
    `pretask embed` writes the same features to disk, with file names, in constant memory.
    """
    readout = open_readout(run, ReadoutConfig(stage, grid), InputConfig(size, mean, std))
    return embedding.array(readout, open_images(data, readout.encoder, reading), batch)


def open_images(data: Any, encoder: Encoder, reading: Reading) -> Images:
    """Images for this encoder, read on demand."""
    if is_spec(data):
        return sources.open(with_all_splits(str(data)), **canvas_fields(encoder), reading=reading, cache_mb=0)
    return in_memory.from_array(data, **canvas_fields(encoder), reading=reading)


def reopen_array(folder: Path, data: Any) -> Images | None:
    """The array that a run was trained on; None if its data is a path."""
    card = Run(folder).card
    if data is None or is_spec(data):
        return None
    images = in_memory.from_array(data, **canvas_fields(CardSource(card)))
    if subset_size(len(images), parse_card(card)[1].fraction) != card["n"]:
        raise UserError(f"{folder} was trained on {card['n']} images, but the array holds {len(images)}")
    return images


def is_spec(data: Any) -> bool:
    return isinstance(data, str | Path)


def adjusted(config: Any, changes: Mapping[str, Any], whose: str) -> Any:
    """A frozen dataclass with some fields changed; a nested one takes a dict. Raises UserError for unknown fields."""
    names = [field.name for field in dataclasses.fields(config)]
    new = {}
    for name, value in changes.items():
        if name not in names:
            raise UserError(f"{whose} has no hyperparameter {name!r}; {nearest(name, names)}")
        old = getattr(config, name)
        nested = dataclasses.is_dataclass(old) and isinstance(value, Mapping)
        new[name] = adjusted(old, value, f"{whose}.{name}") if nested else value
    return dataclasses.replace(config, **new)


def nearest(name: str, names: list[str]) -> str:
    near = difflib.get_close_matches(name, names, n=3)
    return f"did you mean {' or '.join(near)}?" if near else f"it has {', '.join(names)}"

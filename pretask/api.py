"""The verbs of the command line for Python, on paths and on arrays: pretrain, embed."""

import dataclasses
import difflib
from collections.abc import Mapping
from contextlib import nullcontext
from pathlib import Path
from typing import Any

import numpy as np

from pretask import data as sources
from pretask import methods
from pretask.data import in_memory as memory
from pretask.data.base import Images
from pretask.data.subset import count
from pretask.encoders import Encoder
from pretask.methods import MethodConfig
from pretask.train.progress import Display
from pretask.train.run import Run, revive
from pretask.types import UserError
from pretask.workflows import embed as embedding
from pretask.workflows import pretrain as pretraining
from pretask.workflows.pretrain import Settings


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
    share: float = 1.0,
    seed: int = 0,
    init: str | Path | None = None,
    watch: str | Path | None = None,
    resume: str | Path | None = None,
    quiet: bool = False,
    **train: Any,
) -> Run:
    """Train an encoder on images without labels: `pretask pretrain METHOD --data PATH`.

        run = pretask.pretrain("rotnet", "photos/", budget="10m")
        run = pretask.pretrain("simclr", images, config={"temperature": 0.5}, epochs=20, lr=0.1)

    `data` is a path or a name, or the images themselves: uint8, or floats from 0 to 1, of shape (N, H, W),
    (N, H, W, C) or (N, C, H, W). `config` holds knobs of the method, `train` those of training (epochs,
    batch, lr, …); the others are the flags of the same names.

    `resume` goes on with the run in that folder by its own settings: pretrain(None, resume="runs/a"). A run
    does not keep an array that it was trained on, so give the same `data` again. With `steps` or `budget` it becomes
    longer or shorter than it was planned. `plan` takes the length of another run.
    """
    if plan and "epochs" in train:
        raise UserError("plan takes the length of another run; leave out epochs")
    with nullcontext() if quiet else Display() as tell:
        if resume is not None:
            longer = Settings("", steps=steps, budget=budget)
            return pretraining.pretrain(
                None, longer, resume=Path(resume), source=again(Path(resume), data), tell=tell
            )
        if method is None or data is None:
            raise UserError("pretrain needs a method and data, as in pretask.pretrain('rotnet', 'photos/')")
        settings = Settings(
            data=str(data) if is_spec(data) else memory.SPEC,
            out=Path(out) if out else None,
            encoder=encoder,
            size=size,
            steps=steps,
            budget=budget,
            plan=Path(plan) if plan else None,
            share=share,
            seed=seed,
            init=Path(init) if init else None,
            watch=str(watch) if watch else None,
        )
        kind = methods.recipe(method)
        chosen = config if isinstance(config, MethodConfig) else adjusted(kind(), config or {}, method)
        return pretraining.pretrain(
            method,
            settings,
            chosen,
            adjusted(chosen.train, train, "training"),
            source=None if is_spec(data) else memory.held(data, size),
            tell=tell,
        )


def embed(
    run: Run | Encoder | str | Path,
    data: str | Path | Any,
    *,
    stage: str = "pool",
    batch: int = 256,
    size: int | None = None,
) -> np.ndarray:
    """(N, D) float32: frozen features of images, in their order; unreadable files have no row.

        x = pretask.embed("runs/rotnet-photos-s0", images)

    `run` may also be "timm:NAME", with the weights that timm publishes; `data` is what `pretrain` takes.
    `pretask embed` writes the same to disk, with file names, in constant memory.
    """
    encoder = embedding.encoder_of(run, size)
    return embedding.array(encoder, opened(data, encoder), stage, batch)


def opened(data: Any, encoder: Encoder) -> Images:
    """Images for this encoder, read as they are needed."""
    if is_spec(data):
        return sources.open(data, size=encoder.size, channels=encoder.channels, cache_mb=0)
    return memory.held(data, encoder.size, encoder.channels)


def again(folder: Path, data: Any) -> Images | None:
    """The array that a run was trained on, as it was then; None where the run knows its data by a path."""
    card = Run(folder).card
    if data is None or is_spec(data):
        return None
    images = memory.held(data, card["size"], card["channels"])
    if count(len(images), revive(card)[1].share) != card["n"]:
        raise UserError(f"{folder} was trained on {card['n']} images, but the array holds {len(images)}")
    return images


def is_spec(data: Any) -> bool:
    return isinstance(data, str | Path)


def adjusted(knobs: Any, changes: Mapping[str, Any], whose: str) -> Any:
    """A frozen dataclass with some of its knobs changed; a nested one takes a dict."""
    names = [field.name for field in dataclasses.fields(knobs)]
    new = {}
    for name, value in changes.items():
        if name not in names:
            raise UserError(f"{whose} has no knob {name!r}; {nearest(name, names)}")
        old = getattr(knobs, name)
        nested = dataclasses.is_dataclass(old) and isinstance(value, Mapping)
        new[name] = adjusted(old, value, f"{whose}.{name}") if nested else value
    return dataclasses.replace(knobs, **new)


def nearest(name: str, names: list[str]) -> str:
    near = difflib.get_close_matches(name, names, n=3)
    return f"did you mean {' or '.join(near)}?" if near else f"it has {', '.join(names)}"

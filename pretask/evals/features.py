"""Features: what a frozen encoder makes of a source, computed once; everything else works on these arrays.

Evaluation mode, no augmentation, one pass. A map (C, h, w) is average-pooled to s x s with the largest s for which
C·s² stays within `width` (s = h at most), as linear probes per layer have always done it (Zhang et al. 2017,
arXiv:1611.09842; Goyal et al. 2019, arXiv:1905.01235: about 9000 numbers; here 4096, so that 50,000 samples
of a stage are 400 MB).
"""

import hashlib
import json
import math
import os
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from pretask.data import loader
from pretask.data.base import bar
from pretask.encoders import at_once
from pretask.evals.holdout import Part
from pretask.transforms import augment as images
from pretask.types import Batch, Source, UserError

WIDTH = 4096
"""numbers a stage may have"""
HALF = (1e-3, 1e4)
"""largest value of the first batch between which a stage is kept in half precision"""


@dataclass(frozen=True)
class Features:
    """N samples, as each stage of an encoder shows them; "pool" is the last."""

    stages: Mapping[str, Tensor]  # (N, D) each, single or half precision
    label: Tensor  # (N,) int64; (0,) of a source without labels
    classes: list[str]
    source: str

    def __post_init__(self):
        for stage, x in self.stages.items():
            if not torch.stack(x.aminmax()).isfinite().all():  # NaN is carried through
                raise UserError(
                    f"the features at {stage!r} of {self.source} hold NaN or infinite values: the run has diverged; "
                    "evaluate an earlier checkpoint, or train again with a smaller learning rate"
                )

    def __len__(self) -> int:
        return len(self.stages["pool"])


@torch.no_grad()  # inference mode would leave an encoder that cannot be trained any more
def embed(
    encoder: nn.Module,
    source: Source,
    *,
    device: torch.device | str = "cpu",
    batch: int | None = None,
    width: int = WIDTH,
    progress: bool = True,
    cache: Path | None = None,
) -> Features:
    """One pass over `source`, in its order, `batch` images at once (as many as suit the device). With `cache`, a folder,
    the arrays are kept there and found again."""
    label = getattr(source, "label", torch.zeros(0, dtype=torch.long))
    classes = list(getattr(source, "classes", []))
    kept = None if cache is None else cache / f"{key(encoder, source, width)}.safetensors"
    if kept is not None and kept.exists():
        from safetensors.torch import load_file

        stages = load_file(kept)
        if len(stages["pool"]) == len(source):  # files that cannot be read are not known yet
            return Features(stages, label, classes, source.name)

    was_training = encoder.training
    net = encoder.to(device).to(memory_format=torch.channels_last).eval()
    stages: dict[str, Tensor] = {}
    done = 0
    with bar(progress) as shown:
        task = shown.add_task(f"embedding {source.name}", total=len(source))
        for each in batches(source, batch or at_once(source.size, device)):
            x = images.to_float(each.image.to(device))
            for stage, out in net(x.contiguous(memory_format=torch.channels_last)).items():
                rows = pooled(out.float(), width)
                if stage not in stages:
                    stages[stage] = torch.empty(len(source), rows.shape[1], dtype=kind(stage, rows))
                stages[stage][done : done + len(x)] = fitted(rows, stages[stage].dtype)
            done += len(x)
            shown.advance(task, len(x))
    encoder.train(was_training)
    if (read := readable(source)) is not None:
        stages = {stage: x[read] for stage, x in stages.items()}
        label = label[read] if len(label) else label
    if kept is not None:
        save(stages, kept)
    return Features(stages, label, classes, source.name)


def batches(source: Source, batch: int, order: Tensor | None = None) -> Iterator[Batch]:
    """The samples at `order` (M,), or every one once; files are decoded ahead."""
    order = torch.arange(len(source)) if order is None else order
    if isinstance(source, Part):
        return loader.epoch(source.whole, source.index[order], batch)
    return loader.epoch(source, order, batch)


def readable(source: Source) -> Tensor | None:
    """Positions whose own image could be read, where some could not and another stood in."""
    whole, index = (
        (source.whole, source.index) if isinstance(source, Part) else (source, torch.arange(len(source)))
    )
    if not source.ledger.bad or not hasattr(whole, "files"):
        return None
    names = whole.files(index)  # pyright: ignore[reportAttributeAccessIssue]
    return torch.tensor([i for i, name in enumerate(names) if name not in source.ledger.bad])


def pooled(x: Tensor, width: int = WIDTH) -> Tensor:
    """(B, C, h, w) or (B, D) -> (B, ≤ max(width, C)): averages over the finest grid that fits, flattened."""
    if x.ndim == 2:
        return x
    side = max(1, min(math.isqrt(width // x.shape[1]), *x.shape[2:]))
    return F.adaptive_avg_pool2d(x, side).flatten(1)


def kind(stage: str, rows: Tensor) -> torch.dtype:
    """Half precision for the wide stages, unless their values are too large or too small for it."""
    fits = HALF[0] <= rows.abs().max() <= HALF[1]
    return torch.float16 if stage != "pool" and fits else torch.float32


def fitted(rows: Tensor, dtype: torch.dtype) -> Tensor:
    """As dtype, within what it can hold: a later batch may exceed the first. NaN stays NaN, infinity stays infinite."""
    top = torch.finfo(dtype).max
    if rows.abs().max() <= top:  # nearly always, and much cheaper than what follows
        return rows.to(dtype)
    return torch.where(rows.isfinite(), rows.clamp(-top, top), rows).to(dtype)


def key(encoder: nn.Module, source: Source, width: int) -> str:
    """Names an encoder's weights and a source: sixteen letters that change with any of them.

    Of the source: its name, length, labels, and 64 images spread over it.
    """
    digest = hashlib.blake2b(digest_size=8)
    digest.update(json.dumps([getattr(encoder, "name", ""), source.name, len(source), width]).encode())
    for name, value in encoder.state_dict().items():
        digest.update(name.encode())
        digest.update(raw(value))
    for name in ("mean", "std"):
        digest.update(raw(getattr(encoder, name, torch.zeros(0))))
    some = torch.linspace(0, len(source) - 1, min(64, len(source))).long()
    digest.update(raw(source.__getitems__(some).image))
    digest.update(raw(getattr(source, "label", torch.zeros(0))))
    return digest.hexdigest()


def raw(x: Tensor) -> Any:
    return x.detach().cpu().contiguous().view(-1).view(torch.uint8).numpy()


def save(stages: Mapping[str, Tensor], path: Path) -> None:
    from safetensors.torch import save_file

    path.parent.mkdir(parents=True, exist_ok=True)
    beside = path.with_suffix(f".{os.getpid()}")
    save_file(dict(stages), beside)
    beside.replace(path)

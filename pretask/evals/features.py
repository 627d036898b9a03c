"""Features of a frozen encoder, computed once per source; all evaluations use these arrays.

Features are computed in evaluation mode, without augmentation, in one pass. Maps are average-pooled to a grid
(encoders/readout.py).
"""

import hashlib
import json
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from pretask.data import fingerprint, loader
from pretask.data.base import bar
from pretask.data.subset import LabeledSubset
from pretask.encoders import inference_batch
from pretask.encoders.readout import WIDTH, pool_map
from pretask.runtime import files
from pretask.transforms import augment
from pretask.types import Batch, Source, UserError

SUMS = "sums"
"""name of the hashes among the stages on disk"""
HALF_RANGE = (1e-3, 1e4)
"""a stage is stored in half precision if the largest absolute value of the first batch is in this range"""


@dataclass(frozen=True)
class Features:
    """Features of N samples at each stage of an encoder; "pool" is the last stage."""

    stages: Mapping[str, Tensor]  # (N, D) each, single or half precision
    label: Tensor  # (N,) int64; (0,) for a source without labels
    classes: list[str]
    source: str
    sums: Tensor | None = None  # (N, 16) uint8, hashes of the pixels that the encoder saw

    def __post_init__(self):
        for stage, x in self.stages.items():
            if not torch.stack(x.aminmax()).isfinite().all():  # NaN is carried through
                raise UserError(
                    f"the features of {self.source} at {stage!r} contain NaN or infinite values: the run has diverged; "
                    "evaluate an earlier checkpoint, or train again with a smaller learning rate"
                )

    def __len__(self) -> int:
        return len(next(iter(self.stages.values())))


@torch.no_grad()  # after inference mode the encoder could no longer be trained
def embed(
    encoder: nn.Module,
    source: Source,
    *,
    device: torch.device | str = "cpu",
    batch: int | None = None,
    width: int = WIDTH,
    grid: int | None = None,
    progress: bool = True,
    cache: Path | None = None,
) -> Features:
    """Features of all samples of `source`, in order. `batch` images are computed at once, by default as many as suit the
    device. Maps are averaged to the finest grid of at most `width` values, or to `grid` x `grid`. If `cache`, a folder, is given, features are stored there and reused."""
    label = getattr(source, "label", torch.zeros(0, dtype=torch.long))
    classes = list(getattr(source, "classes", []))
    cached = None if cache is None else cache / f"{cache_key(encoder, source, width, grid)}.safetensors"
    if cached is not None and cached.exists():
        from safetensors.torch import load_file

        stored = load_file(cached)
        sums = stored.pop(SUMS)
        stages = {key.partition(" ")[2]: stored[key] for key in sorted(stored)}  # from shallow to deep again
        if len(sums) == len(source):  # otherwise some files could not be read; which is not known yet
            return Features(stages, label, classes, source.name, sums)

    was_training = encoder.training
    net = encoder.to(device).to(memory_format=torch.channels_last).eval()
    stages: dict[str, Tensor] = {}
    sums = torch.empty(len(source), fingerprint.WIDTH, dtype=torch.uint8)
    done = 0
    with bar(progress) as shown:
        task = shown.add_task(f"embedding {source.name}", total=len(source))
        for each in batches(source, batch or inference_batch(source.size, device)):
            x = augment.to_float(each.image.to(device))
            for stage, out in net(x.contiguous(memory_format=torch.channels_last)).items():
                rows = pool_map(out.float(), width, grid)
                if stage not in stages:
                    dtype = storage_dtype(stage, rows)
                    stages[stage] = torch.empty(len(source), rows.shape[1], dtype=dtype)
                stages[stage][done : done + len(x)] = cast(rows, stages[stage].dtype)
            sums[done : done + len(x)] = torch.from_numpy(fingerprint.of_pixels(each.image))
            done += len(x)
            shown.advance(task, len(x))
    encoder.train(was_training)
    if (read := readable(source)) is not None:
        stages = {stage: x[read] for stage, x in stages.items()}
        label, sums = label[read] if len(label) else label, sums[read]
    if cached is not None:
        numbered = {f"{k:03} {stage}": x for k, (stage, x) in enumerate(stages.items())}
        save({**numbered, SUMS: sums}, cached)
    return Features(stages, label, classes, source.name, sums)


def batches(source: Source, batch: int, order: Tensor | None = None) -> Iterator[Batch]:
    """Batches of the samples at `order` (M,), by default all samples in order; files are prefetched."""
    order = torch.arange(len(source)) if order is None else order
    if isinstance(source, LabeledSubset):
        return loader.epoch(source.whole, source.index[order], batch)
    return loader.epoch(source, order, batch)


def readable(source: Source) -> Tensor | None:
    """Positions of the images that could be read; None if none has failed. A failed image was replaced by another."""
    if not source.ledger.failed:
        return None
    whole, index = source, torch.arange(len(source))
    if isinstance(source, LabeledSubset):
        whole, index = source.whole, source.index
    return whole.readable(index).nonzero()[:, 0]  # pyright: ignore[reportAttributeAccessIssue]


def storage_dtype(stage: str, rows: Tensor) -> torch.dtype:
    """Half precision for all stages except "pool", unless their values are too large or too small for it."""
    fits = HALF_RANGE[0] <= rows.abs().max() <= HALF_RANGE[1]
    return torch.float16 if stage != "pool" and fits else torch.float32


def cast(rows: Tensor, dtype: torch.dtype) -> Tensor:
    """To dtype, clamped to its range, since a later batch may exceed the first; NaN and infinity are kept."""
    top = torch.finfo(dtype).max
    if rows.abs().max() <= top:  # nearly always true, and much cheaper than clamping
        return rows.to(dtype)
    return torch.where(rows.isfinite(), rows.clamp(-top, top), rows).to(dtype)


def cache_key(encoder: nn.Module, source: Source, width: int, grid: int | None = None) -> str:
    """Sixteen characters that identify an encoder's weights, a source, and the grids of its maps.

    A source is identified by its name, length, labels, and 64 evenly spaced images.
    """
    digest = hashlib.blake2b(digest_size=8)
    digest.update(
        json.dumps([getattr(encoder, "name", ""), source.name, len(source), grid or width]).encode()
    )
    for name, value in encoder.state_dict().items():
        digest.update(name.encode())
        digest.update(raw_bytes(value))
    for name in ("mean", "std"):
        digest.update(raw_bytes(getattr(encoder, name, torch.zeros(0))))
    some = torch.linspace(0, len(source) - 1, min(64, len(source))).long()
    digest.update(raw_bytes(source.__getitems__(some).image))
    digest.update(raw_bytes(getattr(source, "label", torch.zeros(0))))
    return digest.hexdigest()


def raw_bytes(x: Tensor) -> Any:
    return x.detach().cpu().contiguous().view(-1).view(torch.uint8).numpy()


def save(stages: Mapping[str, Tensor], path: Path) -> None:
    from safetensors.torch import save as serialize

    path.parent.mkdir(parents=True, exist_ok=True)
    files.write(path, lambda file: file.write(serialize(dict(stages))))

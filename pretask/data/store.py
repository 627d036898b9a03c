"""A prepared store: decoded images in one memory-mapped file, which opens instantly at any size.

NAME/store.json     shapes, types, class names, range of values, skipped records
NAME/image.bin      (N, C, H, W) uint8; another .bin for each auxiliary field of a batch
NAME/names.bin, names.npy, label.npy
"""

import json
import shutil
from collections.abc import Iterator
from math import prod
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from pretask.data import decode
from pretask.data.arrays import Arrays
from pretask.data.base import NamedSource, Opened, OpenOptions, Texts, bar
from pretask.data.labels import known
from pretask.data.ledger import BAD, NO_LABEL, Ledger
from pretask.data.stream import Stream
from pretask.data.subset import Subset
from pretask.runtime import files, formats
from pretask.transforms.ranges import Range, warn_if_prepared_differently
from pretask.types import Batch, UserError

CARD = "store.json"
FIELDS: formats.Fields = {
    "name": str,
    "fields": dict[str, dict],
    "classes": list,
    "range": formats.RANGE,
    "records": dict,
    "bad": dict[str, str],
}
"""of store.json"""
BATCH = 256


def understands(spec: str) -> bool:
    return (Path(spec).expanduser() / CARD).is_file()


def load(spec: str, options: OpenOptions) -> Opened:
    folder = Path(spec).expanduser()
    try:
        card = json.loads((folder / CARD).read_text())
        formats.check(folder / CARD, card, FIELDS)
        fields = {name: memory_map(folder / f"{name}.bin", **spec) for name, spec in card["fields"].items()}
        names = Texts(np.fromfile(folder / "names.bin", np.uint8), np.load(folder / "names.npy"))
    except (OSError, ValueError, KeyError, TypeError, RuntimeError) as error:
        raise UserError(f"{folder} is a damaged store ({decode.reason(error)}); prepare it again") from None
    image = fields.pop("image")
    for what, requested, there in [
        ("size", options.size, image.shape[2]),
        ("channels", options.channels, image.shape[1]),
    ]:
        if requested not in (None, there):
            raise UserError(f"{folder} has {what} {there}, not {requested}; prepare another store")
    range = Range.from_card(card["range"])
    warn_if_prepared_differently(str(folder), options.range, range)
    held = Arrays(card["name"], image, names, Ledger(card["bad"]), fields, mapped=True, range=range)
    if options.labels == "none" or not card["classes"]:
        return Opened(held)
    label = torch.from_numpy(np.load(folder / "label.npy"))
    there = known(label)
    if options.labels == "any" or there.all():
        return Opened(held, label, card["classes"])
    for i in (~there).nonzero()[:, 0].tolist():
        held.ledger.exclude(names[i], NO_LABEL)
    return Opened(Subset(held, there.nonzero()[:, 0]), label[there], card["classes"])


def memory_map(path: Path, shape: list[int], dtype: str) -> Tensor:
    """Memory-map a file copy-on-write."""
    kind = getattr(torch, dtype)
    if path.stat().st_size != prod(shape) * kind.itemsize:
        raise ValueError(f"{path.name} has {path.stat().st_size} bytes")
    return torch.from_file(str(path), shared=False, size=prod(shape), dtype=kind).view(shape)


def prepare(source: NamedSource, out: Path, progress: bool = True) -> None:
    """Write `source`, with its labels if it has any, as a store at `out`: completely or not at all."""
    out = Path(out)
    check_out(out)
    check_space(source, next(p for p in out.absolute().parents if p.exists()))
    files.write_folder(out, lambda folder: write(source, folder, progress, out))


def check_out(out: Path) -> None:
    """Raises UserError if `out` exists."""
    if out.exists():
        raise UserError(f"{out} exists; choose another path or remove it")


def check_space(source: NamedSource, folder: Path) -> None:
    each = source.channels * source.size**2
    if not isinstance(unlabeled(source), Stream):
        one = source.__getitems__(torch.arange(1))
        each = sum(x.nbytes for x in (one.image, *one.aux.values()))
    need, free = len(source) * each, shutil.disk_usage(folder).free
    if need > free:
        raise UserError(
            f"{folder} has {free / 2**30:.2f} GiB free; {source.name} needs {need / 2**30:.2f} GiB. "
            "Use another disk or a smaller --size"
        )


def write(source: NamedSource, folder: Path, progress: bool, final: Path) -> None:
    """Write a store into a folder that will be moved to `final`."""
    fields: dict[str, dict[str, Any]] = {}
    names: list[str] = []
    keep: list[Tensor] = []
    with bar(progress) as shown:
        task = shown.add_task(f"preparing {source.name}", total=len(source))
        for batch in batches(source):
            named = source.files(batch.index)
            good = source.readable(batch.index)
            names += [name for name, kept in zip(named, good.tolist(), strict=True) if kept]
            keep.append(batch.index[good])
            for name, rows in {"image": batch.image, **batch.aux}.items():
                rows = rows[good]
                spec = fields.setdefault(name, {"shape": [0, *rows.shape[1:]], "dtype": str(rows.dtype)[6:]})
                spec["shape"][0] += len(rows)
                with open(folder / f"{name}.bin", "ab") as file:
                    file.write(rows.numpy().tobytes())
            shown.advance(task, len(batch))
    texts = Texts.of(names)
    texts.blob.tofile(folder / "names.bin")
    np.save(folder / "names.npy", texts.ends)
    label = getattr(source, "label", None)
    if label is not None:
        np.save(folder / "label.npy", label[torch.cat(keep)].numpy())
    classes = [] if label is None else source.classes  # type: ignore[attr-defined]
    ledger = source.ledger
    card = {
        formats.KEY: formats.FORMAT,
        "name": source.name,
        "fields": fields,
        "classes": classes,
        "range": source.range.card(),
        "records": ledger.card(),
        "bad": ledger.bad,
    }
    (folder / CARD).write_text(json.dumps(card, indent=1))
    ledger.write(folder / BAD, final / BAD)
    for path in [*folder.iterdir(), folder]:
        files.sync(path)


def batches(source: NamedSource) -> Iterator[Batch]:
    """All images once, in order; of a stream as many as its stated length, or fewer if it ends earlier."""
    images = unlabeled(source)
    if isinstance(images, Stream):
        return images.whole(BATCH, len(images))
    return (source.__getitems__(index) for index in torch.arange(len(source)).split(BATCH))


def unlabeled(source: NamedSource) -> NamedSource:
    return getattr(source, "images", source)

"""What damaged data does: images, tables, shards and annotations, damaged in seeded ways, are opened one after the other.

Example: python bench/fuzz.py --data photos/

Counted are crashes (anything but a line for the user: an exception, a killed process), hangs (over 10 seconds), and records
unaccounted for: those that the damage did not touch and that are neither used nor listed. There should be none of each.
"""

import csv
import io
import json
import os
import tarfile
import tempfile
import xml.etree.ElementTree as ElementTree
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ProcessPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from dataclasses import dataclass
from multiprocessing import get_context
from pathlib import Path
from typing import Any

import numpy as np
from common import Goal, flags, show
from PIL import Image

from pretask import data as sources
from pretask.data import annotated, folder, store
from pretask.data.base import OpenOptions, Texts
from pretask.data.ledger import BAD
from pretask.errors import UserError
from pretask.reading import Reading

SECONDS = 10
RECORDS = 20
"""images of a folder, rows of a table, members of a shard, images with annotations"""
FORMATS = ("JPEG", "PNG", "WEBP", "TIFF", "GIF", "BMP", "PPM")
EVERYTHING = Reading(max_bad=1.0)
SIDE = 32
"""pixels of the images in tables, shards and annotations"""


@dataclass(frozen=True)
class Flags:
    data: Path
    """a folder of images to damage"""
    images: int = 1000
    """damaged images"""
    tables: int = 100
    """damaged tables: CSV, TSV, JSON lines and Parquet in turn"""
    shards: int = 100
    """damaged tar shards"""
    annotations: int = 100
    """damaged annotations: COCO's and VOC's form in turn"""
    seed: int = 0
    """of what is damaged, where and how"""
    json: bool = False
    """print JSON, and nothing else, on standard output"""


# ---- damage


def damaged(data: bytes, random: np.random.Generator) -> tuple[bytes, int]:
    """Some bytes of `data` changed in one of six ways, and the position of the first."""
    at = int(random.integers(len(data)))
    span = int(random.integers(1, 64))
    noise = random.integers(256, size=span, dtype=np.uint8).tobytes()
    ways = (
        lambda: data[:at] + noise + data[at + span :],
        lambda: data[:at],
        lambda: data[:at] + bytes(span) + data[at + span :],
        lambda: data[:at] + data[at : at + span] + data[at:],
        lambda: data[:at] + data[at + span :],
        lambda: data[:at] + noise + data[at:],
    )
    return ways[random.integers(len(ways))](), at


STRANGE: tuple[Any, ...] = (
    None,
    "",
    "ten",
    -1,
    0,
    1e308,
    float("nan"),
    [],
    {},
    [1, 2],
    True,
    "a\0b",
    "x" * 5000,
)


def estranged(value: Any, random: np.random.Generator) -> Any:
    """A tree of JSON values with one of them replaced or taken out, somewhere."""
    if isinstance(value, dict | list) and value and random.random() < 0.9:
        keys = list(value) if isinstance(value, dict) else range(len(value))
        key = keys[int(random.integers(len(keys)))]
        made = value.copy()
        if random.random() < 0.1:
            del made[key]
        else:
            made[key] = estranged(value[key], random)
        return made
    return STRANGE[int(random.integers(len(STRANGE)))]


# ---- what came of it


def prepared(spec: Path, out: Path) -> tuple[dict[str, Any], list[str], dict[str, str]]:
    """A store's records, the names in it, and what its bad.csv lists."""
    source = sources.open_with_any_labels(
        str(spec), OpenOptions(16, 3, EVERYTHING, progress=False, cache_mb=0)
    )
    labeled = source.images
    if source.label is not None:
        labeled = sources.LabeledDataset(source.images, source.label, source.classes)
    store.prepare(labeled, out, progress=False)
    card = json.loads((out / store.CARD).read_text())
    names = Texts(np.fromfile(out / "names.bin", np.uint8), np.load(out / "names.npy"))
    listed = {}
    if (out / BAD).exists():
        with (out / BAD).open(newline="") as file:
            listed = dict(list(csv.reader(file))[1:])
    return card["records"], [names[i] for i in range(len(names))], listed


def unequal(records: dict[str, Any], n: int) -> list[str]:
    """What the books themselves do not add up to."""
    left = sum(records["left_out"].values()) + sum(records["other_files"].values())
    found, used = records["found"], records["used"]
    return (
        [] if found == used + left and not records["not_looked_at"] and used == n else [f"books: {records}"]
    )


# ---- the four kinds: each damages RECORDS records in `at` and tells what is unaccounted for


def images(at: Path, pool: Sequence[Path], random: np.random.Generator) -> list[str]:
    files = {}
    for i in range(RECORDS):
        with Image.open(pool[int(random.integers(len(pool)))]) as image:
            content, kind = io.BytesIO(), FORMATS[int(random.integers(len(FORMATS)))]
            image.convert("RGB").save(content, kind)
        name = f"{i:03d}.{'jpg' if kind == 'JPEG' else kind.lower()}"
        files[name] = damaged(content.getvalue(), random)[0]
        (at / name).write_bytes(files[name])
    records, names, listed = prepared(at, at.with_suffix(".store"))
    return unequal(records, len(names)) + sorted(files.keys() - set(names) - listed.keys())


def tables(at: Path, pool: Sequence[Path], random: np.random.Generator) -> list[str]:
    small(at, pool, random)
    rows = [{"image": f"{i:03d}.jpg", "text": f'what is seen in "{i}", in short'} for i in range(RECORDS)]
    kind = (".csv", ".tsv", ".jsonl", ".parquet")[int(random.integers(4))]
    path = at / f"rows{kind}"
    if kind == ".parquet":
        import pyarrow as pa
        from pyarrow import parquet

        parquet.write_table(pa.Table.from_pylist(rows), path)
        path.write_bytes(damaged(path.read_bytes(), random)[0])
        records, names, _ = prepared(Path(f"text:{path}"), at.with_suffix(".store"))
        return unequal(records, len(names)) + (
            [] if records["found"] == RECORDS else [f"found {records['found']}"]
        )
    lines = list(written(rows, kind))
    broken = 1 + int(random.integers(RECORDS))
    whole = "".join(lines).encode()
    start = len("".join(lines[:broken]).encode())
    end = start + len(lines[broken].encode()) - 1  # the line's end stays
    content = damaged(whole[start:end], random)[0].replace(b"\n", b" ").replace(b"\r", b" ")
    path.write_bytes(whole[:start] + content + whole[end:])
    records, names, listed = prepared(path, at.with_suffix(".store"))
    sound = {
        f"{i:03d}.jpg": f"line {i + (kind != '.jsonl') + 1}"
        for i in range(RECORDS)
        if i + 1 != broken + (kind == ".jsonl")
    }
    return unequal(records, len(names)) + [
        n for n, line in sound.items() if n not in names and line not in listed
    ]


def written(rows: Sequence[dict[str, str]], kind: str) -> Iterator[str]:
    """The lines of a table."""
    if kind == ".jsonl":
        yield from (json.dumps(row) + "\n" for row in rows)
        return
    for values in (list(rows[0]), *(list(row.values()) for row in rows)):
        line = io.StringIO()
        csv.writer(line, delimiter="\t" if kind == ".tsv" else ",", lineterminator="\n").writerow(values)
        yield line.getvalue()


def shards(at: Path, pool: Sequence[Path], random: np.random.Generator) -> list[str]:
    path, ends = at / "shard.tar", {}
    with tarfile.open(path, "w") as tar:
        for i in range(RECORDS):
            for suffix, content in (("jpg", jpeg(pool, random)), ("cls", b"3")):
                member = tarfile.TarInfo(f"{i:03d}.{suffix}")
                member.size = len(content)
                tar.addfile(member, io.BytesIO(content))
                if suffix == "jpg":
                    ends[member.name] = tar.offset
    content, first = damaged(path.read_bytes(), random)
    path.write_bytes(content)
    records, names, listed = prepared(path, at.with_suffix(".store"))
    told = [place.rpartition("/")[2] for place in (*names, *listed)]
    before = [name for name, end in ends.items() if end <= first and name not in told]
    behind = [name for name, end in ends.items() if end > first and name not in told]
    return unequal(records, len(names)) + before + (behind if not listed else [])


def annotations(at: Path, pool: Sequence[Path], random: np.random.Generator) -> list[str]:
    made = at / "images"
    made.mkdir()
    small(made, pool, random)
    if random.random() < 0.5:
        content = {
            "images": [
                {"id": i, "file_name": f"{i:03d}.jpg", "width": SIDE, "height": SIDE} for i in range(RECORDS)
            ],
            "categories": [{"id": 1, "name": "one"}, {"id": 2, "name": "two"}],
            "annotations": [
                {
                    "id": k,
                    "image_id": k % RECORDS,
                    "category_id": 1 + k % 2,
                    "bbox": [1, 2, 20, 10],
                    "iscrowd": 0,
                }
                for k in range(2 * RECORDS)
            ],
        }
        if random.random() < 0.8:
            text = json.dumps(estranged(content, random)).encode()
        else:
            text = damaged(json.dumps(content).encode(), random)[0]
        (at / "instances.json").write_bytes(text)
    else:
        (at / "Annotations").mkdir()
        made.rename(at / "JPEGImages")
        for i in range(RECORDS):
            content = voc(f"{i:03d}.jpg")
            hurt = damaged(content, random)[0] if random.random() < 0.25 else content
            (at / "Annotations" / f"{i:03d}.xml").write_bytes(hurt)
    found = annotated.load(at, OpenOptions(reading=EVERYTHING, progress=False))
    records = found.ledger.card()
    return unequal(records, len(found))


def voc(name: str) -> bytes:
    tree = ElementTree.Element("annotation")
    ElementTree.SubElement(tree, "filename").text = name
    size = ElementTree.SubElement(tree, "size")
    for side in ("width", "height"):
        ElementTree.SubElement(size, side).text = str(SIDE)
    thing = ElementTree.SubElement(tree, "object")
    ElementTree.SubElement(thing, "name").text = "one"
    box = ElementTree.SubElement(thing, "bndbox")
    for side, value in zip(("xmin", "ymin", "xmax", "ymax"), (2, 3, 20, 12), strict=True):
        ElementTree.SubElement(box, side).text = str(value)
    return ElementTree.tostring(tree)


def small(at: Path, pool: Sequence[Path], random: np.random.Generator) -> None:
    """RECORDS sound images."""
    for i in range(RECORDS):
        (at / f"{i:03d}.jpg").write_bytes(jpeg(pool, random))


def jpeg(pool: Sequence[Path], random: np.random.Generator) -> bytes:
    content = io.BytesIO()
    with Image.open(pool[int(random.integers(len(pool)))]) as image:
        image.convert("RGB").resize((SIDE, SIDE)).save(content, "JPEG")
    return content.getvalue()


# ---- all of them


KINDS: dict[str, Callable[[Path, Sequence[Path], np.random.Generator], list[str]]] = {
    "images": images,
    "tables": tables,
    "shards": shards,
    "annotations": annotations,
}


def tried(kind: str, number: int, seed: int, pool: Sequence[Path]) -> tuple[str, str]:
    """ "refused" with the line for the user, "crash" with the error, "unaccounted" with the names, or "used"."""
    random = np.random.default_rng([seed, list(KINDS).index(kind), number])
    with tempfile.TemporaryDirectory() as scratch:
        at = Path(scratch, "data")
        at.mkdir()
        try:
            missing = KINDS[kind](at, pool, random)
        except UserError as line:
            return ("crash", f"several lines: {line}") if "\n" in str(line) else ("refused", str(line))
        except Exception as error:
            return "crash", f"{type(error).__name__}: {error}"
        return ("unaccounted", ", ".join(missing)) if missing else ("used", "")


class Worker:
    """A process that can be lost, and is replaced when it is."""

    def __init__(self) -> None:
        self.pool = self.opened()

    def opened(self) -> ProcessPoolExecutor:
        return ProcessPoolExecutor(1, mp_context=get_context("fork"))

    def tried(self, *case: Any) -> tuple[str, str]:
        try:
            return self.pool.submit(tried, *case).result(timeout=SECONDS)
        except TimeoutError:
            outcome = "hang", ""
        except BrokenProcessPool as lost:
            outcome = "crash", str(lost)
        for process in list(self.pool._processes.values()):
            process.kill()
        self.pool.shutdown(wait=False, cancel_futures=True)
        self.pool = self.opened()
        return outcome


def main() -> None:
    asked = flags(Flags, __doc__ or "")
    root = asked.data.expanduser().resolve()
    pool = [root / os.fsdecode(path) for path in folder.scan(root)[0]]
    worker, outcomes = Worker(), {}
    for kind in KINDS:
        count = getattr(asked, kind) // (RECORDS if kind == "images" else 1)
        outcomes[kind] = [worker.tried(kind, number, asked.seed, pool) for number in range(count)]
    worker.pool.shutdown()
    numbers: dict[str, Any] = {}
    goals = []
    for kind, found in outcomes.items():
        told = [outcome for outcome, _ in found]
        numbers |= {f"{kind}: {what}": told.count(what) for what in ("used", "refused")}
        goals += [
            Goal(f"{kind}: {what}", told.count(what), 1, "", less=True)
            for what in ("crash", "hang", "unaccounted")
        ]
        numbers |= {
            f"{kind} {i}: {what}": why
            for i, (what, why) in enumerate(found)
            if what not in ("used", "refused")
        }
    show("Damaged data", numbers, goals, asked.json)


if __name__ == "__main__":
    main()

"""Robustness to damaged data: open images, tables, shards and annotations that were damaged in seeded ways.

Example: python bench/fuzz.py --data photos/

The script counts crashes (an exception or a killed process instead of one line for the user), hangs (over 10 seconds), and
unaccounted records: those that were not damaged and are neither used nor listed. All three counts should be 0.
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
    """damaged annotations: COCO and VOC format in turn"""
    seed: int = 0
    """seed of the damages"""
    json: bool = False
    """print only JSON to standard output"""


# ---- damage


def damage(data: bytes, random: np.random.Generator) -> tuple[bytes, int]:
    """`data` with some bytes changed in one of six ways, and the position of the first."""
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


UNEXPECTED: tuple[Any, ...] = (
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


def replace_value(value: Any, random: np.random.Generator) -> Any:
    """A tree of JSON values in which a random one is replaced or removed."""
    if isinstance(value, dict | list) and value and random.random() < 0.9:
        keys = list(value) if isinstance(value, dict) else range(len(value))
        key = keys[int(random.integers(len(keys)))]
        made = value.copy()
        if random.random() < 0.1:
            del made[key]
        else:
            made[key] = replace_value(value[key], random)
        return made
    return UNEXPECTED[int(random.integers(len(UNEXPECTED)))]


# ---- checks


def prepare(spec: Path, out: Path) -> tuple[dict[str, Any], list[str], dict[str, str]]:
    """Prepare a store: its records, the names in it, and the files listed in its bad.csv."""
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
    """The records of the ledger, if they do not add up."""
    unused = sum(records["left_out"].values()) + sum(records["other_files"].values())
    found, used = records["found"], records["used"]
    return (
        []
        if found == used + unused and not records["not_looked_at"] and used == n
        else [f"records do not add up: {records}"]
    )


# ---- the four kinds of data: each function damages some of RECORDS records in `at` and returns the unaccounted ones


def images(at: Path, pool: Sequence[Path], random: np.random.Generator) -> list[str]:
    files = {}
    for i in range(RECORDS):
        with Image.open(pool[int(random.integers(len(pool)))]) as image:
            content, kind = io.BytesIO(), FORMATS[int(random.integers(len(FORMATS)))]
            image.convert("RGB").save(content, kind)
        name = f"{i:03d}.{'jpg' if kind == 'JPEG' else kind.lower()}"
        files[name] = damage(content.getvalue(), random)[0]
        (at / name).write_bytes(files[name])
    records, names, listed = prepare(at, at.with_suffix(".store"))
    return unequal(records, len(names)) + sorted(files.keys() - set(names) - listed.keys())


def tables(at: Path, pool: Sequence[Path], random: np.random.Generator) -> list[str]:
    save_images(at, pool, random)
    rows = [{"image": f"{i:03d}.jpg", "text": f'what is seen in "{i}", in short'} for i in range(RECORDS)]
    kind = (".csv", ".tsv", ".jsonl", ".parquet")[int(random.integers(4))]
    path = at / f"rows{kind}"
    if kind == ".parquet":
        import pyarrow as pa
        from pyarrow import parquet

        parquet.write_table(pa.Table.from_pylist(rows), path)
        path.write_bytes(damage(path.read_bytes(), random)[0])
        records, names, _ = prepare(Path(f"text:{path}"), at.with_suffix(".store"))
        return unequal(records, len(names)) + (
            [] if records["found"] == RECORDS else [f"found {records['found']}"]
        )
    lines = list(table_lines(rows, kind))
    broken = 1 + int(random.integers(RECORDS))
    whole = "".join(lines).encode()
    start = len("".join(lines[:broken]).encode())
    end = start + len(lines[broken].encode()) - 1  # the line break stays
    content = damage(whole[start:end], random)[0].replace(b"\n", b" ").replace(b"\r", b" ")
    path.write_bytes(whole[:start] + content + whole[end:])
    records, names, listed = prepare(path, at.with_suffix(".store"))
    intact = {
        f"{i:03d}.jpg": f"line {i + (kind != '.jsonl') + 1}"
        for i in range(RECORDS)
        if i + 1 != broken + (kind == ".jsonl")
    }
    return unequal(records, len(names)) + [
        n for n, line in intact.items() if n not in names and line not in listed
    ]


def table_lines(rows: Sequence[dict[str, str]], kind: str) -> Iterator[str]:
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
    content, first = damage(path.read_bytes(), random)
    path.write_bytes(content)
    records, names, listed = prepare(path, at.with_suffix(".store"))
    known = [place.rpartition("/")[2] for place in (*names, *listed)]
    before = [name for name, end in ends.items() if end <= first and name not in known]
    after = [name for name, end in ends.items() if end > first and name not in known]
    return unequal(records, len(names)) + before + (after if not listed else [])


def annotations(at: Path, pool: Sequence[Path], random: np.random.Generator) -> list[str]:
    image_folder = at / "images"
    image_folder.mkdir()
    save_images(image_folder, pool, random)
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
            text = json.dumps(replace_value(content, random)).encode()
        else:
            text = damage(json.dumps(content).encode(), random)[0]
        (at / "instances.json").write_bytes(text)
    else:
        (at / "Annotations").mkdir()
        image_folder.rename(at / "JPEGImages")
        for i in range(RECORDS):
            content = voc(f"{i:03d}.jpg")
            written = damage(content, random)[0] if random.random() < 0.25 else content
            (at / "Annotations" / f"{i:03d}.xml").write_bytes(written)
    found = annotated.load(at, OpenOptions(reading=EVERYTHING, progress=False))
    records = found.ledger.card()
    return unequal(records, len(found))


def voc(name: str) -> bytes:
    tree = ElementTree.Element("annotation")
    ElementTree.SubElement(tree, "filename").text = name
    size = ElementTree.SubElement(tree, "size")
    for side in ("width", "height"):
        ElementTree.SubElement(size, side).text = str(SIDE)
    item = ElementTree.SubElement(tree, "object")
    ElementTree.SubElement(item, "name").text = "one"
    box = ElementTree.SubElement(item, "bndbox")
    for side, value in zip(("xmin", "ymin", "xmax", "ymax"), (2, 3, 20, 12), strict=True):
        ElementTree.SubElement(box, side).text = str(value)
    return ElementTree.tostring(tree)


def save_images(at: Path, pool: Sequence[Path], random: np.random.Generator) -> None:
    """Save RECORDS undamaged images."""
    for i in range(RECORDS):
        (at / f"{i:03d}.jpg").write_bytes(jpeg(pool, random))


def jpeg(pool: Sequence[Path], random: np.random.Generator) -> bytes:
    content = io.BytesIO()
    with Image.open(pool[int(random.integers(len(pool)))]) as image:
        image.convert("RGB").resize((SIDE, SIDE)).save(content, "JPEG")
    return content.getvalue()


# ---- run


KINDS: dict[str, Callable[[Path, Sequence[Path], np.random.Generator], list[str]]] = {
    "images": images,
    "tables": tables,
    "shards": shards,
    "annotations": annotations,
}


def run_case(kind: str, number: int, seed: int, pool: Sequence[Path]) -> tuple[str, str]:
    """Outcome and details: "refused" and the line for the user, "crash" and the error, "unaccounted" and the names, or "used"."""
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
    """A process that is replaced if it dies or hangs."""

    def __init__(self) -> None:
        self.pool = self.start()

    def start(self) -> ProcessPoolExecutor:
        return ProcessPoolExecutor(1, mp_context=get_context("fork"))

    def run(self, *case: Any) -> tuple[str, str]:
        try:
            return self.pool.submit(run_case, *case).result(timeout=SECONDS)
        except TimeoutError:
            outcome = "hang", ""
        except BrokenProcessPool as lost:
            outcome = "crash", str(lost)
        for process in list(self.pool._processes.values()):
            process.kill()
        self.pool.shutdown(wait=False, cancel_futures=True)
        self.pool = self.start()
        return outcome


def main() -> None:
    args = flags(Flags, __doc__ or "")
    root = args.data.expanduser().resolve()
    pool = [root / os.fsdecode(path) for path in folder.scan(root)[0]]
    worker, outcomes = Worker(), {}
    for kind in KINDS:
        count = getattr(args, kind) // (RECORDS if kind == "images" else 1)
        outcomes[kind] = [worker.run(kind, number, args.seed, pool) for number in range(count)]
    worker.pool.shutdown()
    numbers: dict[str, Any] = {}
    goals = []
    for kind, found in outcomes.items():
        results = [outcome for outcome, _ in found]
        numbers |= {f"{kind}: {what}": results.count(what) for what in ("used", "refused")}
        goals += [
            Goal(f"{kind}: {what}", results.count(what), 1, "", less=True)
            for what in ("crash", "hang", "unaccounted")
        ]
        numbers |= {
            f"{kind} {i}: {what}": why
            for i, (what, why) in enumerate(found)
            if what not in ("used", "refused")
        }
    show("Damaged data", numbers, goals, args.json)


if __name__ == "__main__":
    main()

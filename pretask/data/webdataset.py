"""WebDataset shards: tar files in which all members with the same key form a record, such as `0001.jpg` and `0001.cls`.

The key is the path of a member up to the first dot of its file name; the rest in lower case is its suffix. The image of a
record is the member with an image suffix without a dot: `jpg`, not `seg.png`. If the first shard with images has no such
member, it is the only kind of image there is. A shard is indexed once at opening, and images are then read in place.
Truncated and damaged parts are listed; everything else is used.
"""

import io
import json
import lzma
import os
import tarfile
import zlib
from collections import Counter
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from functools import lru_cache
from itertools import chain
from pathlib import Path
from shlex import quote
from typing import Any, NamedTuple

import numpy as np

from pretask.data import decode, folder, patterns
from pretask.data.base import LABEL_NAMES, Opened, OpenOptions, Texts, bar, resolve_labels
from pretask.data.encoded import collect
from pretask.data.ledger import Ledger
from pretask.runtime.console import say
from pretask.types import UserError

COMPRESSED = (".tar.gz", ".tgz", ".tar.bz2", ".tar.xz")
ENDINGS = (".tar", *COMPRESSED)
PREFERRED = ("jpg", "jpeg", "png", "webp")
"""order of preference if a record has its image in several formats"""
PLAIN = ""
"""stands for an image whose suffix has no dot"""
NAMED = 4
"""suffixes named in an error"""
LONGEST = 2**24
"""largest label, bytes"""
DAMAGE = (tarfile.TarError, OSError, EOFError, ValueError, zlib.error, lzma.LZMAError)
"""exceptions raised when a damaged shard is read"""


def understands(spec: str) -> bool:
    return bool(find_shards(spec))


def find_shards(spec: str) -> list[Path]:
    """The shards of a path or pattern, or of a folder that contains shards but no images."""
    if there := patterns.folder_of(spec):
        shards = patterns.find_files(there[0], ENDINGS)
        return [] if shards and folder.holds_images(there[0]) else shards
    return patterns.expand(spec) if spec.endswith(ENDINGS) else []


def shards_of_split(spec: str, options: OpenOptions) -> list[str]:
    """The shards of the requested split; all of them if there are no splits."""
    shards = find_shards(spec)
    if there := patterns.folder_of(spec):
        root, part = there
        shards = patterns.files_of_split(root, shards, options.split or part, options.labels != "none")
    return [str(shard) for shard in shards]


def title(spec: str) -> str:
    """Name of a source."""
    there = patterns.folder_of(spec)
    return there[0].resolve().name if there else Path(spec).stem


class Members:
    """Images inside shards: shard, offset and length."""

    def __init__(self, shards: list[str], place: np.ndarray, names: Texts):
        self.shards, self.place, self.names = shards, place, names  # (N, 3) int64: shard, offset, length

    def __len__(self) -> int:
        return len(self.place)

    def name(self, i: int) -> str:
        return self.names[i]

    def read(self, i: int) -> bytes:
        shard, offset, length = self.place[i].tolist()
        with open(self.shards[shard], "rb") as file:
            file.seek(offset)
            return file.read(length)

    def sizes(self) -> np.ndarray:
        return self.place[:, 2]


def compressed(spec: str) -> bool:
    return any(str(shard).endswith(COMPRESSED) for shard in find_shards(spec))


def load(spec: str, options: OpenOptions) -> Opened:
    shards = shards_of_split(spec, options)
    called = dict(zip(shards, patterns.relative_names(shards), strict=True))
    ledger, choice = Ledger(), Choice(spec, options.reading.column)
    place, names, labels = [], [], []
    with bar(options.progress) as progress:
        for number, path in enumerate(progress.track(shards, description="reading shards")):
            shard = index(path, called[path], labels=options.labels != "none")
            if shard.compressed:
                raise UserError(
                    f"{path} is compressed, so its images can only be read in order; write them to disk first "
                    f"(pretask prepare {quote(spec)} --out store) or stream them ({quote(f'hf-stream:{spec}')})"
                )
            for member in choice.images(shard):
                place.append((number, member.offset, member.size))
                names.append(member.name)
                labels.append(shard.label(member))
            record_unused(shard, ledger)
    ledger.other += patterns.other_files(spec, ENDINGS)
    if not place:
        raise UserError(no_images_message(spec, choice, ledger))
    resolved = resolve_labels(labels, options, ledger, names.__getitem__)
    if options.labels == "all" and resolved.label is None:
        raise UserError(
            f"{spec} has no label for {names[0]}; expected a .cls member for each image, or `label` in a .json member"
        )
    kept = resolved.kept
    items = Members(shards, np.array(place, np.int64)[kept], Texts.of(names[i] for i in kept))
    return collect(title(spec), items, options, resolved.label, resolved.classes, ledger)


def record_unused(shard: "Shard", ledger: Ledger) -> None:
    """Record the unused members of a shard in the ledger."""
    ledger.other += shard.other
    for place, why in shard.bad.items():
        ledger.skip(place, why)


def no_images_message(spec: str, choice: "Choice", ledger: Ledger) -> str:
    """Error message for shards without an image."""
    ledger.set_size(0)
    if choice.kinds:
        return f"{spec} has no image {choice.suffix}; it has {listed(choice.kinds)}"
    why = f"; {ledger.first_bad()}" if ledger.bad else ""
    return f"{spec} contains no images ({ledger.summary()}{why}); expected members such as 0001.jpg"


def listed(kinds: Counter[str]) -> str:
    more = f" and {len(kinds) - NAMED} more" if len(kinds) > NAMED else ""
    return ", ".join(list(kinds)[:NAMED]) + more


# ---- one shard


class Member(NamedTuple):
    """An image in a shard."""

    name: str  # with its shard; unique
    key: str
    suffix: str
    offset: int
    size: int


@dataclass
class Shard:
    """The index of one tar file."""

    name: str
    compressed: bool = False
    images: list[Member] = field(default_factory=list)
    classes: dict[str, Any] = field(default_factory=dict)  # key -> label in its .cls
    described: dict[str, Any] = field(default_factory=dict)  # key -> label in its .json
    listed: list[Mapping[str, Any]] = field(default_factory=list)  # labels from files next to the shard
    other: Counter[str] = field(default_factory=Counter)
    bad: dict[str, str] = field(default_factory=dict)
    names: Counter[str] = field(default_factory=Counter)

    def label(self, member: "Member") -> Any:
        """The label of its record, or else of a file next to the shard that lists its name or its key."""
        own = self.classes.get(member.key) or self.described.get(member.key)
        named = member.name.removeprefix(f"{self.name}/")
        listed = (label for table in self.listed for label in (table.get(named), table.get(member.key)))
        return next((label for label in (own, *listed) if label is not None), None)

    def called(self, member: str) -> str:
        """A unique name for a member."""
        self.names[member] += 1
        again = f" ({self.names[member]})" if self.names[member] > 1 else ""
        return f"{self.name}/{member}{again}"


def index(path: str, name: str, labels: bool = False) -> Shard:
    """Index a shard from its headers, and from its label members if `labels`."""
    shard = Shard(name, listed=listed_labels(path) if labels else [])
    reading: tarfile.TarInfo | None = None
    end = 0  # of the last member
    try:
        with tarfile.open(path, ignore_zeros=True) as tar:  # continues after a damaged header
            shard.compressed = not isinstance(tar.fileobj, io.BufferedReader)
            for reading in tar:
                if reading.offset < end:
                    raise tarfile.ReadError("members overlap")
                if not shard.compressed and is_damaged(path, end, reading.offset):
                    shard.bad[f"{shard.name} at byte {end}"] = "damaged"
                add(shard, reading, tar, labels)
                reading, end = None, tar.offset
        if not end:
            shard.bad[shard.name] = "empty or not a tar file"
        elif not shard.compressed and is_damaged(path, end, os.path.getsize(path)):
            shard.bad[f"{shard.name} at byte {end}"] = "damaged"
    except DAMAGE as error:
        where = f"{shard.name} at byte {end}" if end else shard.name
        place = shard.called(reading.name) if reading else where
        shard.bad[place] = f"truncated or damaged: {decode.reason(error)}"
    return shard


def listed_labels(path: str) -> list[Mapping[str, Any]]:
    """Labels from the JSON file with the name of the shard, and from labels.json."""
    own = path[: -len(next((ending for ending in ENDINGS if path.endswith(ending)), ""))] + ".json"
    files = [own, os.path.join(os.path.dirname(path), "labels.json")]
    return [labels_in(file, os.stat(file).st_mtime_ns) for file in files if os.path.isfile(file)]


@lru_cache(maxsize=2)  # all shards of a folder share labels.json
def labels_in(file: str, changed: int) -> Mapping[str, Any]:
    """{"0001.jpg": "cat", "0002": 3}; or the same, or a list of such pairs, under "labels"."""
    try:
        content = json.loads(Path(file).read_bytes())
        labels = dict(content.get("labels", content))
    except (OSError, ValueError, TypeError, AttributeError, RecursionError) as error:
        say(f"{file} ignored, it has no labels: {decode.reason(error)}")
        return {}
    return {name: label for name, label in labels.items() if isinstance(label, str | int | float)}


def is_damaged(path: str, start: int, stop: int) -> bool:
    """Whether these bytes are neither zero nor a header (such as the global header of `git archive`)."""
    with open(path, "rb") as file:
        file.seek(start)
        while file.tell() < stop and (block := file.read(min(tarfile.BLOCKSIZE, stop - file.tell()))):
            if block.strip(b"\0"):
                return not is_header(block)
    return False


def is_header(block: bytes) -> bool:
    try:
        tarfile.TarInfo.frombuf(block, "utf-8", "surrogateescape")
    except tarfile.HeaderError:
        return False
    return True


def add(shard: Shard, entry: tarfile.TarInfo, tar: tarfile.TarFile, labels: bool) -> None:
    """Add a member to the index."""
    *folders, file = entry.name.split("/")
    stem, dot, suffix = file.partition(".")
    suffix = suffix.lower()
    kind, key = suffix.rpartition(".")[2], "/".join([*folders, stem])
    is_label = labels and entry.isreg() and suffix in ("cls", "json")
    content = read_member(tar, entry, is_label)
    if entry.isdir():
        shard.other["folders"] += 1
    elif any(part.startswith(".") and part not in (".", "..") for part in (*folders, file)):
        shard.other["hidden"] += 1
    elif not dot:
        shard.other["without suffix"] += 1
    elif is_label:
        add_label(shard, key, suffix, content)
    elif os.fsencode(kind) not in folder.SUFFIXES:
        shard.other[f".{kind}"] += 1
    elif not entry.isreg() or entry.issparse():
        shard.bad[shard.called(entry.name)] = "a link or a sparse file, not an image"
    else:
        name = shard.called(entry.name)
        shard.images.append(Member(name, key, suffix, entry.offset_data, entry.size))


def read_member(tar: tarfile.TarFile, entry: tarfile.TarInfo, whole: bool) -> bytes:
    """Content of a member up to LONGEST bytes; if not `whole`, only its last byte. ReadError if the shard ends within it."""
    if not entry.isreg() or entry.issparse() or not entry.size:
        return b""
    assert tar.fileobj is not None
    length = min(entry.size, LONGEST) if whole else 1
    tar.fileobj.seek(entry.offset_data if whole else entry.offset_data + entry.size - 1)
    content = tar.fileobj.read(length)
    if len(content) < length:
        raise tarfile.ReadError("unexpected end of data")
    return content


def add_label(shard: Shard, key: str, suffix: str, content: bytes) -> None:
    """Add the label of a key; the first one counts."""
    try:
        label = json.loads(content) if suffix == "json" else content.decode().strip()
    except (ValueError, RecursionError):
        shard.other[f"damaged .{suffix}"] += 1
        return
    shard.other[f".{suffix}"] += 1
    if isinstance(label, list):
        label = None  # probably boxes
    elif isinstance(label, dict):
        label = next((label[name] for name in LABEL_NAMES if label.get(name) is not None), None)
    labels = shard.classes if suffix == "cls" else shard.described
    labels.setdefault(key, label)


# ---- which member is the image


class Choice:
    """Selects the image of each record: by the given suffix, or by the suffixes of the first shard with images."""

    def __init__(self, spec: str, suffix: str | None):
        self.spec = spec
        self.suffix = None if suffix is None else suffix.removeprefix(".").lower()
        self.kinds: Counter[str] = Counter()
        """suffixes of all images"""

    def images(self, shard: Shard) -> list[Member]:
        """One image per record, in the order of the shard; the others are recorded in `shard`."""
        self.kinds.update(member.suffix for member in shard.images)
        if self.suffix is None and shard.images:
            self.suffix = self.default_suffix()
        records: dict[str, list[Member]] = {}
        for member in shard.images:
            records.setdefault(member.key, []).append(member)
        used = [self.image(members, shard) for members in records.values()]
        return sorted((member for member in used if member), key=lambda member: member.offset)

    def default_suffix(self) -> str:
        if any("." not in suffix for suffix in self.kinds):
            return PLAIN
        if len(self.kinds) == 1:
            return next(iter(self.kinds))
        raise UserError(
            f"{self.spec}: records have images {listed(self.kinds)}, but none with a plain suffix such as .jpg; choose one, "
            f"for example --column {next(iter(self.kinds))}"
        )

    def image(self, members: list[Member], shard: Shard) -> Member | None:
        """The image of one record."""
        suitable = [member for member in members if self.fits(member.suffix)]
        used = min(suitable, key=lambda member: rank(member.suffix)) if suitable else None
        if used is None:
            shard.bad[members[0].name] = f"its record has no image {self.suffix or 'with a plain suffix'}"
        for member in members if used else members[1:]:
            if used and member.suffix == used.suffix and member is not used:
                shard.bad[member.name] = "a second image of this key"
            elif member is not used:
                shard.other[f".{member.suffix}"] += 1
        return used

    def fits(self, suffix: str) -> bool:
        return "." not in suffix if self.suffix == PLAIN else suffix == self.suffix


def rank(suffix: str) -> int:
    return PREFERRED.index(suffix) if suffix in PREFERRED else len(PREFERRED)


# ---- streaming


def stream(shards: list[str], called: dict[str, str], suffix: str, labels: bool) -> Iterator[dict[str, Any]]:
    """Images and unusable members of shards as rows of a stream; the first row of a shard counts its other members."""
    other: list[tuple[str, Counter[str]]] = []
    for path in shards:
        shard = index(path, called[path], labels)
        images = Choice(path, suffix).images(shard)
        other.append((path, shard.other))
        unusable = ({"name": place, "why": why} for place, why in shard.bad.items())
        for row in chain(contents(path, images), unusable):
            yield row | {"other": other}
            other = []
    if other:
        yield {"other": other}


def contents(path: str, images: list[Member]) -> Iterator[dict[str, Any]]:
    """Read the images in order, as a compressed shard requires."""
    if not images:
        return
    with tarfile.open(path, ignore_zeros=True) as tar:
        assert tar.fileobj is not None
        for member in images:
            try:
                tar.fileobj.seek(member.offset)
                yield {"name": member.name, "image": tar.fileobj.read(member.size)}
            except DAMAGE as error:
                yield {"name": member.name, "why": decode.reason(error)}


def survey(
    spec: str, shards: list[str], called: dict[str, str], options: OpenOptions, whole: bool
) -> tuple[str, list[Any]]:
    """The suffix of the images of a stream, and, if the `whole` stream is indexed, the label of each row or None."""
    ledger, choice, labels = Ledger(), Choice(spec, options.reading.column), []
    for path in shards:
        shard = index(path, called[path], labels=options.labels != "none")
        images = choice.images(shard)
        labels += [shard.label(member) for member in images] + [None] * len(shard.bad)
        record_unused(shard, ledger)
        if images and not whole:
            break
    if len(labels) == len(ledger.bad):
        raise UserError(no_images_message(spec, choice, ledger))
    return choice.suffix or PLAIN, labels

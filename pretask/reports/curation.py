"""The page of a curated collection: pictures of duplicates, leaks, outliers, unusable images and clusters."""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from PIL import Image

from pretask.data.base import Images
from pretask.runtime import files
from pretask.viz import sheet
from pretask.viz.page import load_template
from pretask.workflows import explore
from pretask.workflows.curate import Curated, sentences

PAGE = "curated.html"
LINES, PER_LINE = 24, 8
"""rows of pictures in a section, and pictures in a row"""


@dataclass(frozen=True)
class Shown:
    """A picture with a caption; `marked` if it is kept."""

    picture: Image.Image
    caption: str
    name: str
    marked: bool = False


@dataclass(frozen=True)
class Section:
    title: str
    about: str
    lines: Sequence[tuple[str, Sequence[Shown]]]
    """title of a row, and its pictures"""
    left: int = 0
    """rows that are not shown"""


@dataclass(frozen=True)
class Gallery:
    """Pictures of a source by the names of its images."""

    source: Images
    position: Mapping[str, int]

    @classmethod
    def of(cls, source: Images, names: Sequence[str], positions: torch.Tensor) -> "Gallery":
        return cls(source, dict(zip(names, positions.tolist(), strict=True)))

    def shown(self, rows: Sequence[tuple[str, str, bool]]) -> list[Shown]:
        """Name, caption and mark of each picture."""
        index = torch.tensor([self.position[name] for name, *_ in rows])
        pictures = sheet.pictures(self.source.__getitems__(index).image)
        return [
            Shown(picture, caption, name, marked)
            for picture, (name, caption, marked) in zip(pictures, rows, strict=True)
        ]


def write(found: Curated) -> Path:
    own = found.images
    gallery = Gallery.of(own.source, own.names, own.positions)
    first, *meaning = sentences(found.summary)
    page = load_template("pretask.reports", "pictures.html.j2").render(
        kicker="pretask curate",
        title=found.summary["data"],
        lead=first,
        meaning=meaning,
        features=found.summary["features"],
        sections=[section for section in sections(found, gallery) if section.lines],
        panels=[],
    )
    files.write_text(found.folder / PAGE, page)
    explore.of_collection(found.folder / explore.PAGE, own, columns(found))
    return found.folder / PAGE


def columns(found: Curated) -> dict[str, list[Any]]:
    """What the explorer colors by."""
    names = found.images.names
    copies = {name: "kept" if keep else "copy" for _, name, _, keep in found.duplicates.rows()}
    return {
        "cluster": list(found.clusters["cluster"]),
        "duplicate": explore.column_of(names, copies),
        "unusable": explore.column_of(names, dict(found.unusable.rows())),
        "outlier": explore.column_of(names, dict.fromkeys(found.outliers["path"], "outlier")),
    }


def sections(found: Curated, gallery: Gallery) -> Iterator[Section]:
    yield duplicates(found, gallery)
    yield unusable(found, gallery)
    yield outliers(found, gallery)
    yield clusters(found, gallery)


def duplicates(found: Curated, gallery: Gallery) -> Section:
    groups: dict[int, list[tuple[str, str, bool]]] = {}
    for number, name, similar, keep in found.duplicates.rows():
        groups.setdefault(number, []).append((name, "kept" if keep else f"{similar:.2f}", keep))
    largest = sorted(groups.values(), key=len, reverse=True)
    lines = [(f"{len(group):,} images", gallery.shown(group[:PER_LINE])) for group in largest[:LINES]]
    about = (
        "Copies of each other; the outlined one is kept. Numbers are similarities to it, 1 for equal pixels."
    )
    return Section("Duplicates", about, lines, max(0, len(groups) - LINES))


def unusable(found: Curated, gallery: Gallery) -> Section:
    by_fault: dict[str, list[str]] = {}
    for name, reason in found.unusable.rows():
        if name in gallery.position:
            by_fault.setdefault(reason, []).append(name)
    lines = [
        (f"{fault}, {len(names):,}", gallery.shown([(name, name, False) for name in names[:PER_LINE]]))
        for fault, names in by_fault.items()
    ]
    return Section("Unusable", "Left out of the list. Thresholds are in the documentation.", lines)


def outliers(found: Curated, gallery: Gallery) -> Section:
    rows = [(name, f"{distance:.2f}", False) for name, distance, _ in found.outliers.rows()]
    parts = [rows[k : k + PER_LINE] for k in range(0, len(rows), PER_LINE)]
    lines = [("", gallery.shown(part)) for part in parts[:3]]
    about = "Far from all other images, the farthest first, with their mean distance to the nearest ones. They are kept: look for yourself."
    return Section("Outliers", about, lines, max(0, len(parts) - 3))


def clusters(found: Curated, gallery: Gallery) -> Section:
    by_cluster: dict[int, list[tuple[float, str]]] = {}
    for name, cluster, distance, _ in found.clusters.rows():
        by_cluster.setdefault(cluster, []).append((distance, name))
    largest = sorted(by_cluster.items(), key=lambda item: -len(item[1]))
    lines = [
        (
            f"cluster {number}: {len(members):,} images",
            gallery.shown([(n, "", False) for _, n in sorted(members)[:PER_LINE]]),
        )
        for number, members in largest[:LINES]
    ]
    about = "Images with similar features, from the largest cluster to the smallest; of each, those nearest to its mean."
    return Section("Clusters", about, lines, max(0, len(largest) - LINES))

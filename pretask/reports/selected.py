"""The page of images that were chosen to be labeled, in their groups."""

from collections.abc import Iterator
from pathlib import Path

from pretask.reports.curation import Gallery, Section
from pretask.runtime import files
from pretask.viz.page import load_template
from pretask.workflows.select import RANDOM, Selected, sentences

SHOWN = 24
"""images of a group"""


def write(found: Selected) -> Path:
    """A page next to the table."""
    lead, *meaning = sentences(found)
    page = load_template("pretask.reports", "pictures.html.j2").render(
        kicker="pretask select",
        title=found.images.source.name,
        lead=lead,
        meaning=meaning,
        features=str(found.images.readout),
        sections=[*sections(found)],
        panels=[],
    )
    path = found.path.with_suffix(".html")
    files.write_text(path, page)
    return path


def sections(found: Selected) -> Iterator[Section]:
    own = found.images
    gallery = Gallery.of(own.source, own.names, own.positions)
    groups: dict[int, list[tuple[str, str, bool]]] = {}
    for rank, name, reason, cluster in found.table.rows():
        groups.setdefault(cluster, []).append((name, f"{rank}", reason == RANDOM))
    lines = [
        (f"group {number + 1}: {len(group)} images", gallery.shown(group[:SHOWN]))
        for number, group in sorted(groups.items())
    ]
    about = "Images that look alike are in one group. Numbers are the order in which to label; outlined images were drawn at random."
    yield Section("Images to label", about, lines)

"""The page of a search: each query beside the images that are most similar to it."""

from collections.abc import Iterator
from pathlib import Path

from PIL import Image

from pretask import data as sources
from pretask.data import decode
from pretask.reports.curation import Gallery, Section, Shown
from pretask.runtime import files
from pretask.viz.page import load_template
from pretask.viz.sheet import MAX_SIDE
from pretask.workflows.index import Found


def write(found: Found, path: Path) -> Path:
    queries = list(dict.fromkeys(found.table["query"]))
    page = load_template("pretask.reports", "pictures.html.j2").render(
        kicker="pretask search",
        title=", ".join(Path(query).name for query in queries),
        lead=f"The {max(found.table['rank'])} most similar of {found.card.images:,} images.",
        meaning=[],
        features=f"{found.card.stage} of {found.card.weights}",
        sections=[Section(Path(query).name, "", [*lines(found, query)]) for query in queries],
        panels=[],
    )
    path.parent.mkdir(parents=True, exist_ok=True)
    files.write_text(path, page)
    return path


def lines(found: Found, query: str) -> Iterator[tuple[str, list[Shown]]]:
    """The query, then its results with their similarity."""
    if Path(query).is_file():
        yield "query", [Shown(thumbnail(Path(query)), "", query, True)]
    rows = [(name, similarity) for asked, _, name, similarity in found.table.rows() if asked == query]
    if found.card.root is not None:
        pictures = [(thumbnail(Path(found.card.root, name)), name, similarity) for name, similarity in rows]
        yield "results", [Shown(each, f"{similarity:.2f}", name) for each, name, similarity in pictures]
        return
    source = sources.open(found.card.data, size=found.card.size, cache_mb=0, progress=False)
    import torch

    index = torch.arange(len(source))
    gallery = Gallery.of(source, source.files(index), index)
    yield "results", gallery.shown([(name, f"{similarity:.2f}", False) for name, similarity in rows])


def thumbnail(path: Path) -> Image.Image:
    return decode.thumbnail(path, MAX_SIDE, 3)[1]

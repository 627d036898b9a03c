"""pretask search FOLDER --query IMAGE: the images of an index that are most similar to a query."""

import json
from dataclasses import dataclass
from pathlib import Path

from pretask.cli.flags import subject
from pretask.limits import PositiveInt
from pretask.runtime.console import console, say


@dataclass(frozen=True)
class Flags:
    """Find the images of an index that are most similar to a query image."""

    query: tuple[Path, ...]
    """image files"""
    top: PositiveInt = 20
    """number of results for each query"""
    html: Path | None = None
    """page to write, with pictures"""
    json: bool = False
    """print JSON"""
    weights: str | None = None
    """new place of the weights, if they were moved since the index was made"""


def run(words: list[str]) -> None:
    where, chosen = subject(words, "search", "FOLDER of an index", Flags)
    from rich.table import Table

    from pretask.workflows.index import search

    found = search(where, [str(path) for path in chosen.query], top=chosen.top, what=chosen.weights)
    if chosen.json:
        print(
            json.dumps(
                [dict(zip(found.table.columns, row, strict=True)) for row in found.table.rows()], indent=2
            )
        )
    else:
        shown = Table(box=None, pad_edge=False, padding=(0, 1))
        for name in ("rank", "path", "similarity"):
            shown.add_column(name, justify="left" if name == "path" else "right", overflow="fold")
        for query, rank, path, similarity in found.table.rows():
            if rank == 1 and len(chosen.query) > 1:
                shown.add_row("", query, "", style="bold")
            shown.add_row(str(rank), path, f"{similarity:.3f}")
        console().print(shown)
    if chosen.html:
        from pretask.reports import results

        say(f"wrote {results.write(found, chosen.html)}")

"""pretask list: the methods, their recipes, and what they ask."""

import json
from dataclasses import asdict, dataclass

from pretask.cli import catalog
from pretask.cli.flags import parse


@dataclass(frozen=True)
class Flags:
    """Methods and their recipes."""

    json: bool = False
    """print JSON"""
    encoders: bool = False
    """print the names that --encoder takes"""


def run(words: list[str]) -> None:
    chosen = parse(Flags, words, "list")
    if chosen.encoders:
        import timm

        from pretask.encoders import classic

        print("\n".join([*classic.NETS, *timm.list_models()]))
        return
    rows = [asdict(recipe) for recipe in catalog.recipes()]
    if chosen.json:
        print(json.dumps(rows, indent=2))
        return
    from rich.table import Table

    from pretask.train.progress import console

    table = Table("method", "asks", "encoder", "needs", box=None, pad_edge=False)
    for row in rows:
        table.add_row(row["method"], row["asks"], row["encoder"], ", ".join(row["needs"]) or "images")
    console().print(table)

"""pretask list: the methods, their recipes, and what they ask."""

import json
from dataclasses import dataclass
from typing import Any

from pretask.parse import parse


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
    from pretask import methods

    rows = [row for name in methods.names() for row in described(name)]
    if chosen.json:
        print(json.dumps(rows, indent=2))
        return
    from rich.console import Console
    from rich.table import Table

    table = Table("method", "asks", "encoder", "needs", box=None, pad_edge=False)
    for row in rows:
        table.add_row(row["method"], row["asks"], row["encoder"], ", ".join(row["needs"]) or "images")
    Console().print(table)


def described(name: str) -> list[dict[str, Any]]:
    """A method's recipes: what each asks, by which encoder, and where it was published."""
    from pretask import methods

    module = methods.module(name)
    source = next(line for line in (module.__doc__ or "").splitlines()[1:] if line.strip())
    return [
        {
            "method": name if recipe == "default" else f"{name}:{recipe}",
            "asks": methods.asks(config),
            "encoder": config.encoder,
            "needs": sorted(config.needs),
            "source": source,
        }
        for recipe, config in methods.recipes(module).items()
    ]

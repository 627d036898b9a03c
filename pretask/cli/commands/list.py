"""pretask list: the methods by family, and their recipes."""

import json
import textwrap
from collections.abc import Iterator
from dataclasses import asdict, dataclass

from pretask.cli import catalog
from pretask.cli.flags import parse

WIDTH = 80
NAME = 28
"""columns of a method's name, with the space around it"""
DATA = {
    "words": "texts",
    "tracked": "video",
    "depth": "scenes",
}
"""Batch.aux field -> data that a method needs in addition to images"""


@dataclass(frozen=True)
class Flags:
    """The built-in methods by family."""

    recipes: bool = False
    """also list the recipes of each method, such as rotnet:paper"""
    encoders: bool = False
    """list the names that --encoder accepts"""
    json: bool = False
    """print JSON"""


def run(words: list[str]) -> None:
    chosen = parse(Flags, words, "list")
    if chosen.encoders:
        import timm

        from pretask.encoders import classic

        print("\n".join([*classic.NETS, *timm.list_models()]))
    elif chosen.json:
        print(json.dumps([asdict(recipe) for recipe in catalog.recipes()], indent=2))
    else:
        print("\n".join(lines(catalog.recipes(), chosen.recipes)))


def lines(recipes: list[catalog.Recipe], all_recipes: bool) -> Iterator[str]:
    """A line for each method, under the name of its family; with `all_recipes` a line for each recipe below it."""
    for family in catalog.FAMILIES:
        yield family
        for recipe in (r for r in recipes if r.family == family):
            if ":" not in recipe.method:
                needs = [what for name, what in DATA.items() if name in recipe.needs]
                yield line(recipe.method, recipe.task + "".join(f" (needs {what})" for what in needs))
            elif all_recipes:
                yield line(f"  {recipe.method}", recipe.asks)
        yield ""
    yield "pretask pretrain METHOD --help lists the hyperparameters of a method."
    if not all_recipes:
        yield "pretask list --recipes adds the recipes of the papers, such as rotnet:paper."


def line(name: str, text: str) -> str:
    """At most WIDTH columns; a long name moves the text to the right, a long text is cut."""
    start = f"  {name}".ljust(NAME) if len(name) < NAME - 2 else f"  {name}  "
    return start + textwrap.shorten(text, WIDTH - len(start), placeholder=" …")

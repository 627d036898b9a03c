"""What the site adds to the pages in docs/ while it is built: a page for each method.

The methods' folder is the registry here too: a new file there has its page, its picture and its place in the
navigation with no edit of anything. A page is made from the module's docstring and from its Configs.
"""

import ast
import dataclasses
import inspect
import re
import sys
import textwrap
from collections.abc import Iterator, Mapping, Sequence
from functools import cache
from io import BytesIO
from itertools import pairwise
from pathlib import Path
from typing import Any

from mkdocs.config.defaults import MkDocsConfig
from mkdocs.structure.files import File, Files

from pretask import methods
from pretask.config import TrainConfig
from pretask.methods import MethodConfig
from pretask.workflows import preview as selfhelp

sys.path.append(str(Path(__file__).parent))
import fidelity  # beside this file

DATA = {"words": "pairs.jsonl", "tracked": "tracks/", "depth": "scenes:rooms+photos/"}
"""what a method needs -> how data with it is called on its page; of others photos/"""
OTHERS: Mapping[str, Sequence[Mapping[str, Any]]] = {
    "mae": ({"mask_sampling": "block", "mask": 0.5}, {"mask_sampling": "block"}, {"mask_sampling": "grid"})
}
"""a method's knobs by which its puzzles look otherwise; its page shows these as well"""
FIDELITY = (
    "What its paper and the released code say, and what the recipe does ([all methods](../fidelity.md))."
)


# ---- what mkdocs calls


def on_config(config: MkDocsConfig) -> MkDocsConfig:
    """Every method below Methods."""
    for section in config.nav or []:
        if "Methods" in section:
            section["Methods"] += [{title(name): f"methods/{name}.md"} for name in methods.names()]
    return config


def on_files(files: Files, config: MkDocsConfig) -> Files:
    for name in methods.names():
        files.append(File.generated(config, f"methods/{name}.md", content=page(name)))
        files.append(File.generated(config, f"methods/{name}.png", content=picture(name)))
        for i, knobs in enumerate(OTHERS.get(name, ())):
            files.append(File.generated(config, f"methods/{name}-{i}.png", content=picture(name, 4, **knobs)))
    files.append(File.generated(config, "methods/index.md", content=overview()))
    files.append(File.generated(config, "fidelity.md", content=fidelity.page()))
    return files


# ---- all methods


def overview() -> str:
    """The table of all recipes."""
    rows = [
        (name if recipe == "default" else f"{name}:{recipe}", name, config)
        for name in methods.names()
        for recipe, config in methods.recipes(methods.module(name)).items()
    ]
    return "\n".join(
        [
            "# Methods",
            "",
            "A method makes a puzzle out of an image, by a rule that knows the answer. A network that is to solve it",
            "has to find out what images are made of; that network, without the part that gives the answer, is kept.",
            "",
            "| recipe | asks | encoder |",
            "|---|---|---|",
            *(
                f"| [`{shown}`]({name}.md) | {methods.asks(config)} | `{config.encoder}` |"
                for shown, name, config in rows
            ),
            "",
            "`pretask list` prints the same. None that you would like? [Write your own in one file](../tutorial.md).",
        ]
    )


# ---- a method's page


def page(name: str) -> str:
    """Markdown: the idea, the puzzle, the commands, the knobs of all recipes, the paper and the cost."""
    module = methods.module(name)
    first, _, rest = inspect.cleandoc(module.__doc__ or "").partition("\n\n")
    idea = first.partition(": ")[2] or first
    recipes = methods.recipes(module)
    asked = "\n".join(f"| `{called(name, recipe)}` | {first_line(c)} |" for recipe, c in recipes.items())
    return "\n\n".join(
        [
            f"# {title(name)}",
            idea[0].upper() + idea[1:],
            f"![Puzzles of {name}, each with its answer]({name}.png)",
            "The puzzles, drawn from the built-in pictures by `pretask preview`.",
            *(other(name, i, knobs) for i, knobs in enumerate(OTHERS.get(name, ()))),
            linked(rest),
            "## Commands",
            commands(name),
            "## Recipes",
            f"| recipe | asks |\n|---|---|\n{asked}",
            "## Knobs",
            "Each is a flag of the command line and a field of the run's `run.json`. A value that a recipe "
            "changes is bold.",
            knobs(name),
            *(["## Fidelity", FIDELITY, told] if (told := fidelity.table(name)) else []),
            f"The source is `pretask/methods/{name}.py`, one file.",
        ]
    )


def other(name: str, number: int, knobs: Mapping[str, Any]) -> str:
    """A picture of puzzles by other knobs, below the flags for them."""
    flags = " ".join(f"{flag(field)} {value}" for field, value in knobs.items())
    return f"With `{flags}`:\n\n![Puzzles of {name} with {flags}]({name}-{number}.png)"


def title(name: str) -> str:
    """The method's name in words: what its docstring's first sentence has before the colon."""
    return (methods.module(name).__doc__ or name).partition(":")[0].strip()


def called(name: str, recipe: str) -> str:
    return name if recipe == "default" else f"{name}:{recipe}"


def first_line(kind: type) -> str:
    return inspect.cleandoc(kind.__doc__ or "").splitlines()[0]


def linked(text: str) -> str:
    """arXiv numbers as links."""
    return re.sub(r"arXiv:(\d{4}\.\d{4,5})", r"[arXiv:\1](https://arxiv.org/abs/\1)", text)


def commands(name: str) -> str:
    needs = methods.recipe(name).needs
    data = next((named for need, named in DATA.items() if need in needs), "photos/")
    return textwrap.dedent(f"""\
        ```sh
        pretask preview {name} --data {data}         # draw its puzzles from your images
        pretask check {name} --data {data}           # does it keep the contract on them?
        pretask pretrain {name} --data {data} --out runs/{name} --budget 10m
        pretask evaluate runs/{name} --data labelled/
        ```""")


def knobs(name: str) -> str:
    """The table of every field, recipes side by side."""
    recipes = methods.recipes(methods.module(name))
    columns = [dict(values(config())) for config in recipes.values()]
    base = columns[0]
    lines = [f"| knob | {' | '.join(recipes)} | what it is |", f"|---|{'---|' * len(recipes)}---|"]
    for flag in base:
        shown = [
            str(column[flag]) if column[flag] == base[flag] else f"**{column[flag]}**" for column in columns
        ]
        lines.append(f"| `{flag}` | {' | '.join(shown)} | {said(flag, recipes)} |")
    return "\n".join(lines)


def said(flag: str, recipes: Mapping[str, type[MethodConfig]]) -> str:
    """The sentence of a knob, and what a recipe says of its own value."""
    of_all = sentences(recipes["default"])[flag]
    own = {recipe: sentences(config)[flag] for recipe, config in recipes.items()}
    return "; ".join([of_all, *(f"*{recipe}*: {text}" for recipe, text in own.items() if text != of_all)])


def values(config: MethodConfig) -> Iterator[tuple[str, Any]]:
    """Flag -> value: the encoder, the method's own knobs, and how it is trained."""
    yield "--encoder", config.encoder
    yield from flags(config)
    yield from flags(config.train)


def flags(knobs: Any) -> Iterator[tuple[str, Any]]:
    """A nested dataclass has its fields among the flags, as on the command line."""
    for field in dataclasses.fields(knobs):
        value = getattr(knobs, field.name)
        if dataclasses.is_dataclass(value):
            yield from flags(value)
        else:
            yield flag(field.name), shown(value)


def flag(name: str) -> str:
    return f"--{name.replace('_', '-')}"


def shown(value: Any) -> str:
    if isinstance(value, tuple):
        return " ".join(map(str, value)) or "none"
    return str(value) or "none"


def sentences(kind: type[MethodConfig]) -> dict[str, str]:
    """Flag -> the sentence under its field, a recipe's own before the one it inherits."""
    told = {"--encoder": "the network that is trained"} | below_fields(TrainConfig)
    for each in reversed(kind.__mro__):
        if issubclass(each, MethodConfig):
            told |= below_fields(each)
    for field in dataclasses.fields(kind):
        if dataclasses.is_dataclass(field.default) and not isinstance(field.default, type):
            for each in filter(dataclasses.is_dataclass, reversed(type(field.default).__mro__)):
                told |= below_fields(each)
    return told


@cache
def below_fields(kind: type) -> dict[str, str]:
    """The strings that stand below the fields of one class, which Python itself does not keep."""
    body = ast.parse(textwrap.dedent(inspect.getsource(kind))).body[0].body  # type: ignore[attr-defined]
    return {
        flag(field.target.id): " ".join(text.value.value.split()).replace("|", "\\|")
        for field, text in pairwise(body)
        if isinstance(field, ast.AnnAssign)
        and isinstance(field.target, ast.Name)
        and isinstance(text, ast.Expr)
        and isinstance(text.value, ast.Constant)
    }


def picture(name: str, rows: int = 8, **knobs: Any) -> bytes:
    """PNG of a method's puzzles, by some knobs of its own."""
    file = BytesIO()
    config = methods.recipe(name)(**knobs)
    selfhelp.preview(selfhelp.made_up(config), config, name, rows).save(file, format="PNG", optimize=True)
    return file.getvalue()

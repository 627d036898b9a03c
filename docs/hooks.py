"""Pages that are generated when the site is built: one per method, an overview, and the page on fidelity.

The folder of the methods is the registry: a new file there gets a page, a picture and an entry in the navigation
without any other edit. A page is generated from the docstring of the module and its Configs.
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
from tempfile import TemporaryDirectory
from typing import Any

from mkdocs.config.defaults import MkDocsConfig
from mkdocs.structure.files import File, Files

from pretask import methods
from pretask.cli.catalog import FAMILIES
from pretask.config import TrainConfig
from pretask.limits import flag
from pretask.methods import MethodConfig
from pretask.workflows import preview

sys.path.append(str(Path(__file__).parent))
import fidelity  # in the same folder

DATA = {"words": "pairs.jsonl", "tracked": "tracks/", "depth": "scenes:rooms+photos/"}
"""what a method needs -> data in the commands of its page; photos/ for all others"""
FLAGS = {"distill": " --teacher timm:vit_small_patch14_dinov2.lvd142m"}
"""what else the commands of a method need"""
VARIANTS: Mapping[str, Sequence[Mapping[str, Any]]] = {
    "mae": (
        {"mask_sampling": "block", "mask_ratio": 0.5},
        {"mask_sampling": "block"},
        {"mask_sampling": "grid"},
    )
}
"""method -> changed hyperparameters whose puzzles its page shows as well"""
FIDELITY = "The values in the paper, in the released code, and in the recipe ([all methods](../fidelity.md))."


# ---- mkdocs hooks


def on_config(config: MkDocsConfig) -> MkDocsConfig:
    """Add every method to the navigation, below Methods."""
    for section in config.nav or []:
        if "Methods" in section:
            section["Methods"] += [
                {family.capitalize(): [{title(name): f"methods/{name}.md"} for name in names]}
                for family, names in families().items()
            ]
    return config


def on_files(files: Files, config: MkDocsConfig) -> Files:
    for name in methods.names():
        files.append(File.generated(config, f"methods/{name}.md", content=page(name)))
        files.append(File.generated(config, f"methods/{name}.png", content=picture(name)))
        for i, changes in enumerate(VARIANTS.get(name, ())):
            png = picture(name, 4, **changes)
            files.append(File.generated(config, f"methods/{name}-{i}.png", content=png))
    files.append(File.generated(config, "methods/index.md", content=overview()))
    files.append(File.generated(config, "fidelity.md", content=fidelity.page()))
    return files


# ---- all methods


def families() -> dict[str, list[str]]:
    """Family -> its methods, in the order of `pretask list`."""
    names = {name: methods.recipe(name).family for name in methods.names()}
    found = {
        family: [name for name in names if names[name] == family] for family in (*FAMILIES, *names.values())
    }
    return {family: of_family for family, of_family in found.items() if of_family}


def overview() -> str:
    """A table of recipes for each family."""
    return "\n".join(
        [
            "# Methods",
            "",
            "A method makes a pretext task from unlabeled images and trains an encoder on it. Only the encoder is kept;",
            "[projectors](../glossary.md#projector), predictors and decoders are dropped. [Which method?](../which-method.md) helps",
            "to choose one; the [glossary](../glossary.md) explains the terms.",
            "",
            *(
                line
                for family, names in families().items()
                for line in (f"## {family.capitalize()}", "", *table(names), "")
            ),
            "`pretask list --recipes` prints the same list. To add a method, [write one file](../tutorial.md).",
        ]
    )


def table(names: Sequence[str]) -> list[str]:
    """Lines of a Markdown table of all recipes of these methods."""
    return [
        "| recipe | pretext task | encoder |",
        "|---|---|---|",
        *(
            f"| [`{spec(name, recipe)}`]({name}.md) | {methods.summary(config)} | `{config.encoder}` |"
            for name in names
            for recipe, config in methods.recipes(methods.module(name)).items()
        ),
    ]


# ---- a method's page


def page(name: str) -> str:
    """Markdown: the idea, puzzles, the paper, commands, recipes, hyperparameters and fidelity."""
    module = methods.module(name)
    first, _, rest = inspect.cleandoc(module.__doc__ or "").partition("\n\n")
    idea = first.partition(": ")[2] or first
    recipes = methods.recipes(module)
    tasks = "\n".join(f"| `{spec(name, recipe)}` | {first_line(c)} |" for recipe, c in recipes.items())
    return "\n\n".join(
        [
            f"# {title(name)}",
            idea[0].upper() + idea[1:],
            f"![Puzzles of {name}, each with its answer]({name}.png)",
            "Puzzles and answers on built-in images, drawn by `pretask preview`.",
            *(variant(name, i, changes) for i, changes in enumerate(VARIANTS.get(name, ()))),
            link_arxiv(rest),
            "## Commands",
            commands(name),
            "## Recipes",
            f"| recipe | pretext task |\n|---|---|\n{tasks}",
            "## Hyperparameters",
            "Each hyperparameter is a flag of the command line and a field of `run.json`. Values that a recipe "
            "changes are bold.",
            hyperparameters(name),
            *(["## Fidelity", FIDELITY, facts] if (facts := fidelity.table(name)) else []),
            f"Source: `pretask/methods/{name}.py`.",
        ]
    )


def variant(name: str, number: int, changes: Mapping[str, Any]) -> str:
    """Section with puzzles for changed hyperparameters and the flags that set them."""
    flags = " ".join(f"{flag(field)} {value}" for field, value in changes.items())
    return f"With `{flags}`:\n\n![Puzzles of {name} with {flags}]({name}-{number}.png)"


def title(name: str) -> str:
    """The method's name in words: its docstring up to the first colon."""
    return (methods.module(name).__doc__ or name).partition(":")[0].strip()


def spec(name: str, recipe: str) -> str:
    return name if recipe == "default" else f"{name}:{recipe}"


def first_line(kind: type) -> str:
    return inspect.cleandoc(kind.__doc__ or "").splitlines()[0]


def link_arxiv(text: str) -> str:
    """`text` with arXiv numbers as links."""
    return re.sub(r"arXiv:(\d{4}\.\d{4,5})", r"[arXiv:\1](https://arxiv.org/abs/\1)", text)


def commands(name: str) -> str:
    needs = methods.recipe(name).needs
    data = next((named for need, named in DATA.items() if need in needs), "photos/") + FLAGS.get(name, "")
    return textwrap.dedent(f"""\
        ```sh
        pretask preview {name} --data {data}         # draw its puzzles from your images
        pretask check {name} --data {data}           # sanity-check the method on them
        pretask pretrain {name} --data {data} --out runs/{name} --budget 10m
        pretask evaluate runs/{name} --data labeled/
        ```""")


def hyperparameters(name: str) -> str:
    """Markdown table of every field, recipes side by side."""
    recipes = methods.recipes(methods.module(name))
    columns = [dict(values(config())) for config in recipes.values()]
    base = columns[0]
    lines = [f"| flag | {' | '.join(recipes)} | meaning |", f"|---|{'---|' * len(recipes)}---|"]
    for name in base:
        shown = [
            str(column[name]) if column[name] == base[name] else f"**{column[name]}**" for column in columns
        ]
        lines.append(f"| `{name}` | {' | '.join(shown)} | {meaning(name, recipes)} |")
    return "\n".join(lines)


def meaning(name: str, recipes: Mapping[str, type[MethodConfig]]) -> str:
    """Description of a flag, followed by the recipes that describe it differently."""
    default = descriptions(recipes["default"])[name]
    own = {recipe: descriptions(config)[name] for recipe, config in recipes.items()}
    return "; ".join([default, *(f"*{recipe}*: {text}" for recipe, text in own.items() if text != default)])


def values(config: MethodConfig) -> Iterator[tuple[str, Any]]:
    """Flag -> value: the encoder, the method's hyperparameters, and those of training."""
    yield "--encoder", config.encoder
    yield from flags(config)
    yield from flags(config.train)


def flags(config: Any) -> Iterator[tuple[str, Any]]:
    """Flag -> value; fields of nested dataclasses are flags, as on the command line."""
    for field in dataclasses.fields(config):
        value = getattr(config, field.name)
        if dataclasses.is_dataclass(value):
            yield from flags(value)
        else:
            yield flag(field.name), shown(value)


def shown(value: Any) -> str:
    if isinstance(value, tuple):
        return " ".join(map(str, value)) or "none"
    return str(value) or "none"


def descriptions(kind: type[MethodConfig]) -> dict[str, str]:
    """Flag -> description of its field; the description of a recipe replaces the inherited one."""
    found = {"--encoder": "the network to train"} | below_fields(TrainConfig)
    for each in reversed(kind.__mro__):
        if issubclass(each, MethodConfig):
            found |= below_fields(each)
    for field in dataclasses.fields(kind):
        if dataclasses.is_dataclass(field.default) and not isinstance(field.default, type):
            for each in filter(dataclasses.is_dataclass, reversed(type(field.default).__mro__)):
                found |= below_fields(each)
    return found


@cache
def below_fields(kind: type) -> dict[str, str]:
    """Flag -> string below the field of one class, parsed from the source, since Python does not keep these strings."""
    body = ast.parse(textwrap.dedent(inspect.getsource(kind))).body[0].body  # type: ignore[attr-defined]
    return {
        flag(field.target.id): " ".join(text.value.value.split()).replace("|", "\\|")
        for field, text in pairwise(body)
        if isinstance(field, ast.AnnAssign)
        and isinstance(field.target, ast.Name)
        and isinstance(text, ast.Expr)
        and isinstance(text.value, ast.Constant)
    }


def picture(name: str, rows: int = 8, **changes: Any) -> bytes:
    """PNG of a method's puzzles, with some hyperparameters changed."""
    file = BytesIO()
    with TemporaryDirectory() as folder:
        config = fidelity.with_teacher(methods.recipe(name)(**changes), Path(folder))
        shown = preview.preview(preview.builtin_images(config), config, name, rows)
    shown.save(file, format="PNG", optimize=True)
    return file.getvalue()

"""Values in papers and released code, compared with what pretask builds: used by the site and by a test.

tests/golden/NAME.json holds {"RECIPE": {"FACT": {"paper": …, "released": …, "source": …, "why": …}}}, never pretask's
own value: that is read from the recipe and from the method that it builds. `why` explains a difference, a `note`
comments on a value that agrees. An entry whose source has not been read has the source "unread" and nothing else.

These FACTs are machine-readable and compared by tests/test_fidelity.py:
    width, views.jitter, train.lr     a field of the recipe, or of a dataclass in it
    encoder                           the network's name
    encoder.parameters                its number of parameters
    encoder.mean, encoder.std         of the input pixels, a number per channel
    schedule                          [fraction of the run, learning rate], …
    schedule.weight_decay             the same for the weight decay
    encoder.layers                    its layers, of KINDS, in order
    head.layers, predictor.layers     the classes of a part's layers, optionally with inputs and outputs
    groups                            [{"of": which parameters, "lr": at the peak, "weight_decay": …}, …]: "all", "matrices",
                                      "vectors" or names with *; a parameter belongs to the first that matches
    init.NAME                         standard deviation of the initial weights of the parameter that "of" names, or their value
                                      if all are equal
Others, such as `loss.scale`, are only shown; if they matter, a test of the method checks them. The same holds for groups,
layers and initial weights that are given in words.
"""

import dataclasses
import json
import math
from collections.abc import Iterator, Mapping, Sequence
from fnmatch import fnmatch
from functools import cache, lru_cache
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import torch
from torch import Tensor, nn

from pretask import encoders, methods
from pretask.config import lr_factor, weight_decay_factor
from pretask.encoders.saved import save_encoder
from pretask.errors import UserError
from pretask.methods import Method, MethodConfig

GOLDEN = Path(__file__).parents[1] / "tests" / "golden"
UNREAD = "unread"
CONTINUING = {
    "train.encoder_lr_scale": 1.0,
    "train.layer_decay": 1.0,
    "train.freeze": 0,
    "train.freeze_norms": False,
    "train.head_first": 0.0,
    "train.lora": 0,
    "train.pull": 0.0,
}
"""values of TrainConfig's fields for continuing from weights that change nothing, and need no source"""
Entry = Mapping[str, Any]

INTRODUCTION = """\
Each `:paper` recipe was compared with its paper and, if available, with the authors' released code, number by
number. A method's page shows every value that was compared; this page lists the differences and their reasons. Where paper and code
disagree, pretask follows the code. Machine-readable values are checked by `tests/test_fidelity.py`."""
SHARED = """\
All `:paper` recipes share the following, which differs from some papers:

- Images are augmented by pretask's own batched operations on the device. They agree with torchvision's; those of OpenCV,
  Caffe, TensorFlow and PIL round and filter differently.
- Crops are resized bilinearly.
- CPUs and GPUs with native bf16 compute in it; `--precision 32-true` turns it off.
- AdamW replaces Adam, so weight decay is decoupled from the gradient.
- Each epoch has a new random order, and an incomplete last batch is dropped.
- Random crops are cut from the square canvas that an image becomes when it is opened, not from the photograph: they do not
  reach beyond its central square, and the smallest ones are magnified by the factors below. If
  photographs are larger than the canvas, as in all datasets but CIFAR, the authors' crops have more detail
  ([what can be done](data.md#crops)):"""
CUT = ("cross_domain", "rotnet")
"""methods whose `crop` is not the area fraction of a resized crop, in their published recipes"""


def golden(name: str) -> dict[str, dict[str, Entry]]:
    """Recipe -> fact -> entry; empty if a method has none yet."""
    path = GOLDEN / f"{name}.json"
    return json.loads(path.read_text()) if path.is_file() else {}


def published(name: str) -> dict[str, type[MethodConfig]]:
    """The recipes of a method that have a source: those named after a paper, or with golden values."""
    found, known = methods.recipes(methods.module(name)), golden(name)
    return {
        recipe: config for recipe, config in found.items() if recipe.startswith("paper") or recipe in known
    }


def fields(config: Any, prefix: str = "") -> Iterator[tuple[str, Any]]:
    """Every field of a recipe with its value; fields of nested dataclasses and of `train` as NAME.FIELD."""
    for field in dataclasses.fields(config):
        value = getattr(config, field.name)
        if dataclasses.is_dataclass(value):
            yield from fields(value, f"{prefix}{field.name}.")
        else:
            yield prefix + field.name, value
    if isinstance(config, MethodConfig):
        yield from fields(config.train, "train.")


def needs_source(fact: str, value: Any) -> bool:
    return fact not in CONTINUING or value != CONTINUING[fact]


def ours(config: MethodConfig, fact: str, entry: Entry) -> Any:
    """The value that is built, or None if the fact is not machine-readable; a schedule is evaluated at their fractions."""
    like = theirs(entry)
    known = dict(fields(config)) | {"encoder": config.encoder}
    if fact in known:
        return known[fact]
    if fact == "encoder.parameters":
        return sum(p.numel() for p in outlined(config).export().parameters())
    if fact in ("encoder.mean", "encoder.std"):
        return getattr(built(config).export(), fact.partition(".")[2]).flatten().tolist()
    if fact == "encoder.layers":
        return [kind(name, layer) for name, layer in leaves(outlined(config).export().net)]
    if fact.endswith(".layers"):
        part = getattr(outlined(config), fact.partition(".")[0])
        layers = [layer for _, layer in leaves(part)]
        return [described(each, like[i] if i < len(like) else "") for i, each in enumerate(layers)]
    if fact == "groups" and isinstance(like, list):
        return groups(outlined(config), config, like)
    if fact.startswith("init.") and "of" in entry:
        first = dict(built(config).named_parameters())[entry["of"]].detach().float()
        return first.std().item() if first.min() < first.max() else first.flatten()[0].item()
    if fact == "schedule":
        return [[f, config.train.lr * lr_factor(config.train, f)] for f, _ in like]
    if fact == "schedule.weight_decay":
        return [[f, config.train.weight_decay * weight_decay_factor(config.train, f)] for f, _ in like]
    return None


IMAGES = {
    "cfn": (3, 255),
    "context_alexnet": (3, 400),
    "exemplar": (3, 32),
    "jule": (1, 28),
    "mlp": (1, 28),
    "scene_alexnet": (3, 227),
}
"""channels and side of a network's images, if not (3, 224)"""


class Photographs:
    """A source with only what a method may read when it is built."""

    name, bad = "photographs", {}

    def __init__(self, config: MethodConfig):
        self.channels, self.size = IMAGES.get(config.encoder.partition(":")[0], (3, 224))
        self.provides = config.needs

    def __len__(self) -> int:
        return 10_000


@lru_cache(maxsize=1)
def built(config: MethodConfig) -> Method[Any]:
    """The untrained method of a recipe; cached, since the facts of one recipe are read in sequence."""
    source: Any = Photographs(config)
    with torch.random.fork_rng(devices=[]), TemporaryDirectory() as folder:
        config = with_teacher(config, Path(folder))
        torch.manual_seed(0)
        return config.build(config.build_encoder(config.spec(), source), source)


@lru_cache(maxsize=1)
def outlined(config: MethodConfig) -> Method[Any]:
    """The method without values of its weights, which takes a hundredth of the time, for what does not depend on them.

    Some methods compute with values when they are built.
    """
    source: Any = Photographs(config)
    try:
        with torch.device("meta"):
            return config.build(config.build_encoder(config.spec(), source), source)
    except (RuntimeError, UserError):
        return built(config)


def with_teacher(config: MethodConfig, folder: Path) -> MethodConfig:
    """The config with a small untrained teacher in `folder`, if it needs one; what is built does not depend on which."""
    if getattr(config, "teacher", None) != "":
        return config
    torch.manual_seed(0)
    save_encoder(encoders.build("resnet_small", 3, 96), folder)
    return dataclasses.replace(config, teacher=str(folder))


KINDS = {
    "Conv2d": "conv",
    "Linear": "fc",
    "ReLU": "relu",
    "MaxPool2d": "pool",
    "AvgPool2d": "mean",
    "LocalResponseNorm": "lrn",
    "BatchNorm1d": "bn",
    "BatchNorm2d": "bn",
    "Dropout": "drop",
    "Sigmoid": "sigmoid",
}
"""class of a layer -> its name in a list of layers; a convolution named fc… is "fc" """


def leaves(net: nn.Module) -> list[tuple[str, nn.Module]]:
    """Layers with their names, in order, without those that only change shape or units."""
    passed = ("Identity", "Flatten", "Scale")
    return [
        (name, layer)
        for name, layer in net.named_modules()
        if not any(layer.children()) and type(layer).__name__ not in passed
    ]


def kind(name: str, layer: nn.Module) -> str:
    known = KINDS.get(type(layer).__name__, type(layer).__name__)
    return "fc" if known == "conv" and name.startswith("fc") else known


def described(layer: nn.Module, like: str) -> str:
    """A layer's class, with as many details as `like` has."""
    words = [type(layer).__name__]
    if isinstance(layer, nn.Linear) and any(map(str.isdigit, like.partition(" ")[2])):
        words += [str(layer.in_features), str(layer.out_features)]
    if isinstance(layer, nn.Linear) and layer.bias is None and " " in like:
        words.append("without bias")
    if isinstance(layer, nn.BatchNorm1d) and not layer.affine and " " in like:
        words.append("without gain")
    return " ".join(words)


def groups(
    method: Method[Any], config: MethodConfig, like: Sequence[Mapping[str, Any]]
) -> list[dict[str, Any]]:
    """Optimizer settings of the parameters in each group of `like`, and of those in none."""
    found: dict[str, list[dict[str, Any]]] = {each["of"]: [] for each in like}
    requested = {each["of"]: [key for key in each if key != "of"] for each in like}
    name_of = {id(p): name for name, p in method.named_parameters()}
    for optimizer in method.optimizers(config.train):
        for group in optimizer.param_groups:
            for p in group["params"]:
                of = next((of for of in found if belongs(name_of[id(p)], p, of)), name_of[id(p)])
                values = {key: group.get(key) for key in requested.get(of, ("lr", "weight_decay"))}
                if values not in found.setdefault(of, []):
                    found[of].append(values)
    return [{"of": of} | values for of, each in found.items() for values in each]


def belongs(name: str, p: Tensor, of: str) -> bool:
    kinds = {"all": True, "matrices": p.ndim > 1, "vectors": p.ndim <= 1}
    return kinds.get(of, fnmatch(name, of))


def read(entry: Entry) -> bool:
    return entry["source"] != UNREAD


def theirs(entry: Entry) -> Any:
    """The released value or, where there is none, the paper's."""
    return entry["released"] if "released" in entry else entry["paper"]


def agrees(one: Any, other: Any, slack: float = 1e-3) -> bool:
    """Whether two values are equal, numbers up to a relative error of `slack`."""
    if isinstance(one, dict) and isinstance(other, dict):
        return one.keys() == other.keys() and all(agrees(one[key], other[key], slack) for key in one)
    if isinstance(one, list | tuple) and isinstance(other, list | tuple):
        return len(one) == len(other) and all(agrees(a, b, slack) for a, b in zip(one, other, strict=True))
    if isinstance(one, bool) or isinstance(other, bool) or not isinstance(one, int | float):
        return one == other
    return isinstance(other, int | float) and abs(one - other) <= slack * max(abs(one), abs(other))


@dataclasses.dataclass(frozen=True)
class Line:
    """One fact of one recipe."""

    recipe: str
    fact: str
    entry: Entry
    ours: Any
    slack: float = 1e-3
    """allowed relative error of numbers"""

    @property
    def compared(self) -> bool:
        return read(self.entry) and self.ours is not None

    @property
    def same(self) -> bool:
        return agrees(self.ours, theirs(self.entry), self.slack) if self.compared else "why" not in self.entry


def lines(name: str) -> list[Line]:
    """All facts of a method, in the order of its file."""
    return [
        Line(
            recipe,
            fact,
            entry,
            ours(config(), fact, entry) if read(entry) else None,
            4 / math.sqrt(2 * drawn(config(), entry)) if "of" in entry else 1e-3,
        )
        for recipe, config in published(name).items()
        for fact, entry in golden(name).get(recipe, {}).items()
    ]


def drawn(config: MethodConfig, entry: Entry) -> int:
    """Number n of initial weights that an entry describes; the relative error of their standard deviation is about 1/√(2n)."""
    return dict(outlined(config).named_parameters())[entry["of"]].numel()


@cache
def known(name: str) -> list[Line]:
    """`lines`, cached for the pages."""
    return lines(name)


def magnified(config: MethodConfig) -> dict[str, float]:
    """Magnification of a recipe's smallest random crop: "crops", and "small crops" of multi-crop methods."""
    known = dict(fields(config))
    least = known.get("views.crop", (known.get("crop", 1.0),))[0]
    found = {"crops": known.get("side", 1.0) / math.sqrt(least)} if least < 1 else {}
    if known.get("local_crops"):
        found["small crops"] = known["local_size"] / math.sqrt(known["local_scale"][0])
    return found


# ---- pages


def table(name: str) -> str:
    """Section of a method's page: every fact that was read, and the number of those that were not."""
    found = known(name)
    rows = [
        [
            place(line, name),
            shown(line.entry.get("paper")),
            shown(line.entry.get("released")),
            mine(line),
            line.entry["source"],
        ]
        for line in found
        if read(line.entry)
    ]
    unread = sum(not read(line.entry) for line in found)
    rest = f"\n\n{unread} more fields have not been compared." if unread else ""
    return markdown(["", "paper", "released code", "pretask", "source"], rows) + rest if rows else ""


def page() -> str:
    """Page with all differences of all methods."""
    parts = ["# Fidelity", INTRODUCTION, "## What all recipes share", SHARED, crops()]
    for name in methods.names():
        compared = [line for line in known(name) if read(line.entry)]
        differs = [line for line in compared if not line.same]
        if not compared:
            continue
        unread = len(known(name)) - len(compared)
        parts.append(
            f"## {name}\n\n{len(compared)} values compared, {sum(line.compared for line in compared)} of them by a test; "
            f"{len(differs)} differ; {unread} fields not compared. [All values](methods/{name}.md#fidelity)"
        )
        rows = [[place(line, name), shown(theirs(line.entry)), mine(line)] for line in differs]
        parts.append(markdown(["", "paper or code", "pretask"], rows) if rows else "")
    return "\n\n".join(part for part in parts if part) + "\n"


def crops() -> str:
    """Table of the magnification of the smallest crops of every published recipe."""
    found = {
        name if recipe == "paper" else f"{name}:{recipe}": magnified(config())
        for name in methods.names()
        if name not in CUT
        for recipe, config in published(name).items()
    }
    kinds = ("crops", "small crops")
    rows = [
        [name, *(f"{of[kind]:.1f}" if kind in of else "" for kind in kinds)]
        for name, of in found.items()
        if of
    ]
    return markdown(["", *kinds], rows)


def mine(line: Line) -> str:
    """The value that is built, if it differs, and the reason."""
    value = shown(line.ours) if line.compared and not line.same else "" if not line.same else "same"
    return "; ".join(part for part in (value, line.entry.get("why"), line.entry.get("note")) if part)


def place(line: Line, name: str) -> str:
    return f"{line.recipe}: `{line.fact}`" if len(published(name)) > 1 else f"`{line.fact}`"


def shown(value: Any) -> str:
    match value:
        case None:
            return ""
        case float():
            return f"{value:.5g}"
        case list() | tuple():
            return (
                ", ".join(f"({shown(v)})" if isinstance(v, list | tuple | dict) else shown(v) for v in value)
                or "none"
            )
        case dict():
            return ", ".join(f"{key}: {shown(v)}" for key, v in value.items())
    return str(value)


def markdown(head: list[str], rows: list[list[str]]) -> str:
    escaped = [[cell.replace("|", "\\|") for cell in row] for row in rows]
    return "\n".join(f"| {' | '.join(row)} |" for row in [head, ["---"] * len(head), *escaped])

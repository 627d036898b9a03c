"""What papers and released code say of each recipe, beside what pretask builds: read by the site and by a test.

tests/golden/NAME.json holds {"RECIPE": {"FACT": {"paper": …, "released": …, "source": …, "why": …}}}, never a value of
pretask's own: that is read from the recipe and from the method that it builds. `why` stands where it differs, a `note`
where it does not. An entry whose source nobody has read has the source "unread" and says nothing else.

A FACT that a program can read here is compared, by tests/test_fidelity.py:
    width, views.jitter, train.lr     a field of the recipe, or of a dataclass in it
    encoder                           the network's name
    encoder.parameters                how many numbers it has
    encoder.mean, encoder.std         of the pixels that it is given, a number for each channel
    schedule                          [fraction of the run, learning rate], …
    schedule.weight_decay             the same of the weight decay
    encoder.layers                    what its layers are, of KINDS, in order
    head.layers, predictor.layers     the classes of a part's layers, with inputs and outputs if wanted
    groups                            [{"of": which parameters, "lr": at the peak, "weight_decay": …}, …]: "all", "matrices",
                                      "vectors" or names with *, each parameter by the first that fits
    init.NAME                         standard deviation of the first weights of the parameter that "of" names, or their value
                                      if all are one
Others, such as `loss.scale`, are for people; where they matter, a test of the method has them. So are groups, layers and
first weights that are given in words.
"""

import dataclasses
import json
import math
from collections.abc import Iterator, Mapping, Sequence
from fnmatch import fnmatch
from functools import cache, lru_cache
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from pretask import methods
from pretask.config import decay, schedule
from pretask.methods import Method, MethodConfig

GOLDEN = Path(__file__).parents[1] / "tests" / "golden"
UNREAD = "unread"
Entry = Mapping[str, Any]

INTRODUCTION = """\
Each `:paper` recipe was held against its paper and, where it was found, against the authors' released code, number by
number. A method's page shows all that was read; here is what differs, and why. Where paper and code disagree, pretask
follows the code. Facts that a program can read are compared by `tests/test_fidelity.py`."""
SHARED = """\
All `:paper` recipes share this, whatever was used for their papers:

- Images are augmented by pretask's own batched operations on the device. They agree with torchvision's; those of OpenCV,
  Caffe, TensorFlow and PIL round and filter otherwise.
- Crops are resized bilinearly.
- Processors and GPUs with bf16 compute in it; `--precision 32` does not.
- AdamW stands for Adam, so that weight decay is no part of the gradient.
- Images come in a new random order in each pass, and a last, short batch is left out.
- Random crops are cut from the square canvas that an image becomes when it is opened, not from the photograph: they do not
  reach what lies beside its central square, and are magnified, the smallest ones this many times in either direction. Where
  photographs are larger than the canvas, which is all but CIFAR's, the authors' crops are sharper
  ([what can be done](data.md#crops)):"""
CUT = ("cross_domain", "rotnet")
"""methods whose `crop` is no share of the area that is scaled to another size, in their published recipes"""


def golden(name: str) -> dict[str, dict[str, Entry]]:
    """Recipe -> fact -> entry; nothing where a method has none yet."""
    path = GOLDEN / f"{name}.json"
    return json.loads(path.read_text()) if path.is_file() else {}


def published(name: str) -> dict[str, type[MethodConfig]]:
    """The recipes of a method that are somebody's: those that are called after a paper, or have golden values."""
    found, known = methods.recipes(methods.module(name)), golden(name)
    return {
        recipe: config for recipe, config in found.items() if recipe.startswith("paper") or recipe in known
    }


def fields(config: Any, prefix: str = "") -> Iterator[tuple[str, Any]]:
    """Every field of a recipe with its value; those of a dataclass in it, and of `train`, as NAME.FIELD."""
    for field in dataclasses.fields(config):
        value = getattr(config, field.name)
        if dataclasses.is_dataclass(value):
            yield from fields(value, f"{prefix}{field.name}.")
        else:
            yield prefix + field.name, value
    if isinstance(config, MethodConfig):
        yield from fields(config.train, "train.")


def ours(config: MethodConfig, fact: str, entry: Entry) -> Any:
    """What is built, or None of a fact that no program reads; a schedule is asked at their fractions."""
    like = theirs(entry)
    known = dict(fields(config)) | {"encoder": config.encoder}
    if fact in known:
        return known[fact]
    if fact == "encoder.parameters":
        return sum(p.numel() for p in built(config).export().parameters())
    if fact in ("encoder.mean", "encoder.std"):
        return getattr(built(config).export(), fact.partition(".")[2]).flatten().tolist()
    if fact == "encoder.layers":
        return [kind(name, layer) for name, layer in leaves(built(config).export().net)]
    if fact.endswith(".layers"):
        part = getattr(built(config), fact.partition(".")[0])
        layers = [layer for _, layer in leaves(part)]
        return [described(each, like[i] if i < len(like) else "") for i, each in enumerate(layers)]
    if fact == "groups" and isinstance(like, list):
        return groups(built(config), config, like)
    if fact.startswith("init.") and "of" in entry:
        first = dict(built(config).named_parameters())[entry["of"]].detach().float()
        return first.std().item() if first.unique().numel() > 1 else first.flatten()[0].item()
    if fact == "schedule":
        return [[f, config.train.lr * schedule(config.train, f)] for f, _ in like]
    if fact == "schedule.weight_decay":
        return [[f, config.train.weight_decay * decay(config.train, f)] for f, _ in like]
    return None


IMAGES = {
    "cfn": (3, 255),
    "context_alexnet": (3, 400),
    "exemplar": (3, 32),
    "jule": (1, 28),
    "mlp": (1, 28),
    "scene_alexnet": (3, 227),
}
"""channels and pixels of the images that a network is built for, if not (3, 224)"""


class Photographs:
    """A source that tells no more than a method may ask for when it is built."""

    name, bad = "photographs", {}

    def __init__(self, config: MethodConfig):
        self.channels, self.size = IMAGES.get(config.encoder.partition(":")[0], (3, 224))
        self.provides = config.needs

    def __len__(self) -> int:
        return 10_000


@lru_cache(maxsize=1)
def built(config: MethodConfig) -> Method[Any]:
    """The method of a recipe, untrained; the facts of one recipe are asked one after the other."""
    source: Any = Photographs(config)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        return config.build(config.draw(config.spec(), source), source)


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
"""class of a layer -> as it is called in a list of layers; a convolution in the place of a wide layer is "fc" """


def leaves(net: nn.Module) -> list[tuple[str, nn.Module]]:
    """Layers with their names, in order, but for those that only change shape or units."""
    passed = ("Identity", "Flatten", "Times")
    return [
        (name, layer)
        for name, layer in net.named_modules()
        if not any(layer.children()) and type(layer).__name__ not in passed
    ]


def kind(name: str, layer: nn.Module) -> str:
    known = KINDS.get(type(layer).__name__, type(layer).__name__)
    return "fc" if known == "conv" and name.startswith("fc") else known


def described(layer: nn.Module, like: str) -> str:
    """A layer's class, with as much beside it as `like` has."""
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
    """What the optimizers have for the parameters that each group of `like` is of, and for those that no group is of."""
    found: dict[str, list[dict[str, Any]]] = {each["of"]: [] for each in like}
    asked = {each["of"]: [key for key in each if key != "of"] for each in like}
    name_of = {id(p): name for name, p in method.named_parameters()}
    for optimizer in method.optimizers(config.train):
        for group in optimizer.param_groups:
            for p in group["params"]:
                of = next((of for of in found if belongs(name_of[id(p)], p, of)), name_of[id(p)])
                values = {key: group.get(key) for key in asked.get(of, ("lr", "weight_decay"))}
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
    """Equal, numbers to a thousandth, or so."""
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
    """by which numbers may differ, as a share of them"""

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
    """How many first weights an entry is of: so many tell their deviation to about 1 in √2n."""
    return dict(built(config).named_parameters())[entry["of"]].numel()


@cache
def known(name: str) -> list[Line]:
    """The same, remembered for the pages."""
    return lines(name)


def magnified(config: MethodConfig) -> dict[str, float]:
    """How often the smallest random crop of a recipe is as wide when it is drawn: "crops", and "small crops" beside them."""
    known = dict(fields(config))
    least = known.get("views.crop", (known.get("crop", 1.0),))[0]
    found = {"crops": known.get("side", 1.0) / math.sqrt(least)} if least < 1 else {}
    if known.get("small"):
        found["small crops"] = known["small_side"] / math.sqrt(known["small_crop"][0])
    return found


# ---- pages


def table(name: str) -> str:
    """Of a method's page: every fact that was read, and how many were not."""
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
    said = f"\n\n{unread} more fields were held against nothing." if unread else ""
    return markdown(["", "paper", "released code", "pretask", "read in"], rows) + said if rows else ""


def page() -> str:
    """All differences of all methods."""
    parts = ["# Fidelity", INTRODUCTION, "## What all recipes share", SHARED, crops()]
    for name in methods.names():
        told = [line for line in known(name) if read(line.entry)]
        differs = [line for line in told if not line.same]
        if not told:
            continue
        unread = len(known(name)) - len(told)
        parts.append(
            f"## {name}\n\n{len(told)} facts read, {sum(line.compared for line in told)} of them compared by a test; "
            f"{len(differs)} differ; {unread} fields unread. [All of them](methods/{name}.md#fidelity)"
        )
        rows = [[place(line, name), shown(theirs(line.entry)), mine(line)] for line in differs]
        parts.append(markdown(["", "theirs", "pretask"], rows) if rows else "")
    return "\n\n".join(part for part in parts if part) + "\n"


def crops() -> str:
    """How much the smallest crops of every published recipe are magnified."""
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
    """What is built where it differs or can be shown, and why it differs."""
    value = shown(line.ours) if line.compared and not line.same else "" if not line.same else "as theirs"
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
    said = [[cell.replace("|", "\\|") for cell in row] for row in rows]
    return "\n".join(f"| {' | '.join(row)} |" for row in [head, ["---"] * len(head), *said])

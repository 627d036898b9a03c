"""What a short run of a method shows, on images, with an encoder and for a length that never change.

The method has its own constants and recipe; only the length is fixed. All is computed in float32 on the CPU, in less than half a
minute, so that a run on another machine shows the same up to the seed.
"""

import tempfile
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from pretask import data as sources
from pretask import encoders, methods
from pretask.config import TrainConfig
from pretask.data import loader
from pretask.data.subset import LabeledSubset, Subset
from pretask.encoders.saved import save_encoder
from pretask.evals import knn, label_free, linear_probe
from pretask.methods import Method, MethodConfig
from pretask.runtime import distributed
from pretask.train import requirements
from pretask.train.logger import RunLogger
from pretask.train.monitor import frozen
from pretask.train.pacing import Pace
from pretask.train.plan import Plan
from pretask.train.trainer import Trainer
from pretask.types import Source, UserError

POINTS = 20
"""points of a curve, each the mean of a twentieth of the run"""
SIDES = (32, 48, 64, 96, 128)
"""image sides, of which a method gets the smallest that its puzzle fits into"""
NEIGHBORS, PENALTY = 20, 0.01
"""k of the kNN score and penalty of the linear probe; nothing is chosen, since the scores are only compared with each other"""
PROBED = 256
"""images of the puzzles whose gradient is measured before the first step"""
ENCODERS = {
    "mlp": "mlp:width=128",
    "jule": "jule",
    "vit": "vit_tiny_patch16_224:patch_size=8,embed_dim=96,depth=3,num_heads=3,global_pool=avg,fc_norm=False,dynamic_img_size=True",
    "": "resnet_small:width=16",
}
"""beginning of a recipe's encoder -> the encoder that stands for it here"""
DRAWINGS, SCENES = ("demo", 1500), ("synthetic", 900)
"""images for methods that need only images and texts, and for those that need tracks or scenes; the number to train on"""
TEACHER = "resnet_small:width=8"
"""an untrained network, for methods that learn from a teacher"""
NEAR, SCORED = 500, 500
"""labeled images that the features of others are compared with, and those others"""


@dataclass(frozen=True)
class Setup:
    """What a method is trained on, and how."""

    data: str
    size: int
    encoder: str
    steps: int


@dataclass(frozen=True)
class Recording:
    """What one run showed."""

    loss: tuple[float, ...]
    accuracy: tuple[float, ...]
    """of the pretext task, %; empty if the method has none"""
    gradient: float
    """norm of the loss's gradient before the first step"""
    spread: float
    """standard deviation of unit-length features times √D: 1 if they are spread evenly, 0 if they are equal"""
    knn: float
    linear: float
    """accuracy of the pooled features, %"""
    moved: Mapping[str, float]
    """relative change over the run of what the method remembers between steps, such as a teacher or a queue, by its name: from 0 to 1"""


def setup(config: MethodConfig, steps: int) -> Setup:
    """The smallest images on which the method works, and the encoder of its kind."""
    data, _ = DRAWINGS if config.needs <= {"words"} else SCENES
    kind = next(kind for kind in ENCODERS if config.encoder.startswith(kind))
    spec = config.spec(ENCODERS[kind])
    for size in SIDES:
        source, *_ = opened(data, size)
        try:
            requirements.check(config, config.build_encoder(spec, source), source, config.train.batch)
        except UserError:
            continue
        return Setup(data, size, ENCODERS[kind], steps)
    raise UserError(f"{type(config).__module__} fits no images of {SIDES[-1]} px or less")


@cache
def opened(data: str, size: int) -> tuple[Source, LabeledSubset, LabeledSubset]:
    """Images to train on, labeled images among them, and labeled images to score."""
    name, count = next(pair for pair in (DRAWINGS, SCENES) if pair[0] == data)
    if name == "demo":
        train, test = sources.open_labeled("demo", size=size), sources.open_labeled("demo:test", size=size)
        first = 0
    else:
        train = test = sources.open_labeled(f"{name}:{count + SCORED}", size=size)
        first = count
    near = LabeledSubset(train, torch.arange(NEAR), "training images")
    scored = LabeledSubset(test, torch.arange(first, first + SCORED), "other images")
    return Subset(train.images, torch.arange(count)), near, scored


@contextmanager
def constants(method: str) -> Iterator[MethodConfig]:
    """The default recipe of a method; `distill` learns from a small untrained network, which exists within the block."""
    recipe = methods.recipe(method)
    if "teacher" not in recipe.__dataclass_fields__:
        yield recipe()
        return
    with tempfile.TemporaryDirectory() as folder:
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(0)
            save_encoder(encoders.build(TEACHER, 3, SIDES[0]), Path(folder))
        fields: dict[str, Any] = {"teacher": folder}
        yield recipe(**fields)


def record(
    config: MethodConfig,
    setup: Setup,
    seed: int,
    on_step: Callable[[int, int], None] = lambda *_: None,
    train: TrainConfig | None = None,
) -> Recording:
    """Train once, by the config's recipe or `train`, and score the frozen encoder. `on_step` gets the number of finished steps and
    of all."""
    from pretask.runtime.lightning import Fabric

    source, near, scored = opened(setup.data, setup.size)
    train = train or config.train
    torch.manual_seed(seed)
    method = config.build(config.build_encoder(config.spec(setup.encoder), source), source)
    rows: list[Mapping[str, Any]] = []

    def on_log(row: Mapping[str, Any]) -> None:
        rows.append(row)
        on_step(len(rows), setup.steps)

    with tempfile.TemporaryDirectory() as folder:
        trainer = Trainer(
            Fabric(accelerator="cpu", devices=1, precision="32-true"),
            method,
            source,
            train,
            Path(folder),
            seed,
            1,
        )
        plan = Plan.of(setup.steps, trainer.per_pass, train.cycles)
        trainer.begin()
        trainer.prepare(plan.at(0), Pace())
        gradient, before = gradient_norm(method, source, seed), remembered(method)
        trainer.fit(plan, RunLogger(Path(folder), train.batch, True, None, on_log))
    encoder = method.export()
    return Recording(
        means([row["loss"] for row in rows]),
        means([100 * row["accuracy"] for row in rows if "accuracy" in row]),
        gradient,
        *score(encoder, near, scored),
        changes(before, remembered(method)),
    )


def means(values: Sequence[float]) -> tuple[float, ...]:
    """The means of POINTS parts of equal length."""
    if not values:
        return ()
    return tuple(part.mean().item() for part in torch.tensor(values, dtype=torch.double).tensor_split(POINTS))


def gradient_norm(method: Method[Any], source: Source, seed: int) -> float:
    """Norm of the gradient of the loss on some puzzles; neither parameters nor buffers change."""
    puzzle = method.puzzle(loader.sample(source, PROBED), seed, "gradient")
    trained = [p for p in method.parameters() if p.requires_grad]
    with frozen(method), distributed.local_only():
        found = torch.autograd.grad(method.loss(puzzle).total, trained, allow_unused=True)
    return torch.stack([g.norm() for g in found if g is not None]).norm().item()


def remembered(method: Method[Any]) -> dict[str, Tensor]:
    """(M,) for each attribute of the method that holds saved numbers which no gradient trains: a teacher's weights, queues, centers."""
    trained = {name for name, p in method.named_parameters() if p.requires_grad}
    found: dict[str, list[Tensor]] = {}
    for name, x in method.state_dict().items():
        if (
            name not in trained and x.is_floating_point() and "running_" not in name
        ):  # statistics of batch norms
            found.setdefault(name.partition(".")[0], []).append(x.flatten().double().clone())
    return {name: torch.cat(parts) for name, parts in found.items()}


def changes(before: Mapping[str, Tensor], after: Mapping[str, Tensor]) -> dict[str, float]:
    """|b - a| / (|a| + |b|) of each; 0 if both are 0."""
    return {
        name: ((after[name] - x).norm() / (x.norm() + after[name].norm()).clamp(min=1e-12)).item()
        for name, x in sorted(before.items())
    }


def score(
    encoder: encoders.Encoder, near: LabeledSubset, scored: LabeledSubset
) -> tuple[float, float, float]:
    """Spread, kNN and linear accuracy of the pooled features."""
    (x, label), (y, truth) = (
        (encoders.pooled(encoder, loader.sample(some, len(some)).image), some.label)
        for some in (near, scored)
    )
    classes = len(near.classes)
    by_neighbors = knn.knn(x, label, y, classes, NEIGHBORS)
    linearly = linear_probe.fit(x, label, classes, PENALTY).predict(y)
    by_knn, by_probe = (100 * (found == truth).float().mean().item() for found in (by_neighbors, linearly))
    return label_free.std(y) * y.shape[1] ** 0.5, by_knn, by_probe

"""Transfer of encoders to a downstream task with annotations, with the same baselines for every task.

A task is a subclass of `Task` in its own module; `pretask.tasks.TASKS` lists them. Every score comes with its values
on resampled test sets, the same sets for every row, so that differences are paired by image.
"""

import time
from abc import ABC, abstractmethod
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from types import MappingProxyType
from typing import Any, ClassVar, Generic, Protocol, Self, TypeVar

import numpy as np
import torch
from torch import Tensor, nn

from pretask.data import LabeledDataset
from pretask.data.base import Images, OpenOptions
from pretask.data.ledger import Ledger
from pretask.encoders import Encoder
from pretask.evals import baselines
from pretask.evals.confidence import LEVEL, RESAMPLES, bootstrap_counts, bootstrap_interval
from pretask.evals.forecast import Work, announce, seconds_per_step
from pretask.evals.protocol import TEST_FRACTION
from pretask.evals.scores import Difference, Role, Row, Scores
from pretask.transforms.ranges import Range
from pretask.types import UserError

INTERVAL = (
    f"{LEVEL:.0%}, Student's t with the variance of a bootstrap over test images ({RESAMPLES} resamples, the same for "
    "every row); for several runs the variance over runs is added"
)


@dataclass(frozen=True)
class Plan:
    """Options of a transfer."""

    steps: int | None = None
    """number of training steps on the task; None: the task's default"""
    size: int | None = None
    """side of the images in pixels; None: the task's default"""
    seed: int = 0
    """seed of splits, folds and resampled test sets: the same for every row"""
    run: int = 0
    """seed of the run, for a head's initialization or the order of images"""
    device: torch.device | str = "cpu"
    progress: bool = True
    finetune: bool = False
    """whether a task that freezes the encoder by default trains it"""


@dataclass(frozen=True)
class TaskScore:
    """One number for one encoder."""

    metric: str
    value: float  # %, unless the metric's description names another unit
    bootstrap: np.ndarray | None = None  # (RESAMPLES,) values on resampled test sets; None: no interval
    notes: Mapping[str, Any] = field(default_factory=dict)


@dataclass(frozen=True)
class TaskResult:
    """The scores of one encoder on a task."""

    scores: Sequence[TaskScore]
    skipped: Sequence[str] = ()
    """sentences on what was left out"""
    pictures: Sequence[Mapping[str, Tensor]] = ()
    """for a few test images: name -> (3, H, W) uint8, such as ground truth and prediction"""


class Data(Protocol):
    """Images with annotations."""

    @property
    def name(self) -> str: ...

    @property
    def range(self) -> Range: ...

    @property
    def ledgers(self) -> Mapping[str, Ledger]:
        """Ledgers of what was used and left out: of images, and of their annotations."""
        ...

    def __len__(self) -> int: ...
    def subset(self, index: Tensor, name: str) -> Self: ...

    def order(self, seed: int) -> Tensor | None:
        """(N,) positions; the first fifth of them is set aside if no test set is given. None: if the task is given the same
        images for training and testing, it sets aside each fifth in turn."""
        ...


D = TypeVar("D", bound=Data)


class Task(ABC, Generic[D]):
    """A downstream task on one type of data."""

    name: ClassVar[str]
    """name on the command line"""
    metrics: ClassVar[Mapping[str, str]]
    """metric -> description in one sentence; the first is the main metric"""
    protocol: ClassVar[str]
    """description of the transfer in one sentence"""
    can_finetune: ClassVar[bool] = False
    """whether the encoder is frozen by default and can be trained on request (`Plan.finetune`)"""
    steps: ClassVar[int] = 0
    """default number of training steps; 0 if the task trains no network"""

    @abstractmethod
    def load(self, spec: str, options: OpenOptions) -> D:
        """The data of the task, with a complete `range` of its pixel values."""

    def align_classes(self, train: D, test: D) -> tuple[D, D]:
        """Both sets with the same class numbers."""
        return train, test

    @abstractmethod
    def check(self, encoder: Encoder, plan: Plan) -> None:
        """Raise UserError if the encoder, the size or a missing package makes the task impossible."""

    def classes(self, train: D) -> list[str]:
        """Names of the classes; empty if there are none."""
        return []

    def image_labels(self, train: D, encoder: Encoder, plan: Plan) -> tuple[Images, Tensor] | None:
        """For the supervised row: images, and (N, K) 1 for a class in the image, 0 for others, -1 to ignore a class.

        None for a task without classes: the supervised encoder is then trained on the task itself.
        """
        return None

    @abstractmethod
    def evaluate(self, encoder: Encoder, train: D, test: D, plan: Plan) -> TaskResult:
        """Transfer a copy of the encoder to the task and score it on the test images."""

    def folds(self, train: D, test: D) -> Iterator[tuple[D, D]]:
        """Training and test data of each network that `evaluate` trains."""
        yield train, test

    def train_network(self, encoder: Encoder, train: D, plan: Plan) -> nn.Module | None:
        """A network on a copy of the encoder, trained as in `evaluate`; None if the task trains no network."""
        return None

    def floor(self, train: D, test: D, plan: Plan) -> tuple[str, TaskResult] | None:
        """Name and scores of constant or random predictions; None if they are of no use."""
        return None


def transfer(
    task: Task[D],
    encoders: Sequence[Encoder],
    train: D,
    test: D | None = None,
    *,
    name: str,
    seeds: Sequence[int],
    untrained: Sequence[Encoder],
    role: Role = "run",
    published: Mapping[str, Encoder] = MappingProxyType({}),
    plan: Plan,
    supervised_steps: int | None = None,
) -> tuple[Scores, TaskResult]:
    """The scores of all rows, and the result of the first run.

    `encoders` are those of runs that differ only in their seed, and `untrained` are the same at the start of their runs;
    `published` are encoders that they started or learned from, by the names of their rows.
    Without `test`, a fifth of the images is set aside, or each fifth in turn.
    """
    train, test = split_off_test(train, plan.seed) if test is None else (train, test)
    train, test = task.align_classes(train, test)
    task_title = title(task, plan)
    first = encoders[0].name
    image_labels = None if supervised_steps is None else task.image_labels(train, encoders[0], plan)
    labeled = None if image_labels is None else labeled_images(*image_labels)
    trained_rows = (
        2 + len(published) if plan.finetune or not task.can_finetune else 0
    )  # rows of networks trained on the task
    trained_rows += supervised_steps is not None and (trained_rows > 0 or labeled is None)
    announce(training_work(task, encoders, train, test, plan, trained_rows, labeled, supervised_steps))

    def rows() -> Iterator[tuple[str, Role, Iterator[Encoder], bool]]:
        """Name, role and encoders of each row, and whether the encoders are fine-tuned on the task."""
        yield name, role, iter(encoders), plan.finetune
        for title, net in published.items():
            yield title, "published", iter([net]), plan.finetune
        yield f"untrained {first}", "untrained", iter(untrained), plan.finetune
        if supervised_steps is None:
            return
        if labeled is None:
            yield f"supervised {first}", "supervised", iter(untrained), True
        else:
            supervised = (
                baselines.supervised(e, labeled, supervised_steps, s, plan.device, plan.progress)
                for e, s in zip(encoders, seeds, strict=True)
            )
            yield f"supervised {first}", "supervised", supervised, plan.finetune

    results: dict[str, list[TaskResult]] = {}
    roles: dict[str, Role] = {}
    seconds: dict[str, float] = {}
    for row, role, nets, finetune in rows():
        began = time.perf_counter()
        plans = [replace(plan, run=s, finetune=finetune) for s in seeds]
        roles[row] = role
        results[row] = [
            task.evaluate(net, train, test, p) for net, p in zip(nets, plans, strict=False)
        ]  # published: one
        seconds[row] = round(time.perf_counter() - began, 1)
    if (floor := task.floor(train, test, plan)) is not None:
        roles[floor[0]] = "floor"
        results[floor[0]] = [floor[1]]
    data = {"task": task_title, "train": train.name, "n_train": len(train), "test": test.name}
    scored: list[Row] = []
    differences: list[Difference] = []
    for row, runs in results.items():
        about = {"name": row, "role": roles[row], "task": task_title, "data": test.name}
        scored += combine_runs(runs, len(test), **about, seeds=[*seeds][: len(runs)])
        if row != name:
            about = {"name": name, "minus": row, "minus_role": roles[row]}
            differences += paired_differences(results[name], runs, len(test), **about)
    scores = Scores(
        data | {"n_test": len(test), "classes": task.classes(train)},
        scored,
        differences,
        [*results[name][0].skipped],
        seconds,
        {task_title: task.protocol, **task.metrics, "interval": INTERVAL},
    )
    return scores, results[name][0]


def title(task: Task[D], plan: Plan) -> str:
    """Display name of the task."""
    return f"fine-tuned {task.name}" if plan.finetune else task.name


def labeled_images(images: Images, label: Tensor) -> LabeledDataset:
    """Images with multi-label classes (N, K)."""
    return LabeledDataset(images, label, [str(k) for k in range(label.shape[1])])


def training_work(
    task: Task[D],
    encoders: Sequence[Encoder],
    train: D,
    test: D,
    plan: Plan,
    trained_rows: int,
    labeled: LabeledDataset | None,
    supervised_steps: int | None,
) -> Iterator[Work]:
    """The networks to train, with times estimated from a few timed steps: `trained_rows` rows of networks on the task, and
    supervised ones on `labeled` images."""
    first, quiet = encoders[0], replace(plan, progress=False, finetune=True)
    if trained_rows and task.steps:
        folds = len(list(task.folds(train, test)))
        per_step = seconds_per_step(
            lambda steps: task.train_network(first, train, replace(quiet, steps=steps))
        )
        yield Work(
            f"networks for {title(task, plan)}",
            trained_rows * len(encoders) * folds,
            (plan.steps or task.steps) * per_step,
        )
    if labeled is not None and supervised_steps is not None:
        per_step = seconds_per_step(
            lambda steps: baselines.supervised(first, labeled, steps, 0, plan.device, False)
        )
        yield Work("supervised networks", len(encoders), supervised_steps * per_step)


def split_off_test(data: D, seed: int) -> tuple[D, D]:
    """Training and test images: a fifth is set aside for testing; or all images twice, to be split into folds."""
    if len(data) < 2:
        raise UserError(f"{data.name} has {len(data)} image; give --test, or at least 2 images")
    if (order := data.order(seed)) is None:
        return data, data.subset(torch.arange(len(data)), f"{data.name} (each fifth in turn)")
    count = max(1, round(TEST_FRACTION * len(data)))
    kept, out = order[count:].sort().values, order[:count].sort().values
    return data.subset(kept, f"{data.name} (80 %)"), data.subset(out, f"{data.name} (20 % set aside)")


def bootstrap_weights(n: int, seed: int) -> np.ndarray:
    """(RESAMPLES, n): the number of times that each of n test images is in each resampled test set."""
    return bootstrap_counts(np.ones(n), seed)


def image_side(encoder: Encoder, plan: Plan, least: int) -> int:
    """Side of the images: the requested one, else the encoder's own, and at least `least` if it takes any size."""
    fixed = encoder.side(2.0) == encoder.size
    if fixed and plan.size not in (None, encoder.size):
        raise UserError(
            f"{encoder.name} only takes images of {encoder.size} px, not of {plan.size}; leave out --size"
        )
    return plan.size or (encoder.size if fixed else max(encoder.size, least))


# ---- several runs


def combine_runs(runs: Sequence[TaskResult], n: int, **about: Any) -> Iterator[Row]:
    """Results of several runs -> a row with an interval for each metric; `about` are the other fields of a row."""
    for scores in group_by_metric(runs):
        values, chosen = [s.value for s in scores], [dict(s.notes) for s in scores]
        yield Row(scores[0].metric, **summarize(scores, None, n), n=n, values=values, chosen=chosen, **about)


def paired_differences(
    own: Sequence[TaskResult], other: Sequence[TaskResult], n: int, **about: Any
) -> Iterator[Difference]:
    """Differences of two rows on the same test images; a row of one run is compared with each of several runs. `about` are
    the other fields of a difference."""
    other = [*other] * (len(own) if len(other) == 1 else 1)
    for scores, minus in zip(group_by_metric(own), group_by_metric(other), strict=True):
        yield Difference(scores[0].metric, **summarize(scores, minus, n), **about)


def group_by_metric(runs: Sequence[TaskResult]) -> list[tuple[TaskScore, ...]]:
    return [*zip(*(run.scores for run in runs), strict=True)]


def summarize(scores: Sequence[TaskScore], minus: Sequence[TaskScore] | None, n: int) -> dict[str, Any]:
    """Value, low and high of a metric over S runs, or of its differences."""
    values = np.array([s.value for s in scores], float)
    bootstrap = [s.bootstrap for s in scores]
    if minus is not None:
        values = values - np.array([s.value for s in minus])
        bootstrap = [
            b if b is None or s.bootstrap is None else b - s.bootstrap
            for b, s in zip(bootstrap, minus, strict=True)
        ]
    if any(b is None for b in bootstrap):
        return {"value": float(values.mean()), "low": None, "high": None}
    interval = bootstrap_interval(values, np.stack([b for b in bootstrap if b is not None]), n)
    return {"value": interval.value, "low": interval.low, "high": interval.high}

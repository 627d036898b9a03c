"""From encoders to a task with annotations: each is taken there in the same way, and its rivals beside it.

A task is a module of this folder that has what `Task` lists; `pretask.tasks` names them. Every number comes with
what it would be on test sets drawn anew, the same sets for every row, so that differences are paired image by image.
"""

import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any, Protocol

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from pretask.data import Labelled
from pretask.data.base import Images
from pretask.encoders import Encoder
from pretask.evals import baselines
from pretask.evals.confidence import LEVEL, RESAMPLES, Interval, over_runs, resampled
from pretask.evals.protocol import TEST_SHARE, Scores
from pretask.types import UserError

INTERVAL = (
    f"{LEVEL:.0%}, Student's t with the variance of a bootstrap over test images ({RESAMPLES} resamples, the same for "
    "every row); of several runs the variance over runs is added"
)


@dataclass(frozen=True)
class Plan:
    """How encoders are taken to a task."""

    steps: int | None = None
    """of training on the task; none: the task's own"""
    size: int | None = None
    """side of the images in pixels; none: the task's own"""
    seed: int = 0
    """of splits, folds and resamples: the same for every row"""
    run: int = 0
    """seed of the run: of what is drawn anew for it, a head or the order of images"""
    device: torch.device | str = "cpu"
    progress: bool = True
    tuned: bool = False
    """the encoder learns with what is put on top of it, where it else would not"""


@dataclass(frozen=True)
class Found:
    """One number of one encoder."""

    eval: str
    value: float  # %, where its sentence names no other unit
    again: np.ndarray | None = None  # (RESAMPLES,) on test sets drawn anew; None: it has no interval
    notes: Mapping[str, Any] = field(default_factory=dict)


@dataclass(frozen=True)
class Outcome:
    """What a task found of one encoder."""

    found: Sequence[Found]
    said: Sequence[str] = ()
    """what was left out, in sentences"""
    pictures: Sequence[Mapping[str, Tensor]] = ()
    """of a few test images: name -> (3, H, W) uint8, such as the truth beside what was predicted"""


class Data(Protocol):
    """Images with what is known about them."""

    name: str
    bad: Mapping[str, str]

    def __len__(self) -> int: ...
    def some(self, index: Tensor, name: str) -> Any: ...

    def order(self, seed: int) -> Tensor | None:
        """(N,) positions; the first fifth of them is set aside where no test set is given. None: the task itself sets
        each fifth aside in turn, if it is given the same images twice."""
        ...


class Task(Protocol):
    """What a module of a task has."""

    EVALS: Mapping[str, str]
    """each number it finds -> what it is, in one sentence; the first is the one to look at"""
    PROTOCOL: str
    """how an encoder is taken there, in one sentence"""
    TUNES: bool
    """whether the encoder can be told to learn with what is put on top of it"""

    def load(self, spec: str, max_bad: float, progress: bool) -> Any:
        """The data that the task works on."""
        ...

    def matched(self, train: Any, test: Any) -> tuple[Any, Any]:
        """Both with the same numbers for the same classes."""
        ...

    def check(self, encoder: Encoder, plan: Plan) -> None:
        """UserError where the encoder, the size or a missing package makes the task impossible."""
        ...

    def classes(self, train: Any) -> list[str]: ...

    def shown(self, train: Any, encoder: Encoder, plan: Plan) -> tuple[Images, Tensor] | None:
        """For the supervised row: images, and (N, K) which classes each shows, 1 or 0; -1 where that is not to be learnt.

        None where there are no classes: then the encoder learns from the task itself.
        """
        ...

    def apply(self, encoder: Encoder, train: Any, test: Any, plan: Plan) -> Outcome:
        """Take a copy of the encoder to the task and score it on the test images."""
        ...

    def floor(self, train: Any, test: Any, plan: Plan) -> tuple[str, Outcome] | None:
        """What anyone scores who has not looked at the images, and its name; None where that is nothing."""
        ...


def transfer(
    task: Any,
    called: str,
    encoders: Sequence[Encoder],
    train: Any,
    test: Any = None,
    *,
    name: str,
    seeds: Sequence[int],
    fresh: Sequence[Encoder],
    plan: Plan,
    supervised_steps: int | None = None,
) -> tuple[Scores, Outcome]:
    """The scores of a task (a module, `called` as on the command line), and what the first run showed.

    `encoders` are those of runs that differ in their seed alone, `fresh` the same as their runs began. Without `test`,
    a fifth of the images is set aside, or each in turn.
    """
    train, test = parts(train, plan.seed) if test is None else (train, test)
    train, test = task.matched(train, test)
    first = encoders[0].name

    def rows() -> Iterator[tuple[str, Iterator[Encoder], bool]]:
        """Whose encoders, themselves, and whether they learn in the task."""
        yield name, iter(encoders), plan.tuned
        yield f"untrained {first}", iter(fresh), plan.tuned
        if supervised_steps is None:
            return
        if (shown := task.shown(train, encoders[0], plan)) is None:
            yield f"supervised {first}", iter(fresh), True
        else:
            images, label = shown
            source = Labelled(images, label, [str(k) for k in range(label.shape[1])])
            known = (plan.device, plan.progress, multilabel)
            trained = (
                baselines.supervised(e, source, supervised_steps, s, *known)
                for e, s in zip(encoders, seeds, strict=True)
            )
            yield f"supervised {first}", trained, plan.tuned

    outcomes: dict[str, list[Outcome]] = {}
    seconds: dict[str, float] = {}
    for row, nets, tuned in rows():
        began = time.perf_counter()
        runs = [replace(plan, run=s, tuned=tuned) for s in seeds]
        outcomes[row] = [task.apply(net, train, test, run) for net, run in zip(nets, runs, strict=True)]
        seconds[row] = round(time.perf_counter() - began, 1)
    if (floor := task.floor(train, test, plan)) is not None:
        outcomes[floor[0]] = [floor[1]]
    data = {"task": called, "train": train.name, "n_train": len(train), "test": test.name}
    scored = [
        {"features": row, "own": row == name, **one, "data": test.name, "seeds": [*seeds][: len(runs)]}
        for row, runs in outcomes.items()
        for one in combined(runs, called, len(test))
    ]
    differences = [
        difference
        for row, runs in outcomes.items()
        if row != name
        for difference in apart(name, outcomes[name], row, runs, called, len(test))
    ]
    protocol = {f"{called} {e}": sentence for e, sentence in task.EVALS.items()}
    scores = Scores(
        data | {"n_test": len(test), "classes": task.classes(train)},
        scored,
        differences,
        [*outcomes[name][0].said],
        seconds,
        {called: task.PROTOCOL, **protocol, "interval": INTERVAL},
    )
    return scores, outcomes[name][0]


def parts(data: Data, seed: int) -> tuple[Any, Any]:
    """A fifth of the images for testing, the rest for training; or all of them, in turn."""
    if len(data) < 2:
        raise UserError(f"{data.name} has {len(data)} image; give --test, or at least 2 images")
    if (order := data.order(seed)) is None:
        return data, data.some(torch.arange(len(data)), f"{data.name} (each fifth in turn)")
    count = max(1, round(TEST_SHARE * len(data)))
    kept, out = order[count:].sort().values, order[:count].sort().values
    return data.some(kept, f"{data.name} (80 %)"), data.some(out, f"{data.name} (20 % set aside)")


def multilabel(logits: Tensor, label: Tensor) -> Tensor:
    """(B, K), (B, K) of 1, 0 and -1, which has no say -> mean binary cross-entropy."""
    judged = label >= 0
    return F.binary_cross_entropy_with_logits(logits[judged], label[judged].float())


def draws(n: int, seed: int) -> np.ndarray:
    """(RESAMPLES, n): how often each of n test images is in each test set drawn anew."""
    return resampled(np.ones(n), seed)


def canvas(encoder: Encoder, plan: Plan, least: int) -> int:
    """Side of the images: as asked for, else the encoder's own, at least `least` where it takes any size."""
    fixed = encoder.side(2.0) == encoder.size
    if fixed and plan.size not in (None, encoder.size):
        raise UserError(
            f"{encoder.name} takes images of {encoder.size} px alone, not of {plan.size}; leave out --size"
        )
    return plan.size or (encoder.size if fixed else max(encoder.size, least))


# ---- several runs


def combined(runs: Sequence[Outcome], called: str, n: int) -> Iterator[dict[str, Any]]:
    """The same number of every run -> one row with its interval."""
    for same in zip(*(run.found for run in runs), strict=True):
        row = {"eval": f"{called} {same[0].eval}"} | spread(same, None, n)
        yield row | {"n": n, "values": [f.value for f in same], "chosen": [dict(f.notes) for f in same]}


def apart(
    name: str, own: Sequence[Outcome], other: str, theirs: Sequence[Outcome], called: str, n: int
) -> Iterator[dict[str, Any]]:
    """How far a run is above another row on the same test images; a row of one run stands against each of several."""
    theirs = [*theirs] * (len(own) if len(theirs) == 1 else 1)
    for mine, minus in zip(by_number(own), by_number(theirs), strict=True):
        yield {"features": name, "minus": other, "eval": f"{called} {mine[0].eval}"} | spread(mine, minus, n)


def by_number(runs: Sequence[Outcome]) -> list[tuple[Found, ...]]:
    return [*zip(*(run.found for run in runs), strict=True)]


def spread(own: Sequence[Found], minus: Sequence[Found] | None, n: int) -> dict[str, float | None]:
    """Value, low and high of the same number of S runs, or of its differences."""
    values = np.array([f.value for f in own], float)
    again = [f.again for f in own]
    if minus is not None:
        values = values - np.array([f.value for f in minus])
        again = [
            a if a is None or f.again is None else a - f.again for a, f in zip(again, minus, strict=True)
        ]
    if any(a is None for a in again):
        return {"value": float(values.mean()), "low": None, "high": None}
    made: Interval = over_runs(values, float(np.mean([a for a in again if a is not None], axis=0).var()), n)
    return {"value": made.value, "low": made.low, "high": made.high}

"""Adapt published weights to a user's images, unless that makes them worse: `pretask adapt WEIGHTS --data PATH --labels LABELED`"""

import dataclasses
import json
import shutil
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from pretask import data as sources
from pretask import methods
from pretask.config import InputConfig, RunConfig
from pretask.data.base import Images, OpenOptions, canvas_fields
from pretask.encoders import Encoder, origins, saved
from pretask.encoders.vit import is_vit
from pretask.evals import paired, protocol
from pretask.evals.leaks import SHARE
from pretask.limits import PositiveInt, Seed, checked
from pretask.reading import DEFAULT_READING, Reading
from pretask.runtime import files
from pretask.runtime.console import say
from pretask.train.logger import OnLog
from pretask.train.run import Run
from pretask.types import LabeledSource, UserError
from pretask.workflows import search, subject
from pretask.workflows.candidates import FROM_WEIGHTS, fitting
from pretask.workflows.inputs import labeled_spec, single_labels
from pretask.workflows.length import parse_duration
from pretask.workflows.search import Comparison, Trial

FROZEN = "as they are"
"""name of the weights themselves among the candidates"""
TRAINED = 0.85
"""fraction of the budget that the trials train for; in the rest their features are computed and scored"""
TRIALS, RESULT = "trials", "adapt.json"
"""names in the folder that is made"""


@dataclass(frozen=True)
class Adapted:
    """The result of `adapt`."""

    folder: Path
    what: str
    data: Mapping[str, Any]
    """names and numbers of images"""
    comparison: Comparison
    left_out: Mapping[str, str]
    """methods that could not be tried, and why"""

    @property
    def chosen(self) -> str:
        return self.comparison.chosen

    @property
    def smallest_gain(self) -> float:
        """The smallest gain in points that would have been shown for any candidate."""
        return max((each.smallest for each in self.comparison.verdicts.values()), default=float("nan"))

    def sentences(self) -> Iterator[str]:
        """What was found, in words."""
        verdicts, on = self.comparison.verdicts, self.data["test"] or "repeated folds of the labels"
        if self.chosen != FROZEN:
            gain = verdicts[self.chosen]
            yield (
                f"{self.chosen} is better than the weights as they are by {gain.gain:.1f} points "
                f"[{gain.low:+.1f}, {gain.high:+.1f}] on {on}: {self.folder} holds its encoder."
            )
        else:
            yield f"No gain over the weights as they are can be shown, so {self.folder} holds them unchanged."
        harmed = [name for name, verdict in verdicts.items() if verdict.worse]
        if harmed:
            yield f"Training harmed: {', '.join(harmed)}."
        if verdicts:
            yield (
                f"With {self.data['n_labeled']:,} labeled images a gain of {self.smallest_gain:.1f} points or more would have shown."
            )
        if (leaks := self.comparison.leaks) and leaks.count:
            clean = leaks.clean.numpy()
            yield leaks.sentence(
                {name: score.outer[clean].mean() for name, score in self.comparison.scores.items()}
            )
        for name, why in self.left_out.items():
            yield f"{name} was not tried: {why}"

    def to_json(self) -> str:
        c = self.comparison
        rows = [
            {
                "name": name,
                "accuracy": score.value,
                "inner": score.inner,
                **(
                    {**dataclasses.asdict(c.verdicts[name]), "better": c.verdicts[name].better}
                    if name in c.verdicts
                    else {}
                ),
            }
            for name, score in c.scores.items()
        ]
        whole = {
            "weights": self.what,
            "chosen": self.chosen,
            "rows": rows,
            "left_out": dict(self.left_out),
            "data": dict(self.data),
        }
        return json.dumps(whole, indent=2, allow_nan=False)


@checked
def adapt(
    what: Run | str | Path,
    data: str | Path,
    labels: Any,
    *,
    out: str | Path,
    budget: str = "20m",
    test: Any = None,
    size: PositiveInt | None = None,
    mean: tuple[float, ...] | None = None,
    std: tuple[float, ...] | None = None,
    seed: Seed = 0,
    leaks: bool = True,
    reading: Reading = DEFAULT_READING,
    progress: bool = True,
    on_log: OnLog | None = None,
) -> Adapted:
    """Continue weights on images without labels by several methods, and keep the best, or the weights as they are.

        adapted = pretask.adapt("timm:resnet18", "photos/", "few_labels/", budget="20m", out="adapted")

    `what` is as in `evaluate`, `data` a path or a name as in `pretrain`; `labels` and `test` are labeled images with one label
    each, 4 or more of each class. Candidates are chosen on inner folds of the labels. The verdict is on outer folds, or on `test`; it is corrected for the
    number of candidates, and the weights are only replaced if the interval of the gain excludes 0. `out` then holds the better run,
    or else the weights themselves. `leaks` warns of test images that are among the labeled ones. An interrupted search goes on when it
    is called again. Raises UserError.
    """
    folder, seconds = Path(out), parse_duration(budget)
    if isinstance(what, Encoder):
        raise UserError(
            "adapt continues weights that have a name or a folder; save the encoder first, or give its file as ARCH@FILE"
        )
    if (folder / RESULT).exists():
        raise UserError(f"{folder} holds a finished search; choose another --out")
    if folder.is_dir() and any(folder.iterdir()) and not (folder / TRIALS).is_dir():
        raise UserError(f"{folder} exists; choose another --out")
    place = str(what.folder if isinstance(what, Run) else what)
    if saved_in := origins.saved_encoder(place):
        size = saved.read_shape(saved_in)["size"]
    images = sources.open(str(data), size=size, reading=reading)
    encoder = subject.encoder_of(what, InputConfig(images.size, mean, std))
    labeled, tested = open_labels(labeled_spec(labels, data), test, encoder, reading)
    names = candidate_methods(encoder)
    shared = RunConfig(
        str(data), size=images.size, init=place, mean=mean, std=std, seed=seed, reading=reading,
        budget=f"{TRAINED * seconds / len(names):.0f}s",
    )  # fmt: skip
    candidates = [trial(name, folder / TRIALS / name, shared, images) for name in names]
    for each in candidates:
        each.existing()  # none is trained if one of the folders holds another run
    trials: dict[str, Run] = {}
    left_out: dict[str, str] = {}
    for number, each in enumerate(candidates, 1):
        method = each.method
        say(f"trial {number} of {len(candidates)}: {method} for {shared.budget}")
        try:
            trials[method] = each.trained(images, on_log)
        except UserError as wrong:
            say(f"{method} is left out: {wrong}")
            left_out[method] = str(wrong)
    encoders = {FROZEN: encoder} | {name: found.encoder for name, found in trials.items()}
    comparison = search.compare(
        encoders, labeled, tested, seed=seed, progress=progress, leak_seconds=SHARE * seconds * leaks
    )
    about = {
        "images": images.name,
        "n": len(images),
        "labeled": labeled.name,
        "n_labeled": len(labeled),
        "test": tested.name if tested else None,
        "n_test": len(tested) if tested else None,
    }
    found = Adapted(folder, place, about, comparison, left_out)
    write(found, encoder, trials)
    return found


def candidate_methods(encoder: Encoder) -> tuple[str, ...]:
    """The methods that are tried, those for few images first."""
    return (*FROM_WEIGHTS[is_vit(encoder)], "simclr")


def trial(method: str, folder: Path, shared: RunConfig, images: Images) -> Trial:
    """One method's run from the weights; its batches are no larger than the number of images."""
    config = methods.recipe(method)().for_continuing()
    train = fitting(config.train_for_continuing(), images)
    return Trial(method, replace(shared, out=folder), config, train)


def open_labels(
    labels: Any, test: Any, encoder: Encoder, reading: Reading
) -> tuple[LabeledSource, LabeledSource | None]:
    """The labeled images and the test images, if any. Raises UserError unless they can be compared on."""
    options = OpenOptions(**canvas_fields(encoder), reading=reading)
    labeled, tested = single_labels(labels, test, options)
    if tested:
        protocol.check([encoder], labeled, tested)
        labeled, tested, _ = protocol.align_classes(labeled, tested)
    paired.folds(labeled.label, 0)  # before anything is trained
    return labeled, tested


def write(found: Adapted, encoder: Encoder, trials: Mapping[str, Run]) -> None:
    """The run or the encoder that was chosen, then the result."""
    found.folder.mkdir(parents=True, exist_ok=True)
    if found.chosen == FROZEN:
        saved.save_encoder(encoder, found.folder)
    else:
        shutil.copytree(trials[found.chosen].folder, found.folder, dirs_exist_ok=True)
    files.write_text(found.folder / RESULT, found.to_json() + "\n")

"""Labels for all images from a few: `pretask predict WEIGHTS --labels FILE --data PATH --out FOLDER`

A head on frozen features, with calibrated probabilities. Stage and penalty are chosen as in `evaluate`, on the labeled images only. The
accuracy is estimated on those labels that were drawn at random (`pretask select`), each predicted by a head that did not see it; the others
were chosen, so they say nothing of the rest.
"""

import json
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from pretask import data as sources
from pretask.collection import store
from pretask.config import DEFAULT_INPUT, InputConfig, ReadoutConfig
from pretask.data import LabeledDataset, label_file
from pretask.data.base import OpenOptions, canvas_fields
from pretask.data.subset import LabeledSubset
from pretask.encoders import Encoder, origins
from pretask.encoders.readout import Readout
from pretask.evals import calibration, features, head
from pretask.evals.calibration import Bin
from pretask.evals.features import Features
from pretask.evals.head import Fitted, Head
from pretask.limits import PositiveFraction, PositiveInt, Seed, checked
from pretask.reading import DEFAULT_READING, Reading
from pretask.runtime import files
from pretask.runtime.console import say
from pretask.runtime.device import find_device
from pretask.runtime.tables import Table
from pretask.train.run import Run
from pretask.types import LabeledSource, UserError
from pretask.workflows import collection, subject
from pretask.workflows.collection import Opened
from pretask.workflows.readout import BEST, readout_of
from pretask.workflows.select import RANDOM
from pretask.workflows.subject import Weights

HEAD, CARD, PREDICTIONS, SUSPECTS, SUMMARY = (
    "head.safetensors",
    "head.json",
    "predictions.csv",
    "suspects.csv",
    "summary.json",
)
"""names in the folder that is made"""
STAGES = "stages"
"""folder of the labeled images' features at all stages"""
SCHEMA = 1


@dataclass(frozen=True)
class Predicted:
    """The result of `predict`."""

    folder: Path
    predictions: Table
    """path, label, probability, margin to the next class, and whether it is sure"""
    suspects: Table
    """path, label, the likelier class, its probability: given labels that may be wrong"""
    summary: Mapping[str, Any]
    bins: Sequence[Bin]
    """the reliability diagram, out of fold"""
    classes: Sequence[str]
    images: Opened

    def to_json(self) -> str:
        return files.strict_json(dict(self.summary), indent=2)


@checked
def predict(
    what: Weights,
    labels: str | Path,
    data: str | Path,
    *,
    out: str | Path,
    precision: PositiveFraction = 0.95,
    stage: str = BEST,
    grid: PositiveInt | None = None,
    size: PositiveInt | None = None,
    mean: tuple[float, ...] | None = None,
    std: tuple[float, ...] | None = None,
    seed: Seed = 0,
    reading: Reading = DEFAULT_READING,
    progress: bool = True,
) -> Predicted:
    """Label all images of `data` by a head that is fitted to the labels of a table.

        found = pretask.predict("timm:resnet18", "labels.csv", "photos/", out="predicted")
        found.predictions.frame()

    `labels` is a table of path and label; its column `reason`, as `select` and `label` write it, says which were drawn at random. `what` is as
    in `evaluate`; `stage` "best" is chosen by the labels. Predictions are sure from the probability on for which a share of `precision` is
    right, by the lower bound of its interval. Raises UserError.
    """
    folder = Path(out)
    collection.check_out(folder)
    loaded = subject.load(what, InputConfig(size, mean, std))
    encoder = loaded.encoder if isinstance(loaded, Run) else loaded
    spec = label_file.spec_of(labels, str(data))
    labeled = open_labels(spec, encoder, reading, progress)
    train = labeled_features(encoder, labeled, stage, grid, folder, progress)
    fitted = head.fit(train, seed, progress)
    readout = Readout(encoder, fitted.stage, grid if fitted.stage in encoder.sides else None)
    place = (
        folder / collection.FEATURES / f"{readout.stage}-{readout.grid or 1}"
    )  # more labels may choose another stage
    own = collection.opened_by(readout, data, place, reading, progress)
    names = readable_names(labeled)
    rows = label_file.cells(spec, OpenOptions(reading=reading))
    drawn = torch.tensor([rows[name].get("reason") == RANDOM for name in names])
    return finish(own, folder, fitted, train, names, drawn, precision, origin_of(what, encoder))


def labeled_features(
    encoder: Encoder, labeled: LabeledSource, stage: str, grid: int | None, folder: Path, progress: bool
) -> Features:
    """Features of the labeled images at all stages, or at one."""
    found = features.embed(
        encoder, labeled, grid=grid, device=find_device(), progress=progress, cache=folder / STAGES
    )
    if stage == BEST:
        return found
    Readout(encoder, stage, grid)  # raises for a stage or grid that is not there
    return replace(found, stages={stage: found.stages[stage]})


def readable_names(labeled: LabeledDataset | LabeledSubset) -> list[str]:
    """Names of the images that could be read."""
    index = features.readable(labeled)
    index = torch.arange(len(labeled)) if index is None else index
    if isinstance(labeled, LabeledSubset):
        assert isinstance(labeled.whole, LabeledDataset)
        return labeled.whole.files(labeled.index[index])
    return labeled.files(index)


def origin_of(what: Weights, encoder: Encoder) -> str:
    """The weights, to find them again."""
    if isinstance(what, Encoder):
        return encoder.name
    return origins.absolute(str(what.folder if isinstance(what, Run) else what))


def open_labels(
    spec: str, encoder: Encoder, reading: Reading, progress: bool
) -> LabeledSubset | LabeledDataset:
    """Labeled images, without classes that have a single one. Raises UserError unless two classes are left."""
    found = sources.open_labeled(
        spec, **canvas_fields(encoder), reading=reading, progress=progress, cache_mb=0
    )
    sources.require_single_label(found, "predict", "select one column of labels with --labels-from")
    count = found.label.bincount(minlength=len(found.classes))
    single = [name for name, n in zip(found.classes, count.tolist(), strict=True) if n == 1]
    kept = [name for name, n in zip(found.classes, count.tolist(), strict=True) if n > 1]
    if len(kept) < 2:
        raise UserError(
            f"{found.name} has {len(kept)} class{'es' * (len(kept) != 1)} with two or more images ({', '.join(kept) or 'none'}); predict "
            "needs two"
        )
    if not single:
        return found
    say(f"left out, since they have one labeled image each: {', '.join(single)}")
    number = torch.tensor([kept.index(name) if name in kept else -1 for name in found.classes])
    index = (number[found.label] >= 0).nonzero().flatten()
    part = LabeledSubset(found, index, found.name)
    part.label, part.classes = number[found.label[index]], kept
    return part


def finish(
    own: Opened,
    folder: Path,
    fitted: Fitted,
    train: Features,
    names: Sequence[str],
    drawn: Tensor,
    precision: float,
    weights: str,
) -> Predicted:
    """Predict all images, evaluate the head by its out-of-fold predictions, and write everything."""
    classes = train.classes
    probability = fitted.head.rows(own.x)
    top = probability.topk(2, 1)
    surest, best = fitted.out_of_fold.max(1)
    right = best == train.label
    basis = drawn if drawn.any() else torch.ones_like(drawn)
    sure_from = calibration.sure_from(surest[basis], right[basis], precision)
    sure = top.values[:, 0] >= (2.0 if sure_from is None else sure_from)
    predictions = Table(
        {
            "path": own.names,
            "label": [classes[k] for k in top.indices[:, 0].tolist()],
            "probability": top.values[:, 0].tolist(),
            "margin": (top.values[:, 0] - top.values[:, 1]).tolist(),
            "sure": sure.tolist(),
        }
    )
    suspects = Table.of(
        ("path", "label", "likelier", "probability"),
        [
            (
                names[row],
                classes[int(train.label[row])],
                classes[other],
                float(fitted.out_of_fold[row, other]),
            )
            for row, other in calibration.suspected(fitted.out_of_fold, train.label)
        ],
    )
    bins = calibration.reliability(surest, right)
    accuracy = calibration.binomial(int(right[drawn].sum()), int(drawn.sum())) if drawn.any() else None
    summary = {
        "data": own.source.name,
        "images": len(own),
        "labeled": len(names),
        "drawn_at_random": int(drawn.sum()),
        "classes": dict(Counter(classes[k] for k in train.label.tolist())),
        "features": str(own.readout),
        "penalty": fitted.penalty,
        "accuracy": accuracy and dict(zip(("value", "low", "high"), accuracy, strict=True)),
        "calibration_error": calibration.calibration_error(bins),
        "precision": precision,
        "sure_from": sure_from,
        "sure": int(sure.sum()),
        "fewest": calibration.fewest(precision),
        "suspects": len(suspects),
    }
    found = Predicted(folder, predictions, suspects, summary, bins, classes, own)
    write_head(folder, fitted.head, own.readout, classes, weights)
    predictions.write(folder / PREDICTIONS)
    suspects.write(folder / SUSPECTS)
    files.write_text(folder / SUMMARY, found.to_json() + "\n")
    return found


# ---- the head on disk


def write_head(folder: Path, fitted: Head, readout: Readout, classes: Sequence[str], weights: str) -> None:
    from safetensors.torch import save

    card = {
        "schema": SCHEMA, "weights": weights, "key": store.key_of(readout), "size": readout.encoder.size, "stage": readout.stage,
        "grid": readout.grid, "classes": list(classes),
    }  # fmt: skip
    state = {name: value.contiguous() for name, value in fitted.state_dict().items()}
    files.write(folder / HEAD, lambda file: file.write(save(state)))
    files.write_text(folder / CARD, json.dumps(card, indent=2) + "\n")


def read_head(
    folder: Path, what: Weights, input: InputConfig = DEFAULT_INPUT
) -> tuple[Readout, Head, list[str]]:
    """The head that `predict` saved, with the features that it was fitted to, and its classes. Raises UserError for other weights."""
    from safetensors.torch import load_file

    card = head_card(folder)
    fitted = head.from_state(load_file(folder / HEAD))
    input = replace(input, size=input.size or card["size"])
    readout = readout_of(subject.load(what, input), ReadoutConfig(card["stage"], card["grid"]))
    if store.key_of(readout) != card["key"]:
        raise UserError(
            f"the head in {folder} was fitted to the features of {card['weights']}, and {what} has others"
        )
    return readout, fitted, card["classes"]


def head_card(folder: Path) -> dict[str, Any]:
    """What a saved head was fitted to. Raises UserError if there is none."""
    try:
        return json.loads((folder / CARD).read_text())
    except (OSError, ValueError) as failure:
        raise UserError(f"{folder} holds no head of pretask predict: {files.reason(failure)}") from None


def sentences(summary: Mapping[str, Any]) -> Iterator[str]:
    """What was predicted and how far it can be trusted, in words."""
    yield (
        f"{summary['images']:,} images labeled from {summary['labeled']:,} labels of {len(summary['classes'])} classes, by "
        f"{summary['features']}."
    )
    drawn, accuracy = summary["drawn_at_random"], summary["accuracy"]
    if accuracy is None:
        yield (
            "Accuracy: no estimate, since no label is marked as drawn at random (a column reason with the value random, as pretask select "
            "writes it)."
        )
    else:
        value, low, high = (100 * accuracy[key] for key in ("value", "low", "high"))
        yield (
            f"Expected accuracy of images without a label: {value:.0f} % [{low:.0f}, {high:.0f}], by {drawn:,} labels that were drawn "
            "at random."
        )
    basis = f"{drawn:,} labels drawn at random" if drawn else "all labels, as if they were drawn at random"
    wanted = f"{100 * summary['precision']:g} %"
    if summary["sure_from"] is None:
        few = (
            f"; {summary['fewest']:,} would be the fewest"
            if (drawn or summary["labeled"]) < summary["fewest"]
            else ""
        )
        yield f"All predictions are unsure: by {basis}, no probability can be shown to be right {wanted} of the time{few}."
    else:
        yield (
            f"Sure: {summary['sure']:,} images with a probability of {summary['sure_from']:.2f} or more, of which {wanted} or more are "
            f"right, by {basis}."
        )
    yield f"Probabilities are off by {summary['calibration_error']:.1f} points on average, out of fold."
    if summary["suspects"]:
        yield f"{summary['suspects']:,} given labels may be wrong: {SUSPECTS}."

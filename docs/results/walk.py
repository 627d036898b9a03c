#!/usr/bin/env python3
"""From features to use: planted copies, leaks and wrong labels, the choice of images to label, and the accuracy that predict expects.

    python docs/results/walk.py --data FOLDER [--runs runs/walk] [copies leaks suspects selection coverage]

FOLDER holds cifar10/, imagenette224/, video/ and weights/. The runs of ten minutes are trained first, unless they are in --runs. Everything is
done with the functions behind `pretask curate`, `evaluate`, `select` and `predict`. Results are written to walk/NAME.json, and `make.py` writes
the page.
"""

import argparse
import json
import shutil
import subprocess
import sys
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import make
import numpy as np
import torch
from experiments import read
from PIL import Image, ImageEnhance
from torch import Tensor

HERE = Path(__file__).resolve().parent
FOLDER = "walk"
PLANTED = 25
"""copies of each kind"""
DRAWS = 5
COUNTS = (10, 20, 50, 100)
REPETITIONS = 100
LABELS, DRAWN = 100, 30
"""labels of a walk, and how many of them are drawn at random"""
PENALTY = 0.1
"""of the probe by which choices of images are compared: too few labels to choose one by"""
SIZE = 64


@dataclass(frozen=True)
class Weights:
    """Weights, and the images that they are used on."""

    title: str
    what: str
    data: str
    test: str


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("part", nargs="*", help=", ".join(PARTS))
    parser.add_argument("--data", type=Path, required=True)
    parser.add_argument("--runs", type=Path, default=Path("runs/walk"))
    args = parser.parse_args()
    if unknown := set(args.part) - set(PARTS):
        parser.error(f"unknown {', '.join(sorted(unknown))}; known: {', '.join(PARTS)}")
    args.runs.mkdir(parents=True, exist_ok=True)
    (HERE / FOLDER).mkdir(exist_ok=True)
    weights = [*all_weights(args.data, args.runs)]
    for part in args.part or PARTS:
        rows = [row for each in weights for row in PARTS[part](each, args.data, args.runs)]
        (HERE / FOLDER / f"{part}.json").write_text(json.dumps(rows, indent=2) + "\n")


def all_weights(data: Path, runs: Path) -> Iterator[Weights]:
    """A run of ten minutes on each set, and EfficientNet-Lite0 on CIFAR-10."""
    cifar10 = "cifar10/cifar10_train.npz", "cifar10/cifar10_test.npz"
    imagenette = "imagenette224/train", "imagenette224/val"
    for title, sets, flags in (("CIFAR-10", cifar10, ()), ("Imagenette", imagenette, ("--size", str(SIZE)))):
        run = runs / f"simclr-{title.lower()}"
        if not (run / "DONE").exists():
            words = [
                "pretrain",
                "simclr",
                "--data",
                str(data / sets[0]),
                "--budget",
                "10m",
                "--out",
                str(run),
                *flags,
            ]
            subprocess.run([sys.executable, "-m", "pretask", *words], check=True)
        yield Weights(f"{title}, SimCLR for ten minutes", str(run), *sets)
    yield Weights("CIFAR-10, EfficientNet-Lite0", make.PUBLISHED.replace("DATA", str(data)), *cifar10)


def opened(weights: Weights, data: Path, place: Path, images: Path | str) -> Any:
    """A collection with its features, kept in a folder."""
    from pretask.config import DEFAULT_READOUT, InputConfig
    from pretask.reading import DEFAULT_READING
    from pretask.workflows import collection

    size = InputConfig(None if Path(weights.what).is_dir() else SIZE)
    return collection.opened(
        weights.what, images, place, DEFAULT_READOUT, size, DEFAULT_READING, progress=False
    )


# ---- planted copies


def cropped(image: Image.Image, rng: np.random.Generator) -> Image.Image:
    left, top, right, bottom = 0.05 * rng.random(4)
    width, height = image.size
    return image.crop(
        (round(left * width), round(top * height), round((1 - right) * width), round((1 - bottom) * height))
    )


COPIES: Mapping[
    str, tuple[str, Callable[[Image.Image, np.random.Generator], Image.Image], Mapping[str, Any]]
] = {
    "the same file": ("", lambda image, _: image, {}),
    "JPEG of quality 50": (".jpg", lambda image, _: image, {"quality": 50}),
    "WebP of quality 70": (".webp", lambda image, _: image, {"quality": 70}),
    "half the size": (
        ".jpg",
        lambda image, _: image.resize([side // 2 for side in image.size]),
        {"quality": 90},
    ),
    "cropped by up to 5 % at each edge": (".jpg", cropped, {"quality": 90}),
    "10 % brighter": (".jpg", lambda image, _: ImageEnhance.Brightness(image).enhance(1.1), {"quality": 90}),
}


def copies(weights: Weights, data: Path, runs: Path) -> Iterator[Mapping[str, Any]]:
    """Recall of each kind of copy, and precision of all pairs, among photographs and among the frames of each video."""
    from pretask.collection import duplicates

    clips = sorted((data / "video" / "frames128").iterdir())
    sets = {"photographs": data / weights.test} if (data / weights.test).is_dir() else {}
    sets |= {f"frames of {clip.name}": clip for clip in clips} | {
        "frames of tennis": data / "video" / "tennis_frames"
    }
    for title, folder in sets.items():
        place = runs / "copies" / f"{weights.title} {title}".replace(" ", "-")
        shutil.rmtree(place, ignore_errors=True)
        truth = plant(folder, place / "images")
        own = opened(weights, data, place / "features", place / "images")
        bounds = duplicates.calibrate(own.readout, own.source, own.x, own.positions, 0)
        groups = duplicates.find(
            own.source, own.x, own.positions, own.collection.sums, bounds, lambda row: -row
        )
        group = {own.names[row]: k for k, each in enumerate(groups) for row in each.members}
        recall = {
            kind: np.mean(
                [
                    group.get(name, -1) == group.get(origin, -2)
                    for name, (made, origin) in truth.items()
                    if made == kind
                ]
            )
            for kind in COPIES
        }
        pairs = [
            (own.names[a], own.names[b])
            for each in groups
            for a in each.members
            for b in each.members
            if a < b
        ]
        origin = {name: truth[name][1] if name in truth else name for name in own.names}
        right = [origin[a] == origin[b] for a, b in pairs]
        yield {
            "weights": weights.title, "images": title, "n": len(own) - len(truth), "planted": len(truth),
            "recall": {kind: float(value) for kind, value in recall.items()}, "pairs": len(pairs),
            "precision": float(np.mean(right)) if right else None, "expected": bounds.sentence(),
        }  # fmt: skip


def plant(folder: Path, out: Path) -> dict[str, tuple[str, str]]:
    """Copies of some of the images of a folder, beside all of them; name of a copy -> its kind and what it is a copy of."""
    out.mkdir(parents=True)
    rng, truth = np.random.default_rng(0), {}
    paths = sorted(path for path in folder.rglob("*") if path.suffix.lower() in (".jpg", ".jpeg", ".png"))
    own = [shutil.copy(path, out / f"{i:05}{path.suffix.lower()}") for i, path in enumerate(paths)]
    for kind, (suffix, change, quality) in COPIES.items():
        for i in rng.choice(len(own), min(PLANTED, len(own)), replace=False):
            made = out / f"copy {kind.replace(' %', '')} {i:05}{suffix or own[i].suffix}"
            if suffix:
                change(Image.open(own[i]).convert("RGB"), rng).save(made, **quality)
            else:
                shutil.copy(own[i], made)
            truth[made.name] = kind, own[i].name
    return truth


# ---- planted leaks and wrong labels


def scored(weights: Weights, data: Path, part: str) -> Any:
    """Features of labeled images at all stages, kept for other parts."""
    from pretask import data as sources
    from pretask.config import InputConfig
    from pretask.data.base import canvas_fields
    from pretask.evals import features
    from pretask.workflows.subject import encoder_of

    encoder = encoder_of(weights.what, InputConfig(None if Path(weights.what).is_dir() else SIZE))
    source = sources.open_labeled(str(data / part), **canvas_fields(encoder), progress=False)
    return encoder, source, features.embed(encoder, source, progress=False)


def leaks(weights: Weights, data: Path, runs: Path) -> Iterator[Mapping[str, Any]]:
    """Forty test images are put into the training set, half of them re-encoded and cropped."""
    from pretask.collection import duplicates
    from pretask.data import LabeledDataset
    from pretask.data.arrays import Arrays
    from pretask.evals import features
    from pretask.evals import leaks as leaking
    from pretask.rng import Rng

    encoder, train, _ = scored(weights, data, weights.data)
    _, test, test_features = scored(weights, data, weights.test)
    image = train.__getitems__(torch.arange(2000)).image.clone()
    chosen = Rng(0, "leaks").permutation(len(test))[:40]
    copied = test.__getitems__(chosen).image
    for k, pixels in enumerate(copied):
        if k >= 20:
            picture = Image.fromarray(pixels.permute(1, 2, 0).numpy())
            changed = duplicates.cropped(duplicates.re_encoded(picture, Rng(0, k)), Rng(0, k)).resize(
                picture.size
            )
            pixels = torch.from_numpy(np.asarray(changed).copy()).permute(2, 0, 1)
        image[k] = pixels
    planted = LabeledDataset(Arrays("planted", image), train.label[:2000], train.classes)
    known = features.embed(encoder, planted, progress=False)
    found = leaking.find(encoder, planted, test, known, test_features, 120)
    rows = {*found.exact.tolist(), *found.near.tolist()}
    truth = [*chosen.tolist()]
    yield {
        "weights": weights.title, "exact": float(np.mean([row in rows for row in truth[:20]])),
        "near": float(np.mean([row in rows for row in truth[20:]])), "precision": float(np.mean([row in truth for row in rows])),
        "found": len(rows),
    }  # fmt: skip


def suspects(weights: Weights, data: Path, runs: Path) -> Iterator[Mapping[str, Any]]:
    """One label in twenty of 1,000 is wrong."""
    from pretask.evals import calibration, head
    from pretask.evals.features import Features
    from pretask.rng import Rng

    *_, train = scored(weights, data, weights.data)
    rows = Rng(0, "suspects").permutation(len(train))[:1000]
    label = train.label[rows].clone()
    wrong = torch.arange(0, 1000, 20)
    label[wrong] = (
        label[wrong] + 1 + Rng(0, "which").integers(len(wrong), high=len(train.classes) - 1)
    ) % len(train.classes)
    given = Features({"pool": train.stages["pool"][rows]}, label, train.classes, train.source)
    found = [row for row, _ in calibration.suspected(head.fit(given, 0, progress=False).out_of_fold, label)]
    yield {
        "weights": weights.title, "found": len(found), "recall": float(np.mean([row in found for row in wrong.tolist()])),
        "precision": float(np.mean([row % 20 == 0 for row in found])) if found else None,
    }  # fmt: skip


# ---- which images to label


def selection(weights: Weights, data: Path, runs: Path) -> Iterator[Mapping[str, Any]]:
    """Accuracy on test images of a probe on the images that each strategy chooses."""
    from pretask.collection import selection as strategies
    from pretask.ops.neighbors import unit
    from pretask.rng import Rng

    *_, train = scored(weights, data, weights.data)
    *_, test = scored(weights, data, weights.test)
    x, x_test = train.stages["pool"].float(), test.stages["pool"].float()
    z, none = unit(x - x.mean(0)), torch.zeros(0, dtype=torch.long)

    def accuracy(rows: Tensor) -> float:
        from pretask.evals import linear_probe

        probe = linear_probe.fit(x[rows], train.label[rows], len(train.classes), PENALTY)
        return 100 * (probe.predict(x_test) == test.label).double().mean().item()

    def by_margin(count: int, seed: int) -> Tensor:
        """Half of them typical, the rest by the margins of a probe on these."""
        from pretask.evals import linear_probe

        first = strategies.typical(z, count // 2, none, seed)
        probe = linear_probe.fit(x[first], train.label[first], len(train.classes), PENALTY)
        rest = strategies.margin(z, probe.logits(x).softmax(1), count - len(first), first, seed)
        return torch.cat([first, rest])

    def mixed(count: int, seed: int) -> Tensor:
        """As `pretask select`: three in ten at random."""
        drawn = Rng(seed, "random").permutation(len(z))[: round(0.3 * count)]
        return torch.cat([drawn, strategies.typical(z, count - len(drawn), drawn, seed)])

    ways: Mapping[str, Callable[[int, int], Tensor]] = {
        "random": lambda count, seed: Rng(seed, "random").permutation(len(z))[:count],
        "typical": lambda count, seed: strategies.typical(z, count, none, seed),
        "typical, 30 % random": mixed,
        "k-center": lambda count, seed: strategies.k_center(
            z, count, Rng(seed, "first").permutation(len(z))[:1]
        )[:count],
        "typical, then margin": by_margin,
    }
    for count in COUNTS:
        draws = {name: [accuracy(way(count, seed)) for seed in range(DRAWS)] for name, way in ways.items()}
        yield {"weights": weights.title, "labels": count, "accuracy": draws}


# ---- the accuracy that predict expects


def coverage(weights: Weights, data: Path, runs: Path) -> Iterator[Mapping[str, Any]]:
    """The whole walk, repeated on stored features: select, labels from truth, predict."""
    from pretask.collection import selection as strategies
    from pretask.evals import calibration, head
    from pretask.evals.features import Features
    from pretask.ops.neighbors import unit
    from pretask.rng import Rng

    *_, train = scored(weights, data, weights.data)
    x = train.stages["pool"].float()
    z = unit(x - x.mean(0))
    found = []
    for seed in range(REPETITIONS):
        drawn = Rng(seed, "random").permutation(len(z))[:DRAWN]
        rows = torch.cat([drawn, strategies.typical(z, LABELS - DRAWN, drawn, seed)])
        given = Features({"pool": x[rows]}, train.label[rows], train.classes, train.source)
        fitted = head.fit(given, seed, progress=False)
        right = (fitted.out_of_fold.argmax(1) == given.label)[:DRAWN]
        value, low, high = calibration.binomial(int(right.sum()), DRAWN)
        others = torch.ones(len(z), dtype=torch.bool)
        others[rows] = False
        true = (fitted.head.rows(x[others]).argmax(1) == train.label[others]).double().mean().item()
        found.append({"estimate": value, "low": low, "high": high, "true": true})
    yield {"weights": weights.title, "repetitions": found}


PARTS: Mapping[str, Callable[[Weights, Path, Path], Iterator[Mapping[str, Any]]]] = {
    "copies": copies,
    "leaks": leaks,
    "suspects": suspects,
    "selection": selection,
    "coverage": coverage,
}


# ---- the page


def body(folder: Path) -> str:
    rows = {
        part: read(folder / f"{part}.json") if (folder / f"{part}.json").exists() else [] for part in PARTS
    }
    lines = [
        "Generated by `python docs/results/walk.py`, with the functions behind [clean, label, predict, search](../../collection.md).\n",
        "## Planted copies\n",
        f"{PLANTED} copies of each of six kinds among the images. Recall in %; precision over all pairs that are called duplicates. Frames of a "
        "camera that does not move, of a scene in which nothing does, differ by less than a re-encoded copy: there, precision is low.\n",
        f"| weights | images | {' | '.join(COPIES)} | all | precision |",
        "|---|---|" + "---:|" * (len(COPIES) + 2),
        *(copies_row(row) for row in rows["copies"]),
        "",
        "## Planted leaks and wrong labels\n",
        "40 test images among 2,000 training images, half as they are, half re-encoded and cropped; one wrong label in twenty of 1,000. In %.\n",
        "| weights | equal, recall | near, recall | precision | wrong labels, recall | precision |",
        "|---|---:|---:|---:|---:|---:|",
        *(leaks_row(one, other) for one, other in zip(rows["leaks"], rows["suspects"], strict=True)),
        "",
        "## Which images to label\n",
        f"Accuracy in % on test images of a linear probe on pooled features, mean of {DRAWS} draws, with the 95 % interval of the difference from "
        "random ones.\n",
        *selection_tables(rows["selection"]),
        "## Expected accuracy\n",
        f"{LABELS} labels, {DRAWN} of them drawn at random, {REPETITIONS} repetitions: the share of intervals that hold the accuracy on all "
        "images without a label, and their width relative to the expected width of the exact binomial interval of as many random labels.\n",
        "| weights | accuracy | estimate | coverage | width |",
        "|---|---:|---:|---:|---:|",
        *(coverage_row(row) for row in rows["coverage"]),
        "",
    ]
    return "\n".join(lines)


def percent(value: float | None) -> str:
    return "" if value is None else f"{100 * value:.0f}"


def copies_row(row: Mapping[str, Any]) -> str:
    cells = [
        row["weights"],
        f"{row['n']:,} {row['images']}",
        *(percent(value) for value in row["recall"].values()),
    ]
    return f"| {' | '.join([*cells, percent(float(np.mean([*row['recall'].values()]))), percent(row['precision'])])} |"


def leaks_row(one: Mapping[str, Any], other: Mapping[str, Any]) -> str:
    cells = [one["exact"], one["near"], one["precision"], other["recall"], other["precision"]]
    return f"| {' | '.join([one['weights'], *map(percent, cells)])} |"


def selection_tables(rows: Sequence[Mapping[str, Any]]) -> Iterator[str]:
    from pretask.evals.confidence import student_interval

    for title in dict.fromkeys(row["weights"] for row in rows):
        mine = [row for row in rows if row["weights"] == title]
        names = list(mine[0]["accuracy"])
        yield f"**{title}**\n"
        yield f"| labels | {' | '.join(names)} |"
        yield "|---:|" + "---:|" * len(names)
        for row in mine:
            base = np.array(row["accuracy"]["random"])
            cells = []
            for name in names:
                values = np.array(row["accuracy"][name])
                off = student_interval(values - base, 0.0, 2)
                cells.append(
                    f"{values.mean():.1f}"
                    + (f" [{off.low:+.1f}, {off.high:+.1f}]" if name != "random" else "")
                )
            yield f"| {row['labels']} | {' | '.join(cells)} |"
        yield ""


def coverage_row(row: Mapping[str, Any]) -> str:
    found = row["repetitions"]
    true, estimate = (100 * float(np.mean([each[key] for each in found])) for key in ("true", "estimate"))
    covered = np.mean([each["low"] <= each["true"] <= each["high"] for each in found])
    width = np.mean([each["high"] - each["low"] for each in found])
    relative = width / np.mean([exact_width(each["true"]) for each in found])
    return f"| {row['weights']} | {true:.1f} | {estimate:.1f} | {100 * covered:.0f} % | {relative:.2f} |"


def exact_width(p: float) -> float:
    """Expected width of the exact binomial interval of as many random labels, of which a fraction `p` is right."""
    from scipy.stats import binom, binomtest

    intervals = [binomtest(k, DRAWN).proportion_ci(method="exact") for k in range(DRAWN + 1)]
    return float(sum(binom.pmf(k, DRAWN, p) * (each.high - each.low) for k, each in enumerate(intervals)))


if __name__ == "__main__":
    main()

#!/usr/bin/env python3
"""Reproduce the measured results of this folder: train, score, store run cards and numbers, write the pages.

    python docs/results/make.py EXPERIMENT … --data FOLDER [--runs runs/results]
    python docs/results/make.py                              only the pages and their pictures, from stored results

FOLDER holds cifar10/, clustering/, detection/, imagenette224/, pairs/, rgbd/ and video/. The stored results of an EXPERIMENT are
replaced; finished runs in --runs are reused. Each run takes about ten minutes on two cores, with nothing else running.
"""

import argparse
import json
import os
import random
import shlex
import shutil
import subprocess
import sys
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any

import curves
import page

from pretask.methods.mae import Config as MAE
from pretask.ops import neighbors

HERE = Path(__file__).resolve().parent


@dataclass(frozen=True)
class Experiment:
    """Runs of one method with different seeds, and the data that they are scored on; paths are relative to the data folder."""

    title: str
    method: str
    train: str
    labeled: str
    test: str
    seeds: int = 3
    flags: Sequence[str] = ("--budget", "10m")
    threads: int = 0
    """threads of a run, if several run in parallel; 0: one per core"""
    scores: Sequence[str] = ()
    """flags of additional scores"""
    more: Callable[["Experiment", Path, Path], dict[str, Any]] | None = None
    """additional measurements, from the data folder and the folder of the first run"""
    remark: str = ""
    """a remark below the table"""
    runs: str = ""
    """another experiment that provides the runs"""
    task: str = ""
    """task of `pretask transfer`; empty: `pretask evaluate`"""
    before: Sequence[str] = ()
    """commands that made the images, as shown on its page"""

    def pretrain(self, data: Path, run: Path) -> list[str]:
        path = place(self.train, data, run)
        flags = [word.replace("DATA", str(data)).replace("RUNS", str(run.parent)) for word in self.flags]
        return ["pretrain", self.method, "--data", path, "--out", str(run), *flags]

    def evaluate(self, data: Path, run: Path) -> list[str]:
        sets = ["--data", place(self.labeled, data, run)]
        sets += ["--test", place(self.test, data, run)] if self.test else []
        verb = ["transfer", str(run), "--task", self.task] if self.task else ["evaluate", str(run)]
        return [*verb, *sets, "--seeds", str(self.seeds), *self.scores]


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("experiment", nargs="*", help=", ".join(EXPERIMENTS))
    parser.add_argument("--data", type=Path)
    parser.add_argument("--runs", type=Path, default=Path("runs/results"))
    args = parser.parse_args()
    if unknown := set(args.experiment) - set(EXPERIMENTS):
        parser.error(f"unknown experiment {', '.join(sorted(unknown))}; known: {', '.join(EXPERIMENTS)}")
    if args.experiment and not args.data:
        parser.error(
            "--data is missing: the folder with cifar10/, clustering/, detection/, imagenette224/, pairs/, rgbd/ and video/"
        )
    for name in args.experiment:
        make(name, EXPERIMENTS[name], args.data, args.runs)
    page.write(HERE)


def make(name: str, experiment: Experiment, data: Path, runs: Path) -> None:
    """Train the missing runs, score them, and store results and run cards in the folder `name`."""
    stem = experiment.runs or name
    first = runs / f"{stem}-s0"
    prepare(experiment.train, data, runs)
    if not (first / "DONE").exists():
        again = ["pretrain", "--resume", str(first)] if (first / "run.json").exists() else None
        pretask(again or experiment.pretrain(data, first), experiment.threads)
    scores = pretask([*experiment.evaluate(data, first), "--json"], experiment.threads)
    few = [f"OMP_NUM_THREADS={experiment.threads}"] if experiment.threads else []
    lines = (
        shlex.join(["pretask", *command(data, first)])
        for command in (experiment.pretrain, experiment.evaluate)
    )
    about: dict[str, Any] = {
        "title": experiment.title,
        "commands": [*experiment.before, *(plain(" ".join([*few, line]), data, runs) for line in lines)],
        "took": seconds(first),
    }
    if experiment.remark:
        about["remark"] = experiment.remark
    if experiment.more:
        about |= experiment.more(experiment, data, first)
    kept = HERE / name
    shutil.rmtree(kept, ignore_errors=True)
    kept.mkdir()
    (kept / "scores.json").write_text(plain(scores, data, runs))
    (kept / "about.json").write_text(json.dumps(about, indent=2) + "\n")
    family = [runs / f"{stem}-s{seed}" for seed in range(experiment.seeds)]
    for seed, run in enumerate(family):
        keep(run, kept, seed, data, runs)
    curves.write(kept, [curves.read_log(run / "log.jsonl") for run in family])


def keep(run: Path, kept: Path, seed: int, data: Path, runs: Path) -> None:
    """Store the card of a run."""
    (kept / f"run-s{seed}.json").write_text(plain((run / "run.json").read_text(), data, runs))


def place(spec: str, data: Path, run: Path) -> str:
    """Path of a dataset: in the data folder, or next to the runs if it was made for them; of both, for scenes with photographs."""
    kind = "scenes:" if spec.startswith("scenes:") else ""
    parts = spec.removeprefix(kind).split("+")
    return kind + "+".join(f"{run.parent if top(part) in MAKERS else data}/{part}" for part in parts)


def prepare(spec: str, data: Path, runs: Path) -> None:
    """Make the missing datasets among those that are made for the runs."""
    for made in map(top, spec.removeprefix("scenes:").split("+")):
        if made in MAKERS and not (runs / made).exists():
            MAKERS[made](data, runs)


def top(part: str) -> str:
    return part.partition("/")[0]


def split_textbook_once(data: Path, runs: Path) -> None:
    """Write the figures of the textbook with their captions: four fifths for training and one fifth for the test."""
    split_textbook(data, runs / PAIRS, 1)


def split_textbook(data: Path, out: Path, folds: int) -> None:
    """Write the figures of the textbook with caption and description, in training and test sets: each fold holds out another
    fifth of the sections."""
    book = data / "pairs" / "astronomy"
    rows = [json.loads(line) for line in (book / "pairs.jsonl").read_text().splitlines()]
    sections = sorted({row["context"] for row in rows})
    random.Random(0).shuffle(sections)
    out.mkdir(parents=True, exist_ok=True)
    for fold in range(folds):
        held = set(sections[fold * len(sections) // 5 : (fold + 1) * len(sections) // 5])
        for part in ("train", "test"):
            mine = [
                {"image": str((book / row["image"]).resolve()), "text": " ".join(row["captions"])}
                for row in rows
                if (row["context"] in held) == (part == "test")
            ]
            name = f"{part}.jsonl" if folds == 1 else f"{part}-{fold}.jsonl"
            (out / name).write_text("".join(json.dumps(row) + "\n" for row in mine))


def track(data: Path, runs: Path) -> None:
    """Track patches in the training clips and in the test clips."""
    for part, clips in CLIPS.items():
        links = runs / "clips" / part
        links.mkdir(parents=True, exist_ok=True)
        for clip in clips:
            (links / clip).unlink(missing_ok=True)
            (links / clip).symlink_to((data / "video" / clip).resolve())
        pretask(["track", str(links), "--out", str(runs / TRACKS / part)])


def render(folder: str, data: Path, runs: Path) -> None:
    pretask(["render", *RENDERED[folder], "--out", str(runs / folder)])


def pretask(words: Sequence[str], threads: int = 0) -> str:
    """Run a pretask command and return its standard output."""
    print("$", shlex.join(["pretask", *words]), flush=True)
    command = [sys.executable, "-m", "pretask", *words]
    env = os.environ | ({"OMP_NUM_THREADS": str(threads)} if threads else {})
    return subprocess.run(command, stdout=subprocess.PIPE, text=True, check=True, env=env).stdout


def seconds(run: Path) -> float:
    """Seconds that a finished run took, over all its parts if it was interrupted."""
    return float((run / "DONE").read_text().split()[0])


def plain(text: str, data: Path, runs: Path) -> str:
    """`text` with DATA and RUNS in place of the folders' paths."""
    for folder, name in ((data, "DATA"), (runs, "RUNS")):
        text = text.replace(f"{folder}/", f"{name}/").replace(f"{folder.resolve()}/", f"{name}/")
    return text


# ---- additional measurements


def patches_at_equal_time(experiment: Experiment, data: Path, run: Path) -> dict[str, Any]:
    """Scores of k-means patches with as many centers as fit into the time of the run, embedding included."""
    from pretask import data as sources
    from pretask.evals import baselines, features, measure

    took = seconds(run)
    train, test = (
        sources.open_labeled(data / part, size=32) for part in (experiment.labeled, experiment.test)
    )

    def features_of(centers: int) -> tuple[features.Features, features.Features, float]:
        began = time.perf_counter()
        net = baselines.patches(train, centers)
        return features.embed(net, train), features.embed(net, test), time.perf_counter() - began

    *_, few = features_of(baselines.CENTERS)
    centers = int(baselines.CENTERS * took / few)  # the time is nearly proportional to the number of centers
    of_train, of_test, needed = features_of(centers)
    chosen = measure.choose(of_train, len(train.classes), seed=0)
    scores = {(r.metric, r.stage): r.value for r in measure.measure(of_train, of_test, chosen)}
    linear, knn = scores["linear", "pool"], scores["knn", "pool"]
    return {"patches": {"centers": centers, "seconds": round(needed), "linear": linear, "knn": knn}}


def rounds_of(experiment: Experiment, data: Path, run: Path) -> dict[str, Any]:
    """Scores of the memory bank after every round: leave-one-out kNN accuracy, and how often the nearest neighbor has the same
    class, among the anchors of the next round and among all images. Repeats the run to record them."""
    from pretask import data as sources
    from pretask.methods import neighbourhood_discovery as nd
    from pretask.train.run import Run, parse_card
    from pretask.workflows.job import fresh
    from pretask.workflows.pretrain import pretrain

    label = sources.open_labeled(data / experiment.labeled).label
    method, settings, config, train = parse_card(Run(run).card)
    rounds: list[dict[str, Any]] = []
    discover = nd.discover

    def recorded(bank: Any, *arguments: Any) -> Any:
        entropy, neighbor = discover(bank, *arguments)
        pure = (label[neighbor[:, 0]] == label).float()
        anchors = entropy.argsort(stable=True)[: len(label) * (len(rounds) + 1) // (train.cycles - 1)]
        row = {"knn": share(bank_knn(bank, label)), "anchors": len(anchors)}
        rounds.append(row | {"pure": share(pure[anchors]), "of all": share(pure)})
        return entropy, neighbor

    nd.discover = recorded
    again = run.with_name(f"{run.name}-again")
    shutil.rmtree(again, ignore_errors=True)
    settings = replace(settings, out=again, plan=run, steps=None, budget=None)
    pretrain(fresh(method, settings, config, train))
    nd.discover = discover
    return {"rounds": [*rounds, {"knn": share(bank_knn(Run(again).method.bank, label))}]}


def bank_knn(bank: Any, label: Any) -> Any:
    """(N,) whether the weighted vote of the 20 nearest other rows is correct."""
    from pretask.evals import knn

    similarity, index = neighbors.nearest(bank, bank, 20, exclude_self=True)
    return (knn.vote(similarity, label[index], int(label.max()) + 1) == label).float()


def share(right: Any) -> tuple[float, float]:
    """(N,) of 0 and 1 -> the mean and half of its 95 % interval, %."""
    mean = right.mean().item()
    return 100 * mean, 196 * (mean * (1 - mean) / len(right)) ** 0.5


def cifar10(title: str, method: str, **more: Any) -> Experiment:
    train, test = (f"cifar10/cifar10_{part}_full_jpeg.npz" for part in ("train", "test"))
    return Experiment(f"{title} on CIFAR-10", method, train, train, test, **more)


def small_cifar10(title: str, method: str, train: str, **more: Any) -> Experiment:
    """An experiment that is scored with a fifth of the labels, which takes only minutes."""
    labeled, test = (f"cifar10/cifar10_{part}.npz" for part in ("train", "test"))
    return Experiment(title, method, f"cifar10/cifar10_train_{train}.npz", labeled, test, **more)


def also_on_cifar10(experiment: Experiment, title: str, runs: str) -> Experiment:
    """The same runs, scored with a fifth of CIFAR-10's labels."""
    labeled, test = (f"cifar10/cifar10_{part}.npz" for part in ("train", "test"))
    return replace(experiment, title=f"{title}, on CIFAR-10", labeled=labeled, test=test, runs=runs)


def imagenette(title: str, method: str, train: str = "", **more: Any) -> Experiment:
    labeled, test = (f"imagenette224/{part}" for part in ("train", "val"))
    return Experiment(
        f"{title} on Imagenette, from JPEG files", method, train or labeled, labeled, test, **more
    )


NEEDS_LONGER = (
    "this budget, less than two passes over the images, is too short for I-JEPA: after 20 passes (`pretask pretrain ijepa "
    "--data DATA/cifar10/cifar10_train_full_jpeg.npz --batch 512 --steps 1900` on one NVIDIA H100, one run, scored on "
    "held-out training images) its best stage has 50.2 and its pooled features 44.2, its untrained network 45.2 and 44.1"
)
"""remark for I-JEPA, from runs that are too long for this page"""
BY_A_DECODER = (
    "how frozen maps are read matters: with a decoder of four convolutions, which learns its own features, the first "
    "three of these runs predicted normals no better than their untrained networks, +0.1 degrees [−2.1, 2.3], and depth not "
    "significantly better, −0.6 % [−4.4, 3.2] (this page at commit 4574739). The choice of a linear readout was made on 50 "
    "of these 63 frames"
)
"""remark for normals and depth, measured before the readout was linear"""
FEW_PHOTOGRAPHS = (
    "eighty photographs hold few examples of 80 classes: scored on 100 of its training images (`--data` and `--test` both "
    "DATA/detection/coco_semantic:train2017, one seed), the detector has an AP50 of 46.6, the untrained network 33.2; with "
    "SGD, the recipe of commit 8c909d2, it has 0.0 there, and every row of the command above had an AP of 0.0. AdamW, its "
    "learning rate and the number of steps were chosen on coco_semantic; two of its 200 photographs are also here"
)
"""remark for detection"""
BY_SGD = (
    "with SGD, the same runs had a mIoU of 3.0 and their untrained networks 2.6, +0.4 [−0.2, 0.9] (this page at commit "
    "6ac0919); AdamW was then chosen on held-out training photographs"
)
"""remark for segmentation"""
REMARKS = {
    "normals": BY_A_DECODER,
    "depth": BY_A_DECODER,
    "detection": FEW_PHOTOGRAPHS,
    "segmentation": BY_SGD,
}
"""downstream task -> remark"""
PATCHES = {
    "exemplar": ("Exemplar-CNN", "exemplar_cnn"),
    "context": ("Context prediction", "context_prediction"),
    "jigsaw": ("Jigsaw", "jigsaw"),
    "damaged": ("Damaged jigsaw", "damaged_jigsaw"),
}
MORE_ON_CIFAR10 = {
    "byol": "BYOL",
    "simsiam": "SimSiam",
    "moco": "MoCo v2",
    "barlow_twins": "Barlow Twins",
    "vicreg": "VICReg",
    "swav": "SwAV",
    "dino": "DINO",
    "ibot": "iBOT",
    "ijepa": "I-JEPA",
    "lejepa": "LeJEPA",
    "rotation_decoupling": "Rotation feature decoupling",
    "diet": "DIET",
    "dinov2": "DINOv2",
    "nnclr": "NNCLR",
    "densecl": "DenseCL",
    "emp_ssl": "EMP-SSL",
}
PAIRS = "astronomy"
"""folder of the textbook's figures, split into training and test set"""
TRACKS = "tracks"
"""folder of tracks in training clips and test clips"""
ROOMS = "rooms"
"""folder of rendered scenes"""
OTHER_ROOMS = "other-rooms"
"""folder of scenes that no run was trained on"""
RENDERED = {
    ROOMS: ("--scenes", "1200", "--size", "96"),
    OTHER_ROOMS: ("--scenes", "300", "--size", "96", "--seed", "1"),
}
MAKERS: dict[str, Callable[[Path, Path], None]] = {
    PAIRS: split_textbook_once,
    TRACKS: track,
    ROOMS: partial(render, ROOMS),
    OTHER_ROOMS: partial(render, OTHER_ROOMS),
}
"""folder next to the runs -> function that makes it from the data"""
CLIPS = {
    "train": ("arm_wrestling.mp4", "bikes.mp4", "bottle.mp4", "car_detection.mp4", "cleaning_pool.mp4"),
    "test": ("carphone.mp4", "person_one_by_one.mp4", "tennis_frames"),
}
AT_64 = ("--size", "64", "--steps", "1500")
TEXTBOOK = Experiment(
    "TextTopicNet on the figures of an astronomy textbook, scored by the topics of their captions",
    "text_topic",
    f"{PAIRS}/train.jsonl",
    f"{PAIRS}/train.jsonl",
    f"{PAIRS}/test.jsonl",
    threads=1,
    flags=("--steps", "2000", "--size", "64"),
)
VIDEO = Experiment(
    "Video triplets: retrieving the same object a second later, in held-out clips",
    "video_triplet",
    f"{TRACKS}/train",
    f"{TRACKS}/test",
    "",
    threads=1,
    before=[f"pretask track RUNS/clips/{part} --out RUNS/{TRACKS}/{part}" for part in CLIPS],
    flags=("--budget", "10m"),
)
SCENES = imagenette(
    "Cross-domain tasks of 1,200 rendered rooms",
    "cross_domain",
    train=f"scenes:{ROOMS}+imagenette224/train",
    threads=1,
    before=[shlex.join(["pretask", "render", *RENDERED[ROOMS], "--out", f"RUNS/{ROOMS}"])],
    flags=("--steps", "1500", "--size", "64"),
)
SEVEN_SCENES = ("scenes:rgbd/seven_scenes", "")
COCO = ("detection/coco_mini:train2017", "detection/coco_mini:val2017")
FEW, TUNED, ALSO = ("--steps", "200"), ("--finetune",), ("--supervised",)
DOWNSTREAM: dict[str, tuple[str, str, tuple[str, str], Sequence[str]]] = {
    "normals": ("normals", "Normals of real photographs", SEVEN_SCENES, ()),
    "depth": ("depth", "Depth of real photographs", SEVEN_SCENES, ()),
    "normals-tuned": ("normals", "Normals of real photographs, fine-tuned", SEVEN_SCENES, (*TUNED, *FEW)),
    "depth-tuned": ("depth", "Depth of real photographs, fine-tuned", SEVEN_SCENES, (*TUNED, *FEW)),
    "segmentation": (
        "segmentation",
        "Segmentation of COCO's photographs",
        ("detection/coco_semantic", ""),
        ALSO,
    ),
    "classification": ("classification", "Classes of COCO's photographs", COCO, ALSO),
    "detection": ("detection", "Detection in COCO's photographs", COCO, ALSO),
}
"""name -> task, title, training and test images, flags"""
MAE_96 = MAE.encoder.replace("patch_size=4", "patch_size=12")
"""the default encoder with the same number of patches at 96 px as at 32 px"""
COLOR = {
    "colorization": ("Colorization", "colorization"),
    "proxy": ("Color proxy", "color_proxy"),
    "mae": ("Masked autoencoder", "mae"),
}
SETS = {
    "cifar10": (
        "8,000 images of CIFAR-10",
        "cifar10/cifar10_train.npz",
        "cifar10/cifar10_train.npz",
        "cifar10/cifar10_test.npz",
    ),
    "mnist": (
        "8,000 images of MNIST",
        "clustering/mnist_train.npz",
        "clustering/mnist_test3k.npz",
        "",
        "--fraction",
        f"{8000 / 60000:.6f}",
    ),
    "coil20": ("COIL-20", "clustering/coil20.npz", "clustering/coil20.npz", ""),
}
"""images for continuing from published weights: title, training, labeled and test images, flags"""
LITE0 = "tf_efficientnet_lite0"
PUBLISHED = f"{LITE0}@DATA/weights/{LITE0}.safetensors"
"""ImageNet weights"""
FROM_LITE0 = {"diet": "DIET", "simclr": "SimCLR", "byol": "BYOL"}


def on_set(title: str, method: str, name: str, *flags: str, seeds: int = 3) -> Experiment:
    """Five minutes at 64 px."""
    about, train, labeled, test, *more = SETS[name]
    words = ("--size", "64", "--budget", "5m", *more, *flags)
    return Experiment(f"{title}, {about} at 64 px", method, train, labeled, test, seeds, words)


EXPERIMENTS: dict[str, Experiment] = {
    **{
        f"{method}-from-lite0-{name}": on_set(
            f"{title} continued from EfficientNet-Lite0", method, name, "--init", PUBLISHED
        )
        for name in SETS
        for method, title in FROM_LITE0.items()
        if method != "byol" or name == "cifar10"
    },
    **{
        f"simclr-lite0-{name}": on_set(
            "SimCLR with EfficientNet-Lite0 from scratch", "simclr", name, "--encoder", LITE0, seeds=1
        )
        for name in SETS
    },
    "mae-for-dinov2": small_cifar10(
        "Masked autoencoder on CIFAR-10, for DINOv2", "mae", "full_jpeg", seeds=1
    ),
    **{
        f"dinov2-{start}-imagenette": imagenette(
            f"DINOv2 {words}", "dinov2", flags=("--size", "64", "--budget", "5m", *flags)
        )
        for start, words, flags in (
            ("from-mae", "continued from a masked autoencoder", ("--init", "RUNS/mae-for-dinov2-s0")),
            ("from-scratch", "from scratch", ("--encoder", f"{MAE.encoder},dynamic_img_size=True")),
        )
    },
    **{
        f"distill-{student}-cifar10": small_cifar10(
            f"Distillation of EfficientNet-Lite0 into a {kind} on CIFAR-10",
            "distill",
            "full_jpeg",
            flags=(
                "--budget",
                "10m",
                "--teacher",
                PUBLISHED,
                "--teacher-size",
                "96",
                "--stored-views",
                "2",
                *flags,
            ),
        )
        for student, kind, flags in (
            ("resnet", "small ResNet", ()),
            ("vit", "tiny transformer", ("--encoder", MAE.encoder)),
        )
    },
    "simclr-for-distill": small_cifar10("SimCLR on CIFAR-10", "simclr", "full_jpeg"),
    "rotnet-cifar10": cifar10("RotNet", "rotnet"),
    "simclr-cifar10": cifar10("SimCLR", "simclr", more=patches_at_equal_time),
    "and-cifar10": Experiment(
        "Neighborhood discovery on 8,000 images of CIFAR-10",
        "neighbourhood_discovery",
        "cifar10/cifar10_train.npz",
        "cifar10/cifar10_train.npz",
        "cifar10/cifar10_test.npz",
        more=rounds_of,
    ),
    "sdae-mnist": Experiment(
        "Stacked denoising autoencoder on MNIST",
        "sdae",
        "clustering/mnist_train.npz",
        "clustering/mnist_train.npz",
        "clustering/mnist_test3k.npz",
        flags=("--budget", "3m"),
    ),
    "rotnet-imagenette": imagenette("RotNet", "rotnet", flags=("--budget", "10m", "--size", "64"), seeds=1),
    **{
        f"{short}-imagenette": imagenette(*named, threads=1, flags=("--budget", "12m", "--size", "96"))
        for short, named in PATCHES.items()
    },
    **{f"{short}-cifar10": cifar10(*named, threads=1) for short, named in PATCHES.items()},
    "context-lossless": small_cifar10(
        "Context prediction on 4,000 images of CIFAR-10 that were never JPEG",
        "context_prediction",
        "lossless4k",
        threads=1,
        flags=("--budget", "5m"),
    ),
    "jigsaw-grid": small_cifar10(
        "Jigsaw on CIFAR-10 at 64 px", "jigsaw", "full_jpeg", seeds=1, threads=1, flags=AT_64
    ),
    "jigsaw-no-grid": small_cifar10(
        "Jigsaw on CIFAR-10 at 64 px, with cells as wide as JPEG's blocks",
        "jigsaw",
        "full_jpeg",
        seeds=1,
        threads=1,
        flags=(*AT_64, "--window", "0.75"),
    ),
    **{
        f"{short}-cifar10": small_cifar10(
            f"{title} on CIFAR-10",
            method,
            "full_jpeg",
            threads=1,
            flags=("--budget", "5m"),
            scores=("--finetune",) if short == "mae" else (),
        )
        for short, (title, method) in COLOR.items()
    },
    **{
        f"{short}-imagenette": imagenette(*named, threads=1, flags=("--budget", "5m", "--size", "96"))
        for short, named in COLOR.items()
        if short != "mae"
    },
    "mae-imagenette": imagenette(
        *COLOR["mae"],
        threads=1,
        flags=(
            *("--budget", "10m", "--size", "96", "--encoder"),
            MAE_96,
        ),
    ),
    **{
        f"{method}-cifar10": small_cifar10(
            f"{title} on CIFAR-10",
            method,
            "full_jpeg",
            threads=1,
            remark=NEEDS_LONGER if method == "ijepa" else "",
        )
        for method, title in MORE_ON_CIFAR10.items()
    },
    "text_topic-astronomy": TEXTBOOK,
    "text_topic-cifar10": also_on_cifar10(
        TEXTBOOK, "TextTopicNet trained on an astronomy textbook", "text_topic-astronomy"
    ),
    "video_triplet-tracks": VIDEO,
    "video_triplet-cifar10": also_on_cifar10(VIDEO, "Video triplets from five clips", "video_triplet-tracks"),
    "cross_domain-imagenette": SCENES,
    "cross_domain-cifar10": also_on_cifar10(
        SCENES, "Cross-domain tasks of 1,200 rendered rooms", "cross_domain-imagenette"
    ),
    **{
        f"cross_domain-{name}": replace(
            SCENES,
            title=f"{title}, by the encoder of the rendered rooms",
            labeled=labeled,
            test=test,
            scores=flags,
            seeds=SCENES.seeds if flags else 6,  # linear readouts of frozen maps take only seconds
            runs="cross_domain-imagenette",
            task=task,
            remark=REMARKS.get(name, ""),
        )
        for name, (task, title, (labeled, test), flags) in DOWNSTREAM.items()
    },
    "jule-cifar10": Experiment(
        "JULE on 8,000 images of CIFAR-10",
        "jule",
        "cifar10/cifar10_train.npz",
        "cifar10/cifar10_train.npz",
        "cifar10/cifar10_test.npz",
        threads=1,
        flags=("--budget", "10m", "--neighbors", "20"),
    ),
}


if __name__ == "__main__":
    main()

#!/usr/bin/env python3
"""Recognition of colorized photographs by a network that was trained on color photographs (Zhang et al. 2016, sec. 3.1).

    python docs/results/recognition.py --data FOLDER [--network tf_efficientnet_lite0@weights/tf_efficientnet_lite0.safetensors]
        [--runs runs/results]

FOLDER holds imagenette224/, whose class folders begin with the WordNet IDs of ImageNet. The network is a timm model for
ImageNet's 1,000 classes, with its weights in a file below FOLDER. The paper uses VGG-16. A finished run in --runs is reused;
colorization and recognition take some minutes. The results are written to recognition/imagenette.json and shown in colorize.md.
"""

import argparse
import json
import shlex
from collections.abc import Callable
from dataclasses import asdict
from pathlib import Path
from typing import Any

import make
import timm
import torch
from orderings import COMMON
from PIL import Image
from timm.data.config import resolve_model_data_config
from timm.data.imagenet_info import ImageNetInfo
from timm.data.transforms_factory import create_transform
from torch import Tensor

from pretask import data
from pretask.evals.confidence import interval
from pretask.train.run import Run
from pretask.transforms.color import lab_to_rgb, rgb_to_lab
from pretask.viz import sheet
from pretask.workflows import colorize

NETWORK = "tf_efficientnet_lite0@weights/tf_efficientnet_lite0.safetensors"
TRAIN, TEST = "imagenette224/train", "imagenette224/val"
TEMPERATURES = (0.38, 1.0)
"""temperatures of the predicted colors: 0.38 as in the paper, and 1, the mean"""


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--data", type=Path, required=True)
    parser.add_argument("--network", default=NETWORK, help="NAME@FILE")
    parser.add_argument("--runs", type=Path, default=Path("runs/results"))
    args = parser.parse_args()
    run = args.runs / "recognition-s0"
    flags = ["pretrain", "colorization", "--data", str(args.data / TRAIN), "--out", str(run)]
    flags += COMMON
    if not (run / "DONE").exists():
        make.pretask(flags, threads=1)
    name, _, file = args.network.partition("@")
    right = recognize(Run(run), args.data / TEST, classifier(name, args.data / file))
    gray = right["without color"]
    rows = [
        {"images": what, "n": len(x), "top1": asdict(interval(x)), "above_gray": asdict(interval(x - gray))}
        for what, x in right.items()
    ]
    command = make.plain("OMP_NUM_THREADS=1 " + shlex.join(["pretask", *flags]), args.data, args.runs)
    kept = make.HERE / "recognition" / "imagenette.json"
    kept.parent.mkdir(exist_ok=True)
    found = {"command": command, "steps": Run(run).card["steps"], "network": args.network, "rows": rows}
    kept.write_text(json.dumps(found, indent=2) + "\n")
    print(kept.read_text())


def classifier(name: str, file: Path) -> Callable[[Image.Image], int]:
    """A function that predicts the ImageNet class of a picture with a timm model and its own preprocessing."""
    net = timm.create_model(name, checkpoint_path=str(file)).eval()
    prepare: Any = create_transform(**resolve_model_data_config(net), is_training=False)

    @torch.inference_mode()
    def classify(picture: Image.Image) -> int:
        return int(net(prepare(picture)[None]).argmax())

    return classify


@torch.inference_mode()
def recognize(run: Run, folder: Path, classify: Callable[[Image.Image], int]) -> dict[str, Tensor]:
    """Colors -> (N,) 100 for each photograph that is classified correctly with them, else 0: its own colors, none, those that the
    run predicts, and those of another photograph. The lightness is always its own."""
    source = data.open(folder, size=run.card["size"], channels=3, cache_mb=0)
    numbers = {word: i for i, word in enumerate(ImageNetInfo().label_names())}
    paint = colorize.painter(run)
    right: dict[str, list[float]] = {}
    files, labs = zip(*((file, rgb_to_lab(image)) for file, image in colorize.originals(source)), strict=True)
    others = torch.randperm(len(labs), generator=torch.Generator().manual_seed(0)).tolist()
    for file, lab, other in zip(files, labs, others, strict=True):
        light, own = lab[:, :1], lab[:, 1:]
        colors = {"in their own colors": own, "without color": 0 * own}
        for t in TEMPERATURES:
            colors[f"painted, temperature {t:g}"] = paint(light, t)
        colors["in the colors of another photograph"] = labs[other][:, 1:]  # all have the same size
        true = numbers[file.partition("/")[0].partition("_")[0]]
        for what, ab in colors.items():
            picture = sheet.pictures(lab_to_rgb(torch.cat([light, ab], 1)))[0]
            right.setdefault(what, []).append(100.0 * (classify(picture) == true))
    return {what: torch.tensor(x) for what, x in right.items()}


if __name__ == "__main__":
    main()

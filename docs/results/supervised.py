#!/usr/bin/env python3
"""Supervised pretraining compared with self-supervised pretraining: fewer images, fewer labels, fewer classes.

    python docs/results/supervised.py --data FOLDER [--runs runs/supervised]

FOLDER holds cifar10/. The script trains one run of colorization as a proxy task on 8,000 images of CIFAR-10 and
starts `pretask study --ask supervised`: two shorter runs on fractions of the images, and five networks pretrained with labels.
Finished runs in --runs are reused. The results are written to supervised/cifar10.json, and `make.py` writes their page.
"""

import argparse
import json
import subprocess
import sys
from pathlib import Path

import make

HERE = Path(__file__).resolve().parent
TRAIN, TEST = "cifar10/cifar10_train.npz", "cifar10/cifar10_test.npz"
METHOD, STEPS = "color_proxy", 1000


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--data", type=Path, required=True)
    parser.add_argument("--runs", type=Path, default=Path("runs/supervised"))
    args = parser.parse_args()
    run, train, test = args.runs / METHOD, str(args.data / TRAIN), str(args.data / TEST)
    pretrain = ["pretrain", METHOD, "--data", train, "--steps", str(STEPS), "--out", str(run)]
    study = ["study", str(run), "--data", train, "--test", test, "--ask", "supervised"]
    if not (run / "DONE").exists():
        subprocess.run([sys.executable, "-m", "pretask", *pretrain], check=True)
    output = subprocess.run(
        [sys.executable, "-m", "pretask", *study, "--json"], check=True, stdout=subprocess.PIPE, text=True
    ).stdout
    found = json.loads(make.plain(output, args.data, args.runs))
    found["commands"] = [
        make.plain(" ".join(["pretask", *command]), args.data, args.runs) for command in (pretrain, study)
    ]
    (HERE / "supervised").mkdir(exist_ok=True)
    (HERE / "supervised" / "cifar10.json").write_text(json.dumps(found, indent=2) + "\n")


if __name__ == "__main__":
    main()

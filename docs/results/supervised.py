#!/usr/bin/env python3
"""What pretraining with labels gives beside pretraining without: fewer images, fewer labels, fewer classes.

    python docs/results/supervised.py --data FOLDER [--runs runs/supervised]

FOLDER holds cifar10/. One run of colorization as a proxy task on 8,000 images of CIFAR-10, then `pretask study --ask
supervised`: two shorter runs on shares of the images, and five networks pretrained with labels. Runs that lie there,
finished, are used again. The answer is kept in supervised/cifar10.json, and `make.py` puts it on the page.
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
    words = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    words.add_argument("--data", type=Path, required=True)
    words.add_argument("--runs", type=Path, default=Path("runs/supervised"))
    asked = words.parse_args()
    run, train, test = asked.runs / METHOD, str(asked.data / TRAIN), str(asked.data / TEST)
    pretrain = ["pretrain", METHOD, "--data", train, "--steps", str(STEPS), "--out", str(run)]
    study = ["study", str(run), "--data", train, "--test", test, "--ask", "supervised"]
    if not (run / "DONE").exists():
        subprocess.run([sys.executable, "-m", "pretask", *pretrain], check=True)
    output = subprocess.run(
        [sys.executable, "-m", "pretask", *study, "--json"], check=True, stdout=subprocess.PIPE, text=True
    ).stdout
    found = json.loads(make.plain(output, asked.data, asked.runs))
    found["commands"] = [
        make.plain(" ".join(["pretask", *command]), asked.data, asked.runs) for command in (pretrain, study)
    ]
    (HERE / "supervised").mkdir(exist_ok=True)
    (HERE / "supervised" / "cifar10.json").write_text(json.dumps(found, indent=2) + "\n")


if __name__ == "__main__":
    main()

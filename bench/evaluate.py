"""Evaluation speed: kNN and a linear probe on features computed once, against the classic probe of 90 epochs.

Example: python bench/evaluate.py --run runs/simclr-cifar10-s0 --data train.npz --test test.npz --full

Ours embeds both sets, chooses k, penalty and stage on held-out training images, and scores kNN and a probe at that
stage; all of it is counted. The classic probe (Goyal et al. 2019, arXiv:1905.01235; learning rate, momentum and
decay are theirs) sends every image through the frozen encoder in every epoch, cropped and flipped anew; it learns on
the same stage, pooled alike. A few of its epochs are timed; with --full all of them, which its accuracy needs.
"""

from dataclasses import dataclass
from pathlib import Path
from statistics import median
from time import perf_counter

import torch
import torch.nn.functional as F
from common import Goal, flags, seconds, show
from torch import Tensor, nn

from pretask import encoders, images, loader, sources
from pretask.device import find_device
from pretask.encoders import Encoder
from pretask.evals import knn, linear
from pretask.evals.features import embed, pooled
from pretask.evals.measure import choose
from pretask.rng import Rng
from pretask.run import Run
from pretask.types import Labelled

EPOCHS = 90
BATCH = 256


@dataclass(frozen=True)
class Flags:
    data: str = "demo"
    """labelled training images: anything that pretask opens"""
    test: str = "demo:test"
    """labelled test images"""
    run: Path | None = None
    """score the encoder of this run (an untrained one)"""
    encoder: str = "resnet_small"
    """the untrained encoder, where no run is given"""
    epochs: int = 2
    """of the classic probe that are timed, and multiplied to 90"""
    full: bool = False
    """train the classic probe for all 90 epochs"""
    json: bool = False
    """print JSON, and nothing else, on standard output"""


class Ours:
    """Called once; then it holds the stage that was chosen, the kNN and linear accuracy there, %, and `embedding`, s."""

    def __init__(self, encoder: Encoder, train: Labelled, test: Labelled):
        self.encoder, self.train, self.test = encoder, train, test

    def __call__(self) -> None:
        started = perf_counter()
        seen, unseen = (
            embed(self.encoder, s, device=find_device(), progress=False) for s in (self.train, self.test)
        )
        self.embedding = perf_counter() - started
        classes = len(seen.classes)
        chosen = choose(seen, classes, seed=0)
        self.stage, choice = chosen.stage, chosen.probes[chosen.stage]
        voted = knn.knn(seen.stages["pool"], seen.label, unseen.stages["pool"], classes, chosen.k)
        probe = linear.fit(seen.stages[self.stage], seen.label, classes, choice.penalty, choice.probe)
        self.knn = percent(voted, unseen.label)
        self.linear = percent(probe.predict(unseen.stages[self.stage]), unseen.label)


class Classic:
    """SGD on one stage, through the encoder in evaluation mode; the learning rate falls tenfold twice."""

    def __init__(self, encoder: Encoder, stage: str, train: Labelled, epochs: int):
        self.device = find_device()
        self.encoder, self.stage = encoder.to(self.device).eval(), stage
        self.train = train
        width = self.features(torch.zeros(1, encoder.channels, encoder.size, encoder.size)).shape[1]
        head = nn.Sequential(nn.BatchNorm1d(width, affine=False), nn.Linear(width, len(train.classes)))
        self.head = head.to(self.device)
        self.optimizer = torch.optim.SGD(self.head.parameters(), lr=0.01, momentum=0.9, weight_decay=5e-4)
        thirds = [round(epochs / 3), round(2 * epochs / 3)]
        self.schedule = torch.optim.lr_scheduler.MultiStepLR(self.optimizer, thirds)
        self.done = 0

    @torch.no_grad()
    def features(self, x: Tensor) -> Tensor:
        """(B, C, H, W) -> (B, D)"""
        x = x.to(self.device, memory_format=torch.channels_last)
        return pooled(self.encoder(x)[self.stage])

    def epoch(self) -> None:
        self.head.train()
        order = Rng(0, "order", self.done).permutation(len(self.train))
        for step, batch in enumerate(loader.epoch(self.train, order, BATCH)):
            rng = Rng(0, "view", self.done, step, device=self.device)
            x = images.to_float(batch.image.to(self.device))
            view = images.resized_crop(x, self.encoder.size, rng, (0.08, 1.0))
            logits = self.head(self.features(images.flip(view, rng)))
            self.optimizer.zero_grad()
            F.cross_entropy(logits, self.train.label[batch.index].to(self.device)).backward()
            self.optimizer.step()
        self.schedule.step()
        self.done += 1

    @torch.no_grad()
    def accuracy(self, test: Labelled) -> float:
        self.head.eval()
        batches = loader.epoch(test, torch.arange(len(test)), BATCH)
        rows = [self.head(self.features(images.to_float(batch.image))).argmax(1).cpu() for batch in batches]
        return percent(torch.cat(rows), test.label)


def percent(predicted: Tensor, label: Tensor) -> float:
    return 100 * (predicted == label).double().mean().item()


def main() -> None:
    asked = flags(Flags, __doc__ or "")
    given = Run(asked.run).encoder if asked.run else None
    train = sources.open_labelled(asked.data, size=given and given.size, channels=given and given.channels)
    test = sources.open_labelled(asked.test, size=train.size, channels=train.channels)
    torch.manual_seed(0)
    encoder = given or encoders.build(asked.encoder, train.channels, train.size)

    ours = Ours(encoder, train, test)
    took = seconds(ours)
    epochs = EPOCHS if asked.full else asked.epochs
    classic = Classic(encoder, ours.stage, train, epochs)
    per_epoch = median(seconds(classic.epoch) for _ in range(epochs))
    accuracy = classic.accuracy(test)

    numbers = {
        "images": f"{len(train)} + {len(test)}",
        "stage": ours.stage,
        "ours, s": took,
        "of that computing the features, s": ours.embedding,
        "classic probe, s an epoch": per_epoch,
        "classic probe, s": EPOCHS * per_epoch,
        "kNN, %": ours.knn,
        "linear, %": ours.linear,
        f"classic probe after {epochs} epochs, %": accuracy,
    }
    goals = [Goal("ours of the classic probe", EPOCHS * per_epoch / took, 30, "x")]
    if asked.full:
        goals.append(Goal("accuracy above the classic probe's", ours.linear - accuracy, 0, "points"))
    show(f"Evaluation of {encoder.name} on {test.name}", numbers, goals, asked.json)


if __name__ == "__main__":
    main()

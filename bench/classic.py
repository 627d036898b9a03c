"""The classic linear probe: in every epoch, every image is augmented and passes through the frozen encoder.

Goyal et al. 2019, arXiv:1905.01235, with their learning rate, momentum and weight decay.
"""

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from pretask.data import loader
from pretask.encoders import Encoder
from pretask.encoders.readout import pool_map
from pretask.rng import Rng
from pretask.runtime.device import find_device
from pretask.transforms import augment
from pretask.types import LabeledSource

EPOCHS = 90
BATCH = 256


class Classic:
    """SGD on the features of one stage, with the encoder in evaluation mode; the learning rate is divided by ten twice."""

    def __init__(self, encoder: Encoder, stage: str, train: LabeledSource, epochs: int):
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
        return pool_map(self.encoder(x)[self.stage])

    def epoch(self) -> None:
        self.head.train()
        order = Rng(0, "order", self.done).permutation(len(self.train))
        for step, batch in enumerate(loader.epoch(self.train, order, BATCH)):
            rng = Rng(0, "view", self.done, step, device=self.device)
            x = augment.to_float(batch.image.to(self.device))
            view = augment.resized_crop(x, self.encoder.size, rng, (0.08, 1.0))
            logits = self.head(self.features(augment.flip(view, rng)))
            self.optimizer.zero_grad()
            F.cross_entropy(logits, self.train.label[batch.index].to(self.device)).backward()
            self.optimizer.step()
        self.schedule.step()
        self.done += 1

    @torch.no_grad()
    def accuracy(self, test: LabeledSource) -> float:
        """Accuracy in %, without augmentation."""
        self.head.eval()
        right = 0
        for batch in loader.epoch(test, torch.arange(len(test)), BATCH):
            predicted = self.head(self.features(augment.to_float(batch.image))).argmax(1).cpu()
            right += int((predicted == test.label[batch.index]).sum())
        return 100 * right / len(test)

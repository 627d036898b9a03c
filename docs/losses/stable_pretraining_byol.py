"""BYOL with stable-pretraining's loss."""

import torch
from stable_pretraining.losses.joint_embedding import BYOLLoss

from pretask.methods import byol
from pretask.types import Loss

same_loss = True


class Config(byol.Config):
    """BYOL with stable-pretraining's loss."""

    def build(self, encoder, source):
        return Theirs(self, encoder)


class Theirs(byol.BYOL):
    def loss(self, pretext):
        p1, p2 = self.predictor(self.projector(self.encoder(pretext.both)["pool"])).chunk(2)
        with torch.no_grad():
            encoder, projector = self.teacher
            z1, z2 = projector(encoder(pretext.both)["pool"]).chunk(2)
        distance = BYOLLoss()
        return Loss((distance(p1, z2) + distance(p2, z1)) / 2, {})

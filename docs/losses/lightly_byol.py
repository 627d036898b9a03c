"""BYOL with lightly's loss."""

import torch
from lightly.loss import NegativeCosineSimilarity

from pretask.methods import byol
from pretask.types import Loss

same_loss = True


class Config(byol.Config):
    """BYOL with lightly's loss."""

    def build(self, encoder, source):
        return Theirs(self, encoder)


class Theirs(byol.BYOL):
    def loss(self, pretext):
        p1, p2 = self.predictor(self.projector(self.encoder(pretext.both)["pool"])).chunk(2)
        with torch.no_grad():
            encoder, projector = self.teacher
            z1, z2 = projector(encoder(pretext.both)["pool"]).chunk(2)
        cosine = NegativeCosineSimilarity()
        return Loss(
            2 + cosine(p1, z2) + cosine(p2, z1), {}
        )  # theirs is minus the cosine, the paper's 2 - 2 cosines

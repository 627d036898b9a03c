"""SimCLR with lightly's loss."""

from lightly.loss import NTXentLoss

from pretask.methods import simclr
from pretask.types import Loss

same_loss = True


class Config(simclr.Config):
    """SimCLR with lightly's loss."""

    def build(self, encoder, source):
        return Theirs(self, encoder)


class Theirs(simclr.SimCLR):
    def loss(self, pretext):
        return Loss(NTXentLoss(self.config.temperature)(*self.project(pretext)), {})

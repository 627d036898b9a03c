"""SimCLR with stable-pretraining's loss."""

from stable_pretraining.losses.joint_embedding import NTXEntLoss

from pretask.methods import simclr
from pretask.types import Loss

same_loss = True


class Config(simclr.Config):
    """SimCLR with stable-pretraining's loss."""

    def build(self, encoder, source):
        return Theirs(self, encoder)


class Theirs(simclr.SimCLR):
    def loss(self, pretext):
        return Loss(NTXEntLoss(self.config.temperature)(*self.project(pretext)), {})

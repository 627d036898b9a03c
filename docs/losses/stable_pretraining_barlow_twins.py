"""Barlow Twins with stable-pretraining's loss."""

from stable_pretraining.losses.joint_embedding import BarlowTwinsLoss

from pretask.methods import barlow_twins
from pretask.types import Loss

same_loss = True


class Config(barlow_twins.Config):
    """Barlow Twins with stable-pretraining's loss."""

    def build(self, encoder, source):
        return Theirs(self, encoder)


class Theirs(barlow_twins.BarlowTwins):
    def loss(self, pretext):
        z1, z2 = (self.projector(self.encoder(view)["pool"]) for view in (pretext.view1, pretext.view2))
        return Loss(BarlowTwinsLoss(self.config.lambda_)(z1, z2), {})

"""VICReg with lightly's loss."""

from lightly.loss import VICRegLoss

from pretask.methods import vicreg
from pretask.types import Loss

same_loss = True


class Config(vicreg.Config):
    """VICReg with lightly's loss."""

    def build(self, encoder, source):
        return Theirs(self, encoder)


class Theirs(vicreg.VICReg):
    def loss(self, pretext):
        z1, z2 = self.projector(self.encoder(pretext.both)["pool"]).chunk(2)
        return Loss(VICRegLoss()(z1, z2), {})

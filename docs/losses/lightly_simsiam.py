"""SimSiam with lightly's loss."""

from lightly.loss import NegativeCosineSimilarity

from pretask.methods import simsiam
from pretask.types import Loss

same_loss = True


class Config(simsiam.Config):
    """SimSiam with lightly's loss."""

    def build(self, encoder, source):
        return Theirs(self, encoder)


class Theirs(simsiam.SimSiam):
    def loss(self, pretext):
        z = self.projector(self.encoder(pretext.both)["pool"])
        z1, z2 = z.chunk(2)
        p1, p2 = self.predictor(z).chunk(2)
        cosine = NegativeCosineSimilarity()
        return Loss((cosine(p1, z2.detach()) + cosine(p2, z1.detach())) / 2, {})

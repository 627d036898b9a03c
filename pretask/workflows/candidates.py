"""The candidates of a comparison: methods from scratch and, if there are published weights, methods that start or learn from them."""

from collections.abc import Iterator
from dataclasses import dataclass, replace
from pathlib import Path

from pretask import methods
from pretask.config import RunConfig, TrainConfig
from pretask.data.base import Images
from pretask.encoders import Encoder
from pretask.encoders.vit import is_vit
from pretask.methods import MethodConfig
from pretask.train import requirements
from pretask.types import UserError
from pretask.workflows.search import Trial

FROM_WEIGHTS = {False: ("diet", "byol"), True: ("diet", "dinov2")}
"""methods that continue published weights, of CNNs and of vision transformers"""
FROM_SCRATCH = {
    False: ("simclr", "byol", "barlow_twins", "swav", "rotnet"),
    True: ("simclr", "dino", "mae", "barlow_twins", "rotnet"),
}
"""one method of each kind that the encoder can learn by"""
NEEDING = ("text_topic", "video_triplet", "cross_domain")
"""methods that are added if the data has what they need besides images: texts, tracks or scenes"""


@dataclass(frozen=True)
class Candidate:
    """A recipe for an encoder."""

    name: str
    method: str
    config: MethodConfig
    train: TrainConfig
    encoder: str | None
    """architecture; None: that of the weights"""
    init: str | None
    """weights to start from"""

    def trial(self, folder: Path, shared: RunConfig) -> Trial:
        """A run of it."""
        settings = replace(shared, out=folder, encoder=self.encoder, init=self.init)
        return Trial(self.method, settings, self.config, self.train)


def usual(encoder: Encoder, images: Images, published: str | None) -> Iterator[tuple[str, bool]]:
    """Methods that suit the data, and whether each uses the published weights."""
    vit = is_vit(encoder)
    if published:
        yield from ((method, True) for method in (*FROM_WEIGHTS[vit], "distill"))
    yield from ((method, False) for method in FROM_SCRATCH[vit])
    for method in NEEDING:
        if methods.recipe(method).needs <= images.provides:
            yield method, False


def fitting(train: TrainConfig, images: Images) -> TrainConfig:
    """With a batch that is no larger than the number of images."""
    return replace(train, batch=min(train.batch, len(images)))


def candidate(method: str, architecture: str, published: str | None, images: Images) -> Candidate:
    """A method's default recipe on `architecture`: from the published weights, from them as a teacher, or from scratch.

    Raises UserError if it cannot train this architecture on these images.
    """
    config = methods.recipe(method)()
    init = encoder = None
    if published and hasattr(config, "teacher"):
        config, encoder = replace(config, teacher=published), architecture
    elif published:
        config, init = config.for_continuing(), published
    else:
        encoder = architecture
    train = fitting(config.train_for_continuing() if init else config.train, images)
    if missing := config.needs - images.provides:
        raise UserError(f"{method} needs {', '.join(sorted(missing))}, which {images.name} does not provide")
    built = config.build_encoder(config.spec(architecture), images)
    requirements.check(config, built, images, train.batch)
    config.resolved().build(built, images)
    name = f"{method}, continued" if init else method
    return Candidate(name, method, config, train, encoder, init)

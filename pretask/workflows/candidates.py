"""The candidates of a comparison: methods from scratch and, if there are published weights, methods that start or learn from them."""

from collections.abc import Iterable, Iterator, Sequence
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


@dataclass(frozen=True)
class Choice:
    """A method, the encoder that it is to train, and whether it starts or learns from the published weights."""

    method: str
    net: Encoder
    from_weights: bool = False


def usual(nets: Sequence[Encoder], given: Encoder | None, images: Images) -> Iterator[Choice]:
    """Methods that suit the data: continuing the `given` encoder, if there are published weights, and training each of `nets`."""
    if given is not None:
        yield from asked_for((*FROM_WEIGHTS[is_vit(given)], "distill"), nets, given)
    for net in nets:
        yield from (Choice(method, net) for method in FROM_SCRATCH[is_vit(net)])
    needed = [method for method in NEEDING if methods.recipe(method).needs <= images.provides]
    yield from asked_for(needed, nets, None)


def asked_for(names: Iterable[str], nets: Sequence[Encoder], given: Encoder | None) -> Iterator[Choice]:
    """With published weights, methods continue the `given` encoder; those that learn from a teacher train each of `nets` by it."""
    for method in names:
        continued = given is not None and not has_teacher(methods.recipe(method)())
        for net in [given] if given is not None and continued else nets:
            yield Choice(method, net, given is not None)


def has_teacher(config: MethodConfig) -> bool:
    return hasattr(config, "teacher")


def fitting(train: TrainConfig, images: Images) -> TrainConfig:
    """With a batch that is no larger than the number of images."""
    return replace(train, batch=min(train.batch, len(images)))


def candidate(choice: Choice, published: str | None, images: Images, several: bool) -> Candidate:
    """A method's default recipe: from the published weights, from them as a teacher, or from scratch. With `several` encoders, the name
    says which one. Raises UserError if it cannot train this architecture on these images.
    """
    method, architecture = choice.method, choice.net.name
    config = methods.recipe(method)()
    init, encoder = None, architecture
    if choice.from_weights and published and has_teacher(config):
        config = replace(config, **{"teacher": published})
    elif choice.from_weights:
        config, init, encoder = config.for_continuing(), published, None
    train = fitting(config.train_for_continuing() if init else config.train, images)
    if missing := config.needs - images.provides:
        raise UserError(f"{method} needs {', '.join(sorted(missing))}, which {images.name} does not provide")
    built = config.build_encoder(config.spec(architecture), images)
    requirements.check(config, built, images, train.batch)
    config.resolved().build(built, images)
    name = f"{method}, continued" if init else f"{method}, {architecture}" if several else method
    return Candidate(name, method, config, train, encoder, init)

"""DIET: classify every augmented image by its own index in the dataset.

Balestriero: Unsupervised Learning on a DIET: Datum IndEx as Target Free of Self-Supervision, Reconstruction, Projector Head,
2023, arXiv:2302.10260; Ibrahim, Klindt, Balestriero: Occam's Razor for Self Supervised Learning: What is Sufficient to Learn
Good Representations?, 2024, arXiv:2406.10743. It is `exemplar_cnn` with whole images in place of patches: one augmented view
per image, one linear layer with a class per image, and cross-entropy with strong label smoothing. There are no positive pairs,
no projector and no teacher, so it suits small datasets, for which other methods need their hyperparameters tuned.

`diet:continued` is DIET-CP (Rodas, Montesino, Ambsdorf, Klindt, Balestriero: Lightweight and Data Efficient Self Supervised
Continued Pretraining, 2025, arXiv:2509.06990): a published transformer goes on training on about a thousand images of
another kind. The features have unit length, only the last two blocks are trained, and these after the classifier alone has
been trained for a twentieth of the run.

Of the papers only the abstracts were available. "Released" is the author's code for `:paper`,
RandallBalestriero/noise-robust-vit at 6840432, and an author's for `:continued`, jakobamb/DIET_Tuning at a806d8c, with its
scripts RC_2block_150e_da2. The former imports a library that is not public: its augmentation of strength 3 is taken from the
latter, which has the same levels; its warmup and schedule could not be read, and are ten epochs and half a cosine here.

**Differs:** the kernel of the blur is a tenth of the side with a standard deviation from 0.1 to 2, released 3 px and from 1 to
2; boxes that are erased lie between pixels. In `:paper` the stem pads its input by one pixel, released two, and
convolutions are initialized by PyTorch's rule, not torchvision's; the released loss includes that of a supervised probe, from
which the encoder gets no gradient. In `:continued` AdamW's moments are also collected while the blocks are frozen, the
learning rate is annealed every step, not every epoch, and pixels are normalized as in the weights' own training, released by
the dataset's mean and standard deviation.

Training is on 8,000 images, of more on a random part: short runs learn a class only if they see it often. With all 50,000
images of CIFAR-10, ten minutes of one core (`--num-classes 50000 --budget 10m`) are seven passes, in which the loss stays at
chance and features collapse (kNN 13.4 %, untrained 34.1; with 8,000 images 55.4). `:paper` takes all images.

Cost: the classifier has one row per image, as that of `exemplar_cnn` has one per seed: 50,000 of dimension 512 take 102 MB, four
times as much with their gradients and AdamW's state. A step computes B·N logits, 51 MB for 256 of 50,000. More than 100,000
classes are refused.
"""

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, replace
from typing import Any, ClassVar

import torch.nn.functional as F
from torch import Tensor

from pretask.config import TrainConfig, continued
from pretask.encoders import Encoder
from pretask.encoders.heads import build_mlp
from pretask.limits import AtLeastTwo, FractionBelowOne, NonNegativeInt, PositiveFraction, UnitInterval
from pretask.methods.base.method import Method, Minimum
from pretask.methods.base.views import IndexedView, ViewConfig, show_indexed_views
from pretask.rng import Rng
from pretask.transforms import augment
from pretask.types import Batch, Loss, Source, UserError
from pretask.viz.puzzle import Puzzle

LARGEST = 100_000
"""largest number of images, each of which is a class"""


@dataclass(frozen=True)
class Config(ViewConfig):
    """Tell which image of the dataset an augmented view shows."""

    family: ClassVar[str] = "contrastive"
    num_classes: AtLeastTwo | None = 8000
    """largest number of images, each of which is a class; of more, a random part is used; None: all"""
    views: augment.HueAugmentation = augment.HueAugmentation()
    """augmentation of a view"""
    erase: UnitInterval = 0.25
    """probability that a random box of 2 to 33 % of a view is erased"""
    label_smoothing: FractionBelowOne = 0.8
    """probability that the target distribution spreads evenly over all images"""
    bias: bool = True
    """whether the classifier has biases"""
    normalize: bool = False
    """scale the features to unit length before the classifier (DIET-CP)"""
    trained_blocks: NonNegativeInt = 0
    """last blocks of a transformer that are trained, the rest of it being frozen; 0: the whole encoder (DIET-CP: 2)"""

    def fewest_images(self) -> Minimum:
        """Each image is a class."""
        return Minimum(2)

    def most_images(self) -> int | None:
        """Short runs see each image often enough only if there are few: see the module's docstring."""
        return self.num_classes

    def smallest_batch(self) -> Minimum:
        """Images are compared with the classifier's rows, not with each other."""
        return Minimum(1)

    def for_continuing(self) -> "Config":
        """Features of unit length: otherwise the loss falls fastest by shrinking those of the weights to 0."""
        return replace(self, normalize=True)

    def train_for_continuing(self) -> TrainConfig:
        """A slower encoder than in other methods, and a classifier of many classes that is trained alone for longer."""
        return (
            self.train
            if self.continues
            else replace(continued(self.train), encoder_lr_scale=0.02, head_first=0.3)
        )

    def build(self, encoder: Encoder, source: Source) -> "DIET":
        count = len(source) if self.num_classes is None else min(self.num_classes, len(source))
        if count > LARGEST:
            megabytes = 4 * count * encoder.dim / 1e6
            raise UserError(
                f"diet takes {LARGEST} images or fewer, since each is a class, and there are {count}, whose classifier has "
                f"{megabytes:.0f} MB, four times as much with gradients and optimizer; give --num-classes {LARGEST}"
            )
        return DIET(self, encoder, count)


@dataclass(frozen=True)
class Paper(Config):
    """ResNet-18 on CIFAR-100: AdamW, batch 256, 4000 epochs (released scripts)."""

    encoder: ClassVar[str] = "resnet_small:blocks=2,stages=4,stride=1,strided=True"
    train: ClassVar[TrainConfig] = TrainConfig(
        epochs=4000, batch=256, lr=1e-3, weight_decay=0.05, decay_all=True, warmup=10 / 4000
    )

    side: PositiveFraction = 1.0
    """full size"""
    num_classes: AtLeastTwo | None = None
    """all images"""
    views: augment.HueAugmentation = augment.HueAugmentation(crop=(0.08, 1.0), jitter_p=0.3, blur=0.2)
    """strength 3"""


@dataclass(frozen=True)
class Continued(Config):
    """DIET-CP: continue a published ViT-S/16 of DINOv3 on 1,000 images, with --size 224 and --init (released scripts)."""

    continues: ClassVar[bool] = True
    encoder: ClassVar[str] = "vit_small_patch16_dinov3.lvd1689m:global_pool=token"
    train: ClassVar[TrainConfig] = TrainConfig(
        epochs=150,
        batch=32,
        lr=1e-4,
        lr_end=1e-5,
        weight_decay=0.05,
        decay_all=True,
        warmup=0.1,
        head_first=7 / 150,
    )

    side: PositiveFraction = 1.0
    """full size"""
    num_classes: AtLeastTwo | None = None
    """all images"""
    views: augment.HueAugmentation = augment.HueAugmentation(crop=(0.08, 1.0), jitter_p=0.3)
    """strength 2"""
    erase: UnitInterval = 0.0
    """not at strength 2"""
    label_smoothing: FractionBelowOne = 0.2
    """probability that the target distribution spreads evenly over all images"""
    bias: bool = False
    """none"""
    normalize: bool = True
    """features of unit length"""
    trained_blocks: NonNegativeInt = 2
    """last blocks that are trained"""


class DIET(Method[IndexedView]):
    pretext_task = "Classification of images by their index"

    def __init__(self, config: Config, encoder: Encoder, count: int):
        super().__init__()
        self.config, self.encoder = config, encoder
        self.side = encoder.side(config.side)
        self.head = build_mlp(encoder.dim, count, bias=config.bias)
        if config.trained_blocks:
            freeze_all_but(encoder, config.trained_blocks)

    def pretext(self, batch: Batch, rng: Rng) -> IndexedView:
        view = self.config.views(augment.to_float(batch.image), self.side, rng)
        if self.config.erase:
            fill = self.encoder.mean  # 0 after normalization
            view = augment.erase(view, rng, self.config.erase, fill)
        return IndexedView(view, batch.index)

    def logits(self, pretext: IndexedView) -> Tensor:
        pool = self.encoder(pretext.image)["pool"]
        return self.head(F.normalize(pool, dim=1) if self.config.normalize else pool)  # (B, N)

    def loss(self, pretext: IndexedView) -> Loss:
        logits = self.logits(pretext)
        accuracy = (logits.argmax(1) == pretext.index).float().mean()
        total = F.cross_entropy(logits, pretext.index, label_smoothing=self.config.label_smoothing)
        return Loss(total, {"accuracy": accuracy})

    def predict(self, pretext: IndexedView) -> Mapping[str, Tensor]:
        return {"index": self.logits(pretext).argmax(1)}

    def show(
        self, pretext: IndexedView, answers: Mapping[str, Tensor], batch: Batch, rng: Rng
    ) -> Iterable[Puzzle]:
        shown = self.config.views.cropped(augment.positions(batch.image), self.side, rng)
        return show_indexed_views(pretext, answers, batch, augment.extent(shown))

    def export(self) -> Encoder:
        return self.encoder


def freeze_all_but(encoder: Encoder, count: int) -> None:
    """Freeze a transformer except for its last `count` blocks; the norm after them is frozen too, as released."""
    blocks: Any = getattr(encoder.net, "blocks", None)
    if blocks is None:
        raise UserError(
            f"--trained-blocks {count} needs a vision transformer, and {encoder.name} is not one; give --trained-blocks 0"
        )
    encoder.requires_grad_(False)
    blocks[-count:].requires_grad_(True)

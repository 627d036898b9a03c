"""TextTopicNet: foresee from an image alone what the text around it is about.

Gomez, Patel, Rusiñol, Karatzas, Jawahar: Self-Supervised Learning of Visual Features through Embedding Images into Text
Topic Spaces, CVPR 2017, arXiv:1705.08631. The paper's text was not read: numbers are those of the released code,
lluisgomez/TextTopicNet. Topics are learned from the texts alone, by latent Dirichlet allocation; every image of a text
has the text's topics as its soft target.

**Differs:**
topics are learned by scikit-learn, not gensim. Words become their lemma by simplemma's dictionary, and only where
that lemma occurs in the texts too: the released code looks up nouns in WordNet, whether the singular occurs or not,
and leaves verbs as they are ("painted" stays, here it becomes "paint"). Stop words are scikit-learn's, not those of
`stop-words`; wiki markup is left to the data. Images are drawn anew in every epoch, where the released loader goes
through one fixed order. By default images are cropped by share of area and their colors change too: of a few hundred
images the network else learns each by heart. With `:paper`, images are cut to their central square and reduced to 256
px, where the released loader squeezes them to squares; evaluation looks at all of them and averages fc7 over its
places, where the released code takes the 227 px in the middle.

Cost: topics of texts of 2 kB take about 0.3 ms a text and pass of one core, before the first step; longer texts longer.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import ClassVar

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from pretask.config import TrainConfig
from pretask.encoders import Encoder
from pretask.limits import Count, Part, Several
from pretask.methods.base.context import Context
from pretask.methods.base.method import Method, MethodConfig
from pretask.rng import Rng
from pretask.text import topics
from pretask.text import words as text
from pretask.transforms import augment as images
from pretask.types import Batch, Loss, Source

NAMED = 48
"""bytes of a topic's first words"""


@dataclass(frozen=True)
class Config(MethodConfig):
    """Foresee from an image alone the topics of the text around it."""

    encoder: ClassVar[str] = "resnet_small:width=32,wide=512"
    train: ClassVar[TrainConfig] = TrainConfig(epochs=60, batch=64, lr=1e-3, weight_decay=0.05)

    needs: ClassVar[frozenset[str]] = frozenset({"words"})

    topics: Several = 40
    """that the texts are about"""
    stop: str = "english"
    """words that tell nothing: english (then forms also count as their lemma), a file of words, or '' for none"""
    fewest: Count = 5
    """texts that a word must occur in (20 for the paper's 100,000)"""
    most: Part = 0.5
    """share of the texts that a word may occur in"""
    passes: Count = 20
    """over the texts, while topics are learned"""
    side: Part = 1.0
    """of the window that is shown, as a share of the image's; less: another one each time"""
    views: images.Views = images.Views()
    """how what the window shows is changed"""

    def build(self, encoder: Encoder, source: Source) -> "TextTopic":
        return TextTopic(self, encoder, len(source))


@dataclass(frozen=True)
class Paper(Config):
    """100,785 images of Wikipedia articles, with --size 256: CaffeNet, 160,000 steps, 102 epochs."""

    encoder: ClassVar[str] = "caffenet"
    train: ClassVar[TrainConfig] = TrainConfig(
        epochs=102, batch=64, optimizer="sgd", lr=1e-3, weight_decay=5e-4, warmup=0.0,
        drops=(50 / 160, 100 / 160, 150 / 160), vector_lr=2.0,
    )  # fmt: skip

    fewest: Count = 20
    """texts that a word must occur in"""
    passes: Count = 1
    """over the texts"""
    side: Part = 227 / 256
    """227 of 256 pixels, from any of 30 x 30 places"""
    views: images.Views = images.Views(crop=(1.0, 1.0), jitter_p=0.0, grey=0.0)
    """mirrored, no more"""

    def build(self, encoder: Encoder, source: Source) -> "TextTopic":
        method = super().build(encoder, source)
        nn.init.normal_(method.head.weight, std=0.01)  # fc8
        nn.init.zeros_(method.head.bias)  # type: ignore[arg-type]
        return method


@dataclass(frozen=True)
class About:
    image: Tensor  # (B, C, H, W) a window of the image, or all of it
    share: Tensor  # (B, K) of each topic in the text
    topic: Tensor  # (B,) the text's main topic


def cross_entropy(logits: Tensor, share: Tensor) -> Tensor:
    """Σ_k of -t log σ(o) - (1 - t) log(1 - σ(o)), mean over the batch: topics are not made to exclude each other.

    Caffe's SigmoidCrossEntropyLoss, which sums over topics (released train_val.prototxt).
    """
    return F.binary_cross_entropy_with_logits(logits, share, reduction="none").sum(1).mean()


class TextTopic(Method[About]):
    needs = Config.needs
    share: Tensor  # (N, K) topics of every image's text
    told: Tensor  # (K, NAMED) the first words of each topic, as bytes

    def __init__(self, config: Config, encoder: Encoder, count: int):
        super().__init__()
        self.config, self.encoder, self.side = config, encoder, encoder.side(config.side)
        self.head = nn.Linear(encoder.dim, config.topics)
        self.register_buffer("share", torch.zeros(count, config.topics))
        self.register_buffer("told", torch.zeros(config.topics, NAMED, dtype=torch.uint8))

    @torch.no_grad()
    def begin(self, context: Context) -> None:
        c = self.config
        texts = text.unpack(context.gather("words"))
        found = topics.learn(texts, context.rng, c.topics, c.stop, c.fewest, c.most, c.passes)
        self.share.copy_(found.of(texts))
        named = text.pack((" ".join(words) for words in found.top(3)), NAMED)
        self.told[:, : named.shape[1]] = named
        context.files.update(found.files())

    def pretext(self, batch: Batch, rng: Rng) -> About:
        x = images.to_float(batch.image)
        if self.side < x.shape[-1]:
            room = x.shape[-1] - self.side
            corner = rng.child("window").integers(len(x), 1, 2, high=room + 1)
            x = images.windows(x, corner, self.side)[:, 0]
        x = self.config.views(x, self.side, rng)
        share = self.share[batch.index]
        return About(x, share, share.argmax(1))

    def foretold(self, pool: Tensor) -> Tensor:
        """Pooled features (N, D) -> logits of the topics (N, K)."""
        return self.head(pool.to(self.share.device)).float()

    def logits(self, image: Tensor) -> Tensor:
        return self.foretold(self.encoder(image)["pool"])  # (B, K)

    def loss(self, pretext: About) -> Loss:
        logits = self.logits(pretext.image)
        least = F.binary_cross_entropy(pretext.share, pretext.share, reduction="none").sum(1).mean()
        total = cross_entropy(logits, pretext.share)
        right = (logits.argmax(1) == pretext.topic).float().mean()
        return Loss(total, {"above": total - least, "accuracy": right})

    def meanings(self) -> Mapping[str, Sequence[str]]:
        return {"topic": text.unpack(self.told)}

    def solve(self, pretext: About) -> Mapping[str, Tensor]:
        return {"topic": self.logits(pretext.image).argmax(1)}

    def export(self) -> Encoder:
        return self.encoder

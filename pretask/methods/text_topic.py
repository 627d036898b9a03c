"""TextTopicNet: predict the topics of the text around an image from the image.

Gomez, Patel, Rusiñol, Karatzas, Jawahar: Self-Supervised Learning of Visual Features through Embedding Images into Text
Topic Spaces, CVPR 2017, arXiv:1705.08631. The paper's text was not read: numbers are those of the released code,
lluisgomez/TextTopicNet. Topics are learned from the texts by latent Dirichlet allocation (LDA); the topic probabilities of a
text are the soft targets of its images.

**Differs:**
topics are learned by scikit-learn instead of gensim. Words are replaced by their lemma in simplemma's dictionary only if that
lemma occurs in the texts too; the released code looks up nouns in WordNet, whether the singular occurs or not, and keeps verbs
("painted" stays, here it becomes "paint"). Stop words are scikit-learn's, not those of `stop-words`; wiki markup is not
removed. Images are shuffled in every epoch; the released loader has one fixed order. By default images are randomly cropped and
color-jittered too, because the network would memorize a few hundred images. With `:paper`, images are cropped to their central
square and downscaled to 256 px, where the released loader squeezes them to squares; evaluation uses the whole image and averages
fc7 over its positions, where the released code uses the central 227 px.

Cost: LDA takes about 0.3 ms per text of 2 kB and pass on one core, before the first step; more for longer texts.
"""

import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import ClassVar

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from pretask.config import TrainConfig
from pretask.encoders import Encoder
from pretask.limits import AtLeastTwo, PositiveFraction, PositiveInt
from pretask.methods.base.context import Context
from pretask.methods.base.method import Method, MethodConfig, Minimum
from pretask.rng import Rng
from pretask.text import topics
from pretask.text import words as text
from pretask.transforms import augment
from pretask.types import Batch, Loss, Source
from pretask.viz.puzzle import Bars, Panel, Puzzle, Text, choice

TOPICS_SHOWN = 4
"""topics shown next to an image"""
NAMED = 48
"""bytes for a topic's top words"""


@dataclass(frozen=True)
class Config(MethodConfig):
    """Predict the topics of the text around an image from the image."""

    family: ClassVar[str] = "multimodal and synthetic"
    encoder: ClassVar[str] = "resnet_small:width=32,wide=512"
    train: ClassVar[TrainConfig] = TrainConfig(epochs=60, batch=64, lr=1e-3, weight_decay=0.05)

    needs: ClassVar[frozenset[str]] = frozenset({"words"})

    topics: AtLeastTwo = 40
    """number of topics"""
    stop_words: str = "english"
    """stop words: english (which also lemmatizes words), a file of words, or '' for none"""
    min_df: PositiveInt = 5
    """smallest number of texts that a word must occur in (20 for the paper's 100,000 texts)"""
    max_df: PositiveFraction = 0.5
    """largest fraction of the texts that a word may occur in"""
    passes: PositiveInt = 20
    """LDA passes over the texts"""
    side: PositiveFraction = 1.0
    """side of the random window, as a fraction of the image's; 1: the whole image"""
    views: augment.ViewAugmentation = augment.ViewAugmentation()
    """augmentation of the window"""

    def fewest_images(self) -> Minimum:
        """With fewer texts, no word can satisfy both `min_df` and `max_df`."""
        return Minimum(math.ceil(self.min_df / self.max_df), "or lower --min-df")

    def build(self, encoder: Encoder, source: Source) -> "TextTopic":
        return TextTopic(self, encoder, len(source))


@dataclass(frozen=True)
class Paper(Config):
    """100,785 images of Wikipedia articles, with --size 256: CaffeNet, 160,000 steps, 102 epochs."""

    encoder: ClassVar[str] = "caffenet"
    train: ClassVar[TrainConfig] = TrainConfig(
        epochs=102, batch=64, optimizer="sgd", lr=1e-3, weight_decay=5e-4, warmup=0.0,
        milestones=(50 / 160, 100 / 160, 150 / 160), bias_lr_scale=2.0,
    )  # fmt: skip

    min_df: PositiveInt = 20
    """smallest number of texts that a word must occur in"""
    passes: PositiveInt = 1
    """LDA passes over the texts"""
    side: PositiveFraction = 227 / 256
    """227 of 256 pixels, at any of 30 x 30 positions"""
    views: augment.ViewAugmentation = augment.ViewAugmentation(crop=(1.0, 1.0), jitter_p=0.0, gray=0.0)
    """only horizontal flips"""

    def build(self, encoder: Encoder, source: Source) -> "TextTopic":
        method = super().build(encoder, source)
        nn.init.normal_(method.head.weight, std=0.01)  # fc8
        nn.init.zeros_(method.head.bias)  # type: ignore[arg-type]
        return method


@dataclass(frozen=True)
class ImageTopics:
    image: Tensor  # (B, C, H, W) augmented window
    topic_probs: Tensor  # (B, K) of the image's text
    topic: Tensor  # (B,) the text's most probable topic


def cross_entropy(logits: Tensor, topic_probs: Tensor) -> Tensor:
    """Binary cross-entropy Σ_k of -t log σ(o) - (1 - t) log(1 - σ(o)), mean over the batch.

    Caffe's SigmoidCrossEntropyLoss, which sums over topics (released train_val.prototxt).
    """
    return F.binary_cross_entropy_with_logits(logits, topic_probs, reduction="none").sum(1).mean()


class TextTopic(Method[ImageTopics]):
    pretext_task = "Topics of the surrounding text"
    needs = Config.needs
    topic_probs: Tensor  # (N, K) topic probabilities of each image's text
    topic_words: Tensor  # (K, NAMED) the top words of each topic, as bytes

    def __init__(self, config: Config, encoder: Encoder, count: int):
        super().__init__()
        self.config, self.encoder, self.side = config, encoder, encoder.side(config.side)
        self.head = nn.Linear(encoder.dim, config.topics)
        self.register_buffer("topic_probs", torch.zeros(count, config.topics))
        self.register_buffer("topic_words", torch.zeros(config.topics, NAMED, dtype=torch.uint8))

    @torch.no_grad()
    def begin(self, context: Context) -> None:
        c = self.config
        texts = text.unpack(context.gather("words"))
        model = topics.learn(texts, context.rng, c.topics, c.stop_words, c.min_df, c.max_df, c.passes)
        self.topic_probs.copy_(model.transform(texts))
        packed = text.pack((" ".join(words) for words in model.top_words(3)), NAMED)
        self.topic_words[:, : packed.shape[1]] = packed
        context.files.update(model.files())

    def pretext(self, batch: Batch, rng: Rng) -> ImageTopics:
        x = augment.to_float(batch.image)
        if self.side < x.shape[-1]:
            room = x.shape[-1] - self.side
            corner = rng.child("window").integers(len(x), 1, 2, high=room + 1)
            x = augment.windows(x, corner, self.side)[:, 0]
        x = self.config.views(x, self.side, rng)
        topic_probs = self.topic_probs[batch.index]
        return ImageTopics(x, topic_probs, topic_probs.argmax(1))

    def topic_logits(self, pool: Tensor) -> Tensor:
        """Pooled features (N, D) -> logits of the topics (N, K)."""
        return self.head(pool.to(self.topic_probs.device)).float()

    def topic_head(self) -> Callable[[Tensor], Tensor]:
        return self.topic_logits

    def logits(self, image: Tensor) -> Tensor:
        return self.topic_logits(self.encoder(image)["pool"])  # (B, K)

    def loss(self, pretext: ImageTopics) -> Loss:
        logits, target = self.logits(pretext.image), pretext.topic_probs
        entropy = F.binary_cross_entropy(target, target, reduction="none").sum(1).mean()  # the smallest loss
        total = cross_entropy(logits, target)
        accuracy = (logits.argmax(1) == pretext.topic).float().mean()
        return Loss(total, {"excess_loss": total - entropy, "accuracy": accuracy})

    def answer_names(self) -> Mapping[str, Sequence[str]]:
        return {"topic": text.unpack(self.topic_words)}

    def predict(self, pretext: ImageTopics) -> Mapping[str, Tensor]:
        return {"topic": self.logits(pretext.image).argmax(1)}

    def show(
        self, pretext: ImageTopics, answers: Mapping[str, Tensor], batch: Batch, rng: Rng
    ) -> Iterator[Puzzle]:
        names = text.unpack(self.topic_words)
        for i, words in enumerate(text.unpack(batch.aux["words"])):
            top = pretext.topic_probs[i].topk(min(TOPICS_SHOWN, len(names)))
            bars = {names[n]: p for p, n in zip(top.values.tolist(), top.indices.tolist(), strict=True)}
            predicted = answers["topic"][i] if answers else None
            yield Puzzle(
                [Panel("image", pretext.image[i])],
                [Panel("its text", Text(words)), Panel("topics of the text", Bars(bars))],
                captions=[choice("What is the text around it about?", names, pretext.topic[i], predicted)],
            )

    def export(self) -> Encoder:
        return self.encoder

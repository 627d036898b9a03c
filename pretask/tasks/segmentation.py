"""Semantic segmentation: torchvision's fully convolutional head on an encoder's last map, trained end to end.

Long, Shelhamer, Darrell 2015 (arXiv:1411.4038); `torchvision.models.segmentation.FCN` with its head. Logits are upsampled
to each mask's own size before they are scored. Nothing is dilated: an encoder with stride 32 gives one prediction per
32 x 32 pixels, which is upsampled.

Images are resized to a square, so that every encoder can be used. Pixels without a class (255, or a name such as
"unlabeled") are ignored in training and testing, and so are pixels of classes that the training masks lack.
"""

import copy
from collections.abc import Iterator, Mapping
from typing import ClassVar

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torchvision import tv_tensors
from torchvision.models.segmentation import fcn
from torchvision.transforms.v2 import InterpolationMode
from torchvision.transforms.v2 import functional as tf
from torchvision.utils import draw_segmentation_masks

from pretask.config import TrainConfig
from pretask.data import annotated
from pretask.data.annotated import NONE, Annotated
from pretask.data.base import Images, OpenOptions, bar
from pretask.encoders import Encoder
from pretask.evals.finetune import epoch_orders, optimize
from pretask.rng import Rng
from pretask.tasks.base import Plan, Task, TaskResult, TaskScore, bootstrap_weights, image_side
from pretask.transforms import augment
from pretask.types import UserError

TRAIN = TrainConfig(batch=8, lr=1e-3, weight_decay=0.05, warmup=0.1)
"""AdamW, as in `detection.py`; SGD also works, but is worse after so few steps"""
SIDE = 128
"""side of the images in pixels, for encoders that take any size; the encoder's own if that is larger"""
PICTURES = 6
PICTURE_SIDE = 192


class Segmentation(Task[Annotated]):
    name = "segmentation"
    steps = 600
    metrics: ClassVar[Mapping[str, str]] = {
        "mIoU": "mean intersection over union of the classes that appear in the test masks",
        "pixels": "accuracy over labeled pixels",
    }
    protocol = (
        f"torchvision's FCN head on the encoder's last map, trained end to end; AdamW, lr {TRAIN.lr}, batch {TRAIN.batch}, "
        f"{steps} steps by default, random flips; no hyperparameter or checkpoint is chosen, the last weights are scored; scored at "
        "the masks' own size, without unlabeled pixels"
    )

    def load(self, spec: str, options: OpenOptions) -> Annotated:
        return annotated.load(spec, options, masks=True)

    def align_classes(self, train: Annotated, test: Annotated) -> tuple[Annotated, Annotated]:
        """Mask values must mean the same class in both sets; values that only the test set has are ignored."""
        different = [n for v, n in test.areas.items() if train.areas.get(v, n) != n]
        if different:
            raise UserError(
                f"{test.name} has other class numbers than {train.name}: {', '.join(different[:5])}; give sets with the same "
                "class numbers"
            )
        return train, test

    def check(self, encoder: Encoder, plan: Plan) -> None:
        image_side(encoder, plan, SIDE)
        if not encoder.sides:
            raise UserError(f"{encoder.name} has no map, which segmentation needs; try --task classification")

    def classes(self, train: Annotated) -> list[str]:
        return list(train.areas.values())

    def image_labels(self, train: Annotated, encoder: Encoder, plan: Plan) -> tuple[Images, Tensor]:
        """An image has the label of each class that any of its pixels has."""
        table = class_table(train)
        masks = (table[train.mask(i).long()] for i in range(len(train)))
        label = torch.stack([(class_counts(mask, len(train.areas)) > 0).long() for mask in masks])
        return annotated.pictures(train, encoder.size, encoder.channels, plan.progress), label

    def evaluate(self, encoder: Encoder, train: Annotated, test: Annotated, plan: Plan) -> TaskResult:
        if not train.areas:
            raise UserError(f"the masks of {train.name} have no class; every pixel is unlabeled")
        net = self.train_network(encoder, train, plan)
        table, side = class_table(train), image_side(encoder, plan, SIDE)
        counts, pictures = [], []
        chosen = set(Rng(plan.seed, "sheet").permutation(len(test))[:PICTURES].tolist())
        for i, predicted in enumerate(predict_masks(net, test, encoder.channels, side, plan)):
            truth = table[test.mask(i).long()]
            counts.append(pixel_counts(truth, predicted, len(train.areas)))
            if i in chosen:
                image = test.items[i].image(3)
                masks = {"truth": truth, "predicted": predicted}
                pictures.append(
                    {"image": thumbnail(image)} | {k: overlay(image, m) for k, m in masks.items()}
                )
        notes = {"steps": plan.steps or self.steps, "size": side}
        lacking = [name for value, name in test.areas.items() if value not in train.areas]
        listed = ", ".join(lacking[:8]) + (", …" if len(lacking) > 8 else "")
        sentence = f"left out, since the training masks lack them: {listed} ({len(lacking)} classes)"
        skipped = [sentence] if lacking else []
        return TaskResult(score_counts(np.stack(counts), plan.seed, notes), skipped, pictures)

    @torch.random.fork_rng(devices=[])
    def train_network(self, encoder: Encoder, train: Annotated, plan: Plan) -> nn.Module:
        """A trained segmentation network with a copy of `encoder` as its backbone."""
        torch.manual_seed(plan.run)  # for the head and its dropout
        net = segmenter(copy.deepcopy(encoder).requires_grad_(), len(train.areas)).to(plan.device).train()
        side, steps = image_side(encoder, plan, SIDE), plan.steps or self.steps
        losses = (
            mask_loss(net(image)["out"], mask)
            for image, mask in batches(train, encoder.channels, side, steps, plan)
        )
        optimizer = torch.optim.AdamW(net.parameters(), TRAIN.lr, weight_decay=TRAIN.weight_decay)
        optimize(optimizer, losses, TRAIN, steps, self.name, plan.progress)
        return net.eval()

    def floor(self, train: Annotated, test: Annotated, plan: Plan) -> tuple[str, TaskResult]:
        """The most frequent class of training pixels, predicted for every pixel."""
        table, k = class_table(train), len(train.areas)
        total = sum((class_counts(table[train.mask(i).long()], k) for i in range(len(train))), torch.zeros(k))
        most = int(total.argmax())
        masks = (table[test.mask(i).long()] for i in range(len(test)))
        counts = np.stack([pixel_counts(truth, torch.full_like(truth, most), k) for truth in masks])
        name = f"all {train.areas[list(train.areas)[most]]}"
        return name, TaskResult(score_counts(counts, plan.seed, {}))


def class_table(train: Annotated) -> Tensor:
    """(256,): mask value -> class number; NONE for values without a class."""
    table = torch.full((256,), NONE)
    table[list(train.areas)] = torch.arange(len(train.areas))
    return table


# ---- the segmenter


class LastMap(nn.Module):
    """An encoder's last map, in torchvision's form: {"out": (B, D, h, w)}."""

    def __init__(self, encoder: Encoder):
        super().__init__()
        self.encoder, self.stage = encoder, list(encoder.sides)[-1]

    def forward(self, image: Tensor) -> dict[str, Tensor]:
        return {"out": self.encoder(image)[self.stage]}


def segmenter(encoder: Encoder, count: int) -> fcn.FCN:
    backbone = LastMap(encoder)
    return fcn.FCN(backbone, fcn.FCNHead(encoder.widths[backbone.stage], count))


def mask_loss(logits: Tensor, mask: Tensor) -> Tensor:
    """Mean cross-entropy over labeled pixels; 0 for a batch without any."""
    total = F.cross_entropy(logits, mask, ignore_index=NONE, reduction="sum")
    return total / (mask != NONE).sum().clamp(min=1)


def batches(
    train: Annotated, channels: int, side: int, steps: int, plan: Plan
) -> Iterator[tuple[Tensor, Tensor]]:
    """Images (B, C, side, side) in [0, 1] and masks (B, side, side) of class numbers, randomly flipped."""
    batch = min(TRAIN.batch, len(train))
    table = class_table(train)
    for step, rows in enumerate(epoch_orders(len(train), batch, steps, plan.run).split(batch)):
        flips = Rng(plan.run, "segmentation", "flip", step).coin(len(rows), p=0.5)
        pairs = [
            example(train, i, channels, side, flip)
            for i, flip in zip(rows.tolist(), flips.tolist(), strict=True)
        ]
        image, mask = (torch.stack(each) for each in zip(*pairs, strict=True))
        yield augment.to_float(image.to(plan.device)), table[mask.long()].to(plan.device)


def example(train: Annotated, i: int, channels: int, side: int, flip: bool) -> tuple[Tensor, Tensor]:
    """An image and its mask, resized to a square."""
    image, mask = resize_square(train.items[i].image(channels), side), tv_tensors.Mask(train.mask(i))
    mask = tf.resize(mask[None], [side, side], InterpolationMode.NEAREST)[0]
    if flip:
        image, mask = tf.horizontal_flip(image), tf.horizontal_flip(mask)
    return image, mask.as_subclass(Tensor)


def resize_square(image: Tensor, side: int) -> Tensor:
    return tf.resize(image, [side, side], antialias=True)


@torch.no_grad()
def predict_masks(net: nn.Module, test: Annotated, channels: int, side: int, plan: Plan) -> Iterator[Tensor]:
    """The class number of every pixel, (H, W) for each test image."""
    with bar(plan.progress) as steps:
        for item in steps.track(test.items, description=f"segmenting {test.name}"):
            x = augment.to_float(resize_square(item.image(channels), side)[None].to(plan.device))
            logits = net(x)["out"]
            upsampled = F.interpolate(logits, (item.height, item.width), mode="bilinear", align_corners=False)
            yield upsampled[0].argmax(0).cpu()


# ---- the score


def class_counts(mask: Tensor, count: int) -> Tensor:
    """(count,): number of pixels of each class."""
    return mask[mask != NONE].bincount(minlength=count)


def pixel_counts(truth: Tensor, predicted: Tensor, count: int) -> np.ndarray:
    """(H, W) each -> (3, K) number of pixels per class: correct, true and predicted; pixels of NONE are ignored."""
    known = truth != NONE
    truth, predicted = truth[known], predicted[known]
    correct = truth[truth == predicted]
    return torch.stack([class_counts(m, count) for m in (correct, truth, predicted)]).numpy()


def score_counts(counts: np.ndarray, seed: int, notes: Mapping[str, int]) -> list[TaskScore]:
    """(N, 3, K) pixel counts of N test images -> both metrics, with resampled test sets."""
    n = len(counts)
    weight = np.concatenate([np.ones((1, n)), bootstrap_weights(n, seed)])
    correct, truth, predicted = np.tensordot(weight, counts, 1).transpose(1, 0, 2)  # (R, K) each
    iou = np.where(truth > 0, correct / np.maximum(truth + predicted - correct, 1), 0.0)
    mean = iou.sum(1) / np.maximum((truth > 0).sum(1), 1)
    accuracy = correct.sum(1) / np.maximum(truth.sum(1), 1)
    values = {"mIoU": 100 * mean, "pixels": 100 * accuracy}
    return [TaskScore(metric, float(x[0]), x[1:], notes) for metric, x in values.items()]


# ---- pictures


def thumbnail(image: Tensor) -> Tensor:
    """The image with a longer side of PICTURE_SIDE pixels."""
    height, width = image.shape[1:]
    scale = PICTURE_SIDE / max(height, width)
    return tf.resize(image, [round(scale * height), round(scale * width)], antialias=True)


def overlay(image: Tensor, mask: Tensor) -> Tensor:
    """The image with a color over the pixels of each class."""
    classes = [k for k in mask.unique().tolist() if k != NONE]
    if not classes:
        return thumbnail(image)
    layers = torch.stack([mask == k for k in classes])
    return thumbnail(draw_segmentation_masks(image, layers, alpha=0.7, colors=[color(k) for k in classes]))


def color(k: int) -> tuple[int, int, int]:
    """VOC's palette: the bits of the class number, spread over the three channels, with the lowest bits the brightest."""
    n, rgb = k + 1, [0, 0, 0]
    for shift in range(7, -1, -1):
        for channel in range(3):
            rgb[channel] |= (n >> channel & 1) << shift
        n >>= 3
    return rgb[0], rgb[1], rgb[2]

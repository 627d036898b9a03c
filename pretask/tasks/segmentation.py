"""Segmentation: a fully convolutional head of torchvision on an encoder's last map, all of it trained on.

Long, Shelhamer, Darrell 2015 (arXiv:1411.4038); `torchvision.models.segmentation.FCN` with its head. The logits are
enlarged to each mask's own size before they are judged. Nothing is dilated: an encoder that ends at stride 32 answers in
blocks of 32 pixels, and is enlarged from there.

Images are squeezed into a square, so that every encoder can be asked. A pixel without a class (255, or a name such as
"unlabeled") has no say, at training and at test, nor has one of a class that the training masks lack.
"""

import copy
from collections.abc import Iterator, Mapping

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
from pretask.data.base import Images, bar
from pretask.encoders import Encoder
from pretask.evals.finetune import descend, passes
from pretask.rng import Rng
from pretask.tasks.base import Found, Outcome, Plan, canvas, draws
from pretask.transforms import augment as images
from pretask.types import UserError

STEPS = 600
"""if not told otherwise"""
TRAIN = TrainConfig(batch=8, lr=1e-3, weight_decay=0.05, warmup=0.1)
"""AdamW, as in `detection.py`; SGD learns too, but is not as far after so few steps"""
SIDE = 128
"""pixels, of encoders that take any size; their own if that is larger"""
PICTURES = 6
SIDE_OF_PICTURE = 192
TUNES = False
EVALS: Mapping[str, str] = {
    "mIoU": "mean over classes of intersection over union, of the classes that the test masks show",
    "pixels": "share of labelled pixels that are right",
}
PROTOCOL = (
    f"torchvision's FCN head on the encoder's last map, all of it trained on; AdamW, lr {TRAIN.lr}, batch {TRAIN.batch}, "
    f"{STEPS} steps if not told otherwise, flips; nothing chosen, last weights; judged at the masks' own size, without unlabelled pixels"
)


def load(spec: str, max_bad: float, progress: bool) -> Annotated:
    return annotated.load(spec, masks=True, max_bad=max_bad, progress=progress)


def matched(train: Annotated, test: Annotated) -> tuple[Annotated, Annotated]:
    """Masks are matched by number, as the numbers of both must mean the same; the test set's others have no say."""
    unlike = [n for v, n in test.areas.items() if train.areas.get(v, n) != n]
    if unlike:
        raise UserError(
            f"{test.name} numbers its classes in another way: {', '.join(unlike[:5])}; expected {train.name}'s"
        )
    return train, test


def check(encoder: Encoder, plan: Plan) -> None:
    canvas(encoder, plan, SIDE)
    if not encoder.sides:
        raise UserError(f"{encoder.name} has no map, and masks need one; try --task classification")


def classes(train: Annotated) -> list[str]:
    return list(train.areas.values())


def numbers(train: Annotated) -> Tensor:
    """(256,): value in a mask -> number of its class; NONE of all that have none."""
    table = torch.full((256,), NONE)
    table[list(train.areas)] = torch.arange(len(train.areas))
    return table


def shown(train: Annotated, encoder: Encoder, plan: Plan) -> tuple[Images, Tensor]:
    """A class is shown by an image of whose pixels it has any."""
    table = numbers(train)
    label = torch.stack([present(table[train.mask(i).long()], len(train.areas)) for i in range(len(train))])
    return annotated.pictures(train, encoder.size, encoder.channels, plan.progress), label


def present(mask: Tensor, count: int) -> Tensor:
    return (mask[mask != NONE].bincount(minlength=count) > 0).long()


def apply(encoder: Encoder, train: Annotated, test: Annotated, plan: Plan) -> Outcome:
    if not train.areas:
        raise UserError(f"the masks of {train.name} have no class; every pixel is unlabelled")
    net, table, side = trained(encoder, train, plan), numbers(train), canvas(encoder, plan, SIDE)
    counts, pictures = [], []
    drawn = set(Rng(plan.seed, "sheet").permutation(len(test))[:PICTURES].tolist())
    for i, answer in enumerate(predicted(net, test, encoder.channels, side, plan)):
        truth = table[test.mask(i).long()]
        counts.append(counted(truth, answer, len(train.areas)))
        if i in drawn:
            image = test.items[i].image(3)
            named = {"truth": truth, "found": answer}
            pictures.append({"image": small(image)} | {k: painted(image, m) for k, m in named.items()})
    notes = {"steps": plan.steps or STEPS, "size": side}
    lacking = [name for value, name in test.areas.items() if value not in train.areas]
    some = ", ".join(lacking[:8]) + (", …" if len(lacking) > 8 else "")
    said = [f"left out, as the training masks lack them: {some} ({len(lacking)} classes)"] if lacking else []
    return Outcome(scored(np.stack(counts), plan.seed, notes), said, pictures)


def floor(train: Annotated, test: Annotated, plan: Plan) -> tuple[str, Outcome]:
    """Every pixel is of the class that most pixels of the training masks are of."""
    table, k = numbers(train), len(train.areas)
    total = sum((tally(table[train.mask(i).long()], k) for i in range(len(train))), torch.zeros(k))
    most = int(total.argmax())
    masks = (table[test.mask(i).long()] for i in range(len(test)))
    counts = np.stack([counted(truth, torch.full_like(truth, most), k) for truth in masks])
    return f"all {train.areas[list(train.areas)[most]]}", Outcome(scored(counts, plan.seed, {}))


# ---- the segmenter


class Last(nn.Module):
    """An encoder's last map, as torchvision wants it: {"out": (B, D, h, w)}."""

    def __init__(self, encoder: Encoder):
        super().__init__()
        self.encoder, self.stage = encoder, list(encoder.sides)[-1]

    def forward(self, image: Tensor) -> dict[str, Tensor]:
        return {"out": self.encoder(image)[self.stage]}


def segmenter(encoder: Encoder, count: int) -> fcn.FCN:
    backbone = Last(encoder)
    return fcn.FCN(backbone, fcn.FCNHead(encoder.widths[backbone.stage], count))


@torch.random.fork_rng(devices=[])
def trained(encoder: Encoder, train: Annotated, plan: Plan) -> nn.Module:
    """A segmenter whose backbone is a copy of `encoder`, after the last step."""
    torch.manual_seed(plan.run)  # of the head, and of what it drops
    net = segmenter(copy.deepcopy(encoder).requires_grad_(), len(train.areas)).to(plan.device).train()
    side, steps = canvas(encoder, plan, SIDE), plan.steps or STEPS
    losses = (
        cost(net(image)["out"], mask) for image, mask in batches(train, encoder.channels, side, steps, plan)
    )
    optimizer = torch.optim.AdamW(net.parameters(), TRAIN.lr, weight_decay=TRAIN.weight_decay)
    descend(optimizer, losses, TRAIN, steps, "segmentation", plan.progress)
    return net.eval()


def cost(logits: Tensor, mask: Tensor) -> Tensor:
    """Mean cross-entropy over labelled pixels; 0 of a batch that has none."""
    total = F.cross_entropy(logits, mask, ignore_index=NONE, reduction="sum")
    return total / (mask != NONE).sum().clamp(min=1)


def batches(
    train: Annotated, channels: int, side: int, steps: int, plan: Plan
) -> Iterator[tuple[Tensor, Tensor]]:
    """Images (B, C, side, side) in [0, 1] and masks (B, side, side) of class numbers; half of them flipped."""
    batch = min(TRAIN.batch, len(train))
    table = numbers(train)
    for step, rows in enumerate(passes(len(train), batch, steps, plan.run).split(batch)):
        flips = Rng(plan.run, "segmentation", "flip", step).coin(len(rows), p=0.5)
        pairs = [
            example(train, i, channels, side, flip)
            for i, flip in zip(rows.tolist(), flips.tolist(), strict=True)
        ]
        image, mask = (torch.stack(each) for each in zip(*pairs, strict=True))
        yield images.to_float(image.to(plan.device)), table[mask.long()].to(plan.device)


def example(train: Annotated, i: int, channels: int, side: int, flip: bool) -> tuple[Tensor, Tensor]:
    """An image and its mask, squeezed into a square."""
    image, mask = squeezed(train.items[i].image(channels), side), tv_tensors.Mask(train.mask(i))
    mask = tf.resize(mask[None], [side, side], InterpolationMode.NEAREST)[0]
    if flip:
        image, mask = tf.horizontal_flip(image), tf.horizontal_flip(mask)
    return image, mask.as_subclass(Tensor)


def squeezed(image: Tensor, side: int) -> Tensor:
    return tf.resize(image, [side, side], antialias=True)


@torch.no_grad()
def predicted(net: nn.Module, test: Annotated, channels: int, side: int, plan: Plan) -> Iterator[Tensor]:
    """For each test image (H, W): the number of every pixel's class."""
    with bar(plan.progress) as shown:
        for item in shown.track(test.items, description=f"segmenting {test.name}"):
            x = images.to_float(squeezed(item.image(channels), side)[None].to(plan.device))
            logits = net(x)["out"]
            whole = F.interpolate(logits, (item.height, item.width), mode="bilinear", align_corners=False)
            yield whole[0].argmax(0).cpu()


# ---- the score


def tally(mask: Tensor, count: int) -> Tensor:
    """(count,): pixels of each class."""
    return mask[mask != NONE].bincount(minlength=count)


def counted(truth: Tensor, answer: Tensor, count: int) -> np.ndarray:
    """(H, W) each -> (3, K) pixels: right, of the truth, of the answer; where the truth is NONE nothing is counted."""
    there = truth != NONE
    truth, answer = truth[there], answer[there]
    return torch.stack([tally(m, count) for m in (truth[truth == answer], truth, answer)]).numpy()


def scored(counts: np.ndarray, seed: int, notes: Mapping[str, int]) -> list[Found]:
    """(N, 3, K) pixels of N test images -> both numbers, with test sets drawn anew."""
    n = len(counts)
    weight = np.concatenate([np.ones((1, n)), draws(n, seed)])
    right, truth, answer = np.tensordot(weight, counts, 1).transpose(1, 0, 2)  # (R, K) each
    iou = np.where(truth > 0, right / np.maximum(truth + answer - right, 1), 0.0)
    mean = iou.sum(1) / np.maximum((truth > 0).sum(1), 1)
    pixels = right.sum(1) / np.maximum(truth.sum(1), 1)
    return [Found(e, 100 * float(x[0]), 100 * x[1:], notes) for e, x in (("mIoU", mean), ("pixels", pixels))]


# ---- pictures


def small(image: Tensor) -> Tensor:
    """Its longer side SIDE_OF_PICTURE pixels."""
    height, width = image.shape[1:]
    scale = SIDE_OF_PICTURE / max(height, width)
    return tf.resize(image, [round(scale * height), round(scale * width)], antialias=True)


def painted(image: Tensor, mask: Tensor) -> Tensor:
    """The image with a colour over the pixels of each class."""
    there = [k for k in mask.unique().tolist() if k != NONE]
    if not there:
        return small(image)
    layers = torch.stack([mask == k for k in there])
    return small(draw_segmentation_masks(image, layers, alpha=0.7, colors=[colour(k) for k in there]))


def colour(k: int) -> tuple[int, int, int]:
    """VOC's palette: the bits of the class number, spread over the three channels, the lowest bits the brightest."""
    n, rgb = k + 1, [0, 0, 0]
    for shift in range(7, -1, -1):
        for channel in range(3):
            rgb[channel] |= (n >> channel & 1) << shift
        n >>= 3
    return rgb[0], rgb[1], rgb[2]

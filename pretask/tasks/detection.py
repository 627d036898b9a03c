"""Detection: torchvision's Faster R-CNN with a feature pyramid on an encoder's maps, all of it trained on.

Ren et al. 2015 (arXiv:1506.01497), Lin et al. 2017 (arXiv:1612.03144). Cut down to what a small machine can train in
minutes: narrow pyramid and head, fewer regions, a fixed number of steps. A comparison of encoders under one recipe; not tuned,
and no match for published numbers.

- Maps of stride 4 and more are the pyramid's levels, the deepest of each size; two levels are added above them (RetinaNet's).
- Batch norm trains. A detector usually freezes it, as its batches are small; but frozen statistics would leave the untrained
  encoder without any, and a batch of maps has thousands of places.
- Hard objects (VOC's difficult, COCO's crowds) are no examples; at test they need not be found, and finding them costs nothing.
- The encoder normalises its images itself; torchvision's own normalisation does nothing.
- Encoders of fixed size see the whole image squeezed into their square, others keep its shape.
"""

import copy
import math
from collections import OrderedDict
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torchvision import tv_tensors
from torchvision.models.detection import FasterRCNN
from torchvision.models.detection.anchor_utils import AnchorGenerator
from torchvision.models.detection.faster_rcnn import FastRCNNPredictor, TwoMLPHead
from torchvision.ops import FeaturePyramidNetwork, MultiScaleRoIAlign, box_iou
from torchvision.ops.feature_pyramid_network import LastLevelP6P7
from torchvision.transforms.v2 import functional as tf
from torchvision.utils import draw_bounding_boxes

from pretask.config import TrainConfig
from pretask.data import voc
from pretask.data.annotated import Annotated, Item
from pretask.data.base import bar
from pretask.encoders import Encoder
from pretask.evals import average_precision as precision
from pretask.evals.finetune import descend, passes
from pretask.rng import Rng
from pretask.tasks.base import Found, Outcome, Plan, canvas, draws
from pretask.transforms import augment as images
from pretask.types import UserError

STEPS = 1200
"""if not told otherwise"""
TRAIN = TrainConfig(batch=4, lr=5e-4, weight_decay=0.05, warmup=0.1)
"""AdamW. SGD (lr 0.01 and 0.03) calls everything background after so few steps: it does not even find what it learns from"""
SIDE = 160
"""shorter side, pixels, of encoders that take any size; their own if that is larger"""
LONGEST = 2
"""longer side, as a multiple of the shorter; longer images are reduced"""
CLIP = 10.0
"""largest norm of the gradient"""
FINEST = 4
"""smallest stride of a level, pixels"""
PYRAMID, HEAD = 64, 256
"""channels of the levels, width of the head (paper: 256, 1024)"""
ANCHORS = (4.0, 6.0)
"""sides of anchors, in strides of their level"""
REGIONS, PROPOSALS = 64, 256
"""of an image: regions that the head learns from, proposals it is shown (paper: 512, 2000)"""
FAINT = 0.005
"""score from which a box counts as found (torchvision: 0.05, which after few steps and with many classes none reaches)"""
PICTURES, SURE = 6, 0.3
"""test images on the sheet, and the score from which a box is drawn there"""
SIDE_OF_PICTURE = 192
TUNES = False
EVALS: Mapping[str, str] = {
    "AP": "COCO's, mean over classes and IoU 0.50, 0.55, …, 0.95 (pycocotools)",
    "AP50": "COCO's at IoU 0.50",
    "AP75": "COCO's at IoU 0.75",
    "VOC 11-point": "VOC 2007's mean average precision at IoU 0.50, at recalls 0, 0.1, …, 1",
    "VOC all-point": "VOC 2010's, the area below the best precision at each recall, at IoU 0.50",
}
PROTOCOL = (
    f"torchvision's Faster R-CNN with a feature pyramid on the encoder, all of it trained on; AdamW, lr {TRAIN.lr}, "
    f"batch {TRAIN.batch}, {STEPS} steps if not told otherwise, flips; nothing chosen, last weights; at most 100 boxes an image"
)

matched, classes, shown, load = voc.matched, voc.classes, voc.shown, voc.load


def check(encoder: Encoder, plan: Plan) -> None:
    coco()
    canvas(encoder, plan, SIDE)
    if not encoder.sides:
        raise UserError(f"{encoder.name} has no map, and a detector needs one; try --task classification")


def floor(train: Annotated, test: Annotated, plan: Plan) -> None:
    """Boxes at random find next to nothing."""


def coco() -> Any:
    """pycocotools; UserError where it is missing."""
    try:
        from pycocotools import coco, cocoeval
    except ImportError:
        raise UserError(
            "detection needs the package `pycocotools`: pip install 'pretask[detection]'"
        ) from None
    return coco, cocoeval


def apply(encoder: Encoder, train: Annotated, test: Annotated, plan: Plan) -> Outcome:
    judged, said = voc.judged(train, test)
    net = trained(encoder, train, plan)
    predicted = found(net, test, encoder.channels, plan)
    notes = {"steps": plan.steps or STEPS, "size": canvas(encoder, plan, SIDE)}
    weight = np.concatenate([np.ones((1, len(test))), draws(len(test), plan.seed)])
    each = by_coco(test, predicted, judged, weight) | by_voc(test, predicted, judged, weight)
    numbers = [Found(e, float(again[0]), again[1:], notes) for e, again in each.items()]
    return Outcome(numbers, said, [*sheet(test, predicted, plan.seed)])


# ---- the detector


class Pyramid(nn.Module):
    """An encoder's maps as the levels of a feature pyramid: (B, C, H, W) -> {level: (B, PYRAMID, h, w)}."""

    out_channels = PYRAMID

    def __init__(self, encoder: Encoder):
        super().__init__()
        self.encoder, self.stages = encoder, levels(encoder)
        widths = [encoder.widths[stage] for stage in self.stages]
        self.fpn = FeaturePyramidNetwork(widths, PYRAMID, LastLevelP6P7(PYRAMID, PYRAMID))

    def forward(self, image: Tensor) -> dict[str, Tensor]:
        maps = self.encoder(image)
        return self.fpn(OrderedDict((stage, maps[stage]) for stage in self.stages))

    @property
    def strides(self) -> list[float]:
        """Of all levels, in pixels."""
        own = [self.encoder.size / self.encoder.sides[stage] for stage in self.stages]
        return [*own, 2 * own[-1], 4 * own[-1]]


def levels(encoder: Encoder) -> list[str]:
    """The deepest map of each size, from stride FINEST on; of an encoder without such, its last."""
    deepest = {side: stage for stage, side in encoder.sides.items()}
    coarse = [stage for side, stage in deepest.items() if encoder.size >= FINEST * side]
    return coarse or [list(encoder.sides)[-1]]


def detector(encoder: Encoder, count: int, side: int) -> FasterRCNN:
    """Faster R-CNN for `count` classes on `encoder` itself; 0 is the background."""
    pyramid = Pyramid(encoder)
    sizes = tuple(tuple(round(a * stride) for a in ANCHORS) for stride in pyramid.strides)
    fixed = encoder.side(2.0) == encoder.size
    return FasterRCNN(
        pyramid,
        min_size=side,
        max_size=LONGEST * side,
        fixed_size=(side, side) if fixed else None,
        size_divisible=1 if fixed else 32,
        image_mean=[0.0] * encoder.channels,
        image_std=[1.0] * encoder.channels,
        rpn_anchor_generator=AnchorGenerator(sizes, ((0.5, 1.0, 2.0),) * len(sizes)),
        rpn_pre_nms_top_n_train=PROPOSALS,
        rpn_pre_nms_top_n_test=PROPOSALS,
        rpn_post_nms_top_n_train=PROPOSALS,
        rpn_post_nms_top_n_test=PROPOSALS,
        box_roi_pool=MultiScaleRoIAlign(pyramid.stages, 7, 2),
        box_head=TwoMLPHead(PYRAMID * 7**2, HEAD),
        box_predictor=FastRCNNPredictor(HEAD, count + 1),
        box_batch_size_per_image=REGIONS,
        box_score_thresh=FAINT,
    )


@torch.random.fork_rng(devices=[])
def trained(encoder: Encoder, train: Annotated, plan: Plan) -> FasterRCNN:
    """A detector whose backbone is a copy of `encoder`, after the last step."""
    torch.manual_seed(plan.run)  # of the heads, and of the regions that torchvision samples
    net = detector(copy.deepcopy(encoder).requires_grad_(), len(train.classes), canvas(encoder, plan, SIDE))
    net = net.to(plan.device).train()
    kept = [i for i, item in enumerate(train.items) if (~item.hard).any()]
    steps = plan.steps or STEPS
    losses = (
        sum(net(*batch).values(), torch.zeros((), device=plan.device))
        for batch in batches(train, kept, encoder.channels, steps, plan)
    )
    optimizer = torch.optim.AdamW(net.parameters(), TRAIN.lr, weight_decay=TRAIN.weight_decay)

    def clip(*_: Any) -> None:
        nn.utils.clip_grad_norm_(net.parameters(), CLIP)

    optimizer.register_step_pre_hook(clip)
    descend(optimizer, losses, TRAIN, steps, "detection", plan.progress)
    return net.eval()


def batches(
    train: Annotated, kept: Sequence[int], channels: int, steps: int, plan: Plan
) -> Iterator[tuple[list[Tensor], list[dict[str, Tensor]]]]:
    """Images (C, H, W) in [0, 1], of the size they have, and what torchvision wants to know of each; half of them flipped."""
    batch = min(TRAIN.batch, len(kept))
    order = passes(len(kept), batch, steps, plan.run)
    for step, rows in enumerate(order.split(batch)):
        flips = Rng(plan.run, "detection", "flip", step).coin(len(rows), p=0.5)
        pairs = [
            example(train.items[kept[i]], channels, flip)
            for i, flip in zip(rows.tolist(), flips.tolist(), strict=True)
        ]
        yield (
            [image.to(plan.device) for image, _ in pairs],
            [{k: v.to(plan.device) for k, v in target.items()} for _, target in pairs],
        )


def example(item: Item, channels: int, flip: bool) -> tuple[Tensor, dict[str, Tensor]]:
    """An image and its objects but the hard ones, flipped from left to right or not."""
    image, boxes = item.image(channels), boxes_of(item, ~item.hard)
    if flip:
        image, boxes = tf.horizontal_flip(image), tf.horizontal_flip(boxes)
    target = {"boxes": boxes.as_subclass(Tensor), "labels": item.label[~item.hard] + 1}
    return images.to_float(image), target


def boxes_of(item: Item, some: Tensor) -> tv_tensors.BoundingBoxes:
    return tv_tensors.BoundingBoxes(
        item.boxes[some],
        format=tv_tensors.BoundingBoxFormat.XYXY,
        canvas_size=(item.height, item.width),
    )  # pyright: ignore[reportCallIssue]


@torch.no_grad()
def found(net: FasterRCNN, test: Annotated, channels: int, plan: Plan) -> list[dict[str, Tensor]]:
    """For each test image "boxes" (M, 4), in its own pixels, "labels" (M,) from 0 and "scores" (M,), on the CPU."""
    made = []
    with bar(plan.progress) as shown:
        for item in shown.track(test.items, description=f"detecting in {test.name}"):
            [out] = net([images.to_float(item.image(channels)).to(plan.device)])
            made.append({k: v.cpu() for k, v in (out | {"labels": out["labels"] - 1}).items()})
    return made


# ---- VOC's average precision


def matches(item: Item, predicted: Mapping[str, Tensor], k: int, iou: float = 0.5) -> np.ndarray:
    """(M,) for the detections of class k, the highest score first: 1 right, 0 wrong, -1 not judged.

    Of VOC's development kit: a detection belongs to the object that it overlaps most; the first one of an object is right,
    each further one wrong; those of hard objects are not judged.
    """
    mine = item.label == k
    truth, hard = item.boxes[mine], item.hard[mine].tolist()
    own = predicted["labels"] == k
    order = predicted["scores"][own].argsort(descending=True, stable=True)
    boxes = predicted["boxes"][own][order]
    verdict = np.zeros(len(boxes))
    if not len(truth) or not len(boxes):
        return verdict
    overlap, nearest = box_iou(boxes, truth).max(1)
    taken: set[int] = set()
    for i, (o, j) in enumerate(zip(overlap.tolist(), nearest.tolist(), strict=True)):
        if o < iou:
            continue
        verdict[i] = -1 if hard[j] else j not in taken
        taken.add(j)
    return verdict


def by_voc(
    test: Annotated, predicted: Sequence[Mapping[str, Tensor]], judged: Sequence[int], weight: np.ndarray
) -> dict[str, np.ndarray]:
    """%, (R,) for the test sets that `weight` (R, N) describes."""
    each: dict[str, list[np.ndarray]] = {"11-point": [], "all-point": []}
    for k in judged:
        per_image = [matches(item, p, k) for item, p in zip(test.items, predicted, strict=True)]
        score = [p["scores"][p["labels"] == k].sort(descending=True, stable=True).values for p in predicted]
        count = np.array([int(((i.label == k) & ~i.hard).sum()) for i in test.items])
        curve = pooled(per_image, [s.double().numpy() for s in score], count, weight)
        for name, rows in each.items():
            rows.append(precision.DEFINITIONS[name](curve))
    return {f"VOC {name}": 100 * precision.mean_over_classes(rows) for name, rows in each.items()}


def pooled(
    verdict: Sequence[np.ndarray], score: Sequence[np.ndarray], count: np.ndarray, weight: np.ndarray
) -> precision.Curve:
    """The detections of all images on one curve; `count` (N,) objects to find, `weight` (R, N)."""
    image = np.repeat(np.arange(len(score)), [len(s) for s in score])
    every, mark = np.concatenate(score), np.concatenate(verdict)
    kept = mark >= 0
    return precision.curve(every[kept], mark[kept] == 1, weight @ count, weight[:, image[kept]])


# ---- COCO's


def by_coco(
    test: Annotated, predicted: Sequence[Mapping[str, Tensor]], judged: Sequence[int], weight: np.ndarray
) -> dict[str, np.ndarray]:
    """%, (R,) for the test sets that `weight` (R, N) describes: pycocotools matches, its averages are taken for each set."""
    thresholds, per_class = coco_matches(test, predicted, judged)
    each = np.stack(
        [
            precision.mean_over_classes(
                [
                    precision.coco(pooled([v[t] for v in verdict], score, count, weight))
                    for verdict, score, count in per_class
                ]
            )
            for t in range(len(thresholds))
        ]
    )  # (T, R)
    at = {round(float(t), 2): 100 * row for t, row in zip(thresholds, each, strict=True)}
    return {"AP": 100 * each.mean(0), "AP50": at[0.5], "AP75": at[0.75]}


Matched = tuple[list[np.ndarray], list[np.ndarray], np.ndarray]
"""of a class, for each image: verdicts (T, M) as in `matches`, scores (M,); and how many objects there are to find (N,)"""


def coco_matches(
    test: Annotated, predicted: Sequence[Mapping[str, Tensor]], judged: Sequence[int]
) -> tuple[np.ndarray, list[Matched]]:
    """IoU thresholds (T,), and what pycocotools matched to what at each."""
    evaluator = coco_evaluator(test, predicted, judged)
    thresholds, n = evaluator.params.iouThrs, len(test)
    per_class: list[Matched] = []
    areas = len(evaluator.params.areaRng)
    for c in range(len(judged)):
        verdict, score, count = [], [], np.zeros(n)
        for i, image in enumerate(evaluator.evalImgs[c * areas * n :][:n]):  # of all areas, the first range
            if image is None:
                verdict.append(np.zeros((len(thresholds), 0)))
                score.append(np.zeros(0))
                continue
            right = (image["dtMatches"] > 0).astype(float)
            verdict.append(np.where(image["dtIgnore"], -1.0, right))
            score.append(np.array(image["dtScores"]))
            count[i] = (np.array(image["gtIgnore"]) == 0).sum()
        per_class.append((verdict, score, count))
    return thresholds, per_class


def coco_evaluator(test: Annotated, predicted: Sequence[Mapping[str, Tensor]], judged: Sequence[int]) -> Any:
    """COCOeval after `evaluate`, with images and classes in their order."""
    import contextlib
    import io

    coco_module, cocoeval = coco()
    truth, guess = coco_module.COCO(), coco_module.COCO()
    truth.dataset, guess.dataset = described(test, predicted)
    with contextlib.redirect_stdout(io.StringIO()):  # it prints as it goes
        truth.createIndex()
        guess.createIndex()
        evaluator = cocoeval.COCOeval(truth, guess, "bbox")
        evaluator.params.catIds = list(judged)
        evaluator.evaluate()
    return evaluator


def described(
    test: Annotated, predicted: Sequence[Mapping[str, Tensor]]
) -> tuple[dict[str, Any], dict[str, Any]]:
    """The truth and the detections in COCO's form; ids count from 1, as COCOeval takes 0 for no match."""
    about = {
        "images": [{"id": i, "width": t.width, "height": t.height} for i, t in enumerate(test.items)],
        "categories": [{"id": k, "name": name} for k, name in enumerate(test.classes)],
    }
    objects: list[dict[str, Any]] = []
    guesses: list[dict[str, Any]] = []
    for i, (item, p) in enumerate(zip(test.items, predicted, strict=True)):
        for box, k, hard in zip(item.boxes.tolist(), item.label.tolist(), item.hard.tolist(), strict=True):
            objects.append(one(len(objects) + 1, i, k, box) | {"iscrowd": int(hard)})
        for box, k, score in zip(
            p["boxes"].tolist(), p["labels"].tolist(), p["scores"].tolist(), strict=True
        ):
            guesses.append(one(len(guesses) + 1, i, k, box) | {"score": score, "iscrowd": 0})
    return about | {"annotations": objects}, about | {"annotations": guesses}


def one(number: int, image: int, k: int, box: Sequence[float]) -> dict[str, Any]:
    x1, y1, x2, y2 = box
    w, h = x2 - x1, y2 - y1
    return {"id": number, "image_id": image, "category_id": k, "bbox": [x1, y1, w, h], "area": w * h}


# ---- pictures


def sheet(
    test: Annotated, predicted: Sequence[Mapping[str, Tensor]], seed: int
) -> Iterator[dict[str, Tensor]]:
    """A few test images with their objects, and with what was found."""
    for i in Rng(seed, "sheet").permutation(len(test))[:PICTURES].tolist():
        item, p = test.items[i], predicted[i]
        sure = p["scores"] >= SURE
        yield {
            "truth": drawn(item, item.boxes, item.label, test.classes),
            "found": drawn(item, p["boxes"][sure], p["labels"][sure], test.classes),
        }


def drawn(item: Item, boxes: Tensor, label: Tensor, classes: Sequence[str]) -> Tensor:
    """The image with boxes under their names, its longer side SIDE_OF_PICTURE pixels."""
    scale = SIDE_OF_PICTURE / max(item.width, item.height)
    small = tf.resize(item.image(3), [math.ceil(scale * item.height), math.ceil(scale * item.width)])
    if not len(boxes):
        return small
    names = [classes[int(k)] for k in label]
    return draw_bounding_boxes(small, boxes * scale, names, colors="yellow", width=1)

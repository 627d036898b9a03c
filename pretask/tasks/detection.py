"""Object detection: torchvision's Faster R-CNN with a feature pyramid on an encoder's maps, trained end to end.

Ren et al. 2015 (arXiv:1506.01497), Lin et al. 2017 (arXiv:1612.03144). Reduced to what a small machine can train in
minutes: a narrow pyramid and head, fewer regions, a fixed number of steps. It compares encoders under one recipe, which is
not tuned; scores are not comparable with published ones.

- The pyramid's levels are the maps of stride 4 and more, the deepest of each size, and two levels above them (RetinaNet's).
- Batch norm is trained. Detectors usually freeze it because their batches are small, but an untrained encoder has no
  statistics to freeze, and a batch of maps has thousands of positions.
- Hard objects (VOC's difficult, COCO's crowds) are not trained on; in testing, detecting or missing them does not count.
- The encoder normalizes its images itself; torchvision's own normalization is disabled.
- For encoders of fixed size, the whole image is resized to their square; others keep the aspect ratio.
"""

import copy
import math
from collections import OrderedDict
from collections.abc import Iterator, Mapping, Sequence
from typing import Any, ClassVar

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
from pretask.data.annotated import Annotated, Item
from pretask.data.base import bar
from pretask.encoders import Encoder
from pretask.errors import install_command
from pretask.evals import average_precision
from pretask.evals.finetune import epoch_orders, optimize
from pretask.rng import Rng
from pretask.tasks.base import Plan, TaskResult, TaskScore, bootstrap_weights, image_side
from pretask.tasks.objects import ObjectTask, scored_classes
from pretask.transforms import augment
from pretask.types import UserError

TRAIN = TrainConfig(batch=4, lr=5e-4, weight_decay=0.05, warmup=0.1)
"""AdamW; after so few steps SGD (lr 0.01 and 0.03) predicts only background, even on training images"""
SIDE = 160
"""shorter side of the images in pixels, for encoders that take any size; the encoder's own if that is larger"""
MAX_ASPECT = 2
"""maximum longer side as a multiple of the shorter; longer images are downsampled"""
CLIP = 10.0
"""maximum norm of the gradient"""
MIN_STRIDE = 4
"""smallest stride of a level, pixels"""
PYRAMID, HEAD = 64, 256
"""channels of the levels, width of the head (paper: 256, 1024)"""
ANCHORS = (4.0, 6.0)
"""sides of anchors, in strides of their level"""
REGIONS, PROPOSALS = 64, 256
"""per image: regions that the head is trained on, proposals (paper: 512, 2000)"""
MIN_SCORE = 0.005
"""minimum score of a detection (torchvision: 0.05, which no box reaches after few steps and with many classes)"""
PICTURES, PICTURE_SCORE = 6, 0.3
"""number of test images on the contact sheet, and the minimum score of a box drawn there"""
PICTURE_SIDE = 192


class Detection(ObjectTask):
    name = "detection"
    steps = 1200
    metrics: ClassVar[Mapping[str, str]] = {
        "AP": "COCO's average precision, mean over classes and IoU 0.50, 0.55, …, 0.95 (pycocotools)",
        "AP50": "COCO's average precision at IoU 0.50, mean over classes",
        "AP75": "COCO's average precision at IoU 0.75, mean over classes",
        "VOC 11-point": "VOC 2007's mean average precision at IoU 0.50, at recalls 0, 0.1, …, 1",
        "VOC all-point": "VOC 2010's mean average precision at IoU 0.50, the area under the interpolated precision-recall curve",
    }
    protocol = (
        f"torchvision's Faster R-CNN with a feature pyramid on the encoder, trained end to end; AdamW, lr {TRAIN.lr}, batch "
        f"{TRAIN.batch}, {steps} steps by default, random flips; no hyperparameter or checkpoint is chosen, the last weights are "
        "scored; at most 100 boxes per image"
    )

    def check(self, encoder: Encoder, plan: Plan) -> None:
        coco()
        image_side(encoder, plan, SIDE)
        if not encoder.sides:
            raise UserError(f"{encoder.name} has no map, which detection needs; try --task classification")

    def evaluate(self, encoder: Encoder, train: Annotated, test: Annotated, plan: Plan) -> TaskResult:
        classes, skipped = scored_classes(train, test)
        net = self.train_network(encoder, train, plan)
        detections = detect(net, test, encoder.channels, plan)
        notes = {"steps": plan.steps or self.steps, "size": image_side(encoder, plan, SIDE)}
        weight = np.concatenate([np.ones((1, len(test))), bootstrap_weights(len(test), plan.seed)])
        values = coco_ap(test, detections, classes, weight) | voc_ap(test, detections, classes, weight)
        scores = [TaskScore(metric, float(x[0]), x[1:], notes) for metric, x in values.items()]
        return TaskResult(scores, skipped, [*pictures(test, detections, plan.seed)])

    @torch.random.fork_rng(devices=[])
    def train_network(self, encoder: Encoder, train: Annotated, plan: Plan) -> FasterRCNN:
        """A trained detector with a copy of `encoder` as its backbone."""
        torch.manual_seed(plan.run)  # for the heads, and for torchvision's sampling of regions
        net = detector(
            copy.deepcopy(encoder).requires_grad_(), len(train.classes), image_side(encoder, plan, SIDE)
        )
        net = net.to(plan.device).train()
        usable = [i for i, item in enumerate(train.items) if (~item.hard).any()]
        steps = plan.steps or self.steps
        losses = (
            sum(net(*batch).values(), torch.zeros((), device=plan.device))
            for batch in batches(train, usable, encoder.channels, steps, plan)
        )
        optimizer = torch.optim.AdamW(net.parameters(), TRAIN.lr, weight_decay=TRAIN.weight_decay)

        def clip(*_: Any) -> None:
            nn.utils.clip_grad_norm_(net.parameters(), CLIP)

        optimizer.register_step_pre_hook(clip)
        optimize(optimizer, losses, TRAIN, steps, self.name, plan.progress)
        return net.eval()


def coco() -> Any:
    """pycocotools; UserError if it is missing."""
    try:
        from pycocotools import coco, cocoeval
    except ImportError:
        raise UserError(
            f"detection needs the package `pycocotools`: {install_command('detection')}"
        ) from None
    return coco, cocoeval


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
        """Strides of all levels, in pixels."""
        own = [self.encoder.size / self.encoder.sides[stage] for stage in self.stages]
        return [*own, 2 * own[-1], 4 * own[-1]]


def levels(encoder: Encoder) -> list[str]:
    """The deepest map of each size with a stride of at least MIN_STRIDE; the last map if there are none."""
    deepest = {side: stage for stage, side in encoder.sides.items()}
    coarse = [stage for side, stage in deepest.items() if encoder.size >= MIN_STRIDE * side]
    return coarse or [list(encoder.sides)[-1]]


def detector(encoder: Encoder, count: int, side: int) -> FasterRCNN:
    """Faster R-CNN for `count` classes on `encoder`, which is not copied; class 0 is the background."""
    pyramid = Pyramid(encoder)
    sizes = tuple(tuple(round(a * stride) for a in ANCHORS) for stride in pyramid.strides)
    fixed = encoder.side(2.0) == encoder.size
    return FasterRCNN(
        pyramid,
        min_size=side,
        max_size=MAX_ASPECT * side,
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
        box_score_thresh=MIN_SCORE,
    )


def batches(
    train: Annotated, usable: Sequence[int], channels: int, steps: int, plan: Plan
) -> Iterator[tuple[list[Tensor], list[dict[str, Tensor]]]]:
    """Images (C, H, W) in [0, 1], each of its own size, and their targets in torchvision's form, randomly flipped."""
    batch = min(TRAIN.batch, len(usable))
    order = epoch_orders(len(usable), batch, steps, plan.run)
    for step, rows in enumerate(order.split(batch)):
        flips = Rng(plan.run, "detection", "flip", step).coin(len(rows), p=0.5)
        pairs = [
            example(train.items[usable[i]], channels, flip)
            for i, flip in zip(rows.tolist(), flips.tolist(), strict=True)
        ]
        yield (
            [image.to(plan.device) for image, _ in pairs],
            [{k: v.to(plan.device) for k, v in target.items()} for _, target in pairs],
        )


def example(item: Item, channels: int, flip: bool) -> tuple[Tensor, dict[str, Tensor]]:
    """An image and its objects without the hard ones, flipped left to right if `flip`."""
    image, boxes = item.image(channels), boxes_of(item, ~item.hard)
    if flip:
        image, boxes = tf.horizontal_flip(image), tf.horizontal_flip(boxes)
    target = {"boxes": boxes.as_subclass(Tensor), "labels": item.label[~item.hard] + 1}
    return augment.to_float(image), target


def boxes_of(item: Item, some: Tensor) -> tv_tensors.BoundingBoxes:
    return tv_tensors.BoundingBoxes(
        item.boxes[some],
        format=tv_tensors.BoundingBoxFormat.XYXY,
        canvas_size=(item.height, item.width),
    )  # pyright: ignore[reportCallIssue]


@torch.no_grad()
def detect(net: FasterRCNN, test: Annotated, channels: int, plan: Plan) -> list[dict[str, Tensor]]:
    """For each test image "boxes" (M, 4), in its own pixels, "labels" (M,) from 0 and "scores" (M,), on the CPU."""
    detections = []
    with bar(plan.progress) as steps:
        for item in steps.track(test.items, description=f"detecting in {test.name}"):
            [out] = net([augment.to_float(item.image(channels)).to(plan.device)])
            detections.append({k: v.cpu() for k, v in (out | {"labels": out["labels"] - 1}).items()})
    return detections


# ---- VOC's average precision


def match(item: Item, detections: Mapping[str, Tensor], k: int, iou: float = 0.5) -> np.ndarray:
    """(M,) for the detections of class k, highest score first: 1 true positive, 0 false positive, -1 ignored.

    As in VOC's development kit: a detection is matched to the object that it overlaps most; the first detection of an object
    is a true positive, further ones are false positives; detections of hard objects are ignored.
    """
    of_class = item.label == k
    truth, hard = item.boxes[of_class], item.hard[of_class].tolist()
    detected = detections["labels"] == k
    order = detections["scores"][detected].argsort(descending=True, stable=True)
    boxes = detections["boxes"][detected][order]
    matched = np.zeros(len(boxes))
    if not len(truth) or not len(boxes):
        return matched
    overlap, nearest = box_iou(boxes, truth).max(1)
    taken: set[int] = set()
    for i, (o, j) in enumerate(zip(overlap.tolist(), nearest.tolist(), strict=True)):
        if o < iou:
            continue
        matched[i] = -1 if hard[j] else j not in taken
        taken.add(j)
    return matched


def voc_ap(
    test: Annotated, detections: Sequence[Mapping[str, Tensor]], classes: Sequence[int], weight: np.ndarray
) -> dict[str, np.ndarray]:
    """%, (R,) for the R test sets of `weight` (R, N)."""
    per_class: dict[str, list[np.ndarray]] = {"11-point": [], "all-point": []}
    for k in classes:
        matched = [match(item, d, k) for item, d in zip(test.items, detections, strict=True)]
        score = [d["scores"][d["labels"] == k].sort(descending=True, stable=True).values for d in detections]
        count = np.array([int(((i.label == k) & ~i.hard).sum()) for i in test.items])
        curve = pooled_curve(matched, [s.double().numpy() for s in score], count, weight)
        for name, rows in per_class.items():
            rows.append(average_precision.DEFINITIONS[name](curve))
    return {
        f"VOC {name}": 100 * average_precision.mean_over_classes(rows) for name, rows in per_class.items()
    }


def pooled_curve(
    matched: Sequence[np.ndarray], score: Sequence[np.ndarray], count: np.ndarray, weight: np.ndarray
) -> average_precision.Curve:
    """The precision-recall curve of the detections in all images; `count` (N,) objects, `weight` (R, N)."""
    image = np.repeat(np.arange(len(score)), [len(s) for s in score])
    scores, positive = np.concatenate(score), np.concatenate(matched)
    kept = positive >= 0
    return average_precision.curve(scores[kept], positive[kept] == 1, weight @ count, weight[:, image[kept]])


# ---- COCO's average precision


def coco_ap(
    test: Annotated, detections: Sequence[Mapping[str, Tensor]], classes: Sequence[int], weight: np.ndarray
) -> dict[str, np.ndarray]:
    """%, (R,) for the R test sets of `weight` (R, N): pycocotools matches once, and averages are computed for each set."""
    thresholds, per_class = coco_matches(test, detections, classes)
    ap = np.stack(
        [
            average_precision.mean_over_classes(
                [
                    average_precision.coco(pooled_curve([m[t] for m in matched], score, count, weight))
                    for matched, score, count in per_class
                ]
            )
            for t in range(len(thresholds))
        ]
    )  # (T, R)
    at = {round(float(t), 2): 100 * row for t, row in zip(thresholds, ap, strict=True)}
    return {"AP": 100 * ap.mean(0), "AP50": at[0.5], "AP75": at[0.75]}


ClassMatches = tuple[list[np.ndarray], list[np.ndarray], np.ndarray]
"""for one class: per image, matches (T, M) as in `match` and scores (M,); and the number of objects per image (N,)"""


def coco_matches(
    test: Annotated, detections: Sequence[Mapping[str, Tensor]], classes: Sequence[int]
) -> tuple[np.ndarray, list[ClassMatches]]:
    """IoU thresholds (T,), and pycocotools' matches of each class."""
    evaluator = coco_evaluator(test, detections, classes)
    thresholds, n = evaluator.params.iouThrs, len(test)
    per_class: list[ClassMatches] = []
    areas = len(evaluator.params.areaRng)
    for c in range(len(classes)):
        matched, score, count = [], [], np.zeros(n)
        for i, image in enumerate(evaluator.evalImgs[c * areas * n :][:n]):  # the first range is all areas
            if image is None:
                matched.append(np.zeros((len(thresholds), 0)))
                score.append(np.zeros(0))
                continue
            positive = (image["dtMatches"] > 0).astype(float)
            matched.append(np.where(image["dtIgnore"], -1.0, positive))
            score.append(np.array(image["dtScores"]))
            count[i] = (np.array(image["gtIgnore"]) == 0).sum()
        per_class.append((matched, score, count))
    return thresholds, per_class


def coco_evaluator(
    test: Annotated, detections: Sequence[Mapping[str, Tensor]], classes: Sequence[int]
) -> Any:
    """COCOeval after its `evaluate`, with images and classes in order."""
    import contextlib
    import io

    coco_module, cocoeval = coco()
    truth, predicted = coco_module.COCO(), coco_module.COCO()
    truth.dataset, predicted.dataset = to_coco(test, detections)
    with contextlib.redirect_stdout(io.StringIO()):  # pycocotools prints its progress
        truth.createIndex()
        predicted.createIndex()
        evaluator = cocoeval.COCOeval(truth, predicted, "bbox")
        evaluator.params.catIds = list(classes)
        evaluator.evaluate()
    return evaluator


def to_coco(
    test: Annotated, detections: Sequence[Mapping[str, Tensor]]
) -> tuple[dict[str, Any], dict[str, Any]]:
    """Ground truth and detections in COCO's form; ids start at 1, since COCOeval uses 0 for no match."""
    common = {
        "images": [{"id": i, "width": t.width, "height": t.height} for i, t in enumerate(test.items)],
        "categories": [{"id": k, "name": name} for k, name in enumerate(test.classes)],
    }
    objects: list[dict[str, Any]] = []
    predicted: list[dict[str, Any]] = []
    for i, (item, d) in enumerate(zip(test.items, detections, strict=True)):
        for box, k, hard in zip(item.boxes.tolist(), item.label.tolist(), item.hard.tolist(), strict=True):
            objects.append(annotation(len(objects) + 1, i, k, box) | {"iscrowd": int(hard)})
        for box, k, score in zip(
            d["boxes"].tolist(), d["labels"].tolist(), d["scores"].tolist(), strict=True
        ):
            predicted.append(annotation(len(predicted) + 1, i, k, box) | {"score": score, "iscrowd": 0})
    return common | {"annotations": objects}, common | {"annotations": predicted}


def annotation(number: int, image: int, k: int, box: Sequence[float]) -> dict[str, Any]:
    x1, y1, x2, y2 = box
    w, h = x2 - x1, y2 - y1
    return {"id": number, "image_id": image, "category_id": k, "bbox": [x1, y1, w, h], "area": w * h}


# ---- pictures


def pictures(
    test: Annotated, detections: Sequence[Mapping[str, Tensor]], seed: int
) -> Iterator[dict[str, Tensor]]:
    """A few test images with true boxes, and with detected ones."""
    for i in Rng(seed, "sheet").permutation(len(test))[:PICTURES].tolist():
        item, d = test.items[i], detections[i]
        drawn = d["scores"] >= PICTURE_SCORE
        yield {
            "truth": draw_boxes(item, item.boxes, item.label, test.classes),
            "predicted": draw_boxes(item, d["boxes"][drawn], d["labels"][drawn], test.classes),
        }


def draw_boxes(item: Item, boxes: Tensor, label: Tensor, classes: Sequence[str]) -> Tensor:
    """The image with labeled boxes, with a longer side of PICTURE_SIDE pixels."""
    scale = PICTURE_SIDE / max(item.width, item.height)
    image = tf.resize(item.image(3), [math.ceil(scale * item.height), math.ceil(scale * item.width)])
    if not len(boxes):
        return image
    names = [classes[int(k)] for k in label]
    return draw_bounding_boxes(image, boxes * scale, names, colors="yellow", width=1)

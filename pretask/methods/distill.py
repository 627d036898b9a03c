"""Distillation: predict the features that a frozen teacher has of the same view.

Any network with weights can be the teacher, and any network the student: `--teacher timm:vit_small_patch14_dinov2`, a file, or
another run. Both see the same augmented view (Beyer et al.: Knowledge Distillation: A Good Teacher Is Patient and Consistent,
CVPR 2022, arXiv:2106.05237). The student's pooled features and one of its maps predict the teacher's, each through one linear
layer (Romero et al.: FitNets: Hints for Thin Deep Nets, ICLR 2015, arXiv:1412.6550). Before the first step the teacher's features
are reduced to their first principal components, by a PCA of up to 2,048 of the user's images: what distinguishes these images
is kept, and a target is 128 numbers, whatever the teacher.

    L = pooled · D(g(pool_S), pool_T) + dense · mean over positions of D(h(map_S), map_T)
    D(a, b) = 1 - cos(a, b)

`:paper` is LightlyTrain's second distillation ("released": lightly-ai/lightly-train at 8f5a75c, `_methods/distillationv2`): only
the map, its features as they are, the mean squared error in place of D, and mixup of every view with another.

`--stored-views K` computes the teacher's features once, for K views of every image, and draws from these views in every
step. It pays if the run has more than K epochs, and costs K · N · (1 + positions) · 256 bytes of memory.

**Differs** (`:paper`): the target is the teacher's last map, released the last two blocks side by side; it is rotated to its
principal axes and centered; a view is mixed with its neighbor in the batch, whose order is random; a blur of at most 0.1 px
is left out, as it changes nothing; the linear layer has torch's initialization, not a normal one of standard deviation 0.02.
"""

import hashlib
import time
from collections.abc import Iterator, Mapping
from contextlib import AbstractContextManager
from dataclasses import dataclass, replace
from typing import Any, ClassVar

import torch
import torch.nn.functional as F
from torch import Tensor

from pretask.config import TrainConfig
from pretask.data import loader
from pretask.encoders import Encoder, fast_conv, inference_batch, origins, side_of_whole_patches
from pretask.encoders.heads import build_mlp
from pretask.encoders.weights import input_of
from pretask.limits import NonNegativeFloat, NonNegativeInt, PositiveFraction, PositiveInt
from pretask.methods.base.context import Context
from pretask.methods.base.method import Method, Minimum
from pretask.methods.base.views import ViewConfig
from pretask.rng import Rng, RowRng
from pretask.runtime.console import say
from pretask.runtime.device import fastest_precision
from pretask.transforms import augment
from pretask.types import Batch, Loss, Source, UserError
from pretask.viz.puzzle import Caption, Frame, Panel, Puzzle

FITTED = 2048
"""images on which the principal components are measured"""
GRID = 4
"""positions a side that a map should have: the deepest such map is predicted"""
SMALLEST = 96
"""side in pixels to which smaller views are enlarged for published weights, most of which were trained on 224 px: with
EfficientNet-Lite0 on CIFAR-10 this gave 8 points more than 32 px (docs/weights.md)"""
BLOCK = 1024
"""images opened at a time to store the teacher's features"""


@dataclass(frozen=True)
class Config(ViewConfig):
    """Predict the features that a frozen teacher has of the same view."""

    family: ClassVar[str] = "distillation"
    side: PositiveFraction = 1.0
    """side of a view as a fraction of the image's"""
    teacher: str = ""
    """frozen weights to learn from: a run, timm:NAME, ARCH@FILE, or a folder of timm or transformers"""
    teacher_size: PositiveInt | None = None
    """side in pixels to which views are resized for the teacher, rounded up to whole patches (default: that of a view, 96 at
    least; a run as teacher has its own)"""
    dims: PositiveInt = 128
    """principal components of the teacher's features that are predicted; of fewer features, the rest are 0"""
    normalize: bool = True
    """compare directions, by the cosine; otherwise the mean squared error"""
    pooled: NonNegativeFloat = 1.0
    """weight of the loss on pooled features"""
    dense: NonNegativeFloat = 1.0
    """weight of the loss on the map"""
    mixup: bool = False
    """mix every view with another, by a fraction drawn for each batch"""
    stored_views: NonNegativeInt = 0
    """views of every image whose teacher features are computed once, before the first step; 0: a new view in every step"""

    def fewest_images(self) -> Minimum:
        """Principal components need two."""
        return Minimum(2)

    def smallest_batch(self) -> Minimum:
        """Images are not compared with each other."""
        return Minimum(1)

    def resolved(self) -> "Config":
        if not self.teacher:
            raise UserError(
                "distill learns from a teacher: give --teacher, such as --teacher timm:vit_small_patch14_dinov2.lvd142m"
            )
        if not (self.pooled or self.dense):
            raise UserError("--pooled 0 --dense 0 leave no loss; give one of them")
        if self.mixup and self.stored_views:
            raise UserError(
                "--mixup makes views of two images, which cannot be stored; leave out --stored-views"
            )
        if not origins.saved_encoder(self.teacher):
            origins.locate(self.teacher)
        return replace(self, teacher=origins.absolute(self.teacher))

    def open_teacher(self, source: Source) -> Encoder:
        """The frozen teacher, for images of any size, which it resizes to its own. Raises UserError."""
        self.resolved()
        side = None
        if not origins.saved_encoder(self.teacher):
            published = origins.locate(self.teacher)
            least = max(round(self.side * source.size), min(published.size, SMALLEST))
            side = side_of_whole_patches(published.architecture, self.teacher_size or least)
        teacher, _ = origins.open_encoder(self.teacher, source.channels, side)
        if teacher.channels != source.channels:
            raise UserError(
                f"the teacher {self.teacher} takes images of {teacher.channels} channels, and these have {source.channels}"
            )
        teacher.resize_input(source.size)
        return teacher.requires_grad_(False)

    def build(self, encoder: Encoder, source: Source) -> "Distill":
        return Distill(self, encoder, self.open_teacher(source))


@dataclass(frozen=True)
class Paper(Config):
    """A ResNet-18 from DINOv2's ViT-B/14, with --size 224 and --teacher (LightlyTrain, distillation v2)."""

    encoder: ClassVar[str] = "resnet18.a1_in1k"
    train: ClassVar[TrainConfig] = TrainConfig(
        epochs=100,
        batch=128,
        optimizer="lars",
        lr=9.0 * (128 / 1536) ** 0.5,
        lr_end=0.009 * (128 / 1536) ** 0.5,
        weight_decay=1e-6,
        clip=1.0,
        warmup=0.1,
    )

    views: augment.ViewAugmentation = augment.ViewAugmentation(crop=(0.14, 1.0), saturation=0.2)
    """random crops and colors"""
    dims: PositiveInt = 768
    """all of ViT-B"""
    normalize: bool = False
    """mean squared error"""
    pooled: NonNegativeFloat = 0.0
    """none"""
    mixup: bool = True
    """of all views"""


@dataclass(frozen=True)
class DistilledView:
    image: Tensor  # (B, C, H, W), the view that both networks get
    target: Tensor  # (B, 1 + P, dims), the teacher's components of the pooled features, then of P positions


class Teacher:
    """A frozen network that belongs to no module, so that checkpoints do not hold it."""

    def __init__(self, encoder: Encoder):
        fast_conv.accelerate(encoder)
        self.encoder = encoder
        self.seconds = 0.0
        """spent since they were last read"""

    def __call__(self, image: Tensor) -> dict[str, Tensor]:
        """The stages for images of any number, in batches that fit a CPU's cache. Measures its time."""
        began = time.perf_counter()
        net = self.encoder.to(image.device)
        with half_precision(image.device):
            found = [net(some) for some in image.split(inference_batch(net.takes or net.size, image.device))]
        joined = {stage: torch.cat([each[stage] for each in found]).float() for stage in found[0]}
        if image.device.type == "cuda":
            torch.cuda.synchronize()
        self.seconds += time.perf_counter() - began
        return joined

    @property
    def digest(self) -> Tensor:
        """(8,) uint8 that differs between different weights."""
        found = hashlib.blake2b(digest_size=8)
        for name, value in sorted(self.encoder.net.state_dict().items()):
            found.update(name.encode() + value.cpu().contiguous().numpy().tobytes())
        return torch.tensor([*found.digest()], dtype=torch.uint8)


def half_precision(device: torch.device) -> AbstractContextManager[Any]:
    """bf16 on GPUs that have it; methods make their puzzles outside of the training precision."""
    fast = device.type == "cuda" and fastest_precision("cuda") == "bf16-mixed"
    return torch.autocast(device.type, torch.bfloat16, enabled=fast)


class Distill(Method[DistilledView]):
    pretext_task = "Prediction of a teacher's features"
    pool_center: Tensor
    pool_axes: Tensor
    map_center: Tensor
    map_axes: Tensor
    teacher_digest: Tensor
    seed: Tensor

    def __init__(self, config: Config, encoder: Encoder, teacher: Encoder):
        super().__init__()
        self.config, self.encoder, self.frozen = config, encoder, Teacher(teacher)
        self.side = encoder.side(config.side)
        self.stage, own = predicted_map(encoder, self.side)
        self.teacher_stage, given = predicted_map(teacher, teacher.takes or teacher.size)
        self.grid = min(own, given) if config.dense else 0
        if config.dense and not self.grid:
            lacking = encoder.name if not own else teacher.name
            raise UserError(f"{lacking} has no feature maps; give --dense 0 to predict pooled features only")
        self.head = build_mlp(encoder.dim, config.dims) if config.pooled else None
        self.dense_head = build_mlp(encoder.widths[self.stage], config.dims) if config.dense else None
        widths = {"pool": teacher.dim, "map": teacher.widths[self.teacher_stage] if config.dense else 0}
        for name, width in widths.items():
            self.register_buffer(f"{name}_center", torch.zeros(width))
            self.register_buffer(f"{name}_axes", torch.zeros(width, config.dims))
        self.register_buffer("teacher_digest", self.frozen.digest)
        self.register_buffer("seed", torch.zeros((), dtype=torch.long))
        self.stored: Tensor | None = (
            None  # (N, K, 1 + P, dims) half, not saved: computed again when a run is resumed
        )

    # ---- the teacher

    def features(self, image: Tensor) -> tuple[Tensor, Tensor]:
        """The teacher's (B, D) pooled features and (B, P, D') features of the positions of its map."""
        found = self.frozen(image)
        if not self.grid:
            return found["pool"], image.new_zeros(len(image), 0, 0)
        dense = F.adaptive_avg_pool2d(found[self.teacher_stage], self.grid)
        return found["pool"], dense.flatten(2).transpose(1, 2)

    def targets(self, image: Tensor) -> Tensor:
        """(B, 1 + P, dims) principal components of the teacher's features."""
        pool, dense = self.features(image)
        first = (pool - self.pool_center) @ self.pool_axes
        return torch.cat([first[:, None], (dense - self.map_center) @ self.map_axes], 1)

    def begin(self, context: Context) -> None:
        """Measure the principal components, and compute the features that are to be stored."""
        say(f"teacher: {self.config.teacher}, {input_of(self.frozen.encoder)}")
        device = context.rng.device
        image = augment.to_float(loader.sample(context.source, FITTED).image.to(device))
        pool, dense = self.features(image)
        for name, rows in (("pool", pool), ("map", dense.flatten(0, 1))):
            center, axes = principal_axes(rows, self.config.dims)
            getattr(self, f"{name}_center").copy_(center)
            getattr(self, f"{name}_axes").copy_(axes)
        self.seed.copy_(context.rng.integers(1, high=2**31)[0])
        self.restored(context)

    def restored(self, context: Context) -> None:
        count, views = len(context.source), self.config.stored_views
        if not views:
            return
        shape = (count, views, 1 + self.grid**2, self.config.dims)
        stored = torch.empty(shape, dtype=torch.half)
        say(
            f"storing the teacher's features of {views} views of {count:,} images: {stored.nbytes / 1e6:,.0f} MB of memory"
        )
        for index in torch.arange(count).split(BLOCK):
            image = augment.to_float(context.source.__getitems__(index).image.to(context.rng.device))
            for k in range(views):
                view = self.config.views(image, self.side, self.row_rng(index.to(image.device), k))
                stored[index, k] = self.targets(view).half().cpu()
        self.stored = stored

    def row_rng(self, index: Tensor, view: Tensor | int) -> RowRng:
        """The random numbers of an image's stored views."""
        return RowRng(index * self.config.stored_views + view, "stored view", int(self.seed))

    def load_state_dict(self, state_dict: Mapping[str, Any], *args: Any, **known: Any) -> Any:
        if not torch.equal(state_dict["teacher_digest"].cpu(), self.teacher_digest.cpu()):
            raise UserError(
                f"the weights of the teacher {self.config.teacher} have changed since the run began; put the old ones back"
            )
        return super().load_state_dict(state_dict, *args, **known)

    # ---- the task

    def pretext(self, batch: Batch, rng: Rng) -> DistilledView:
        image = augment.to_float(batch.image)
        if self.config.stored_views:
            k = rng.integers(len(image), high=self.config.stored_views)
            view = self.config.views(image, self.side, self.row_rng(batch.index, k))
            if self.stored is not None:
                target = self.stored[batch.index.cpu(), k.cpu()]
                return DistilledView(view, target.to(view.device).float())
        else:
            view = self.config.views(image, self.side, rng)
            if self.config.mixup:
                view = mixed(view, rng)
        return DistilledView(view, self.targets(view))

    def predictions(self, image: Tensor) -> tuple[Tensor | None, Tensor | None]:
        """The student's (B, dims) and (B, P, dims)."""
        found = self.encoder(image)
        pool = self.head(found["pool"]) if self.head else None
        if self.dense_head is None:
            return pool, None
        dense = F.adaptive_avg_pool2d(found[self.stage], self.grid).flatten(2).transpose(1, 2)
        return pool, self.dense_head(dense)

    def loss(self, pretext: DistilledView) -> Loss:
        c, parts = self.config, {}
        pool, dense = self.predictions(pretext.image)
        if pool is not None:
            parts["pooled"] = distance(pool, pretext.target[:, 0], c.normalize)
        if dense is not None:
            parts["dense"] = distance(dense, pretext.target[:, 1:], c.normalize)
        total = torch.stack([getattr(c, name) * part for name, part in parts.items()]).sum()
        seconds, self.frozen.seconds = self.frozen.seconds, 0.0
        return Loss(total, parts | {"teacher_s": total.new_tensor(seconds)})

    # ---- display and result

    def predict(self, pretext: DistilledView) -> Mapping[str, Tensor]:
        pool, dense = self.predictions(pretext.image)
        absent = torch.zeros_like(pretext.target)
        return {
            "target": torch.cat(
                [
                    absent[:, :1] if pool is None else pool[:, None],
                    absent[:, 1:] if dense is None else dense,
                ],
                1,
            )
        }

    def show(
        self, pretext: DistilledView, answers: Mapping[str, Tensor], batch: Batch, rng: Rng
    ) -> Iterator[Puzzle]:
        """The first three components of every position as red, green and blue."""
        given = answers.get("target")
        true, guessed = (
            colors(pretext.target, self.grid),
            colors(given, self.grid) if given is not None else None,
        )
        for i, view in enumerate(pretext.image):
            cosine = "" if given is None else f"≈ cosine {alike(given[i], pretext.target[i]):.2f}"
            yield Puzzle(
                [Panel("view", view, [Frame((0, 0, 1, 1))])],
                [Panel("teacher", true[i])] if true is not None else [],
                [Panel("student", guessed[i])] if guessed is not None else [],
                [Caption("Which features does the teacher find?", "its main components, as colors", cosine)],
            )

    def export(self) -> Encoder:
        return self.encoder


def distance(predicted: Tensor, target: Tensor, normalize: bool) -> Tensor:
    """(…, K) -> () mean of 1 - cos, or of the squared differences."""
    if not normalize:
        return F.mse_loss(predicted, target)
    return (1 - F.cosine_similarity(predicted, target, dim=-1)).mean()


def alike(predicted: Tensor, target: Tensor) -> Tensor:
    return F.cosine_similarity(predicted, target, dim=-1).mean()


def mixed(view: Tensor, rng: Rng) -> Tensor:
    """λ x + (1 - λ) x', with λ from 0 to 1 for the batch, and x' the neighbor of x; an odd last one stays."""
    even = len(view) // 2 * 2
    other = view[:even].unflatten(0, (-1, 2)).flip(1).flatten(0, 1)
    return view.lerp(torch.cat([other, view[even:]]), rng.child("mixup").unsharded.uniform(1)[0])


def principal_axes(rows: Tensor, count: int) -> tuple[Tensor, Tensor]:
    """(N, D) -> (D,) mean and (D, count) principal axes in order of variance; axes that do not exist are 0."""
    from sklearn.decomposition import PCA

    axes = rows.new_zeros(rows.shape[1], count)
    if not rows.numel():
        return axes.new_zeros(rows.shape[1]), axes
    found: Any = PCA(min(count, *rows.shape), svd_solver="covariance_eigh").fit(rows.double().cpu().numpy())
    axes[:, : found.n_components_] = torch.from_numpy(found.components_.T).to(axes)
    return torch.from_numpy(found.mean_).to(axes), axes


def predicted_map(encoder: Encoder, side: int) -> tuple[str, int]:
    """The deepest map with GRID positions a side, or else the largest, and its side; ("pool", 0) without maps."""
    sides = {stage: encoder.map_side(stage, side) for stage in encoder.sides}
    wide = [stage for stage, own in sides.items() if own >= GRID]
    if not sides:
        return "pool", 0
    stage = wide[-1] if wide else max(sides, key=lambda each: sides[each])
    return stage, sides[stage]


def colors(target: Tensor, grid: int) -> Tensor | None:
    """(B, 1 + P, K) -> (B, 3, grid, grid) in [0, 1]; None without positions."""
    if not grid or target.shape[2] < 3:
        return None
    first = F.normalize(target[:, 1:], dim=-1)[..., :3].transpose(1, 2).unflatten(2, (grid, grid))
    return (0.5 + 0.5 * first).clamp(0, 1)

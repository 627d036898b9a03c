"""Dense prediction: a map with a value for every pixel, predicted from an encoder's maps. Shared by normals and depth.

Frozen, the encoder is in evaluation mode and its maps are read out linearly, see `linear_readout.py`. Unfrozen, the encoder
is trained with a light decoder of four convolutions: from scratch this is the supervised row, from a run's weights it is
fine-tuning. Both use all map stages on one grid, so that no stage has to be chosen on held-out images. Pixels whose target
is unknown are ignored in training and in scores.
"""

import copy
from abc import abstractmethod
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass, replace
from itertools import count
from typing import Any, ClassVar, Protocol

import torch
from torch import Tensor, nn

from pretask import data
from pretask.config import TrainConfig
from pretask.data.base import Images, OpenOptions
from pretask.encoders import Encoder
from pretask.encoders.classic import conv
from pretask.evals.features import batches
from pretask.evals.finetune import autocast_loss, epoch_orders, optimize
from pretask.rng import Rng
from pretask.tasks import linear_readout
from pretask.tasks.base import Plan, Task, TaskResult, TaskScore, bootstrap_weights, image_side
from pretask.tasks.linear_readout import BATCH, concat_on_grid, flip_map, map_stages, resize
from pretask.transforms import augment
from pretask.types import Source, UserError

WIDTH = 64
"""channels of the decoder"""
SIDE = 64
"""side of the images in pixels, for encoders that take any size; the encoder's own if that is larger"""
PICTURES = 6
BLOCKS = 5
"""number of cross-validation folds for scenes that are used for both training and testing"""
TRAIN = TrainConfig(batch=16, lr=1e-3, weight_decay=0.01, warmup=0.05)
"""AdamW; not tuned, neither for pretrained nor for untrained encoders"""


class Scenes:
    """Scenes with maps, or a subset of them; opened at the size that an encoder takes."""

    def __init__(self, spec: str, options: OpenOptions):
        listed = data.open(spec, options, cache_mb=0)
        self.name, self.ledgers, self.range = listed.name, {"images": listed.ledger}, listed.range
        self.spec, self.options = spec, replace(options, range=self.range)
        self.index = torch.arange(len(listed))
        self.opened: dict[tuple[int, int], Images] = {}

    def __len__(self) -> int:
        return len(self.index)

    def subset(self, index: Tensor, name: str) -> "Scenes":
        part = copy.copy(self)
        part.index, part.name = self.index[index], name
        return part

    def order(self, seed: int) -> None:
        """None: no scenes are set aside, all are predicted in turn, see `folds`."""

    def folds(self, test: "Scenes") -> Iterator[tuple["Scenes", "Scenes"]]:
        """Training and test scenes; if both are the same scenes, each block of consecutive scenes is tested in turn, since
        frames of one film are similar."""
        if self.opened is not test.opened or not self.index.equal(test.index):
            yield self, test
            return
        for block in torch.arange(len(self)).tensor_split(min(BLOCKS, len(self))):
            rest = torch.ones(len(self), dtype=torch.bool).index_fill(0, block, False).nonzero()[:, 0]
            yield self.subset(rest, self.name), self.subset(block, self.name)

    def open_at(self, size: int, channels: int) -> Images:
        """All scenes at one size, opened once."""
        if (size, channels) not in self.opened:
            self.opened[size, channels] = data.open(self.spec, self.options, size=size, channels=channels)
        return self.opened[size, channels]

    def maps(self, name: str) -> Iterator[Tensor]:
        """Batches of true maps (B, K, H, W), at the size that was opened first."""
        source = next(iter(self.opened.values()), None) or self.open_at(SIDE, 3)
        return (each.aux[name] for each in batches(source, BATCH, self.index))


@dataclass(frozen=True)
class PixelSums:
    """Sums over the valid pixels of each test image; scores are means over the pixels of all images, not over images."""

    sums: dict[str, Tensor]  # (N,) float64 each, of a score over the image's valid pixels
    pixels: Tensor  # (N,) float64 number of valid pixels

    def means(self, weight: Tensor | None = None) -> dict[str, Tensor]:
        """(R, N) number of times that each image is in each of R sets -> (R,) each; by default one set, () each."""
        weight = torch.ones_like(self.pixels) if weight is None else weight.double()
        return {name: weight @ x / (weight @ self.pixels) for name, x in self.sums.items()}


class Errors(Protocol):
    """Error statistics of N test images."""

    def scores(self, weight: Tensor | None = None) -> dict[str, Tensor]:
        """() each; for (R, N), the number of times that each image is in each of R sets, (R,) each."""
        ...


def task_scores(
    errors: Errors, metrics: Mapping[str, str], n: int, seed: int, notes: Mapping[str, Any]
) -> list[TaskScore]:
    """The scores of n test images named in `metrics`, with their values on resampled test sets."""
    value, bootstrap = errors.scores(), errors.scores(torch.from_numpy(bootstrap_weights(n, seed)))
    return [TaskScore(m, float(value[m]), bootstrap[m].numpy(), notes) for m in metrics]


# ---- the task


class DenseTask(Task[Scenes]):
    """Prediction of the map `name` of each scene."""

    can_finetune = True
    steps = 1000
    outputs: ClassVar[int]
    """channels of the network's output"""
    floor_name: ClassVar[str]

    @abstractmethod
    def target(self, true: Tensor) -> tuple[Tensor, Tensor]:
        """(B, C, H, W) true maps -> (B, K, H, W) targets of the linear readout, and (B, 1, H, W) 1.0 where known."""

    @abstractmethod
    def loss(self, output: Tensor, true: Tensor) -> Tensor:
        """(B, K, H, W) output and (B, C, H, W) true maps -> () mean over the known pixels."""

    @abstractmethod
    def compare(self, pairs: Iterable[tuple[Tensor, Tensor]]) -> Errors:
        """Batches of maps (B, C, H, W), predicted and true -> errors of each image."""

    @abstractmethod
    def mean(self, maps: Iterable[Tensor]) -> Tensor:
        """Batches of maps (B, C, H, W) -> the constant prediction, which expands to their shape."""

    @abstractmethod
    def colored(self, map: Tensor) -> Tensor:
        """(C, H, W) -> a picture (3, H, W) uint8."""

    def to_map(self, output: Tensor) -> Tensor:
        """(B, K, H, W) output -> (B, C, H, W) map in the unit of the true maps."""
        return output

    def load(self, spec: str, options: OpenOptions) -> Scenes:
        return Scenes(spec, options)

    def check(self, encoder: Encoder, plan: Plan) -> None:
        image_side(encoder, plan, SIDE)
        map_stages(encoder)

    def folds(self, train: Scenes, test: Scenes) -> Iterator[tuple[Scenes, Scenes]]:
        return train.folds(test)

    def evaluate(self, encoder: Encoder, train: Scenes, test: Scenes, plan: Plan) -> TaskResult:
        side = image_side(encoder, plan, SIDE)
        for scenes in (train, test):
            check_provided(scenes.open_at(side, encoder.channels), self.name)
        size = test.open_at(side, encoder.channels).size
        notes: dict[str, Any] = {"size": size, "frozen": not plan.finetune}
        if plan.finetune:
            notes |= {"steps": plan.steps or self.steps}
        pictures: list[Mapping[str, Tensor]] = []
        maps = self.predictions(encoder, train, test, plan)
        errors = self.compare(collect_pictures(maps, self.colored, pictures, len(test)))
        return TaskResult(task_scores(errors, self.metrics, len(test), plan.seed, notes), (), pictures)

    def predictions(
        self, encoder: Encoder, train: Scenes, test: Scenes, plan: Plan
    ) -> Iterator[tuple[Tensor, Tensor, Tensor]]:
        """Batches of images, predicted maps and true maps of the test scenes."""
        side = image_side(encoder, plan, SIDE)
        options = {"device": plan.device, "progress": plan.progress}
        for fit_scenes, test_scenes in self.folds(train, test):
            if plan.finetune:
                net = self.train_network(encoder, fit_scenes, plan)
            else:
                source, index = fit_scenes.open_at(side, encoder.channels), fit_scenes.index
                net = linear_readout.fit(encoder, source, self.name, self.target, index=index, **options)
            source = test_scenes.open_at(side, encoder.channels)
            for image, output, true in predict(net, source, self.name, test_scenes.index, plan.device):
                yield image, self.to_map(output), true

    def train_network(self, encoder: Encoder, train: Scenes, plan: Plan) -> "EncoderDecoder":
        """The encoder with a decoder, trained end to end."""
        source = train.open_at(image_side(encoder, plan, SIDE), encoder.channels)
        options = {"seed": plan.run, "device": plan.device, "progress": plan.progress}
        return fit(encoder, source, self, index=train.index, steps=plan.steps or self.steps, **options)

    def floor(self, train: Scenes, test: Scenes, plan: Plan) -> tuple[str, TaskResult]:
        """The mean of the training scenes as a constant prediction."""
        constant = self.mean(train.maps(self.name))
        errors = self.compare((constant.expand_as(true), true) for true in test.maps(self.name))
        return self.floor_name, TaskResult(task_scores(errors, self.metrics, len(test), plan.seed, {}))


def collect_pictures(
    maps: Iterator[tuple[Tensor, Tensor, Tensor]],
    color: Callable[[Tensor], Tensor],
    pictures: list[Mapping[str, Tensor]],
    n: int,
) -> Iterator[tuple[Tensor, Tensor]]:
    """Batches of predicted and true maps; pictures of PICTURES of the n images, evenly spaced, are added to `pictures`."""
    number, chosen = count(), set(torch.linspace(0, n - 1, PICTURES).long().tolist())
    for image, predicted, true in maps:
        for x, p, t in zip(image, predicted, true, strict=True):
            if next(number) in chosen:
                pictures.append({"image": x.expand(3, -1, -1), "truth": color(t), "predicted": color(p)})
        yield predicted, true


def check_provided(source: Source, name: str) -> None:
    if name not in source.provides:
        has = ", ".join(sorted(source.provides)) or "only images"
        raise UserError(
            f"{source.name} has no {name} ({has}); give scenes with {name}, such as scenes:FOLDER"
        )


# ---- the decoder


class EncoderDecoder(nn.Module):
    """An encoder with a decoder: (B, C, H, W) in [0, 1] -> (B, K, H, W)."""

    def __init__(self, encoder: Encoder, outputs: int):
        super().__init__()
        self.encoder = encoder.requires_grad_(True)
        self.stages = stages = map_stages(encoder)
        widths = [encoder.widths[stage] for stage in stages]
        # gives all stages the same scale
        self.norms = nn.ModuleList(nn.BatchNorm2d(width, affine=False) for width in widths)
        self.decoder = nn.Sequential(
            conv(sum(widths), WIDTH, 1),
            conv(WIDTH, WIDTH, 3),
            conv(WIDTH, WIDTH, 3),
            nn.Conv2d(WIDTH, outputs, 3, padding=1),
        )

    def forward(self, image: Tensor) -> Tensor:
        stages = self.encoder(image)
        maps = [norm(stages[s].float()) for s, norm in zip(self.stages, self.norms, strict=True)]
        return resize(self.decoder(concat_on_grid(maps, image)).float(), image.shape[2:])


@torch.random.fork_rng(devices=[])
def fit(
    encoder: Encoder,
    source: Source,
    task: DenseTask,
    *,
    steps: int,
    index: Tensor | None = None,
    seed: int = 0,
    device: torch.device | str = "cpu",
    progress: bool = True,
) -> EncoderDecoder:
    """A copy of the encoder with a decoder, trained on the task's maps of the scenes at `index`, by default all scenes."""
    check_provided(source, task.name)
    index = torch.arange(len(source)) if index is None else index
    torch.manual_seed(seed)  # for the decoder, and for the encoder's dropout
    net = EncoderDecoder(copy.deepcopy(encoder), task.outputs).to(device).train()
    batch = min(TRAIN.batch, len(index))
    optimizer = torch.optim.AdamW(net.parameters(), TRAIN.lr, weight_decay=TRAIN.weight_decay)
    pairs = flipped_batches(source, task.name, index, batch, steps, seed, device)
    losses = (autocast_loss(net, x, y, task.loss) for x, y in pairs)
    optimize(optimizer, losses, TRAIN, steps, f"{task.name}, end to end", progress)
    return net.eval()


def flipped_batches(
    source: Source, name: str, index: Tensor, batch: int, steps: int, seed: int, device: torch.device | str
) -> Iterator[tuple[Tensor, Tensor]]:
    """`steps` batches of images (B, C, H, W) in [0, 1] and maps (B, K, H, W), randomly flipped left to right."""
    order = index[epoch_orders(len(index), batch, steps, seed)]
    for step, each in enumerate(batches(source, batch, order)):
        x, y = augment.to_float(each.image.to(device)), each.aux[name].to(device)
        flip = Rng(seed, "dense", step, device=device).coin(len(x), 1, 1, 1, p=0.5)
        yield torch.where(flip, x.flip(3), x), torch.where(flip, flip_map(y, name), y)


@torch.no_grad()
def predict(
    net: nn.Module, source: Source, name: str, index: Tensor | None = None, device: torch.device | str = "cpu"
) -> Iterator[tuple[Tensor, Tensor, Tensor]]:
    """Images (B, C, H, W), the network's output and true maps (B, K, H, W) of the scenes at `index`, on the CPU."""
    for each in batches(source, BATCH, index):
        yield each.image, net(augment.to_float(each.image.to(device))).float().cpu(), each.aux[name]

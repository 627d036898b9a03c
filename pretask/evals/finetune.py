"""Fine-tuning: the encoder and a new linear classifier are trained together, on few labels and on all of them.

A reduced version of MAE's recipe (He et al. 2022, arXiv:2111.06377, released code): AdamW, warmup, a cosine schedule,
and layer-wise learning-rate decay toward the input. **Differs:** small shifts and flips in place of mixup, cutmix and
random erasing, and one thousand steps. The number of steps does not depend on the number of labels, as in RotNet's
semi-supervised comparison (Gidaris et al. 2018, arXiv:1803.07728, released code). The last weights are scored; no
hyperparameter or checkpoint is chosen.
"""

import copy
from collections.abc import Callable, Iterable, Iterator
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from pretask.config import TrainConfig, lr_factor
from pretask.data.base import bar
from pretask.encoders import Encoder, Timm, fast_conv
from pretask.evals import forecast, multilabel
from pretask.evals.features import batches, embed, readable
from pretask.evals.fewshot import draw
from pretask.evals.holdout import strata
from pretask.evals.measure import Result, accuracy, feasible_shots
from pretask.evals.scores import Measurement
from pretask.rng import Rng
from pretask.runtime.device import autocast
from pretask.transforms import augment
from pretask.types import LabeledSource, UserError

SHOTS = (10, 100)
"""numbers of labeled images per class, besides all of them; a subset of those in fewshot.py"""
IMAGES = (100, 1000)
"""total numbers of labeled images, for multi-label images; a subset of those in fewshot.py"""
STEPS = 1000
"""training steps per network, for any number of labels: two minutes on one core for a small network at 32 px"""
TRAIN = TrainConfig(batch=64, lr=1e-3, weight_decay=0.05, warmup=0.1)
"""not tuned, neither for pretrained nor for untrained encoders"""
DECAY = 0.75
"""factor of the learning rate from each layer to the one below; 1 for a network without pretraining"""


class Classifier(nn.Module):
    """An encoder with a head on its pooled features: {"pool": (B, K) logits}, the form that `embed` takes."""

    def __init__(self, encoder: nn.Module, head: nn.Module):
        super().__init__()
        self.encoder, self.head = encoder, head

    def forward(self, image: Tensor) -> dict[str, Tensor]:
        return {"pool": self.head(self.encoder(image)["pool"])}


def shot_counts(label: Tensor) -> list[int]:
    """The values of SHOTS, or of IMAGES for multi-label images, for which there are enough images."""
    return [n for n in (SHOTS if label.ndim == 1 else IMAGES) if n in feasible_shots(label)]


def score_finetuned(
    encoder: Encoder,
    train: LabeledSource,
    test: LabeledSource,
    *,
    seed: int,
    run: int,
    decay: float = DECAY,
    device: torch.device | str = "cpu",
    progress: bool = True,
) -> Iterator[Result]:
    """Scores of copies of the encoder, fine-tuned on each number of labels.

    `run` is the seed of the training and, with `seed`, that of the draw of labeled images: rows of the same run are trained
    on the same images with the same shifts.
    """
    usable = readable(train)
    usable = torch.arange(len(train)) if usable is None else usable
    label, several = train.label[usable], train.multi_label
    for shots in (*shot_counts(label), None):
        what = Measurement("finetune mAP" if several else "finetune", shots=shots)
        index = usable if shots is None else usable[draw(strata(label), shots, seed, run)]
        net = copy.deepcopy(encoder).requires_grad_()
        options = {"device": device, "progress": progress}
        classifier = fit(net, train, index, TRAIN, STEPS, run, decay, name=what.title, **options)
        output, notes = embed(classifier, test, **options), {"images": len(index), "steps": STEPS}
        logits = output.stages["pool"]
        if several:
            weight = multilabel.bootstrap_weights(len(output), seed)
            yield multilabel.map_result(what, [logits], output.label, weight, **notes)
        else:
            yield accuracy("finetune", "", logits.argmax(1) == output.label, notes, shots=shots)


@torch.random.fork_rng(devices=[])
def fit(
    encoder: Encoder,
    source: LabeledSource,
    index: Tensor,
    train: TrainConfig,
    steps: int,
    seed: int,
    decay: float,
    *,
    name: str,
    device: torch.device | str,
    progress: bool,
) -> Classifier:
    """Train `encoder` in place with a new linear layer on the samples `index` of `source`: small shifts, flips, AdamW.

    The loss is cross-entropy, for multi-label images the binary cross-entropy of each class.
    """
    from timm.optim import param_groups_weight_decay  # pyright: ignore[reportPrivateImportUsage]

    fast_conv.accelerate(encoder)
    torch.manual_seed(seed)  # for the head, and for the encoder's dropout
    net = Classifier(encoder, nn.Linear(encoder.dim, len(source.classes))).to(device).train()
    weights = [
        *layer_decay_groups(encoder, train.weight_decay, decay),
        *param_groups_weight_decay(net.head, train.weight_decay),
    ]
    loss = multilabel.loss if source.multi_label else F.cross_entropy
    losses = (
        autocast_loss(lambda x: net(x)["pool"], x, label, loss)
        for x, label in augmented_batches(source, index, min(train.batch, len(index)), steps, seed, device)
    )
    optimize(torch.optim.AdamW(weights), losses, train, steps, name, progress)
    return net.eval()


def seconds_per_step(
    encoder: Encoder, source: LabeledSource, train: TrainConfig, device: torch.device | str
) -> float:
    """Time of a step of `fit`, measured on a copy of the encoder."""
    few = torch.arange(min(train.batch, len(source)))
    options = {"name": "trial", "device": device, "progress": False}
    return forecast.seconds_per_step(
        lambda steps: fit(copy.deepcopy(encoder), source, few, train, steps, 0, 1.0, **options)
    )


def autocast_loss(
    net: Callable[[Tensor], Tensor],
    x: Tensor,
    label: Tensor,
    loss: Callable[[Tensor, Tensor], Tensor] = F.cross_entropy,
) -> Tensor:
    """The loss of the logits net(x), computed with the device's autocast."""
    with autocast(x.device):
        logits = net(x)
    return loss(logits.float(), label)


def layer_decay_groups(encoder: Encoder, weight_decay: float, decay: float) -> list[dict[str, Any]]:
    """All parameters, in groups whose "lr_scale" is decay^(L - k) for layer k = 0 … L - 1; the head would be layer L.

    Layers are timm's own for its models, and the stages of a classic network. Norm weights and biases have no weight decay.
    """
    from timm.optim import (
        param_groups_layer_decay,  # pyright: ignore[reportPrivateImportUsage]
        param_groups_weight_decay,  # pyright: ignore[reportPrivateImportUsage]
    )

    net: Any = encoder.net
    if isinstance(encoder, Timm):
        free = net.no_weight_decay() if hasattr(net, "no_weight_decay") else ()
        groups = param_groups_layer_decay(net, weight_decay, free, layer_decay=decay)
        # timm's last layer has a scale of 1
        return [group | {"lr_scale": decay * group["lr_scale"]} for group in groups]
    stages = list(net.children())
    return [
        group | {"lr_scale": decay ** (len(stages) - k)}
        for k, stage in enumerate(stages)
        for group in param_groups_weight_decay(stage, weight_decay)
    ]


def augmented_batches(
    source: LabeledSource, index: Tensor, batch: int, steps: int, seed: int, device: torch.device | str
) -> Iterator[tuple[Tensor, Tensor]]:
    """`steps` batches of images (B, C, H, W) in [0, 1] and labels (B,) or (B, K); images are shifted by up to one eighth of
    the side and flipped."""
    order = index[epoch_orders(len(index), batch, steps, seed)]
    for step, (rows, each) in enumerate(zip(order.split(batch), batches(source, batch, order), strict=True)):
        rng = Rng(seed, "finetune", step, device=device)
        x = augment.to_float(each.image.to(device))
        x = augment.flip(augment.shift(x, rng.child("shift"), padding=x.shape[-1] // 8), rng.child("flip"))
        yield x, source.label[rows].to(device)


def epoch_orders(n: int, batch: int, steps: int, seed: int) -> Tensor:
    """(steps · batch,) of n positions: a new random order each epoch; an incomplete last batch is dropped."""
    whole = n // batch * batch
    orders = [
        Rng(seed, "finetune", "order", epoch).permutation(n)[:whole]
        for epoch in range(-(-steps * batch // whole))
    ]
    return torch.cat(orders)[: steps * batch]


def optimize(
    optimizer: torch.optim.Optimizer,
    losses: Iterable[Tensor],
    train: TrainConfig,
    steps: int,
    name: str,
    progress: bool,
) -> None:
    """One step per loss, each computed lazily; a group's "lr_scale" multiplies its learning rate."""
    loss = torch.zeros(())
    with bar(progress) as shown:
        for step, loss in enumerate(shown.track(losses, total=steps, description=f"training, {name}")):
            for group in optimizer.param_groups:
                group["lr"] = train.lr * group.get("lr_scale", 1.0) * lr_factor(train, step / steps)
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
    if not loss.isfinite():
        raise UserError(
            f"{name} diverged: its last loss is {loss.item()}; leave this evaluation out, or evaluate another checkpoint"
        )

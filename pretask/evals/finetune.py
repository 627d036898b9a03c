"""Fine-tuning: the encoder and a new linear classifier learn together, from few labels and from all of them.

The recipe of MAE (He et al. 2022, arXiv:2111.06377, released code), cut down: AdamW, warm-up and a cosine, and a
learning rate that falls from layer to layer towards the pixels, where pretraining has most to lose. Differs: small
shifts and flips in place of mixup, cutmix and random erasing, and a thousand steps. However few the labels, the
number of steps is the same, as in RotNet's semi-supervised comparison (Gidaris et al. 2018, arXiv:1803.07728,
released code). The last weights are scored, and nothing is chosen.
"""

import copy
from collections.abc import Callable, Iterable, Iterator
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from pretask.config import TrainConfig, schedule
from pretask.data.base import bar
from pretask.encoders import Encoder, Timm
from pretask.encoders import fast_conv as convolutions
from pretask.evals.features import batches, embed, readable
from pretask.evals.fewshot import draw
from pretask.evals.measure import Result, accuracy, feasible
from pretask.rng import Rng
from pretask.runtime.device import autocast
from pretask.transforms import augment as images
from pretask.types import Labelled, UserError

SHOTS = (10, 100)
"""labelled images per class, beside all of them; each is among those of fewshot.py"""
STEPS = 1000
"""of one network, for every number of labels: two minutes of one core for a small net at 32 px"""
TRAIN = TrainConfig(batch=64, lr=1e-3, weight_decay=0.05, warmup=0.1)
"""not tuned, neither for encoders that know something nor for those that do not"""
DECAY = 0.75
"""share of the learning rate that is left one layer further down; a network without pretraining gets all of it"""


class Classified(nn.Module):
    """An encoder and what a head makes of its pooled features: {"pool": (B, K) logits}, so that `embed` can ask it."""

    def __init__(self, encoder: nn.Module, head: nn.Module):
        super().__init__()
        self.encoder, self.head = encoder, head

    def forward(self, image: Tensor) -> dict[str, Tensor]:
        return {"pool": self.head(self.encoder(image)["pool"])}


def eval_name(shots: int | None) -> str:
    return "finetune" if shots is None else f"finetune {shots}-shot"


def by_finetuning(
    encoder: Encoder,
    train: Labelled,
    test: Labelled,
    *,
    seed: int,
    run: int,
    decay: float = DECAY,
    device: torch.device | str = "cpu",
    progress: bool = True,
) -> Iterator[Result]:
    """The encoder fine-tuned at each number of labels; it stays as it is, copies are trained.

    `run` is the number of the draw of labelled images, one of `seed`'s, and the seed of everything after it: rows
    of the same run learn from the same images, shifted alike.
    """
    there = readable(train)
    there = torch.arange(len(train)) if there is None else there
    label = train.label[there]
    for shots in (*(s for s in SHOTS if s in feasible(label)), None):
        index = there if shots is None else there[draw(label, shots, seed, run)]
        net = copy.deepcopy(encoder).requires_grad_()
        known = {"device": device, "progress": progress}
        tuned = fit(net, train, index, TRAIN, STEPS, run, decay, name=eval_name(shots), **known)
        found = embed(tuned, test, **known)
        right = found.stages["pool"].argmax(1) == found.label
        yield accuracy(eval_name(shots), "", right, {"images": len(index), "steps": STEPS})


@torch.random.fork_rng(devices=[])
def fit(
    encoder: Encoder,
    source: Labelled,
    index: Tensor,
    train: TrainConfig,
    steps: int,
    seed: int,
    decay: float,
    *,
    name: str,
    device: torch.device | str,
    progress: bool,
    loss: Callable[[Tensor, Tensor], Tensor] = F.cross_entropy,
) -> Classified:
    """Train `encoder` itself below a new linear layer, on the samples `index` of `source`: small shifts, flips, AdamW.

    `loss` is that of logits (B, K) and labels (B, …).
    """
    from timm.optim import param_groups_weight_decay  # pyright: ignore[reportPrivateImportUsage]

    convolutions.quicken(encoder)
    torch.manual_seed(seed)  # of the head, and of what an encoder drops
    net = Classified(encoder, nn.Linear(encoder.dim, len(source.classes))).to(device).train()
    weights = [
        *groups(encoder, train.weight_decay, decay),
        *param_groups_weight_decay(net.head, train.weight_decay),
    ]
    losses = (
        cost(lambda x: net(x)["pool"], x, label, loss)
        for x, label in shifted(source, index, min(train.batch, len(index)), steps, seed, device)
    )
    descend(torch.optim.AdamW(weights), losses, train, steps, name, progress)
    return net.eval()


def cost(
    net: Callable[[Tensor], Tensor],
    x: Tensor,
    label: Tensor,
    loss: Callable[[Tensor, Tensor], Tensor] = F.cross_entropy,
) -> Tensor:
    """The loss of the logits net(x), which are made in the device's fastest format."""
    with autocast(x.device):
        logits = net(x)
    return loss(logits.float(), label)


def groups(encoder: Encoder, weight_decay: float, decay: float) -> list[dict[str, Any]]:
    """Every parameter, in groups whose "lr_scale" is decay^(L - k) for the k-th of L layers; the head would be the L-th.

    Layers are timm's own for its models, the stages of a classic net. Gains and biases have no weight decay.
    """
    from timm.optim import (
        param_groups_layer_decay,  # pyright: ignore[reportPrivateImportUsage]
        param_groups_weight_decay,  # pyright: ignore[reportPrivateImportUsage]
    )

    net: Any = encoder.net
    if isinstance(encoder, Timm):
        free = net.no_weight_decay() if hasattr(net, "no_weight_decay") else ()
        made = param_groups_layer_decay(net, weight_decay, free, layer_decay=decay)
        return [
            group | {"lr_scale": decay * group["lr_scale"]} for group in made
        ]  # timm's last layer has all of it
    stages = list(net.children())
    return [
        group | {"lr_scale": decay ** (len(stages) - k)}
        for k, stage in enumerate(stages)
        for group in param_groups_weight_decay(stage, weight_decay)
    ]


def shifted(
    source: Labelled, index: Tensor, batch: int, steps: int, seed: int, device: torch.device | str
) -> Iterator[tuple[Tensor, Tensor]]:
    """`steps` batches of images (B, C, H, W) in [0, 1] and labels (B,): up to an eighth of the side aside, and flipped."""
    order = index[passes(len(index), batch, steps, seed)]
    for step, (rows, each) in enumerate(zip(order.split(batch), batches(source, batch, order), strict=True)):
        rng = Rng(seed, "finetune", step, device=device)
        x = images.to_float(each.image.to(device))
        x = images.flip(images.shift(x, rng.child("shift"), padding=x.shape[-1] // 8), rng.child("flip"))
        yield x, source.label[rows].to(device)


def passes(n: int, batch: int, steps: int, seed: int) -> Tensor:
    """(steps · batch,) of n positions: all in a random order, then in another; what fills no batch is left out."""
    whole = n // batch * batch
    orders = [
        Rng(seed, "finetune", "order", epoch).permutation(n)[:whole]
        for epoch in range(-(-steps * batch // whole))
    ]
    return torch.cat(orders)[: steps * batch]


def descend(
    optimizer: torch.optim.Optimizer,
    losses: Iterable[Tensor],
    train: TrainConfig,
    steps: int,
    name: str,
    progress: bool,
) -> None:
    """One step for each loss, which is computed when it is asked for; "lr_scale" is a group's share of the rate."""
    loss = torch.zeros(())
    with bar(progress) as shown:
        for step, loss in enumerate(shown.track(losses, total=steps, description=f"training, {name}")):
            for group in optimizer.param_groups:
                group["lr"] = train.lr * group.get("lr_scale", 1.0) * schedule(train, step / steps)
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
    if not loss.isfinite():
        raise UserError(
            f"{name} diverged: its last loss is {loss.item()}; evaluate without it, or another checkpoint"
        )

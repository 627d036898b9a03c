"""What several processes must do together; with one process each function returns what it was given."""

from collections.abc import Iterator
from contextlib import contextmanager
from types import MethodType
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.autograd import Function
from torch.utils._pytree import tree_map

from pretask.types import UserError


def world() -> int:
    return dist.get_world_size() if dist.is_available() and dist.is_initialized() else 1


def rank() -> int:
    return dist.get_rank() if dist.is_available() and dist.is_initialized() else 0


@contextmanager
def together() -> Iterator[None]:
    """Where one process of several ends with an error, the others, which wait for it, end with one line."""
    try:
        yield
    except RuntimeError as lost:
        if world() == 1 or not any(word in str(lost) for word in ("onnection", "ncclRemoteError")):
            raise
        raise UserError(f"process {rank()} lost another one, which says above why it ended") from None


# ---- tensors of all processes


class _Sum(Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor) -> Tensor:
        total = x.clone(memory_format=torch.contiguous_format)
        dist.all_reduce(total)
        return total

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> Tensor:  # every process's result depends on every x
        return _Sum.apply(gradients[0])  # type: ignore[return-value]


class _Gather(Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor) -> Tensor:
        return gather_rows(x)

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> Tensor:
        total: Any = _Sum.apply(gradients[0])
        return total.chunk(world())[rank()]


def gather(x: Tensor) -> Tensor:
    """(B, …) of each process -> (W·B, …) in order of rank, with gradient to every process's own rows."""
    return _Gather.apply(x) if world() > 1 else x  # type: ignore[return-value]


def gather_rows(carry: Any) -> Any:
    """(B, …) -> (W·B, …) for every tensor nested in `carry`, without gradient."""
    if world() == 1:
        return carry

    def rows(x: Any) -> Any:
        if not isinstance(x, Tensor):
            return x
        parts = [torch.empty_like(x, memory_format=torch.contiguous_format) for _ in range(world())]
        dist.all_gather(parts, x.detach().contiguous())
        return torch.cat(parts)

    return tree_map(rows, carry)


def mean(x: Tensor) -> Tensor:
    """Over the processes, without gradient."""
    return _Sum.apply(x.detach()) / world() if world() > 1 else x  # type: ignore[operator]


def union(found: dict[str, str]) -> dict[str, str]:
    """What any process found."""
    if world() == 1:
        return found
    parts: list[Any] = [None] * world()
    dist.all_gather_object(parts, found)
    return {key: value for part in parts for key, value in part.items()}


# ---- batch norm


def synchronise_norms(module: nn.Module) -> None:
    """Let every batch norm use the statistics of the batches of all processes, in place.

    torch's own SyncBatchNorm runs on GPUs only; this one runs anywhere and keeps every parameter's name.
    """
    for norm in module.modules():
        if isinstance(norm, nn.modules.batchnorm._BatchNorm):
            norm.forward = MethodType(_global_norm, norm)


def _global_norm(norm: Any, x: Tensor) -> Tensor:
    if not norm.training:
        return type(norm).forward(norm, x)
    axes = [0, *range(2, x.ndim)]
    moments = torch.stack([x.float().mean(axes), x.float().square().mean(axes)])  # (2, C)
    mean, square = _Sum.apply(moments) / world()  # type: ignore[operator]
    variance = (square - mean**2).clamp(min=0)
    if norm.track_running_stats:
        with torch.no_grad():
            n = x.numel() / x.shape[1] * world()
            norm.num_batches_tracked += 1
            norm.running_mean.lerp_(mean, norm.momentum)
            norm.running_var.lerp_(variance * n / (n - 1), norm.momentum)
    shape = (1, -1, *(1,) * (x.ndim - 2))
    y = (x - mean.view(shape)) * (variance + norm.eps).rsqrt().view(shape)
    if norm.affine:
        y = y * norm.weight.view(shape) + norm.bias.view(shape)
    y = y.to(x.dtype)
    return norm.act(norm.drop(y)) if hasattr(norm, "act") else y  # timm fuses the activation

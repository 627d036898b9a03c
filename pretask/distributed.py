"""What several processes must do together; with one process each function returns what it was given."""

from types import MethodType
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.distributed.nn.functional import all_gather, all_reduce
from torch.utils._pytree import tree_map


def world() -> int:
    return dist.get_world_size() if dist.is_available() and dist.is_initialized() else 1


def rank() -> int:
    return dist.get_rank() if dist.is_available() and dist.is_initialized() else 0


def gather(x: Tensor) -> Tensor:
    """(B, …) of each process -> (W·B, …) in order of rank, with gradient to every process's own rows."""
    return torch.cat(all_gather(x)) if world() > 1 else x


def gather_rows(carry: Any) -> Any:
    """(B, …) -> (W·B, …) for every tensor nested in `carry`, without gradient."""
    if world() == 1:
        return carry

    def rows(x: Any) -> Any:
        if not isinstance(x, Tensor):
            return x
        parts = [torch.empty_like(x) for _ in range(world())]
        dist.all_gather(parts, x.detach().contiguous())
        return torch.cat(parts)

    return tree_map(rows, carry)


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
    mean, square = all_reduce(moments) / world()
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

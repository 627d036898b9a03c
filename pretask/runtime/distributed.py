"""Collective operations of several processes. With one process, each function returns its argument."""

import errno
import os
from collections.abc import Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext, suppress
from types import MethodType
from typing import Any, TypeVar

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.autograd import Function
from torch.utils._pytree import tree_map

from pretask.types import UserError

T = TypeVar("T")
GLOO_LOST = (
    "Connection closed by peer",
    *map(os.strerror, (errno.ECONNRESET, errno.ECONNREFUSED, errno.ETIMEDOUT, errno.EPIPE)),
)
"""messages of gloo, whose errors are plain RuntimeErrors, about a process that it cannot reach"""

_local_only = False
_cpu_group: Any = None
"""process group of all processes, for communication over the CPU"""


def _is_distributed() -> bool:
    return not _local_only and dist.is_available() and dist.is_initialized()


def world() -> int:
    return dist.get_world_size() if _is_distributed() else 1


def rank() -> int:
    return dist.get_rank() if _is_distributed() else 0


@contextmanager
def local_only() -> Iterator[None]:
    """Within the block a process acts as if it were the only one: it waits for no other and uses its own rows only."""
    global _local_only
    _local_only = True
    try:
        yield
    finally:
        _local_only = False


@contextmanager
def report_lost_peer() -> Iterator[None]:
    """If another process ends with an error, end this one, which waits for it, with a UserError of one line."""
    try:
        yield
    except RuntimeError as lost:
        if world() == 1 or not lost_peer(lost):
            raise
        raise UserError(f"process {rank()} lost another process, whose error is printed above") from None


def lost_peer(error: RuntimeError) -> bool:
    """Whether an error of torch's store, NCCL or gloo means that another process exited or cannot be reached."""
    if isinstance(error, dist.DistNetworkError):
        return True
    if isinstance(error, dist.DistBackendError):
        return "ncclRemoteError" in str(error)
    return any(phrase in str(error) for phrase in GLOO_LOST)


def final_barrier() -> None:
    """Wait until all processes are done. One that exits earlier may remove files that another is still reading."""
    with suppress(RuntimeError):  # the others have exited, so none of them waits
        dist.barrier()


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
    """(B, …) per process -> (W·B, …) in order of rank; gradients flow back to each process's own rows."""
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
    """Mean over the processes, without gradient."""
    return _Sum.apply(x.detach()) / world() if world() > 1 else x  # type: ignore[operator]


def max_over_processes(value: int) -> int:
    """Maximum over the processes. It is sent over the CPU, so no device has to synchronize."""
    global _cpu_group
    if world() == 1:
        return value
    _cpu_group = _cpu_group or dist.new_group(backend="gloo")
    found = torch.tensor(value)
    dist.all_reduce(found, dist.ReduceOp.MAX, group=_cpu_group)
    return int(found)


def gather_objects(own: T) -> list[T]:
    """The object of each process, in order of rank."""
    if world() == 1:
        return [own]
    parts: list[Any] = [None] * world()
    dist.all_gather_object(parts, own)
    return parts


# ---- sharded weights: each process holds a part of every parameter


def shard(module: nn.Module, mesh: Any) -> nn.Module:
    """Shard the weights of `module` in place (FSDP2); they are gathered for each step as one unit."""
    from torch.distributed.fsdp import fully_shard

    for weight in module.parameters():
        weight.data = weight.data.contiguous()  # FSDP requires it
    fully_shard(module, mesh=mesh["data_parallel"], reshard_after_forward=False)
    return module


def is_sharded(module: nn.Module) -> bool:
    if world() == 1:
        return False
    from torch.distributed.fsdp import FSDPModule

    return isinstance(module, FSDPModule)


def unshard(module: Any) -> None:
    """Gather the full weights until the next backward pass."""
    if is_sharded(module):
        module.unshard()


def summon_full_params(module: nn.Module) -> AbstractContextManager[None]:
    """Within the block every process holds the full weights, and changes to them are kept. All processes must enter."""
    return _summon_full_params(module) if is_sharded(module) else nullcontext()


@contextmanager
def _summon_full_params(module: Any) -> Iterator[None]:
    module.reshard()
    own = list(module.parameters())
    module.unshard()
    try:
        yield
        with torch.no_grad():
            for part, full in zip(own, module.parameters(), strict=True):
                part.copy_(to_sharded(full.detach(), part))
    finally:
        module.reshard()


def to_full(state: Any) -> Any:
    """Replace every sharded tensor nested in `state` by the full tensor, on the CPU."""
    if world() == 1:
        return state
    from torch.distributed.tensor import DTensor

    return tree_map(lambda x: x.full_tensor().cpu() if isinstance(x, DTensor) else x, state)


def to_sharded(value: Any, like: Any) -> Any:
    """Shard a full tensor, the same in all processes, like `like`."""
    if world() == 1:
        return value
    from torch.distributed.tensor import DTensor, distribute_tensor

    if not isinstance(like, DTensor) or not isinstance(value, Tensor) or value.shape != like.shape:
        return value
    there = value.to(like.device_mesh.device_type)
    return distribute_tensor(there, like.device_mesh, like.placements, src_data_rank=None)


# ---- batch norm


def synchronize_norms(module: nn.Module) -> None:
    """Make every batch norm use statistics over the batches of all processes, in place.

    torch's SyncBatchNorm runs on GPUs only; this one runs on any device and keeps parameter names.
    """
    for norm in module.modules():
        if isinstance(norm, nn.modules.batchnorm._BatchNorm):
            norm.forward = MethodType(_global_norm, norm)


def _global_norm(norm: Any, x: Tensor) -> Tensor:
    if not norm.training or world() == 1:
        return type(norm).forward(norm, x)
    axes, rows = [0, *range(2, x.ndim)], x.numel() // x.shape[1]
    sums = [x.float().sum(axes), x.float().square().sum(axes), x.new_full(x.shape[1:2], rows).float()]
    total, square, count = _Sum.apply(torch.stack(sums))  # type: ignore[misc]  # processes may hold different numbers of rows
    mean, square = total / count, square / count
    variance = (square - mean**2).clamp(min=0)
    if norm.track_running_stats:
        with torch.no_grad():
            n = count[0]
            norm.num_batches_tracked += 1
            norm.running_mean.lerp_(mean, norm.momentum)
            norm.running_var.lerp_(variance * n / (n - 1), norm.momentum)
    shape = (1, -1, *(1,) * (x.ndim - 2))
    y = (x - mean.view(shape)) * (variance + norm.eps).rsqrt().view(shape)
    if norm.affine:
        y = y * norm.weight.view(shape) + norm.bias.view(shape)
    y = y.to(x.dtype)
    return norm.act(norm.drop(y)) if hasattr(norm, "act") else y  # timm fuses the activation

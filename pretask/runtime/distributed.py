"""What several processes must do together; with one process each function returns what it was given."""

from collections.abc import Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext, suppress
from types import MethodType
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.autograd import Function
from torch.utils._pytree import tree_map

from pretask.types import UserError

_alone = False
_aside: Any = None
"""the group of all processes that talks over the CPU"""


def _several() -> bool:
    return not _alone and dist.is_available() and dist.is_initialized()


def world() -> int:
    return dist.get_world_size() if _several() else 1


def rank() -> int:
    return dist.get_rank() if _several() else 0


@contextmanager
def alone() -> Iterator[None]:
    """In here a process waits for no other, and uses its own rows alone."""
    global _alone
    _alone = True
    try:
        yield
    finally:
        _alone = False


@contextmanager
def together() -> Iterator[None]:
    """Where one process of several ends with an error, the others, which wait for it, end with one line."""
    try:
        yield
    except RuntimeError as lost:
        if world() == 1 or not any(word in str(lost) for word in ("onnection", "ncclRemoteError")):
            raise
        raise UserError(f"process {rank()} lost another one, which says above why it ended") from None


def leave() -> None:
    """Wait until all processes are done, last of all: one that ends sooner may take along what another is still reading."""
    with suppress(RuntimeError):  # the others have left, so they were not waiting for anything
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


def largest(value: int) -> int:
    """Of all processes, which talk about it beside their devices, so that none of these has to wait."""
    global _aside
    if world() == 1:
        return value
    _aside = _aside or dist.new_group(backend="gloo")
    found = torch.tensor(value)
    dist.all_reduce(found, dist.ReduceOp.MAX, group=_aside)
    return int(found)


def union(found: dict[str, str]) -> dict[str, str]:
    """What any process found."""
    if world() == 1:
        return found
    parts: list[Any] = [None] * world()
    dist.all_gather_object(parts, found)
    return {key: value for part in parts for key, value in part.items()}


# ---- weights that are shared out: each process holds a part of every one


def shard(module: nn.Module, mesh: Any) -> nn.Module:
    """Share out the weights of `module`, in place (FSDP2); they come together for a step, as one unit."""
    from torch.distributed.fsdp import fully_shard

    for weight in module.parameters():
        weight.data = weight.data.contiguous()  # it takes no other layout
    fully_shard(module, mesh=mesh["data_parallel"], reshard_after_forward=False)
    return module


def is_sharded(module: nn.Module) -> bool:
    if world() == 1:
        return False
    from torch.distributed.fsdp import FSDPModule

    return isinstance(module, FSDPModule)


def unshard(module: Any) -> None:
    """Bring the weights together until the next backward pass."""
    if is_sharded(module):
        module.unshard()


def whole(module: nn.Module) -> AbstractContextManager[None]:
    """In here every process holds all the weights; what is written to them stays. All processes enter it."""
    return _whole(module) if is_sharded(module) else nullcontext()


@contextmanager
def _whole(module: Any) -> Iterator[None]:
    module.reshard()
    own = list(module.parameters())
    module.unshard()
    try:
        yield
        with torch.no_grad():
            for part, every in zip(own, module.parameters(), strict=True):
                part.copy_(parted(every.detach(), part))
    finally:
        module.reshard()


def gathered(state: Any) -> Any:
    """Every shared out tensor nested in `state`, as a whole and on the CPU."""
    if world() == 1:
        return state
    from torch.distributed.tensor import DTensor

    return tree_map(lambda x: x.full_tensor().cpu() if isinstance(x, DTensor) else x, state)


def parted(value: Any, like: Any) -> Any:
    """A whole tensor, the same in all processes, shared out as `like` is."""
    if world() == 1:
        return value
    from torch.distributed.tensor import DTensor, distribute_tensor

    if not isinstance(like, DTensor) or not isinstance(value, Tensor) or value.shape != like.shape:
        return value
    there = value.to(like.device_mesh.device_type)
    return distribute_tensor(there, like.device_mesh, like.placements, src_data_rank=None)


# ---- batch norm


def synchronise_norms(module: nn.Module) -> None:
    """Let every batch norm use the statistics of the batches of all processes, in place.

    torch's own SyncBatchNorm runs on GPUs only; this one runs anywhere and keeps every parameter's name.
    """
    for norm in module.modules():
        if isinstance(norm, nn.modules.batchnorm._BatchNorm):
            norm.forward = MethodType(_global_norm, norm)


def _global_norm(norm: Any, x: Tensor) -> Tensor:
    if not norm.training or world() == 1:
        return type(norm).forward(norm, x)
    axes, rows = [0, *range(2, x.ndim)], x.numel() // x.shape[1]
    sums = [x.float().sum(axes), x.float().square().sum(axes), x.new_full(x.shape[1:2], rows).float()]
    total, square, count = _Sum.apply(torch.stack(sums))  # type: ignore[misc]  # some may hold more rows than others
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

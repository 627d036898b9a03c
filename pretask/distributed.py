"""What several processes must do together; with one process each function returns what it was given."""

from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor
from torch.distributed.nn.functional import all_gather
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

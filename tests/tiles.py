"""Undoing a shuffle."""

import torch
from torch import Tensor


def back(tile: Tensor, order: Tensor) -> Tensor:
    """(B, 9, …) that stand in `order` (B, 9) -> in rows."""
    cell = torch.empty_like(tile)
    cell[torch.arange(len(tile))[:, None], order] = tile
    return cell


def picture(tile: Tensor, order: Tensor) -> Tensor:
    """(B, 9, C, t, t) that stand in `order` -> put together in rows, (B, C, 3 t, 3 t)."""
    b, _, c, side, _ = tile.shape
    rows = back(tile, order).view(b, 3, 3, c, side, side).permute(0, 3, 1, 4, 2, 5)
    return rows.reshape(b, c, 3 * side, 3 * side)

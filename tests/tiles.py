"""Undo a shuffle of tiles."""

import torch
from torch import Tensor


def back(tile: Tensor, order: Tensor) -> Tensor:
    """Tiles (B, 9, …) shuffled by `order` (B, 9) -> in their original order."""
    cell = torch.empty_like(tile)
    cell[torch.arange(len(tile))[:, None], order] = tile
    return cell


def picture(tile: Tensor, order: Tensor) -> Tensor:
    """Tiles (B, 9, C, t, t) shuffled by `order` (B, 9) -> the original images (B, C, 3 t, 3 t)."""
    b, _, c, side, _ = tile.shape
    rows = back(tile, order).view(b, 3, 3, c, side, side).permute(0, 3, 1, 4, 2, 5)
    return rows.reshape(b, c, 3 * side, 3 * side)

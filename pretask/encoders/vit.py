"""Plain vision transformers, patch by patch: some of an image's patches through the encoder, each in its place."""

from typing import Any

import torch
from timm.layers.pos_embed_sincos import build_sincos2d_pos_embed
from timm.models.vision_transformer import VisionTransformer
from torch import Tensor, nn

from pretask.encoders import Encoder
from pretask.types import UserError


def plain(encoder: Encoder, method: str, instead: str) -> Any:
    """The timm transformer inside, if patches can be taken away from it; else a UserError that names another encoder."""
    net: Any = encoder.net
    if type(net) is not VisionTransformer or net.attn_pool is not None or net.pos_embed is None:
        raise UserError(
            f"{method} takes patches away from a plain vision transformer, and {encoder.name} is none; "
            f"try --encoder {instead}"
        )
    if any(encoder.size % side for side in net.patch_embed.patch_size):
        raise UserError(
            f"images of {encoder.size} px are no whole number of patches of {net.patch_embed.patch_size[0]}; "
            "give another --size, or --encoder with another patch_size"
        )
    if net.embed_dim % 4:
        raise UserError(
            f"{method} gives each of {encoder.name}'s patches a place of sines and cosines; "
            f"its width {net.embed_dim} is no multiple of 4"
        )
    return net


def patches(x: Tensor, side: tuple[int, int]) -> Tensor:
    """(B, C, H, W) -> (B, N, C·h·w): patches of h x w pixels, row by row."""
    x = x.unfold(2, side[0], side[0]).unfold(3, side[1], side[1])  # (B, C, rows, columns, h, w)
    return x.permute(0, 2, 3, 1, 4, 5).flatten(3).flatten(1, 2)


def unpatched(x: Tensor, grid: tuple[int, int], side: tuple[int, int]) -> Tensor:
    """The inverse of `patches`, for a grid of rows x columns."""
    x = x.view(len(x), *grid, -1, *side).permute(0, 3, 1, 4, 2, 5)
    return x.flatten(4, 5).flatten(2, 3)


def pick(x: Tensor, which: Tensor) -> Tensor:
    """(B, N, D), (B, M) -> (B, M, D): of each image its own rows."""
    return x.gather(1, which[..., None].expand(-1, -1, x.shape[-1]))


def put(x: Tensor, which: Tensor, rows: Tensor) -> Tensor:
    """`x` (B, N, D) with `rows` (B, M, D) in the places `which` (B, M)."""
    return x.scatter(1, which[..., None].expand_as(rows), rows)


def places(grid: tuple[int, int], width: int) -> Tensor:
    """(rows · columns, width): sines and cosines of the row and of the column, in width / 4 wavelengths each."""
    return build_sincos2d_pos_embed(list(grid), width)


def draw_vit(vit: Any) -> None:
    """First weights by Glorot, and sines and cosines in the place of learned position embeddings (MAE's released code).

    The class token is normal of deviation 0.02, and at no place.
    """
    vit.apply(glorot)
    fixed = places(vit.patch_embed.grid_size, vit.embed_dim)
    nn.init.zeros_(vit.pos_embed)
    vit.pos_embed.data[:, -len(fixed) :] = fixed  # of (1, P + N, D), or (1, N, D) without the prefix
    if vit.cls_token is not None:
        nn.init.normal_(vit.cls_token, std=0.02)


def glorot(module: nn.Module) -> None:
    """Xavier-uniform weights, and biases of 0; a patch's embedding counts as a linear layer (MAE's released code)."""
    if isinstance(module, nn.Linear | nn.Conv2d):
        nn.init.xavier_uniform_(module.weight.view(len(module.weight), -1))
        if module.bias is not None:
            nn.init.zeros_(module.bias)


def encode(encoder: Encoder, shown: Tensor, visible: Tensor) -> Tensor:
    """(B, C, H, W), (B, V) -> (B, P + V, D): P prefix tokens, such as the class token, and the visible patches."""
    vit: Any = encoder.net
    tokens = vit._pos_embed(vit.patch_embed(encoder.normalised(encoder.seen(shown))))  # (B, P + N, D)
    prefix, patch = tokens[:, : vit.num_prefix_tokens], tokens[:, vit.num_prefix_tokens :]
    tokens = vit.blocks(vit.norm_pre(torch.cat([prefix, pick(patch, visible)], 1)))
    return vit.fc_norm(vit.norm(tokens))  # a ViT has the one or the other

"""Patch-level helpers for plain vision transformers, such as encoding only visible patches."""

from typing import Any

import torch
from timm.layers.pos_embed_sincos import build_sincos2d_pos_embed
from timm.models.eva import Eva
from timm.models.vision_transformer import VisionTransformer
from torch import Tensor, nn

from pretask.encoders import Encoder
from pretask.types import UserError


def require_plain_vit(encoder: Encoder, method: str, instead: str) -> Any:
    """The timm ViT inside; UserError that suggests encoder `instead` if its patch tokens cannot be masked."""
    net: Any = encoder.net
    if type(net) is not VisionTransformer or net.attn_pool is not None or net.pos_embed is None:
        raise UserError(
            f"{method} masks patches of a plain vision transformer, and {encoder.name} is not one; "
            f"try --encoder {instead}"
        )
    if any(encoder.size % side for side in net.patch_embed.patch_size):
        raise UserError(
            f"images of {encoder.size} px do not divide into patches of {net.patch_embed.patch_size[0]} px; "
            "set another --size, or an --encoder with another patch_size"
        )
    if net.embed_dim % 4:
        raise UserError(
            f"{method} uses sine-cosine position embeddings, whose width must be a multiple of 4; "
            f"{encoder.name} has {net.embed_dim}"
        )
    return net


def is_vit(encoder: Encoder) -> bool:
    """Whether it is a vision transformer of one resolution, with learned or rotary positions."""
    return type(encoder.net) in (VisionTransformer, Eva)


def require_vit(encoder: Encoder, method: str, instead: str) -> Any:
    """The timm ViT inside, with learned or rotary positions, registers or none; UserError for other networks."""
    net: Any = encoder.net
    if not is_vit(encoder):
        raise UserError(
            f"{method} masks patches of a plain vision transformer, and {encoder.name} is not one; "
            f"try --encoder {instead}"
        )
    if getattr(net.patch_drop, "prob", 0.0):
        raise UserError(
            f"{method} needs the tokens of all patches, and {encoder.name} drops some; remove patch_drop_rate"
        )
    return net


def patchify(x: Tensor, side: tuple[int, int]) -> Tensor:
    """(B, C, H, W) -> (B, N, C·h·w): patches of h x w pixels, in row-major order."""
    x = x.unfold(2, side[0], side[0]).unfold(3, side[1], side[1])  # (B, C, rows, columns, h, w)
    return x.permute(0, 2, 3, 1, 4, 5).flatten(3).flatten(1, 2)


def unpatchify(x: Tensor, grid: tuple[int, int], side: tuple[int, int]) -> Tensor:
    """The inverse of `patchify`, for a grid of rows x columns."""
    x = x.view(len(x), *grid, -1, *side).permute(0, 3, 1, 4, 2, 5)
    return x.flatten(4, 5).flatten(2, 3)


def gather_tokens(x: Tensor, index: Tensor) -> Tensor:
    """(B, N, D), (B, M) -> (B, M, D): tokens at each image's own indices."""
    return x.gather(1, index[..., None].expand(-1, -1, x.shape[-1]))


def scatter_tokens(x: Tensor, index: Tensor, rows: Tensor) -> Tensor:
    """`x` (B, N, D) with its tokens at `index` (B, M) replaced by `rows` (B, M, D)."""
    return x.scatter(1, index[..., None].expand_as(rows), rows)


def sincos_pos_embed(grid: tuple[int, int], width: int) -> Tensor:
    """(rows · columns, width): sine-cosine position embeddings, width / 4 wavelengths per row and column."""
    return build_sincos2d_pos_embed(list(grid), width)


def init_vit(vit: Any) -> None:
    """Xavier-uniform weights and fixed sine-cosine position embeddings (MAE's released code).

    The class token is normal with standard deviation 0.02; its position embedding is zero.
    """
    vit.apply(init_xavier)
    fixed = sincos_pos_embed(vit.patch_embed.grid_size, vit.embed_dim)
    nn.init.zeros_(vit.pos_embed)
    vit.pos_embed.data[:, -len(fixed) :] = fixed  # of (1, P + N, D), or (1, N, D) without the prefix
    if vit.cls_token is not None:
        nn.init.normal_(vit.cls_token, std=0.02)


def init_xavier(module: nn.Module) -> None:
    """Xavier-uniform weights and zero biases; a patch embedding counts as linear (MAE's released code)."""
    if isinstance(module, nn.Linear | nn.Conv2d):
        nn.init.xavier_uniform_(module.weight.view(len(module.weight), -1))
        if module.bias is not None:
            nn.init.zeros_(module.bias)


def encode_visible(encoder: Encoder, shown: Tensor, visible: Tensor) -> Tensor:
    """(B, C, H, W), (B, V) -> (B, P + V, D): P prefix tokens, such as the class token, and visible ones."""
    vit: Any = encoder.net
    tokens = vit._pos_embed(vit.patch_embed(encoder.normalized(encoder.select_input(shown))))  # (B, P + N, D)
    prefix, patch = tokens[:, : vit.num_prefix_tokens], tokens[:, vit.num_prefix_tokens :]
    tokens = vit.blocks(vit.norm_pre(torch.cat([prefix, gather_tokens(patch, visible)], 1)))
    return vit.fc_norm(vit.norm(tokens))  # a ViT has one of the two


def masked_tokens(encoder: Encoder, image: Tensor, mask_token: Tensor, mask: Tensor | None = None) -> Tensor:
    """(B, C, H, W), (B, h, w) -> (B, 1 + N, D): the pooled features and the tokens of all patches.

    The embeddings of masked patches are replaced by `mask_token` (…, D), at their own positions.
    """
    vit: Any = encoder.net
    x = vit.patch_embed(encoder.normalized(encoder.select_input(image)))  # (B, N, D) or (B, h, w, D)
    if mask is not None:
        x = torch.where(mask.reshape(*x.shape[:-1], 1), mask_token.to(x.dtype), x)
    if isinstance(vit, Eva):
        embedded: Any = vit._pos_embed(x)
        x, rope = vit.norm_pre(embedded[0]), embedded[1]
        for i, block in enumerate(vit.blocks):
            x = block(x, rope=rope[i] if vit.rope_mixed else rope)
    else:
        x = vit.blocks(vit.norm_pre(vit._pos_embed(x)))
    x = vit.norm(x)  # (B, P + N, D), after P prefix tokens
    whole = vit.forward_head(x, pre_logits=True)
    return torch.cat([whole[:, None], vit.fc_norm(x[:, vit.num_prefix_tokens :])], 1)

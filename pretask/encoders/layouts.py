"""Layouts of published weights: which tensors of a checkpoint are the encoder's, by timm's names.

Released checkpoints wrap the encoder (`module.encoder_q.`, `teacher.backbone.`), hold heads beside it, or name its tensors
otherwise. timm converts the names of most releases itself (`checkpoint_filter_fn`: DINOv2, DINOv3, MAE, old timm); `TRANSFORMERS`
has those of transformers' ViT, DINOv2 and DINOv3.
"""

import re
from collections.abc import Collection, Mapping
from typing import NamedTuple

import torch
from torch import Tensor

WRAPPERS = (
    "state_dict_ema",  # timm and others: the moving average, better than the last weights
    "model_ema",
    "state_dict",
    "model_state_dict",
    "model",
    "module",
    "_orig_mod",
    "teacher",  # DINO, iBOT, DINOv2: what they evaluate
    "target_encoder",  # I-JEPA
    "encoder_q",  # MoCo v1 and v2
    "base_encoder",  # MoCo v3
    "online_encoder",
    "student",
    "backbone",
    "encoder",
    "momentum_encoder",
    "encoder_k",
)
"""names that enclose an encoder; of several beside each other, the first one is read"""
HEADS = (
    "head",
    "heads",
    "head_dist",
    "fc",
    "classifier",
    "last_linear",
    "projector",
    "projectors",
    "projection_head",
    "prototypes",
    "predictor",
    "dino_head",
    "ibot_head",
    "lm_head",
    "pooler",
    "mask_token",
    "masked_embed",
    "local_cls_norm",
    "queue",
    "queue_ptr",
)
"""first parts of the names of classifiers and of what self-supervised training needs besides the encoder"""
DECODER = "decoder"
"""beginning of the names of MAE's decoder"""
TRANSFORMERS: tuple[tuple[str, str], ...] = (
    # transformers 4 and 5 name the same tensors differently
    (r"^(encoder\.|model\.)?layers?\.(\d+)\.", r"blocks.\2."),
    (r"^embeddings\.(cls_token|mask_token|register_tokens)", r"\1"),
    (r"^embeddings\.position_embeddings", "pos_embed"),
    (r"^embeddings\.patch_embeddings\.(projection\.)?", "patch_embed.proj."),
    (r"\.attention\.(attention\.)?(query|q_proj)\.", ".attn.q."),
    (r"\.attention\.(attention\.)?(key|k_proj)\.", ".attn.k."),
    (r"\.attention\.(attention\.)?(value|v_proj)\.", ".attn.v."),
    (r"\.attention\.(output\.dense|o_proj)\.", ".attn.proj."),
    (r"\.layernorm_before\.", ".norm1."),
    (r"\.layernorm_after\.", ".norm2."),
    (r"\.(intermediate\.dense|mlp\.up_proj|mlp\.weights_in)\.", ".mlp.fc1."),
    (r"\.(output\.dense|mlp\.down_proj|mlp\.weights_out)\.", ".mlp.fc2."),
    (r"\.mlp\.gate_proj\.", ".mlp.fc1_g."),
    (r"\.layer_scale([12])\.lambda1", r".ls\1.gamma"),
    (r"^layernorm\.", "norm."),
)
"""transformers' names of ViT, DINOv2 and DINOv3 -> timm's, applied in this order"""
ELSEWHERE = {
    r"^encoder\.layers\.encoder_layer_0\.": "torchvision's vision transformer; timm has ViTs as vit_base_patch16_224.*",
    r"^features\.0\.0\.": "torchvision's naming; timm has these networks as efficientnet_b0, convnext_tiny, mobilenetv3_large_100, …",
    r"\.resblocks\.0\.": "CLIP's naming; timm has its image encoders as vit_base_patch16_clip_224.openai and others",
    r"^(vision_model|vision_tower)\.": "transformers' CLIP or SigLIP; timm has vit_base_patch16_clip_224.* and vit_base_patch16_siglip_224.*",
    r"^(beit|swin|convnext|resnet)\.": "transformers' naming; timm has this network under the same family name",
    r"^(embedder|encoder\.stages)\.": "transformers' naming of a convolutional network; timm has it under the same family name",
}
"""layouts that are not read: pattern of a name -> what it is, and where the same weights are"""


class Unwrapped(NamedTuple):
    tensors: dict[str, Tensor]
    part: str
    """the wrapper that was read, such as teacher.backbone"""
    left_out: list[str]
    """names of what lay beside it"""


def unwrap(found: Mapping[str, Tensor], own: Collection[str]) -> Unwrapped:
    """The tensors of the encoder inside its wrappers; `own` are first parts of names of the network itself."""
    tensors, parts, left_out = dict(found), [], []
    while inside := next((name for name in WRAPPERS if name in first_parts(tensors) - {*own}), None):
        if is_transformers(tensors):
            break
        left_out += [name for name in tensors if not name.startswith(f"{inside}.")]
        tensors = {name[len(inside) + 1 :]: x for name, x in tensors.items() if name.startswith(f"{inside}.")}
        parts.append(inside)
    return Unwrapped(tensors, ".".join(parts), left_out)


def first_parts(names: Collection[str]) -> set[str]:
    return {name.split(".")[0] for name in names}


def is_head(name: str) -> bool:
    first = name.split(".")[0]
    return first in HEADS or first.startswith(DECODER)


def is_transformers(names: Collection[str]) -> bool:
    return any(re.search(r"(^|\.)embeddings\.(cls_token|patch_embeddings\.)", name) for name in names)


def from_transformers(found: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """transformers' tensors by the names of DINOv2's release, which timm reads, with query, key and value in one."""
    patches = next(name for name in found if "embeddings.patch_embeddings." in name)
    prefix = patches[: patches.index("embeddings.patch_embeddings.")]  # "vit." in a classifier
    tensors: dict[str, Tensor] = {}
    for name, x in found.items():
        name = name.removeprefix(prefix)
        for pattern, new in TRANSFORMERS:
            name = re.sub(pattern, new, name)
        tensors[name] = x
    for query in [name for name in tensors if ".attn.q." in name]:
        names = [query.replace(".attn.q.", f".attn.{part}.") for part in "qkv"]
        absent = torch.zeros(
            len(tensors[query])
        )  # DINOv3's keys have no bias, which is the same as a bias of 0
        tensors[query.replace(".attn.q.", ".attn.qkv.")] = torch.cat(
            [tensors.pop(name, absent) for name in names]
        )
    if "register_tokens" in tensors:
        tensors.setdefault("mask_token", torch.zeros(1))  # by it timm recognizes DINOv2
    return tensors


def to_dinov3(tensors: Mapping[str, Tensor], own: Collection[str]) -> dict[str, Tensor]:
    """The result of `from_transformers` by the names of timm's DINOv3; `own` are those of the network."""
    new: dict[str, Tensor] = {}
    is_gated = "blocks.0.mlp.fc1_g.weight" in own
    for name, x in tensors.items():
        if name == "mask_token":
            continue
        if not name.endswith("attn.qkv.bias"):
            name = re.sub(r"\.ls([12])\.gamma$", r".gamma_\1", name)
            name = name.replace(".fc1.", ".fc1_x.") if is_gated else name
            new["reg_token" if name == "register_tokens" else name] = x
            continue
        query, key, value = x.chunk(3)
        block = name.removesuffix("qkv.bias")
        if f"{block}q_bias" in own and not key.any():
            new |= {f"{block}q_bias": query, f"{block}v_bias": value}
        elif x.any():
            new[name] = x  # refused by its name: the networks with these biases have _qkvb in theirs
    return new


def elsewhere(names: Collection[str]) -> str:
    """What a layout that is not read is, and where the same weights are; "" if it is not known."""
    known = (text for pattern, text in ELSEWHERE.items() if any(re.search(pattern, name) for name in names))
    return next(known, "")

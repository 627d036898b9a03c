"""The layers of an encoder in order, for learning rates that decay with depth and for freezing."""

from typing import Any

from torch import nn

from pretask.encoders import STAGES, Encoder, Timm


def layers(encoder: Encoder) -> list[list[str]]:
    """Names of the parameters of `encoder.net`, by layer, from the input on: timm's own layers, or a classic network's stages."""
    net: Any = encoder.net
    names = [name for name, _ in net.named_parameters()]
    if isinstance(encoder, Timm):
        from timm.models import group_parameters

        found = group_parameters(net, net.group_matcher(coarse=False))
        timms = [list(each) for _, each in sorted(found.items())]
        # timm counts a transformer's last norm to its last block, and leaves register tokens to the end
        norms = [name for name in names if name.startswith(("norm.", "fc_norm."))]
        tokens = [name for name in names if name == "reg_token" and name not in timms[0]]
        timms = [[name for name in each if name not in (*norms, *tokens)] for each in timms]
        return [each for each in (timms[0] + tokens, *timms[1:], norms) if each]
    return [[name for name in names if name.split(".")[0] == stage] for stage, _ in net.named_children()]


def depth_scales(encoder: Encoder, decay: float) -> dict[str, float]:
    """decay^(L - k) for every parameter of layer k = 0 … L, by name."""
    found = layers(encoder)
    return {name: decay ** (len(found) - 1 - k) for k, each in enumerate(found) for name in each}


def freeze(encoder: Encoder, stages: int) -> int:
    """Train no parameters of the first stages, of `STAGES` or as many as the network has. Returns how many tensors that are.

    A transformer's stages are its blocks in equal parts. Batch norms of frozen stages still follow the images' statistics.
    """
    found, ends = layers(encoder), stage_ends(encoder)
    last = ends[min(stages, len(ends)) - 1] if stages else -1
    frozen = [name for each in found[: last + 1] for name in each]
    for name in frozen:
        encoder.net.get_parameter(name).requires_grad_(False)
    return len(frozen)


def stage_ends(encoder: Encoder) -> list[int]:
    """For each stage the position of its last layer."""
    net, found = encoder.net, layers(encoder)
    if not isinstance(encoder, Timm):
        return list(range(len(found)))
    info: Any = net.feature_info
    depth = len(info)
    chosen = [round(depth * (i + 1) / STAGES) - 1 for i in range(STAGES)] if depth > 6 else range(depth)
    modules = [f"{info[i]['module']}." for i in chosen]
    owners = [
        [k for k, each in enumerate(found) if any(n.startswith(module) for n in each)] for module in modules
    ]
    return [max(each, default=0) for each in owners]


def trained_encoder(method: nn.Module) -> Encoder:
    """The encoder in a method that gets gradients; teachers do not."""
    for module in method.modules():
        if isinstance(module, Encoder) and any(p.requires_grad for p in module.parameters()):
            return module
    raise ValueError(f"{type(method).__name__} trains no encoder")

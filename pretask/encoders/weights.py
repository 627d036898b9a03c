"""Published weights into an encoder: every tensor is loaded, left out for a stated reason, or an error."""

import math
import sys
from collections.abc import Callable, Collection, Iterator, Mapping
from dataclasses import dataclass
from functools import partial
from typing import Any

import torch
from torch import Tensor

from pretask.encoders import Encoder, Timm, layouts, parse
from pretask.errors import UserError, first_line

SHOWN = 3
"""names listed in a message, for each fault"""
COUNTER = "num_batches_tracked"
"""of batch norms; old files lack it, and it affects nothing here"""


@dataclass(frozen=True)
class Loaded:
    """What was read into an encoder, and what was not."""

    source: str
    """where the weights came from, as given"""
    tensors: int
    """number of the encoder's tensors that were loaded"""
    of: int
    """number of the encoder's tensors"""
    left_out: tuple[str, ...] = ()
    """tensors of the file that the encoder has no place for: heads, teachers, decoders"""
    adapted: tuple[str, ...] = ()
    """tensors that were resampled for this image size or number of channels, in words"""
    missing: tuple[str, ...] = ()
    """the encoder's tensors that the file lacks; only with partial loading"""

    def __str__(self) -> str:
        notes = [f"left out: {', '.join(summarized(self.left_out))}"] if self.left_out else []
        notes += [f"NOT loaded: {listed(self.missing)}"] if self.missing else []
        said = f" ({'; '.join([*notes, *self.adapted])})" if notes or self.adapted else ""
        return f"loaded {self.tensors} of {self.of} encoder tensors from {self.source}{said}"


def input_of(encoder: Encoder) -> str:
    """What the encoder expects and how it pools, in words."""
    mean, std = (
        " ".join(f"{x:.3g}" for x in values.flatten().tolist()) for values in (encoder.mean, encoder.std)
    )
    pool: Any = getattr(encoder.net, "global_pool", "")
    pool = pool if isinstance(pool, str) else getattr(pool, "pool_type", "")
    pooling = f", pooling {pool}" if pool else ""
    return f"images of {encoder.size} px, mean {mean}, standard deviation {std}{pooling}"


def load(encoder: Encoder, found: Mapping[str, Tensor], source: str, allow_missing: bool = False) -> Loaded:
    """Load the tensors of a checkpoint into an encoder, converted to its layout, image size and channels.

    Raises UserError, naming tensors, if one of the encoder's is missing, if one of the checkpoint's is neither the encoder's nor
    of a head, and if shapes differ or values are not finite. `allow_missing`: missing ones, and those of other shapes, keep
    their initial values and are listed.
    """
    net, expected = encoder.net, encoder.net.state_dict()
    inside = layouts.unwrap(found, layouts.first_parts(expected))
    tensors = inside.tensors
    if layouts.is_transformers(tensors):
        tensors = layouts.from_transformers(tensors)
        if "blocks.0.gamma_1" in expected:
            tensors = layouts.to_dinov3(tensors, expected)
    tensors, heads = without_heads(tensors, expected)
    if "mask_token" in heads:  # by it timm recognizes DINOv2, and removes it
        tensors["mask_token"] = inside.tensors.get("mask_token", torch.zeros(1))
    before = {name: tuple(x.shape) for name, x in tensors.items()}
    source = f"{source} ({inside.part})" if inside.part else source
    try:
        tensors = adapt_channels(net, convert(encoder, tensors), expected)
    except UserError:
        raise
    except Exception as wrong:  # timm's converters index names that another layout lacks
        raise UserError(
            f"the weights in {source} are not in a layout that {encoder.name} can read: "
            f"{layouts.elsewhere(found) or f'{type(wrong).__name__}: {first_line(wrong)}'}"
        ) from None
    tensors, more = without_heads(tensors, expected)
    heads += [name for name in more if name not in heads]
    needed = {name for name in expected if not name.endswith(COUNTER)}
    faults = Faults(
        missing=sorted(needed - {*tensors}),
        unexplained=sorted({*tensors} - {*expected}),
        shapes=[name for name in expected if name in tensors and tensors[name].shape != expected[name].shape],
        not_finite=[name for name, x in tensors.items() if x.is_floating_point() and not x.isfinite().all()],
    )
    faults.refuse(encoder, source, tensors, expected, allow_missing, layouts.elsewhere(found))
    if needed <= {*faults.missing, *faults.shapes}:
        raise UserError(f"nothing in {source} fits {encoder.name}")
    kept = {name: x for name, x in tensors.items() if name not in faults.shapes}
    net.load_state_dict(kept, strict=False)
    return Loaded(
        source,
        len(needed & {*kept}),
        len(needed),
        (*inside.left_out, *heads),
        tuple(adaptations(encoder, before, expected)),
        tuple(sorted(needed - {*kept})),
    )


@dataclass(frozen=True)
class Faults:
    missing: list[str]
    unexplained: list[str]
    shapes: list[str]
    not_finite: list[str]

    def refuse(
        self,
        encoder: Encoder,
        source: str,
        tensors: Mapping[str, Tensor],
        expected: Mapping[str, Tensor],
        allow_missing: bool,
        hint: str,
    ) -> None:
        """UserError if there is a fault that is not allowed."""
        said = []
        if self.not_finite:
            said.append(f"not finite: {listed(self.not_finite)}")
        if self.unexplained:
            said.append(f"without a place in it: {listed(self.unexplained)}")
        if not allow_missing:
            if self.missing:
                said.append(f"missing: {listed(self.missing)}")
            if self.shapes:
                first = self.shapes[0]
                shape, other = tuple(tensors[first].shape), tuple(expected[first].shape)
                said.append(f"other shape: {listed(self.shapes)} ({shape}, expected {other})")
        if said:
            raise UserError(
                f"the weights in {source} do not fit {encoder.name}: {'; '.join(said)}"
                + (f". They are in another layout: {hint}" if hint else "")
            )


def without_heads(tensors: Mapping[str, Tensor], own: Collection[str]) -> tuple[dict[str, Tensor], list[str]]:
    """The tensors without those of heads, and the names of those; `own` are the encoder's names."""
    heads = [name for name in tensors if layouts.is_head(name) and name not in own]
    return {name: x for name, x in tensors.items() if name not in heads}, heads


def convert(encoder: Encoder, tensors: dict[str, Tensor]) -> dict[str, Tensor]:
    """The tensors by timm's names, with positions and patches resampled to the encoder's, by timm's own function."""
    if not isinstance(encoder, Timm):
        return tensors
    name, _ = parse(encoder.name)
    found = timm_filter(name)
    return dict(found(tensors, encoder.net)) if found else tensors


def timm_filter(name: str) -> Callable[[dict[str, Tensor], Any], dict[str, Tensor]] | None:
    """timm's converter of checkpoints for an architecture; None if it has none."""
    import timm
    from timm.models import get_arch_name

    arch = get_arch_name(name)
    found = getattr(sys.modules[timm.model_entrypoint(arch).__module__], "checkpoint_filter_fn", None)
    if found and "flexi" in arch:  # as timm's own entry function does
        return partial(found, interpolation="bilinear", antialias=False)
    return found


def adapt_channels(net: Any, tensors: dict[str, Tensor], expected: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """First convolutions for another number of input channels, by timm's function."""
    for weight in first_convolutions(net):
        if weight in tensors and tensors[weight].shape[1] != expected[weight].shape[1]:
            from timm.models import adapt_input_conv

            channels = expected[weight].shape[1]
            try:
                tensors[weight] = adapt_input_conv(channels, tensors[weight])
            except (NotImplementedError, AssertionError):
                raise UserError(
                    f"{weight} was trained on {tensors[weight].shape[1]} channels, which cannot be changed to {channels}"
                ) from None
    return tensors


def first_convolutions(net: Any) -> list[str]:
    """Names of the weights that see the input channels."""
    first = getattr(net, "pretrained_cfg", {}).get("first_conv") or ()
    return [f"{name}.weight" for name in ((first,) if isinstance(first, str) else first)]


def adaptations(
    encoder: Encoder, before: Mapping[str, tuple[int, ...]], expected: Mapping[str, Tensor]
) -> Iterator[str]:
    """In words, what was resampled."""
    stems = first_convolutions(encoder.net)
    for name, old in before.items():
        new = tuple(expected[name].shape) if name in expected else old
        if old == new:
            continue
        if name == "pos_embed":
            prefix = getattr(encoder.net, "num_prefix_tokens", 0)
            prefix = 0 if getattr(encoder.net, "no_embed_class", False) else prefix
            sides = [math.isqrt(shape[1] - prefix) for shape in (old, new)]
            yield "positions {0}×{0} → {1}×{1}".format(*sides)
        elif name in stems and old[1] != new[1]:
            yield f"input channels {old[1]} → {new[1]}"
        elif name.endswith("patch_embed.proj.weight") and len(old) == len(new):
            yield f"patches {old[-1]} → {new[-1]} px"
        else:
            yield f"{name} {old} → {new}"


def listed(names: Collection[str]) -> str:
    """The first names, and how many more there are."""
    first = ", ".join([*names][:SHOWN])
    return f"{first} and {len(names) - SHOWN} more" if len(names) > SHOWN else first


def summarized(names: Collection[str]) -> list[str]:
    """Names in full if they are few, otherwise one entry for each first part: "encoder_k (161 tensors)"."""
    if len(names) <= 2 * SHOWN:
        return [*names]
    groups: dict[str, list[str]] = {}
    for name in names:
        groups.setdefault(name.split(".")[0], []).append(name)
    return [f"{part} ({len(of)} tensors)" if len(of) > 1 else of[0] for part, of in groups.items()]

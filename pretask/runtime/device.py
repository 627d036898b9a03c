"""Device and number format: bfloat16 where the device multiplies it natively."""

from contextlib import AbstractContextManager, ExitStack, nullcontext
from typing import Any, Literal

import torch
from torch.nn.attention import SDPBackend, sdpa_kernel

Precision = Literal["bf16-mixed", "32-true"]


def find_device() -> Literal["cpu", "cuda"]:
    """A GPU if there is one."""
    return "cuda" if torch.cuda.is_available() else "cpu"


def fastest_precision(device: str) -> Precision:
    """bf16 if the device, "cpu" or "cuda", multiplies it natively; emulated bf16 is slower than float32."""
    if device == "cuda":
        native = torch.cuda.is_bf16_supported(including_emulation=False)
    else:
        native = torch.cpu._is_avx512_bf16_supported() or torch.cpu._is_amx_tile_supported()
    return "bf16-mixed" if native else "32-true"


def attention_kernel() -> AbstractContextManager[Any]:
    """Use plain matrix products for attention in bfloat16 on a CPU.

    With a few tens of tokens the backward pass of PyTorch's fused kernel takes ten times as long; with 200 tokens the two
    are equally fast.
    """
    return sdpa_kernel(SDPBackend.MATH) if torch.is_autocast_enabled("cpu") else nullcontext()


def autocast(device: torch.device | str) -> AbstractContextManager[Any]:
    """Autocast to the fastest format, for networks trained outside of the trainer."""
    kind = torch.device(device).type
    within = ExitStack()
    if fastest_precision(kind) == "bf16-mixed":
        within.enter_context(torch.autocast(kind, torch.bfloat16))
        within.enter_context(attention_kernel())
    return within

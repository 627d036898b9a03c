"""What is computed on, and in which number format: bfloat16 where the device multiplies it natively."""

from contextlib import AbstractContextManager, ExitStack, nullcontext
from typing import Any, Literal

import torch
from torch.nn.attention import SDPBackend, sdpa_kernel

Precision = Literal["bf16-mixed", "32-true"]


def find_device() -> Literal["cpu", "cuda"]:
    """A GPU where there is one."""
    return "cuda" if torch.cuda.is_available() else "cpu"


def fastest(device: str) -> Precision:
    """bf16 where "cpu" or "cuda" multiplies it natively: emulated, it is slower than float32."""
    if device == "cuda":
        native = torch.cuda.is_bf16_supported(including_emulation=False)
    else:
        native = torch.cpu._is_avx512_bf16_supported() or torch.cpu._is_amx_tile_supported()
    return "bf16-mixed" if native else "32-true"


def attention() -> AbstractContextManager[Any]:
    """In bfloat16 on a CPU, the plain products: for a few tens of tokens the gradient of PyTorch's fused kernel takes
    ten times as long as theirs, and for 200 the two are even."""
    return sdpa_kernel(SDPBackend.MATH) if torch.is_autocast_enabled("cpu") else nullcontext()


def autocast(device: torch.device | str) -> AbstractContextManager[Any]:
    """The fastest format for the forward pass of a network that is trained outside the loop."""
    kind = torch.device(device).type
    within = ExitStack()
    if fastest(kind) == "bf16-mixed":
        within.enter_context(torch.autocast(kind, torch.bfloat16))
        within.enter_context(attention())
    return within

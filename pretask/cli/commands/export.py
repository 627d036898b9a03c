"""pretask export WEIGHTS --to timm|torch|onnx|hf: export the encoder."""

from dataclasses import dataclass, replace
from pathlib import Path
from typing import Literal

from pretask.cli.flags import WEIGHTS, subject
from pretask.config import DEFAULT_INPUT, DEFAULT_READOUT, InputConfig, ReadoutConfig
from pretask.runtime.console import say


@dataclass(frozen=True)
class Flags:
    """Export the encoder to another library, load it there, and check that its features are the same."""

    to: Literal["timm", "torch", "onnx", "hf"]
    """timm, hf: a folder for timm or transformers; torch: a program that needs only PyTorch; onnx: an ONNX file"""
    out: Path | None = None
    """file or folder to write; a missing suffix is added (default: timm, encoder.pt2, encoder.onnx or hf in the run's folder, or here)"""
    head: Path | None = None
    """folder of pretask predict, whose head is exported with the encoder: from pixels to the probabilities of its classes"""
    readout: ReadoutConfig = DEFAULT_READOUT
    input: InputConfig = DEFAULT_INPUT


def run(words: list[str]) -> None:
    what, chosen = subject(words, "export", WEIGHTS, Flags)
    from pretask.workflows import export
    from pretask.workflows.subject import load

    made = export.export(load(what, input_of(chosen)), chosen.to, chosen.out, chosen.readout, chosen.head)
    print(made.usage)
    say(
        f"wrote {made.path}; loaded again, its features differ by at most {made.difference:.0e} ({made.compared})"
    )


def input_of(chosen: Flags) -> InputConfig:
    """The input of the weights; with a head, the size that it was fitted at."""
    if chosen.head is None or chosen.input.size is not None:
        return chosen.input
    from pretask.workflows.predict import head_card

    return replace(chosen.input, size=head_card(chosen.head)["size"])

"""pretask export RUN --to timm|torch|onnx|hf: export the encoder."""

from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from pretask.cli.flags import subject
from pretask.runtime.console import say


@dataclass(frozen=True)
class Flags:
    """Export the encoder to another library, load it there, and check that its features are the same."""

    to: Literal["timm", "torch", "onnx", "hf"]
    """timm, hf: a folder for timm or transformers; torch: a program that needs only PyTorch; onnx: an ONNX file"""
    out: Path | None = None
    """file or folder to write; a missing suffix is added (default: timm, encoder.pt2, encoder.onnx or hf in the run's folder)"""


def run(words: list[str]) -> None:
    folder, chosen = subject(words, "export", "RUN", Flags)
    from pretask.train.run import Run
    from pretask.workflows import export

    made = export.export(Run(folder), chosen.to, chosen.out)
    print(made.usage)
    say(
        f"wrote {made.path}; loaded again, its features differ by at most {made.difference:.0e} ({made.compared})"
    )

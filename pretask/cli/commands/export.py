"""pretask export RUN --to timm|torch|onnx|hf: take the encoder elsewhere."""

from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from pretask.cli.flags import subject
from pretask.train.progress import say


@dataclass(frozen=True)
class Flags:
    """Write the encoder for another program, and see that it computes the same there."""

    to: Literal["timm", "torch", "onnx", "hf"]
    """timm and hf: a folder that timm or transformers loads; torch: a program that needs PyTorch alone; onnx"""
    out: Path | None = None
    """what is written (timm, encoder.pt2, encoder.onnx or hf, in the run's folder); its suffix is added if missing"""


def run(words: list[str]) -> None:
    folder, chosen = subject(words, "export", "RUN", Flags)
    from pretask.train.run import Run
    from pretask.workflows import export as exporting

    made = exporting.export(Run(folder), chosen.to, chosen.out)
    print(made.usage)
    say(
        f"wrote {made.path}; loaded back, its features differ by {made.difference:.0e} at most ({made.compared})"
    )

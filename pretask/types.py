"""The values that travel through a run, in the order in which they appear.

Source -> Batch -> (method.pretext) -> P -> (method.loss) -> Loss -> (optimiser) -> carry
"""

from collections.abc import Container, Mapping
from dataclasses import dataclass, field
from fractions import Fraction
from typing import TYPE_CHECKING, Any, Protocol, runtime_checkable

import torch
from torch import Tensor

from pretask.errors import UserError as UserError

if TYPE_CHECKING:
    from pretask.data.ledger import Ledger

AUX = {
    "words": "a text with every image, as in pairs.jsonl, pairs.csv or text:FOLDER",
    "tracked": "what every image shows a moment later, as pretask track finds it in video clips",
    "clip": "the clip that every image is from",
    "span": "between which frames of its clip what every image shows was followed",
    "depth": "the depth of every image, as in scenes:FOLDER",
    "normals": "the surface normals of every image, as in scenes:FOLDER",
    "instances": "the things in every image, as in scenes:FOLDER",
    "photographs": "photographs beside the images, as in scenes:FOLDER+PHOTOGRAPHS",
}
"""what a source may know about an image besides its pixels; a label is not among it"""


@dataclass(frozen=True)
class Batch:
    """What a source knows about B samples. A label has no field here, so none can be used."""

    index: Tensor  # (B,) int64, position of each sample in its source
    image: Tensor  # (B, C, H, W) uint8
    aux: Mapping[str, Tensor] = field(default_factory=dict)  # names from AUX, each (B, …)

    def __post_init__(self):
        unknown = self.aux.keys() - AUX.keys()
        if unknown:
            raise ValueError(f"a batch carries {sorted(unknown)}; allowed are {sorted(AUX)}")

    def __len__(self) -> int:
        return len(self.index)

    def rows(self, some: slice) -> "Batch":
        return Batch(self.index[some], self.image[some], {k: v[some] for k, v in self.aux.items()})

    def only(self, names: Container[str]) -> "Batch":
        """Without what else is known of the samples, but for these names."""
        return Batch(self.index, self.image, {k: v for k, v in self.aux.items() if k in names})

    def to(self, device: torch.device) -> "Batch":
        def move(t: Tensor) -> Tensor:
            return t.to(device, non_blocking=True)

        return Batch(move(self.index), move(self.image), {k: move(v) for k, v in self.aux.items()})


@dataclass(frozen=True)
class Loss:
    """One step's objective, its named parts for the log, and what `after_step` will need."""

    total: Tensor  # () what is minimised: a mean over the batch
    parts: Mapping[str, Tensor] = field(default_factory=dict)  # () each
    carry: Any = None
    """tensors (nested in tuples or dicts) whose rows are samples; `after_step` gets the rows of all processes"""


@dataclass(frozen=True)
class Progress:
    """Where a run stands: `step` of `steps`, in `epoch` of `epochs`, in `round` of `rounds`; from 0. Made by Plan.at.

    A run that is timed may get more or fewer steps and epochs while it goes on: what follows a schedule follows the
    fractions, not the numbers.
    """

    step: int
    steps: int  # as planned at this step
    fraction: float  # of the schedule, before this step
    done: float  # and after it
    epoch: int
    epochs: int  # as planned at this step
    start: int  # first step of the epoch
    length: int  # of the epoch, steps, as planned when it began
    begins: Fraction  # of the schedule, before the epoch
    ends: Fraction  # and after it, as planned when it began; 1 for the last epoch
    round: int
    rounds: int
    first_of_round: bool  # whether the epoch is
    ramp: float  # factor of the learning rate, which rises anew where a finished run was lengthened
    lengthened: int  # the step at which it was; 0: never


@runtime_checkable
class Source(Protocol):
    """Images on disk or in memory, addressed by position, all of one size."""

    name: str
    channels: int  # 1 or 3
    size: int  # H = W of every image, pixels
    provides: frozenset[str]  # names found in Batch.aux
    ledger: "Ledger"  # what became of each record that came in

    def __len__(self) -> int: ...

    def __getitems__(self, index: Tensor) -> Batch: ...


class Labelled(Source, Protocol):
    """A source for evaluation; pretraining never sees one (its labels are dropped at the door)."""

    label: Tensor  # (N,) int64
    classes: list[str]

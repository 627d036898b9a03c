"""The values that pass through a run, in the order in which they appear.

Source -> Batch -> (method.pretext) -> P -> (method.loss) -> Loss -> (optimizer) -> carry
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

AUX_FIELDS = {
    "words": "a text for every image, as in pairs.jsonl, pairs.csv or text:FOLDER",
    "tracked": "the same object a moment later for every image, as `pretask track` finds it in video clips",
    "clip": "the clip that every image is from",
    "span": "the frames of its clip between which the object in every image was tracked",
    "depth": "a depth map for every image, as in scenes:FOLDER",
    "normals": "a map of surface normals for every image, as in scenes:FOLDER",
    "instances": "an instance map for every image, as in scenes:FOLDER",
    "photographs": "photographs beside the images, as in scenes:FOLDER+PHOTOGRAPHS",
}
"""what a source may provide for an image besides its pixels; labels are not among it"""


@dataclass(frozen=True)
class Batch:
    """B samples from a source. There is no field for labels, so a method cannot use any."""

    index: Tensor  # (B,) int64, position of each sample in its source
    image: Tensor  # (B, C, H, W) uint8
    aux: Mapping[str, Tensor] = field(default_factory=dict)  # names from AUX_FIELDS, each (B, …)

    def __post_init__(self):
        unknown = self.aux.keys() - AUX_FIELDS.keys()
        if unknown:
            raise ValueError(f"a batch carries {sorted(unknown)}; allowed are {sorted(AUX_FIELDS)}")

    def __len__(self) -> int:
        return len(self.index)

    def rows(self, part: slice) -> "Batch":
        return Batch(self.index[part], self.image[part], {k: v[part] for k, v in self.aux.items()})

    def only(self, names: Container[str]) -> "Batch":
        """The same batch with only these auxiliary fields."""
        return Batch(self.index, self.image, {k: v for k, v in self.aux.items() if k in names})

    def to(self, device: torch.device) -> "Batch":
        def move(t: Tensor) -> Tensor:
            return t.to(device, non_blocking=True)

        return Batch(move(self.index), move(self.image), {k: move(v) for k, v in self.aux.items()})


@dataclass(frozen=True)
class Loss:
    """The objective of one step, its named parts for the log, and what `after_step` needs."""

    total: Tensor  # () the objective, a mean over the batch
    parts: Mapping[str, Tensor] = field(default_factory=dict)  # () each
    carry: Any = None
    """tensors (nested in tuples or dicts) whose rows are samples; `after_step` receives the rows of all processes"""


@dataclass(frozen=True)
class Progress:
    """Position in a run: `step` of `steps`, in `epoch` of `epochs`, in `cycle` of `cycles`, from 0. Made by Plan.at.

    The number of steps and epochs of a run with a time budget may change while it trains, so schedules must follow
    the fractions, not the counts.
    """

    step: int
    steps: int  # as planned at this step
    fraction: float  # of the schedule done before this step
    done: float  # and after it
    epoch: int
    epochs: int  # as planned at this step
    start: int  # first step of the epoch
    length: int  # steps of the epoch, as planned when it began
    begins: Fraction  # fraction of the schedule done before the epoch
    ends: Fraction  # and after it, as planned when it began; 1 for the last epoch
    cycle: int
    cycles: int
    first_of_cycle: bool  # whether this epoch is the first of its cycle
    ramp: float  # learning-rate factor of the new warmup after a finished run was extended
    lengthened: int  # step at which the run was extended; 0: never


@runtime_checkable
class Source(Protocol):
    """Images of one size on disk or in memory, addressed by position."""

    name: str
    channels: int  # 1 or 3
    size: int  # H = W of every image, pixels
    provides: frozenset[str]  # names in Batch.aux
    ledger: "Ledger"  # what happened to each input record

    def __len__(self) -> int: ...

    def __getitems__(self, index: Tensor) -> Batch: ...


class LabeledSource(Source, Protocol):
    """A source with labels, for evaluation. Pretraining never gets one: `data.open` drops labels."""

    label: Tensor  # (N,) int64, or (N, K) int8 of 1 and 0 where an image may have several of the K classes
    classes: list[str]

    @property
    def multi_label(self) -> bool: ...

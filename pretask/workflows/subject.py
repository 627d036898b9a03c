"""What has weights, the first word after a verb: a run, or an encoder with published weights."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from pretask.config import DEFAULT_INPUT, InputConfig
from pretask.encoders import Encoder, origins
from pretask.encoders.weights import input_of
from pretask.evals import baselines
from pretask.evals.scores import Role
from pretask.runtime.console import say
from pretask.train import run
from pretask.train.run import CARD, Run
from pretask.types import UserError

Weights = Run | Encoder | str | Path
INITIAL = "published weights, frozen"
"""name of the row of the weights that runs with --init started from"""
TEACHER = "the teacher, frozen"
"""name of the row of the encoder that runs with --teacher learned from"""


def load(what: Weights, input: InputConfig = DEFAULT_INPUT) -> Run | Encoder:
    """The run in a folder, or an encoder with published weights: "timm:NAME", "ARCH@FILE", or a folder of timm or transformers.

        run = pretask.load("runs/rotnet-photos-s0")
        encoder = pretask.load("timm:resnet18")

    Says what was loaded. `input` does not apply to runs, which have their own. Raises UserError.
    """
    if isinstance(what, Run | Encoder):
        return what
    if is_run(what):
        return Run(what)
    encoder, loaded = origins.open_encoder(what, size=input.size, mean=input.mean, std=input.std)
    if loaded:
        say(f"{loaded}; {input_of(encoder)}")
    return encoder


def is_run(what: Weights) -> bool:
    """Whether it is a run, which can be repeated."""
    return isinstance(what, Run) or (isinstance(what, str | Path) and (Path(what) / CARD).is_file())


def require_run(what: Weights, flags: str) -> None:
    """UserError unless it is a run."""
    if not is_run(what):
        raise UserError(f"{flags} need a run to repeat, and {what} is not a run")


def encoder_of(what: Weights, input: InputConfig = DEFAULT_INPUT) -> Encoder:
    """As `load`, but a run's encoder instead of the run."""
    found = load(what, input)
    return found.encoder if isinstance(found, Run) else found


@dataclass(frozen=True)
class Candidate:
    """The encoders to score: those of runs that differ only in their seed, or one that belongs to no run."""

    name: str
    role: Role
    encoders: Sequence[Encoder]
    untrained: Sequence[Encoder]
    """the same encoders with their runs' random initial weights"""
    seeds: Sequence[int] = (0,)
    published: Mapping[str, Encoder] = field(default_factory=dict)
    """frozen encoders that the runs started or learned from, by the names of their rows"""
    runs: Sequence[Run] = ()

    @classmethod
    def of_runs(cls, runs: Sequence[Run]) -> "Candidate":
        published = {INITIAL: initial} if (initial := runs[0].initial) else {}
        published |= {TEACHER: teacher} if (teacher := found_teacher(runs[0])) else {}
        return cls(
            run.title(runs[0].card),
            "run",
            [each.encoder for each in runs],
            [each.untrained for each in runs],
            [each.card["seed"] for each in runs],
            published,
            runs,
        )

    @classmethod
    def of_encoder(cls, what: Weights, encoder: Encoder) -> "Candidate":
        """An encoder; if it was opened by its name, its weights are published ones."""
        is_named = isinstance(what, str | Path)
        name, role = (str(what), "published") if is_named else (encoder.name, "run")
        return cls(name, role, [encoder], [baselines.untrained(encoder, 0)])


def found_teacher(found: Run) -> Encoder | None:
    """The teacher of a run; without it the run can be scored too, so that is only said."""
    try:
        return found.teacher
    except UserError as missing:
        say(f"no row of the teacher: {missing}")
        return None

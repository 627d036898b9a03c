"""The features that a command uses: a stage of given weights, or the stage that scored best in a run's evaluation."""

from pathlib import Path

from pretask.config import DEFAULT_INPUT, DEFAULT_READOUT, InputConfig, ReadoutConfig
from pretask.encoders import Encoder
from pretask.encoders.readout import Readout
from pretask.evals import scores
from pretask.runtime.console import say
from pretask.train.run import Run
from pretask.types import UserError
from pretask.workflows import subject

BEST = "best"
"""in place of a stage: the one that scored best"""


def open_readout(
    what: subject.Weights, which: ReadoutConfig = DEFAULT_READOUT, input: InputConfig = DEFAULT_INPUT
) -> Readout:
    """Opens weights as in `evaluate`, and one of their stages. Raises UserError."""
    loaded = subject.load(what, input)
    return readout_of(loaded, which)


def readout_of(loaded: Run | Encoder, which: ReadoutConfig = DEFAULT_READOUT) -> Readout:
    encoder = loaded.encoder if isinstance(loaded, Run) else loaded
    stage = best_stage(loaded) if which.stage == BEST else which.stage
    # a vector has no grid, so that --stage best --grid 2 works whatever is best
    grid = None if which.stage == BEST and stage not in encoder.sides else which.grid
    return Readout(encoder, stage, grid)


def best_stage(of: Run | Encoder) -> str:
    """The stage that the last evaluation of a run chose for "best linear". Raises UserError if it was not evaluated."""
    folder = of.folder if isinstance(of, Run) else None
    found = {path: stage for path in score_files(folder) if (stage := chosen_stage(path))} if folder else {}
    if not found:
        raise UserError(
            f"--stage {BEST} is known after pretask evaluate RUN --data LABELED"
            + (f", which {folder} has not had" if folder else ", and published weights keep no scores")
            + "; or name a stage"
        )
    latest = max(found, key=lambda path: path.stat().st_mtime)
    say(f"stage {found[latest]}, which scored best in {latest}")
    return found[latest]


def score_files(folder: Path) -> list[Path]:
    return sorted((folder / "scores").glob("*.json"))


def chosen_stage(path: Path) -> str | None:
    row = scores.read(path).get("run", "best linear")
    return str(row.chosen[0]["stage"]) if row and row.chosen else None

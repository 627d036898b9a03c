"""pretask predict WEIGHTS --labels FILE --data PATH: label all images from a few labels."""

from dataclasses import dataclass
from pathlib import Path

from pretask.cli.flags import WEIGHTS, subject
from pretask.config import DEFAULT_INPUT, InputConfig
from pretask.limits import PositiveFraction, PositiveInt, Seed
from pretask.reading import DEFAULT_READING, Reading
from pretask.runtime.console import say


@dataclass(frozen=True)
class Flags:
    """Label all images by a head on frozen features that is fitted to a few labels. Writes each image's label with a calibrated
    probability, says from which probability on predictions are sure, which given labels may be wrong, and how accurate predictions are
    on all images, if labels were drawn at random (pretask select)."""

    data: str
    """images to label"""
    labels: Path
    """table of path and label for some of these images (CSV, TSV or JSONL)"""
    out: Path = Path("predicted")
    """folder for the predictions, a page and the head"""
    precision: PositiveFraction = 0.95
    """share of the sure predictions that is to be right, by the lower bound of its interval"""
    stage: str = "best"
    """stage of the encoder whose features are used, such as stage2 (default: the one that does best on held-out labels)"""
    grid: PositiveInt | None = None
    """side of the grid that maps are averaged to (default: the finest with 4,096 values, as in `pretask evaluate`)"""
    json: bool = False
    """print only the summary, as JSON, on standard output"""
    seed: Seed = 0
    """random seed of the folds"""
    input: InputConfig = DEFAULT_INPUT
    reading: Reading = DEFAULT_READING


def run(words: list[str]) -> None:
    what, chosen = subject(words, "predict", WEIGHTS, Flags)
    from pretask.reports import predictions as page
    from pretask.workflows.predict import predict, sentences

    found = predict(
        what,
        chosen.labels,
        chosen.data,
        out=chosen.out,
        precision=chosen.precision,
        stage=chosen.stage,
        grid=chosen.grid,
        size=chosen.input.size,
        mean=chosen.input.mean,
        std=chosen.input.std,
        seed=chosen.seed,
        reading=chosen.reading,
    )
    written = page.write(found)
    if chosen.json:
        print(found.to_json())
    else:
        print("\n".join(sentences(found.summary)))
    say(f"wrote {found.folder / 'predictions.csv'}, {written} and {written.with_name('explorer.html')}")

"""pretask evaluate WEIGHTS --data LABELED: score frozen features and baselines."""

from dataclasses import dataclass
from pathlib import Path

from pretask.cli.flags import WEIGHTS, subject
from pretask.config import DEFAULT_INPUT, InputConfig
from pretask.limits import PositiveInt
from pretask.reading import DEFAULT_READING, Reading
from pretask.runtime.console import console, say
from pretask.train.progress import Display


@dataclass(frozen=True)
class Flags:
    """Score frozen features: kNN, linear probes, few labels, clustering, retrieval; compared with raw pixels, k-means patches
    and the same encoder untrained, with 95 % intervals. Hyperparameters are chosen on training images, never on test images."""

    data: str
    """labeled images: class folders, a .npz, a table, hf:NAME, or a torchvision name; with several labels per image, scores
    are mean average precision"""
    labels: Path | None = None
    """table of path and label for the images of --data, in place of class folders (CSV, TSV or JSONL)"""
    test: str | None = None
    """labeled images to score on (default: a fifth of --data, held out; with one label per image, a fifth of each class)"""
    json: bool = False
    """print only JSON on standard output"""
    leaks: bool = True
    """warn of test images that are among the labeled images too, equal or as near copies"""
    seeds: PositiveInt = 1
    """number of seeds to average over; finished runs next to this one are used, missing ones are trained"""
    supervised: bool = False
    """also train the same encoder with the labels, for as many images as the run saw"""
    finetune: bool = False
    """also fine-tune on 10, 100 and all labels per class, from the run and from scratch; takes minutes (with several labels per
    image: 100, 1,000 and all images)"""
    nonlinear: bool = False
    """also train RotNet's two nonlinear probes on the best feature map; takes minutes"""
    svm: bool = False
    """also train Exemplar-CNN's linear SVMs on all stages, max-pooled over quadrants; takes minutes"""
    out: Path | None = None
    """folder for the scores (default: the run's; none for published weights)"""
    input: InputConfig = DEFAULT_INPUT
    reading: Reading = DEFAULT_READING


def run(words: list[str]) -> None:
    what, chosen = subject(words, "evaluate", WEIGHTS, Flags)

    from pretask.reports import table
    from pretask.reports.report import LabeledImages, report
    from pretask.workflows.evaluate import evaluate

    opened: list[LabeledImages] = []
    with Display() as display:
        scores = evaluate(
            what,
            chosen.data,
            chosen.test,
            labels=chosen.labels,
            seeds=chosen.seeds,
            supervised=chosen.supervised,
            finetune=chosen.finetune,
            nonlinear=chosen.nonlinear,
            svm=chosen.svm,
            leaks=chosen.leaks,
            size=chosen.input.size,
            mean=chosen.input.mean,
            std=chosen.input.std,
            out=chosen.out,
            reading=chosen.reading,
            on_log=display,
            look=lambda source, pool: opened.append(LabeledImages(source, pool)),
        )
    if chosen.json:
        print(scores.to_json())
    else:
        console().print(table.render(scores))
    if Path(what).is_dir() and not chosen.out:
        page = report(what, labeled=opened[0] if opened else None)
        say(f"wrote {what}/scores and {page}")

"""pretask evaluate RUN --data LABELLED: score the frozen features, beside honest baselines."""

from dataclasses import dataclass
from pathlib import Path

from pretask.cli.flags import subject
from pretask.limits import Count, Share
from pretask.train.progress import Display, console, say


@dataclass(frozen=True)
class Flags:
    """Score frozen features: kNN, linear probes, few labels, clusters, retrieval; beside raw pixels, k-means patches
    and the same encoder untrained, with 95 % intervals. Every setting is chosen on training images, never on test."""

    data: str
    """labelled images: class folders, a .npz, hf:NAME, or a torchvision name"""
    test: str | None = None
    """labelled images to score on (a fifth of each class of --data, set aside)"""
    json: bool = False
    """print JSON, and nothing else, on standard output"""
    seeds: Count = 1
    """repeat the run with so many seeds; runs beside it are used, missing ones are trained"""
    supervised: bool = False
    """add the same encoder trained with the labels, on as many images as the run saw"""
    finetune: bool = False
    """add the encoder trained on with 10 labels a class, 100 and all, beside the untrained one; takes minutes"""
    nonlinear: bool = False
    """add RotNet's two non-linear probes, on the map that is best on held-out training images; takes minutes"""
    svm: bool = False
    """add Exemplar-CNN's read-out: linear SVMs on the maximum of every map of every stage in each quadrant; takes minutes"""
    size: Count | None = None
    """side of the images for timm:NAME, pixels (the size its weights were trained at); a run has its own"""
    root: Path | None = None
    """where a torchvision data set is"""
    max_bad: Share = 0.1
    """share of unreadable files at which it stops"""


def run(words: list[str]) -> None:
    what, chosen = subject(words, "evaluate", "RUN or timm:NAME", Flags)

    from pretask.reports import Looked, report, table
    from pretask.workflows.evaluate import evaluate

    looked: list[Looked] = []
    with Display() as display:
        scores = evaluate(
            what,
            chosen.data,
            chosen.test,
            seeds=chosen.seeds,
            supervised=chosen.supervised,
            finetune=chosen.finetune,
            nonlinear=chosen.nonlinear,
            svm=chosen.svm,
            size=chosen.size,
            root=chosen.root,
            max_bad=chosen.max_bad,
            tell=display,
            look=lambda source, pool: looked.append(Looked(source, pool)),
        )
    if chosen.json:
        print(scores.to_json())
    else:
        console().print(table.render(scores))
    if not what.startswith("timm:"):
        known = {"root": chosen.root, "max_bad": chosen.max_bad}
        page = report(what, chosen.test or chosen.data, looked=looked[0] if looked else None, **known)
        say(f"wrote {what}/scores and {page}")

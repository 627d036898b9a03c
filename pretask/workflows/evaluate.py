"""Score a run and baselines on labeled images: `pretask evaluate RUN --data LABELED`

With several seeds the run is repeated with other seeds: finished runs next to it are used, missing ones are trained.
"""

import dataclasses
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from pretask.config import InputConfig
from pretask.data.base import OpenOptions, canvas_fields
from pretask.data.ledger import BAD, write_all
from pretask.evals.protocol import OnFeatures
from pretask.evals.scores import Scores
from pretask.limits import PositiveInt, checked
from pretask.reading import DEFAULT_READING, Reading
from pretask.train.logger import OnLog
from pretask.train.plan import cautions
from pretask.train.run import Run
from pretask.types import Source
from pretask.workflows import kinds, subject
from pretask.workflows.inputs import split_paths, with_labels
from pretask.workflows.kinds import Extras
from pretask.workflows.reruns import seed_runs
from pretask.workflows.subject import Candidate, Weights


@checked
def evaluate(
    what: Weights,
    data: Any,
    test: Any = None,
    *,
    labels: str | Path | None = None,
    seeds: PositiveInt = 1,
    supervised: bool = False,
    finetune: bool = False,
    nonlinear: bool = False,
    svm: bool = False,
    leaks: bool = True,
    size: PositiveInt | None = None,
    mean: tuple[float, ...] | None = None,
    std: tuple[float, ...] | None = None,
    out: str | Path | None = None,
    reading: Reading = DEFAULT_READING,
    progress: bool = True,
    on_log: OnLog | None = None,
    look: OnFeatures | None = None,
) -> Scores:
    """Score frozen features on labeled images; the scores of a run are also saved in RUN/scores.

        scores = pretask.evaluate("runs/rotnet-photos-s0", "labeled/", test="held_out/")
        scores = pretask.evaluate("timm:resnet18", (images, labels))

    `what` is a run, its folder, an encoder, or published weights: "timm:NAME", "ARCH@FILE", or a folder of timm or transformers,
    whose image size, `mean` and `std` of the input can be changed. `out` is a folder for their scores. `data` and `test` are as in
    `pretrain`, with labels, or a pair (images, labels): labels (N,), or, with several labels per image, (N, K) of 0 and 1 or a
    list per image. `labels` is a table of path and label for the images of `data`. Without `test`, the test or val split of a dataset with splits is used; otherwise a fifth of each class is
    held out, or with several labels per image a fifth of all. Tracks from `pretask track` need neither labels nor `test`.
    `supervised` adds the same encoder trained with the labels for as many images as the run saw; `finetune` the encoder
    fine-tuned on few labels and on all; `nonlinear` RotNet's two probes on its best feature map; `svm` Exemplar-CNN's linear SVMs
    on all feature maps. `leaks` warns of test images that are in the training set too. `look` is called with the labeled images that a report shows and their pooled features.
    """
    if seeds > 1 or supervised:
        subject.require_run(what, "--seeds and --supervised")
    loaded = subject.load(what, InputConfig(size, mean, std))
    is_run = isinstance(loaded, Run)
    encoder, folder = (loaded.encoder, loaded.folder) if is_run else (loaded, None)
    options = OpenOptions(**canvas_fields(encoder), reading=reading, progress=progress)
    found = kinds.open_kind(*split_paths(with_labels(data, labels), test), options, folder)
    extras = Extras(supervised, finetune, nonlinear, svm, leaks)
    found.check(extras)
    # all checks of run and data come before other seeds are trained
    candidate = (
        Candidate.of_runs(seed_runs(loaded, seeds, on_log)) if is_run else Candidate.of_encoder(what, loaded)
    )
    scores = found.score(candidate, extras, progress=progress, look=look)
    if is_run:
        scores = dataclasses.replace(scores, skipped=[*scores.skipped, *cautions(loaded.card)])
    if folder := Path(out) if out else folder:
        save(scores, folder, found.sources)
    return scores


def save(scores: Scores, folder: Path, scored: Sequence[Source]) -> None:
    """Save the scores in a run's or another folder, and list unused records."""
    path = scores.write(folder)
    write_all(path.with_suffix(f".{BAD}"), [(each.name, each.ledger) for each in scored])

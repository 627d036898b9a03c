"""The report of a run: solve puzzles, embed images, collect scores and curves, and write one HTML page."""

import itertools
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from pretask.collection import layout
from pretask.config import InputConfig
from pretask.data import loader
from pretask.data.base import OpenOptions, canvas_fields
from pretask.data.ledger import BAD, write_all
from pretask.encoders import Encoder, pooled
from pretask.evals.scores import Role, read_all
from pretask.evals.scores import Row as ScoreRow
from pretask.limits import PositiveInt
from pretask.methods import Method
from pretask.reading import DEFAULT_READING, Reading
from pretask.reports import attention, curves, features, html, neighbors, study_plots, topics
from pretask.reports.curves import Row
from pretask.rng import Rng
from pretask.runtime import files
from pretask.runtime.files import read_rows
from pretask.train import run as runs
from pretask.train.health import ADVICE, HEALTHY
from pretask.train.plan import cautions
from pretask.transforms import augment
from pretask.types import LabeledSource, Source, UserError
from pretask.viz import sheet
from pretask.viz.puzzle import Panel, Puzzle, generic_puzzles
from pretask.workflows import audit as auditing
from pretask.workflows import explore, study
from pretask.workflows.subject import Weights

NUM_IMAGES = 8
"""number of images whose puzzles are shown; a method may make several puzzles per image"""
MAX_PUZZLES = 32
"""maximum number of puzzles"""
NUM_CLEANED = 3
"""number of puzzles shown with each shortcut removed"""
MAX_EMBEDDED = 1500
"""maximum number of images searched for neighbors; fewer if images are larger than 64 px, so that it takes seconds"""
NUM_ATTENTION = 6
"""number of images with attention maps"""
MIN_EMBEDDED = 300
"""minimum number of images searched, whatever their size"""


@dataclass(frozen=True)
class LabeledImages:
    """Labeled images that are already open, with their pooled features if known and complete."""

    source: LabeledSource
    pool: Tensor | None = None  # (N, D)


def report(
    what: Weights,
    data: str | Path | None = None,
    *,
    labels: str | Path | None = None,
    out: str | Path | None = None,
    size: PositiveInt | None = None,
    mean: tuple[float, ...] | None = None,
    std: tuple[float, ...] | None = None,
    reading: Reading = DEFAULT_READING,
    labeled: LabeledImages | None = None,
) -> Path:
    """Write report.html and preview.png of a run. Neighbors and map show the labeled images of `data`, if given, with the labels of the
    table `labels`, if given.

    `what` may also be published weights, as in `evaluate`; their page needs `data` and `out`, a folder, whose scores it shows.
    `size`, `mean` and `std` change their input.

    Unreadable images of `data` are listed in report.bad.csv. `labeled` replaces `data` if the images are already open.
    """
    from pretask import methods
    from pretask.workflows import inputs, subject

    data = inputs.with_labels(data, labels)
    if not subject.is_run(what):
        if data is None or out is None:
            raise UserError(f"{what} is not a run; a report of published weights needs --data and --out")
        encoder = subject.encoder_of(what, InputConfig(size, mean, std))
        return of_weights(str(what), encoder, str(data), Path(out), reading)
    if out is not None:
        raise UserError(f"the report of {what} is written in its own folder; leave out --out")
    loaded = subject.load(what)
    assert isinstance(loaded, runs.Run)
    card, opened = loaded.card, []
    if data and not labeled:
        labeled = open_shown(
            str(data), OpenOptions(**canvas_fields(loaded.card_source), reading=reading), loaded
        )
        opened = [(labeled.source.name, labeled.source.ledger)] if labeled else []
    try:
        about = methods.summary(methods.recipe(f"{card['method']}:{card['recipe']}"))
        source, method = loaded.source, loaded.method
    except (UserError, OSError) as error:  # scores and curves need neither
        encoder = loaded.encoder if labeled else None
        page = compose(loaded.folder, card, encoder=encoder, labeled=labeled, missing=str(error))
    else:
        page = compose(
            loaded.folder,
            card,
            about=about,
            method=method,
            encoder=method.export(),
            source=source,
            labeled=labeled,
        )
    write_all(page.with_suffix(f".{BAD}"), opened)
    return page


def open_shown(data: str, options: OpenOptions, of: runs.Run | None = None) -> LabeledImages | None:
    """The labeled images that a report shows; None for data of another kind."""
    from pretask.workflows import inputs, kinds

    data, unseen = inputs.split_paths(data)
    shown = kinds.open_kind(unseen or data, None, options, of.folder if of else None).shown
    return None if shown is None else LabeledImages(shown)


def of_weights(what: str, encoder: Encoder, data: str, folder: Path, reading: Reading) -> Path:
    """The page of published weights: scores in the folder, neighbors, map, attention."""
    labeled = open_shown(data, OpenOptions(**canvas_fields(encoder), reading=reading))
    if labeled is None:
        raise UserError(f"{data} has no labeled images; a report of published weights shows their neighbors")
    folder.mkdir(parents=True, exist_ok=True)
    scores = read_all(folder)
    own = probe([row for each in scores for row in each.rows], "published")
    said = (
        f"linear probe {html.score(own).value} {html.score(own).spread}".rstrip() if own else "no scores yet"
    )
    page = html.write(
        folder,
        html.Heading.of_weights(what, encoder, data),
        html.Verdict("good", sentence(["published weights, as they are", said])),
        scores=scores,
        **look(encoder, labeled.source, labeled, 0, folder),
    )
    write_all(page.with_suffix(f".{BAD}"), [(labeled.source.name, labeled.source.ledger)])
    return page


def look(
    encoder: Encoder,
    shown: LabeledSource | Source,
    labeled: LabeledImages | None,
    seed: int,
    folder: Path | None = None,
) -> dict[str, Any]:
    """The parts of a page that show features: attention, nearest neighbors and the map; with `folder`, also an explorer there."""
    batch = loader.sample(shown, NUM_ATTENTION, Rng(seed, "report", "which"))
    found: dict[str, Any] = {"attended": attention.cells(encoder, batch.image)}
    if len(shown) > features.NEIGHBORS:
        index, z, x = embed(encoder, shown, seed, labeled.pool if labeled else None)
        label, classes = (labeled.source.label[index], labeled.source.classes) if labeled else (None, [])
        found["neighbors"] = features.neighbor_rows(z, x, label, classes)
        index, z, x = (each[: features.MAPPED] for each in (index, z, x))
        is_single = label is not None and label.ndim == 1  # one color per dot
        color_label = label[: features.MAPPED] if label is not None and is_single else None
        at, how = layout.layout(z, seed)
        found["map"] = draw_map(at, x, color_label, classes)
        if folder is not None:
            columns = {} if color_label is None else {"label": [classes[int(k)] for k in color_label]}
            named = getattr(shown, "files", None)
            names = named(index) if named else [str(i) for i in index.tolist()]
            explore.explore(folder / explore.PAGE, shown, names, index, z, columns, seed, (at, how))
    return found


def compose(
    folder: Path,
    card: Row,
    *,
    about: str = "",
    method: Method[Any] | None = None,
    encoder: Encoder | None = None,
    source: Source | None = None,
    labeled: LabeledImages | None = None,
    missing: str = "",
) -> Path:
    """Write the page from the available parts of a run; `missing` says why others are unavailable."""
    log, monitor = read_rows(folder / runs.LOG), read_rows(folder / runs.MONITOR)
    scores = read_all(folder)
    seed = card["seed"]
    cells = puzzles(method, source, seed) if method is not None and source is not None else []
    if cells:
        task, name = method.pretext_task if method else "", folder.resolve().name
        below = " · ".join(filter(None, (name if task else "", sheet.tally(cells))))
        picture = sheet.paint(cells[: 2 * NUM_IMAGES], title=task or name, subtitle=below)
        files.write(folder / "preview.png", lambda file: picture.save(file, format="PNG"))
    gallery = pictures(method, source, seed) if method is not None and source is not None else None
    shown = labeled.source if labeled else source
    parts = {} if encoder is None or shown is None else look(encoder, shown, labeled, seed, folder)
    audit = auditing.read(folder)
    cleaned = (
        without_shortcuts(method, source, seed) if audit and method is not None and source is not None else []
    )
    return html.write(
        folder,
        html.Heading.of_run(folder, card),
        verdict(card, log, monitor, [row for each in scores for row in each.rows]),
        about=about,
        missing=missing,
        cells=cells,
        plots=curves.plots(log, monitor),
        scores=scores,
        audit=audit,
        shortcuts=cleaned,
        studies=[(s.data, study_plots.answers(s)) for s in study.read(folder)],
        rounds=neighbors.answers(folder, card),
        gallery=gallery,
        topics=None if source is None else topics.read(folder, source),
        **parts,
    )


@torch.no_grad()
def without_shortcuts(method: Method[Any], source: Source, seed: int) -> list[sheet.Cell]:
    """A few puzzles, unchanged and with each shortcut of the audit removed, side by side."""
    batch = loader.sample(source, NUM_CLEANED, Rng(seed, "report", "which"))
    device = next(method.parameters()).device
    columns: dict[str, list[Panel]] = {}
    for shortcut in (None, *auditing.possible(source)):
        pretext = auditing.puzzle(method, batch.to(device), shortcut, Rng(seed, "clues", device=device))
        if pretext is not None:
            columns[shortcut.name if shortcut else "unchanged"] = [
                one.question[0] for one in generic_puzzles(pretext, {}, {})
            ]
    return [
        sheet.cell(Puzzle([replace(panels[i], title=name) for name, panels in columns.items()]))
        for i in range(NUM_CLEANED)
    ]


@torch.no_grad()
def puzzles(method: Method[Any], source: Source, seed: int) -> list[sheet.Cell]:
    """Puzzles of a few images with the answers of the trained method."""
    batch = loader.sample(source, NUM_IMAGES, Rng(seed, "report", "which"))
    return sheet.cells(method.eval().illustrate(batch, seed, "report", solved=True), MAX_PUZZLES)


@torch.no_grad()
def pictures(method: Method[Any], source: Source, seed: int) -> html.Pictures | None:
    """Further outputs of the method for the images whose puzzles are shown."""
    batch = loader.sample(source, NUM_IMAGES, Rng(seed, "report", "which"))
    device = next(method.parameters()).device
    gallery = method.eval().gallery(
        augment.to_float(batch.image.to(device)), Rng(seed, "gallery", device=device)
    )
    if gallery is None:
        return None
    columns = {name: sheet.pictures(x.cpu()) for name, x in gallery.columns.items()}
    rows = [
        sheet.Cell(tuple((name, column[i]) for name, column in columns.items())) for i in range(len(batch))
    ]
    return html.Pictures(gallery.title, gallery.about, rows)


def embed(
    encoder: Encoder, source: Source, seed: int, pool: Tensor | None = None
) -> tuple[Tensor, Tensor, Tensor]:
    """A sample of the source: positions (N,), pooled features (N, D), pixels (N, C, H, W)."""
    count = min(MAX_EMBEDDED, max(MIN_EMBEDDED, MAX_EMBEDDED * 64**2 // source.size**2))
    some = loader.sample(source, count, Rng(seed, "report", "embed"))
    z = pooled(encoder, some.image) if pool is None else pool[some.index].float()
    return some.index, z.nan_to_num(), some.image


def draw_map(at: np.ndarray, x: Tensor, label: Tensor | None, classes: Sequence[str]) -> html.Map:
    from pretask.viz import svg

    drawing = svg.to_svg(features.map2d(at, label, x))
    return html.Map(drawing, len(at), [] if label is None else features.legend(label, classes))


def verdict(
    card: Row, log: Sequence[Row], monitor: Sequence[Row], scores: Sequence[ScoreRow]
) -> html.Verdict:
    """One sentence: is the run healthy, is it finished, is it better than the same network untrained?"""
    state = monitor[-1]["state"] if monitor else None
    if state not in (None, HEALTHY):
        streak = [*itertools.takewhile(lambda row: row["state"] == state, reversed(monitor))]
        problem = f"{state} since step {streak[-1]['step']:,}; {ADVICE.get(state, 'run pretask check')}"
        return html.Verdict("bad", sentence([problem]))

    clauses = ["health was not monitored" if state is None else "healthy"]
    done, steps = (log[-1]["step"] + 1 if log else 0), card["steps"]
    if done < steps:
        clauses.append(f"not finished, at step {done:,} of {steps:,}")
    clauses += cautions(card)
    tone = "good" if len(clauses) == 1 and state else "warn"
    own = probe(scores, "run")
    if own is None:
        return html.Verdict(tone, sentence([*clauses, "no linear probe yet" if scores else "no scores yet"]))
    shown = html.score(own)
    metric = "linear probe, mAP" if own.metric == "linear mAP" else "linear probe"
    clauses.append(f"{metric} {shown.value} {shown.spread}".rstrip())
    untrained = probe([row for row in scores if row.metric == own.metric], "untrained")
    if untrained is not None:
        clauses[-1] += f", untrained {html.score(untrained).value}"
        if (own.low or own.value) <= (untrained.high or untrained.value):
            tone = "warn"
            clauses.append("the intervals overlap, so pretraining may not have helped")
    return html.Verdict(tone, sentence(clauses))


def sentence(clauses: Sequence[str]) -> str:
    text = "; ".join(clauses)
    return f"{text[:1].upper()}{text[1:]}."


def probe(scores: Sequence[ScoreRow], role: Role) -> ScoreRow | None:
    """The linear probe on pooled features."""
    metrics = ("linear", "linear mAP")
    return next((r for r in scores if r.role == role and r.metric in metrics and r.stage == "pool"), None)

"""From a run folder to its report: the model answers puzzles, images are embedded, a page is written."""

import itertools
import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from pretask.data import loader
from pretask.encoders import Encoder, pooled
from pretask.methods import Method
from pretask.reports import attention, curves, features, html
from pretask.reports import neighbors as neighborhoods
from pretask.reports import study_plots as learning
from pretask.reports import topics as subjects
from pretask.reports.curves import Row
from pretask.rng import Rng
from pretask.runtime import files as checkpoint
from pretask.train import run as runs
from pretask.train.health import ADVICE, HEALTHY
from pretask.train.plan import cautions
from pretask.transforms import augment as images
from pretask.types import Labelled, Source, UserError
from pretask.viz import puzzle as sheet
from pretask.workflows import audit as auditing
from pretask.workflows import study as studying

ASKED = 8
"""images whose puzzles are shown; a method may make several puzzles of each"""
SHOWN = 32
"""puzzles at most"""
CLEANED = 3
"""puzzles that are shown without each clue"""
EMBEDDED = 1500
"""images of up to 64 pixels among which neighbours are looked for; fewer of larger ones, to take seconds"""
LOOKED_INTO = 6
"""images whose attention maps are shown"""
FEWEST = 300
"""of whatever size"""


@dataclass(frozen=True)
class Looked:
    """Labelled images, and what a run's encoder made of them, where that is known and all could be read."""

    source: Labelled
    pool: Tensor | None = None  # (N, D)


def report(
    folder: Path | str,
    data: str | Path | None = None,
    *,
    root: Path | None = None,
    max_bad: float = 0.1,
    looked: Looked | None = None,
) -> Path:
    """Write report.html and preview.png of a run; neighbours and map are of `data`, labelled, where given.

    `root` and `max_bad` are those of `sources.open_labelled`; who has opened and embedded `data` already gives what it
    `looked` at.
    """
    from pretask import methods
    from pretask.workflows import evaluate as evaluating

    loaded = runs.load(folder)
    card = loaded.card
    known = {"size": card["size"], "channels": card["channels"], "root": root, "max_bad": max_bad}
    if data and not looked and evaluating.followed(data, **known) is None:  # tracks have no labels
        told = evaluating.told(data, None, loaded.folder, **known)
        looked = Looked(told[0] if told else evaluating.labelled(data, **known))
    try:
        about = methods.asks(methods.recipe(f"{card['method']}:{card['recipe']}"))
        source, method = loaded.source, loaded.method
    except (UserError, OSError) as gone:  # curves and scores can be shown all the same
        encoder = loaded.encoder if looked else None
        return compose(loaded.folder, card, encoder=encoder, looked=looked, missing=str(gone))
    return compose(
        loaded.folder,
        card,
        about=about,
        method=method,
        encoder=method.export(),
        source=source,
        looked=looked,
    )


def compose(
    folder: Path,
    card: Row,
    *,
    about: str = "",
    method: Method[Any] | None = None,
    encoder: Encoder | None = None,
    source: Source | None = None,
    looked: Looked | None = None,
    missing: str = "",
) -> Path:
    """The page from whatever parts of a run there are; `missing` says why others are not."""
    log, watch, scores = runs.read(folder / runs.LOG), runs.read(folder / runs.SEEN), read_scores(folder)
    seed = card.get("seed", 0)
    cells = puzzles(method, source, seed) if method is not None and source is not None else []
    if cells:
        picture = sheet.paint(cells[: 2 * ASKED], title=folder.resolve().name, subtitle=sheet.tally(cells))
        checkpoint.write(folder / "preview.png", lambda file: picture.save(file, format="PNG"))
    gallery = pictures(method, source, seed) if method is not None and source is not None else None
    lines, plane, attended = [], None, []
    shown = looked.source if looked else source
    if encoder is not None and shown is not None:
        attended = attention.cells(
            encoder, loader.sample(shown, LOOKED_INTO, Rng(seed, "report", "which")).image
        )
    if encoder is not None and shown is not None and len(shown) > features.NEIGHBOURS:
        index, z, x = embed(encoder, shown, seed, looked.pool if looked else None)
        label, classes = (looked.source.label[index], looked.source.classes) if looked else (None, [])
        lines = features.lines(z, x, label, classes)
        plane = mapped(z, x, label, classes, seed)
    audit = auditing.read(folder)
    cleaned = (
        without_clues(method, source, seed) if audit and method is not None and source is not None else []
    )
    return html.write(
        folder,
        card,
        verdict(card, log, watch, scores),
        about=about,
        missing=missing,
        cells=cells,
        attended=attended,
        plots=curves.plots(log, watch),
        neighbours=lines,
        map=plane,
        scores=scores,
        audit=audit,
        clues=cleaned,
        studies=[(s.data, learning.answers(s)) for s in studying.read(folder)],
        rounds=neighborhoods.answers(folder, card),
        gallery=gallery,
        subjects=None if source is None else subjects.read(folder, source),
    )


@torch.no_grad()
def without_clues(method: Method[Any], source: Source, seed: int) -> list[sheet.Cell]:
    """A few puzzles as they are and without each clue of the audit, side by side."""
    batch = loader.sample(source, CLEANED, Rng(seed, "report", "which"))
    device = next(method.parameters()).device
    columns: dict[str, list[sheet.Cell]] = {}
    for clue in (None, *auditing.possible(source)):
        made = auditing.puzzle(method, batch.to(device), clue, Rng(seed, "clues", device=device))
        if made is not None:
            columns[clue.name if clue else "as it is"] = sheet.cells(made, {}, CLEANED)
    return [
        sheet.Cell(tuple((name, cells[i].pictures[0][1]) for name, cells in columns.items()))
        for i in range(CLEANED)
    ]


@torch.no_grad()
def puzzles(method: Method[Any], source: Source, seed: int) -> list[sheet.Cell]:
    """Puzzles of a few images with the answers of the method as it is."""
    batch = loader.sample(source, ASKED, Rng(seed, "report", "which"))
    method.eval()
    pretext = method.puzzle(batch, seed, "report")
    return sheet.cells(pretext, method.solve(pretext), SHOWN, method.meanings())


@torch.no_grad()
def pictures(method: Method[Any], source: Source, seed: int) -> html.Pictures | None:
    """What else the method makes of the images whose puzzles are shown."""
    batch = loader.sample(source, ASKED, Rng(seed, "report", "which"))
    device = next(method.parameters()).device
    made = method.eval().gallery(images.to_float(batch.image.to(device)), Rng(seed, "gallery", device=device))
    if made is None:
        return None
    columns = {name: sheet.pictures(x.cpu()) for name, x in made.columns.items()}
    rows = [
        sheet.Cell(tuple((name, column[i]) for name, column in columns.items())) for i in range(len(batch))
    ]
    return html.Pictures(made.title, made.about, rows)


def embed(
    encoder: Encoder, source: Source, seed: int, pool: Tensor | None = None
) -> tuple[Tensor, Tensor, Tensor]:
    """Of images from all over the source: positions (N,), pooled features (N, D), pixels (N, C, H, W)."""
    count = min(EMBEDDED, max(FEWEST, EMBEDDED * 64**2 // source.size**2))
    some = loader.sample(source, count, Rng(seed, "report", "embed"))
    z = pooled(encoder, some.image) if pool is None else pool[some.index].float()
    return some.index, z.nan_to_num(), some.image


def mapped(z: Tensor, x: Tensor, label: Tensor | None, classes: Sequence[str], seed: int) -> html.Map:
    from pretask.viz import svg

    z, x, label = (
        z[: features.MAPPED],
        x[: features.MAPPED],
        None if label is None else label[: features.MAPPED],
    )
    drawing = svg.svg(features.map2d(z, label, x, seed))
    return html.Map(drawing, len(z), [] if label is None else features.legend(label, classes))


def read_scores(folder: Path) -> list[dict[str, Any]]:
    """Rows of scores/*.json, as `html.table` wants them."""
    found: list[dict[str, Any]] = []
    for path in sorted((folder / "scores").glob("*.json")):
        content = json.loads(path.read_text())
        found += content if isinstance(content, list) else content.get("rows", [content])
    return found


def verdict(card: Row, log: Sequence[Row], watch: Sequence[Row], scores: Sequence[Row]) -> html.Verdict:
    """The run in one sentence: is it healthy, did it end, is it better than the same net untrained?"""
    state = watch[-1]["state"] if watch else None
    if state not in (None, HEALTHY):
        streak = [*itertools.takewhile(lambda row: row["state"] == state, reversed(watch))]
        said = f"{state} since step {streak[-1]['step']:,}; {ADVICE.get(state, 'run pretask check')}"
        return html.Verdict("bad", sentence([said]))

    clauses = ["health was not watched" if state is None else "healthy"]
    done, steps = (log[-1]["step"] + 1 if log else 0), card.get("steps", 0)
    if done < steps:
        clauses.append(f"not finished, at step {done:,} of {steps:,}")
    clauses += cautions(card)
    tone = "good" if len(clauses) == 1 and state else "warn"
    own, floor = probe(scores, own=True), probe(scores, own=False)
    if own is None:
        return html.Verdict(tone, sentence([*clauses, "no linear probe yet" if scores else "no scores yet"]))
    shown = html.score(own)
    clauses.append(f"linear probe {shown.value} {shown.spread}".rstrip())
    if floor is not None:
        clauses[-1] += f", untrained {html.score(floor).value}"
        if (own.get("low") or own["value"]) <= (floor.get("high") or floor["value"]):
            tone = "warn"
            clauses.append("the intervals overlap: training may have gained nothing")
    return html.Verdict(tone, sentence(clauses))


def sentence(clauses: Sequence[str]) -> str:
    text = "; ".join(clauses)
    return f"{text[:1].upper()}{text[1:]}."


def probe(scores: Sequence[Row], own: bool) -> Row | None:
    """The linear probe on the pooled features of the run itself, or of its untrained encoder."""
    rows = [s for s in scores if s["eval"].startswith("linear") and s.get("stage", "pool") == "pool"]
    return next((s for s in rows if (s.get("own") if own else s["features"].startswith("untrained"))), None)

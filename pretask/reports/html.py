"""The report of a run: one HTML file that needs nothing else, neither network nor scripts.

`write` is given what there is; a section without content is not shown. Whatever comes from outside, names of
files and classes or settings, is escaped by the template engine.
"""

import base64
import csv
import io
import shlex
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from PIL import Image

from pretask.data.ledger import BAD
from pretask.reports.curves import Plot, Row
from pretask.reports.features import Neighbour
from pretask.reports.study_plots import Answer
from pretask.reports.table import DECIMALS
from pretask.reports.topics import Subjects
from pretask.runtime import files as checkpoint
from pretask.tasks import TASKS
from pretask.train import run as runs
from pretask.viz.puzzle import LARGEST, Cell, tally
from pretask.workflows.audit import Audit

LISTED = 50
"""bad files shown; the rest are in the run folder"""
PHOTO = 64
"""pixels from which a picture is stored as JPEG; smaller ones stay exact and are drawn with hard edges"""


@dataclass(frozen=True)
class Map:
    """The features on a plane: the drawing, what its colours mean, how many images."""

    svg: str
    count: int
    legend: Sequence[tuple[str, str]] = ()


@dataclass(frozen=True)
class Pictures:
    """What else a method makes of images, a row for each; see Method.gallery."""

    title: str
    about: str
    rows: Sequence[Cell]


@dataclass(frozen=True)
class Verdict:
    """The run in one sentence; `tone` is good, warn or bad."""

    tone: str
    sentence: str


def write(
    folder: Path,
    card: Row,
    verdict: Verdict,
    *,
    about: str = "",
    missing: str = "",
    cells: Sequence[Cell] = (),
    attended: Sequence[Cell] = (),
    plots: Sequence[Plot] = (),
    neighbours: Sequence[Sequence[Neighbour]] = (),
    map: Map | None = None,
    scores: Sequence[Row] = (),
    audit: Audit | None = None,
    clues: Sequence[Cell] = (),
    studies: Sequence[tuple[Row, Sequence[Answer]]] = (),
    rounds: Sequence[Answer] = (),
    gallery: Pictures | None = None,
    subjects: Subjects | None = None,
) -> Path:
    """`report.html` in the run folder, from its card and whatever else there is to show."""
    page = template("report.html.j2").render(
        title=folder.resolve().name,
        about=about,
        missing=missing,
        card=card,
        verdict=verdict,
        method=runs.title(card),
        facts=facts(folder, card),
        cells=cells,
        tally=tally(cells),
        attended=attended,
        plots=plots,
        neighbours=neighbours,
        hits=hits(neighbours),
        map=map,
        tables=tables(scores),
        lead=lead(scores),
        audit=audit,
        clues=clues,
        studies=studies,
        rounds=rounds,
        gallery=gallery,
        subjects=subjects,
        skipped=skipped(folder / BAD),
        listed=LISTED,
        settings=settings(card),
        next=next_steps(folder, card),
    )
    checkpoint.write_text(folder / "report.html", page)
    return folder / "report.html"


def template(name: str) -> Any:
    """One of the .j2 files beside this one; whatever is filled in is escaped."""
    from jinja2 import Environment, PackageLoader, StrictUndefined

    engine = Environment(
        loader=PackageLoader("pretask.reports", ""),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    engine.filters |= {"uri": uri, "small": small}
    return engine.get_template(name)


def uri(picture: Image.Image, side: int = LARGEST) -> str:
    """The picture as a data: address: small ones exact, photographs as JPEG of at most `side` pixels."""
    buffer = io.BytesIO()
    if small(picture):
        picture.save(buffer, "PNG", optimize=True)
        kind = "png"
    else:
        picture = picture.copy()
        picture.thumbnail((side, side), Image.Resampling.LANCZOS)
        picture.save(buffer, "JPEG", quality=85)
        kind = "jpeg"
    return f"data:image/{kind};base64,{base64.b64encode(buffer.getvalue()).decode()}"


def small(picture: Image.Image) -> bool:
    return max(picture.size) <= PHOTO


def facts(folder: Path, card: Row) -> list[tuple[str, str]]:
    """What one wants to know first, in that order; what the card does not say is left out."""
    done = folder / runs.DONE
    processes = card.get("processes", 1)
    device = (card.get("device"), card.get("precision"), f"{processes} processes" if processes > 1 else None)
    known = {
        "Method": runs.title(card),
        "Encoder": card.get("encoder"),
        "Data": card.get("data"),
        "Images": f"{card['n']:,}" if "n" in card else None,
        "Size": f"{card['size']}×{card['size']}, {'grey' if card['channels'] == 1 else 'colour'}",
        "Steps": f"{card['steps']:,}" if "steps" in card else None,
        "Epochs": card.get("epochs"),
        "Time": duration(done.read_text()) if done.exists() else "not finished",
        "Device": " · ".join(str(x) for x in device if x),
        "Seed": card.get("seed"),
    }
    return [(name, str(value)) for name, value in known.items() if value not in (None, "")]


def duration(seconds: str) -> str:
    """ "598.2 s" -> "9 min 58 s"; hours lose their seconds."""
    minutes, s = divmod(round(float(seconds.split()[0])), 60)
    hours, m = divmod(minutes, 60)
    if hours:
        return f"{hours} h {m} min"
    return f"{m} min {s} s" if m else f"{s} s"


def hits(neighbours: Sequence[Sequence[Neighbour]]) -> str:
    """How many of the neighbours shown have the query's class, where that is known."""
    judged = [one.same for line in neighbours for one in line if one.same is not None]
    return f"{sum(judged)} of {len(judged)} neighbours have the class of their query" if judged else ""


@dataclass(frozen=True)
class Score:
    value: str = "–"
    spread: str = ""


@dataclass(frozen=True)
class Line:
    """One row of the score table; `own` is the run itself, the others are what it has to beat."""

    name: str
    own: bool
    cells: Sequence[Score]


@dataclass(frozen=True)
class Table:
    title: str
    columns: Sequence[str]
    rows: Sequence[Line]


def tables(scores: Sequence[Row]) -> list[Table]:
    """Rows {"features", "eval", "stage", "value", "low", "high", "own"} side by side, in tables of what belongs together."""
    columns = list(dict.fromkeys((s["eval"], s.get("stage", "")) for s in scores))
    at = {(s["features"], s["eval"], s.get("stage", "")): s for s in scores}
    names = {s["features"]: bool(s.get("own")) for s in scores}
    found = []
    for title in dict.fromkeys(group(*column) for column in columns):
        some = [column for column in columns if group(*column) == title]
        lines = [
            Line(name, own, [score(at.get((name, *column))) for column in some])
            for name, own in names.items()
        ]
        lines = [line for line in lines if any(cell != Score() for cell in line.cells)]
        found.append(Table(title, [heading(*column) for column in some], lines))
    return found


def group(eval: str, stage: str) -> str:
    """The table that a score belongs to."""
    task, _, number = eval.partition(" ")
    if number and task in TASKS:
        return f"Transfer: {task}"
    if eval == "linear" and stage != "pool":
        return "Linear probe at each stage"
    if eval.startswith("finetune"):
        return "Encoder and classifier trained on"
    if eval in ("mlp", "conv"):
        return "Non-linear probes on the best map"
    if eval.endswith("-shot"):
        return "Linear probe on few images per class"
    if eval in ("nmi", "ari", "acc") or eval.startswith("recall"):
        return "Clusters and retrieval"
    return "Without labels" if eval in DECIMALS or eval == "rankme" else "Frozen features"


def heading(eval: str, stage: str) -> str:
    """The stage is said where it is not the pooled features."""
    if eval.partition(" ")[0] in TASKS:
        return eval.partition(" ")[2]
    return eval if stage in ("", "pool") else stage


def lead(scores: Sequence[Row]) -> str:
    sets = dict.fromkeys(f"{s['data']}, n = {s['n']:,}" for s in scores if s.get("data") and s.get("n"))
    where = f"On {'; '.join(sets)}. " if sets else ""
    return f"{where}± is half of the 95 % interval."


def score(row: Row | None) -> Score:
    if row is None:
        return Score()
    value = f"{row['value']:.{DECIMALS.get(row['eval'], 1)}f}"
    if row.get("low") is None or row.get("high") is None:
        return Score(value)
    return Score(value, f"±{(row['high'] - row['low']) / 2:.1f}")


def skipped(path: Path) -> list[list[str]]:
    """(file, reason) of what could not be read."""
    if not path.exists():
        return []
    with path.open(newline="", encoding="utf-8", errors="replace") as file:
        rows = [row for row in csv.reader(file) if len(row) == 2]
    return rows[1:] if rows[:1] == [["file", "reason"]] else rows


def settings(card: Row) -> list[tuple[str, list[tuple[str, str]]]]:
    """The card as tables: the method's knobs, the training, the software, everything else."""
    groups = {"config": "Method", "train": "Training", "versions": "Versions"}
    tables = [(title, flat(card[name])) for name, title in groups.items() if card.get(name)]
    rest = {k: v for k, v in card.items() if k not in groups and k != "command"}
    return [*tables, ("Run", flat(rest))]


def flat(values: Mapping[str, Any], prefix: str = "") -> list[tuple[str, str]]:
    """Nested settings as rows: {"views": {"crop": …}} -> ("views.crop", …)."""
    rows: list[tuple[str, str]] = []
    for name, value in values.items():
        rows += (
            flat(value, f"{prefix}{name}.") if isinstance(value, Mapping) else [(prefix + name, said(value))]
        )
    return rows


def said(value: Any) -> str:
    if isinstance(value, list | tuple):
        return ", ".join(said(v) for v in value) if value else "none"
    return (
        {None: "none", True: "yes", False: "no"}[value]
        if value is None or isinstance(value, bool)
        else str(value)
    )


def next_steps(folder: Path, card: Row) -> list[tuple[str, str]]:
    """What to do now, as commands that can be pasted."""
    run = shlex.quote(str(folder))
    steps = [
        ("Score the encoder on labelled images", f"pretask evaluate {run} --data LABELLED"),
        ("Ask how much data and how many labels it takes", f"pretask study {run} --data LABELLED"),
        ("Write features of your own images", f"pretask embed {run} --data IMAGES"),
        ("Take the weights elsewhere", f"pretask export {run} --to timm"),
    ]
    if not (folder / runs.DONE).exists():
        steps.insert(0, ("Go on where the run stopped", f"pretask pretrain --resume {run}"))
    return steps

"""The report of a run: one self-contained HTML file without scripts.

Sections without content are omitted. File names, class names and settings are escaped by the template engine.
"""

import csv
import shlex
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from pretask.data import places
from pretask.data.ledger import BAD, line
from pretask.encoders import Encoder
from pretask.encoders.weights import input_of
from pretask.evals.scores import Row as ScoreRow
from pretask.evals.scores import Scores
from pretask.reports.curves import Plot, Row
from pretask.reports.features import Neighbor
from pretask.reports.study_plots import Answer
from pretask.reports.table import DECIMALS, brief
from pretask.reports.topics import TopicTable
from pretask.reports.verdict import against_published, sentences
from pretask.runtime import files
from pretask.train import run as runs
from pretask.viz.page import load_template
from pretask.viz.sheet import Cell, tally
from pretask.workflows.audit import Audit

LISTED = 50
"""maximum number of skipped files listed; the others are in the run's folder"""


@dataclass(frozen=True)
class Map:
    """The map of the features: SVG, number of images, color and name of each class."""

    svg: str
    count: int
    legend: Sequence[tuple[str, str]] = ()


@dataclass(frozen=True)
class Pictures:
    """Further outputs of a method, one row per image; see Method.gallery."""

    title: str
    about: str
    rows: Sequence[Cell]


@dataclass(frozen=True)
class Verdict:
    """The health of the run in one sentence; `tone` is good, warn or bad."""

    tone: str
    sentence: str


@dataclass(frozen=True)
class Heading:
    """What a page is about: a run, or published weights."""

    name: str
    """the method, or where the weights come from"""
    facts: Sequence[tuple[str, str]]
    next: Sequence[tuple[str, str]]
    """next steps, with commands"""
    settings: Sequence[tuple[str, Sequence[tuple[str, str]]]] = ()
    """tables of names and values"""
    command: str | None = None
    """that made the run"""

    @classmethod
    def of_run(cls, folder: Path, card: Row) -> "Heading":
        steps = next_steps(shlex.quote(str(folder)))
        if not (folder / runs.DONE).exists():
            steps.insert(0, ("Continue the run", f"pretask pretrain --resume {shlex.quote(str(folder))}"))
        return cls(runs.title(card), facts(folder, card), steps, settings(card), card["command"])

    @classmethod
    def of_weights(cls, what: str, encoder: Encoder, data: str) -> "Heading":
        known = {
            "Weights": what,
            "Encoder": encoder.name,
            "Input": input_of(encoder),
            "Data": places.short(data),
        }
        start = f"pretask pretrain simclr --data IMAGES --init {shlex.quote(what)}"
        return cls(
            what,
            [*known.items()],
            [("Continue training on your images", start), *next_steps(shlex.quote(what))],
        )


def write(
    folder: Path,
    heading: Heading,
    verdict: Verdict,
    *,
    about: str = "",
    missing: str = "",
    cells: Sequence[Cell] = (),
    attended: Sequence[Cell] = (),
    plots: Sequence[Plot] = (),
    neighbors: Sequence[Sequence[Neighbor]] = (),
    map: Map | None = None,
    scores: Sequence[Scores] = (),
    audit: Audit | None = None,
    shortcuts: Sequence[Cell] = (),
    studies: Sequence[tuple[Row, Sequence[Answer]]] = (),
    rounds: Sequence[Answer] = (),
    gallery: Pictures | None = None,
    topics: TopicTable | None = None,
) -> Path:
    """Write `report.html` in a folder. `shortcuts` are puzzles with each shortcut removed, for the audit."""
    rows = [row for each in scores for row in each.rows]
    page = load_template("pretask.reports", "report.html.j2").render(
        title=folder.resolve().name,
        about=about,
        missing=missing,
        verdict=verdict,
        method=heading.name,
        facts=heading.facts,
        cells=cells,
        tally=tally(cells),
        attended=attended,
        plots=plots,
        neighbors=neighbors,
        hits=hits(neighbors),
        map=map,
        tables=tables(rows),
        meaning=[text for each in scores for text in (*sentences(each), *against_published(each))],
        lead=lead(rows),
        audit=audit,
        shortcuts=shortcuts,
        studies=studies,
        rounds=rounds,
        gallery=gallery,
        topics=topics,
        skipped=skipped(folder / BAD),
        listed=LISTED,
        command=heading.command,
        settings=heading.settings,
        next=heading.next,
    )
    files.write_text(folder / "report.html", page)
    return folder / "report.html"


def facts(folder: Path, card: Row) -> list[tuple[str, str]]:
    """The most important facts, in order."""
    done = folder / runs.DONE
    processes = card["processes"]
    device = (card["device"], card["precision"], f"{processes} processes" if processes > 1 else None)
    known = {
        "Method": runs.title(card),
        "Encoder": card["encoder"],
        "Data": places.short(card["data"]),
        "Images": f"{card['n']:,}",
        "Records": line(card["records"]),
        "Size": f"{card['size']}×{card['size']}, {'gray' if card['channels'] == 1 else 'color'}",
        "Steps": f"{card['steps']:,}",
        "Passes over the images": f"{card['steps'] * card['train']['batch'] / card['n']:.1f}",
        "Time": duration(done.read_text()) if done.exists() else "not finished",
        "Device": " · ".join(str(x) for x in device if x),
        "Seed": card["seed"],
    }
    return [(name, str(value)) for name, value in known.items() if value not in (None, "")]


def duration(seconds: str) -> str:
    """ "598.2 s" -> "9 min 58 s"; without seconds from an hour on."""
    minutes, s = divmod(round(float(seconds.split()[0])), 60)
    hours, m = divmod(minutes, 60)
    if hours:
        return f"{hours} h {m} min"
    return f"{m} min {s} s" if m else f"{s} s"


def hits(neighbors: Sequence[Sequence[Neighbor]]) -> str:
    """How many of the neighbors share a class with their query; empty without labels."""
    known = [one.same for line in neighbors for one in line if one.same is not None]
    return f"{sum(known)} of {len(known)} neighbors share a class with their query" if known else ""


@dataclass(frozen=True)
class Score:
    value: str = "–"
    spread: str = ""


@dataclass(frozen=True)
class Line:
    """One row of a score table; `own` marks the run, the others are baselines."""

    name: str
    own: bool
    cells: Sequence[Score]


@dataclass(frozen=True)
class Table:
    title: str
    columns: Sequence[str]
    rows: Sequence[Line]


def tables(scores: Sequence[ScoreRow]) -> list[Table]:
    """The scores in tables by group, one row per encoder or baseline."""
    at = {(row.name, row.task, row.key): row for row in scores}
    columns: dict[tuple[Any, ...], ScoreRow] = {}  # the first row of each column
    for row in scores:
        columns.setdefault((row.task, row.key), row)
    names = {row.name: row.role == "run" for row in scores}
    found = []
    for title in dict.fromkeys(map(group, columns.values())):
        some = {column: row for column, row in columns.items() if group(row) == title}
        lines = [
            Line(brief(name), own, [score(at.get((name, *column))) for column in some])
            for name, own in names.items()
        ]
        lines = [line for line in lines if any(cell != Score() for cell in line.cells)]
        found.append(Table(title, [heading(row) for row in some.values()], lines))
    return found


GROUPS = {
    **dict.fromkeys(("finetune", "finetune mAP"), "Fine-tuning"),
    **dict.fromkeys(("mlp", "conv"), "Nonlinear probes on the best feature map"),
    "few-shot": "Linear probe on few labels per class",
    "few-shot mAP": "Linear probe on few labeled images",
    **dict.fromkeys(("nmi", "ari", "acc", "recall"), "Clustering and retrieval"),
    **dict.fromkeys(("rankme", "alpha", "std", "cosine", "lidar", "stability"), "Label-free measures"),
}
"""metric -> title of its table"""
STAGES = {"linear": "Linear probe at each stage", "linear mAP": "Linear probe at each stage, mAP"}
"""the same, for stages other than the pooled features"""


def group(row: ScoreRow) -> str:
    """The title of the table that a score belongs to."""
    if row.task:
        return f"Transfer: {row.task}"
    if row.metric in STAGES and row.stage != "pool":
        return STAGES[row.metric]
    return GROUPS.get(row.metric, "Frozen features")


HEADINGS = {
    "knn": "kNN", "knn mAP": "kNN, mAP", "linear": "Linear probe", "linear mAP": "Linear probe, mAP",
    "best linear": "Best stage", "best linear mAP": "Best stage, mAP", "svm": "Quadrant SVM",
    "mlp": "MLP probe", "conv": "Conv probe", "nmi": "NMI", "ari": "ARI", "acc": "ACC",
    "rankme": "RankMe", "alpha": "α", "std": "Std", "cosine": "Mean cosine", "lidar": "LiDAR", "stability": "Cluster stability",
}  # fmt: skip
"""title of a measurement -> column heading; others are shown as they are"""


def heading(row: ScoreRow) -> str:
    """The column heading: the metric, or the stage if it is not the pooled features."""
    return HEADINGS.get(row.title, row.title) if row.stage in ("", "pool") else row.stage


def lead(scores: Sequence[ScoreRow]) -> str:
    sets = dict.fromkeys(f"{row.data}, n = {row.n:,}" for row in scores)
    where = f"On {'; '.join(sets)}. " if sets else ""
    return f"{where}± is half the 95 % interval."


def score(row: ScoreRow | None) -> Score:
    if row is None:
        return Score()
    value = f"{row.value:.{DECIMALS.get(row.metric, 1)}f}"
    if row.low is None or row.high is None:
        return Score(value)
    return Score(value, f"±{(row.high - row.low) / 2:.1f}")


def skipped(path: Path) -> list[list[str]]:
    """(file, reason) of each unreadable file."""
    if not path.exists():
        return []
    with path.open(newline="", encoding="utf-8", errors="replace") as file:
        rows = [row for row in csv.reader(file) if len(row) == 2]
    return rows[1:] if rows[:1] == [["file", "reason"]] else rows


def settings(card: Row) -> list[tuple[str, list[tuple[str, str]]]]:
    """The card as tables: method, training, software versions, everything else."""
    groups = {"config": "Method", "train": "Training", "versions": "Versions"}
    tables = [(title, flat(card[name])) for name, title in groups.items() if card[name]]
    rest = {k: v for k, v in card.items() if k not in groups and k not in ("command", "records")}
    return [*tables, ("Run", flat(rest))]


def flat(values: Mapping[str, Any], prefix: str = "") -> list[tuple[str, str]]:
    """Flatten nested settings: {"views": {"crop": …}} -> ("views.crop", …)."""
    rows: list[tuple[str, str]] = []
    for name, value in values.items():
        rows += (
            flat(value, f"{prefix}{name}.")
            if isinstance(value, Mapping)
            else [(prefix + name, text_of(value))]
        )
    return rows


def text_of(value: Any) -> str:
    if isinstance(value, list | tuple):
        return ", ".join(text_of(v) for v in value) if value else "none"
    return (
        {None: "none", True: "yes", False: "no"}[value]
        if value is None or isinstance(value, bool)
        else str(value)
    )


def next_steps(what: str) -> list[tuple[str, str]]:
    """Next steps with an encoder, with commands to paste into a shell."""
    return [
        ("Score the encoder on labeled images", f"pretask evaluate {what} --data LABELED"),
        ("Study the effect of fewer images and labels", f"pretask study {what} --data LABELED"),
        ("Write features of your images to a table", f"pretask embed {what} --data IMAGES"),
        ("Export the encoder", f"pretask export {what} --to timm"),
    ]

"""Tables for the terminal: scores of a run and its baselines, and the results of other commands."""

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from rich.console import Group
from rich.table import Table
from rich.text import Text

from pretask.evals import fewshot, finetune, text_retrieval, track_retrieval
from pretask.evals.confidence import Interval
from pretask.evals.scores import Difference, Measurement, Row, Scores
from pretask.reports.verdict import against_published, sentences
from pretask.workflows.audit import Audit

if TYPE_CHECKING:
    from pretask.workflows.adapt import Adapted
    from pretask.workflows.cluster import Clusters
    from pretask.workflows.colorize import Colored
    from pretask.workflows.study import Study, StudyRow


Columns = Mapping[Measurement, str]
"""measurement -> column heading"""
BLOCKS: Sequence[Columns] = (
    {
        Measurement("knn", "pool"): "kNN",
        Measurement("linear", "pool"): "linear",
        Measurement("best linear"): "best stage",
    },
    {
        Measurement("knn mAP", "pool"): "kNN, mAP",
        Measurement("linear mAP", "pool"): "linear, mAP",
        Measurement("best linear mAP"): "best stage, mAP",
    },
    {Measurement("few-shot", "pool", shots=n): f"{n}-shot" for n in fewshot.SHOTS},
    {Measurement("few-shot mAP", "pool", shots=n): f"{n:,} images, mAP" for n in fewshot.IMAGES},
    {
        Measurement("nmi", "pool"): "NMI",
        Measurement("ari", "pool"): "ARI",
        Measurement("acc", "pool"): "ACC",
        Measurement("recall", "pool", k=1): "R@1",
    },
    {
        Measurement(metric, "pool", k=k): f"{article} {metric}@{k}"
        for metric, article in (("text", "its"), ("image", "an"))
        for k in text_retrieval.AT
    },
    {Measurement("track recall", "pool", k=k): f"track recall@{k}" for k in track_retrieval.AT},
    {Measurement("mlp"): "MLP probe", Measurement("conv"): "conv probe", Measurement("svm"): "quadrant SVM"},
    {Measurement("finetune", shots=n): f"tuned {n}-shot" for n in finetune.SHOTS}
    | {Measurement("finetune"): "fine-tuned"},
    {Measurement("finetune mAP", shots=n): f"tuned {n:,} images, mAP" for n in finetune.IMAGES}
    | {Measurement("finetune mAP"): "fine-tuned, mAP"},
    {
        Measurement("rankme", "pool"): "RankMe",
        Measurement("alpha", "pool"): "α",
        Measurement("std", "pool"): "std",
        Measurement("cosine", "pool"): "cosine",
        Measurement("lidar", "pool"): "LiDAR",
        Measurement("stability", "pool"): "stability",
    },
)
"""columns of one table after the other; each fits in 80 characters"""
MANY = 20
"""maximum number of cluster sizes printed"""
DECIMALS = {"alpha": 2, "std": 4, "cosine": 3}
"""decimals of metrics; 1 for all others"""


def render(scores: Scores) -> Group:
    """Score tables, then sentences that compare the run with its best baseline, then notes."""
    parts: list[Table | Text] = []
    for columns in BLOCKS:
        if there := {what: heading for what, heading in columns.items() if measured_in(scores, what)}:
            parts += [block(scores, there), Text()]
    meaning = [Text(each) for each in (*sentences(scores), *against_published(scores))]
    parts += [*meaning, Text()] if meaning else []
    return Group(*parts, *(Text(note, style="dim") for note in notes(scores)))


def measured_in(scores: Scores, what: Measurement) -> bool:
    return any(row.key == what.key for row in scores.rows)


def block(scores: Scores, columns: Columns) -> Table:
    table = Table(box=None, pad_edge=False, padding=(0, 1))
    table.add_column("features", overflow="fold")  # names wrap, numbers are never cut
    for heading in columns.values():
        table.add_column(heading, justify="right", no_wrap=True)
    for name in scores.names:
        rows = [scores.find(name, what) for what in columns]
        if any(rows):
            style = "bold" if name == scores.rows[0].name else ""
            table.add_row(brief(name), *(cell(row) for row in rows), style=style)
    return table


def brief(name: str) -> str:
    """The name without encoder options: "untrained resnet_small:width=32" -> "untrained resnet_small"."""
    return re.sub(r":\w+=\S*", "", name)


def cell(row: Row | None) -> str:
    """41.2 ±0.6, after the stage if one was chosen."""
    if row is None:
        return "–"
    text = f"{row.value:.{DECIMALS.get(row.metric, 1)}f}"
    if row.low is not None and row.high is not None:
        text += f" ±{(row.high - row.low) / 2:.1f}"
    stages = dict.fromkeys(c["stage"] for c in row.chosen if c.get("stage", "pool") != "pool")
    return f"({', '.join(stages)}) {text}" if stages else text


def notes(scores: Scores) -> Sequence[str]:
    data = scores.data
    first = scores.rows[0]
    runs = (
        f", {len(first.values)} runs (seeds {', '.join(map(str, first.seeds))})"
        if len(first.values) > 1
        else ""
    )
    lines = [
        f"%, on {data['test']}, n = {data['n_test']:,}; {how(data)}{runs}",
        f"± is half the interval: {scores.protocol['interval']}.",
    ]
    if data["n_train"]:
        lines.append(f"Chosen: {scores.protocol['chosen']}; never on the test set.")
    for d in scores.differences:
        if d.minus_role in ("untrained", "patches") and d.metric not in ("knn", "knn mAP"):
            lines.append(f"{d.title}: {against(d)}")
    return [*lines, *scores.skipped]


def how(data: Mapping[str, Any]) -> str:
    """The training data and the chance level; tracks have no training data."""
    if not data["n_train"]:
        return f"no training; chance of track recall@1 {100 / data['n_test']:.1f}"
    trained = f"trained on {data['train']}, n = {data['n_train']:,}"
    if "chance" in data:
        many = len(data["classes"])
        return (
            f"{trained}; several labels per image: mAP over {many} class{'es' if many > 1 else ''}, "
            f"{data['chance']:.1f} for images in random order"
        )
    return f"{trained}; {len(data['classes'])} classes, chance {100 / len(data['classes']):.1f}"


def transferred(scores: Scores) -> Group:
    """The score table of a downstream task, and notes."""
    task, data = scores.data["task"], scores.data
    first = scores.rows[0]
    metrics = list(dict.fromkeys(row.metric for row in scores.rows))
    runs = f", {len(first.values)} runs" if len(first.values) > 1 else ""
    lines = [
        f"% unless a unit is given, on {data['test']}, n = {data['n_test']:,}; trained on {data['train']}, n = {data['n_train']:,}{runs}",
        f"{scores.protocol[task]}.",
        *(f"{metric}: {scores.protocol[metric]}." for metric in metrics),
        f"± is half the interval: {scores.protocol['interval']}.",
        *(
            f"{d.metric}: {against(d)}"
            for d in scores.differences
            if d.metric == first.metric and d.low is not None
        ),
        *scores.skipped,
    ]
    columns = {Measurement(metric): metric for metric in metrics}
    return Group(block(scores, columns), Text(), *(Text(line, style="dim") for line in lines))


def against(d: Difference) -> str:
    return f"{d.value:+.1f} [{d.low:+.1f}, {d.high:+.1f}] against {brief(d.minus)}"


def audited(audit: Audit) -> Group:
    """Accuracy without each shortcut, and the explained shares."""
    table = Table(box=None, pad_edge=False, padding=(0, 1))
    table.add_column("without")
    table.add_column("accuracy, %", justify="right", no_wrap=True)
    table.add_column("explains, %", justify="right", no_wrap=True)
    table.add_column("shortcut", style="dim")
    table.add_row("(nothing)", f"{audit.accuracy:.1f}", "", f"chance {audit.chance:.1f}")
    for f in audit.findings:
        share = "–" if f.explained_share is None else f"{f.explained_share:.0f} [{f.low:.0f}, {f.high:.0f}]"
        table.add_row(
            f.shortcut, f"{f.accuracy:.1f}", share, f.description, style="bold" if f.significant else ""
        )
    return Group(
        table,
        Text(),
        Text(audit.verdict),
        Text(
            f"{audit.method} on {audit.data}, {audit.n:,} images. The explained share of the accuracy above chance "
            "is an upper bound: removing a shortcut also removes other information. Brackets: 95 % intervals over images.",
            style="dim",
        ),
    )


def colored(made: "Colored") -> Group:
    """Accuracy of the predicted colors, of gray and of the true colors."""
    table = Table(box=None, pad_edge=False, padding=(0, 1))
    table.add_column("colors")
    table.add_column("AuC, %", justify="right", no_wrap=True)
    table.add_column("class-balanced AuC, %", justify="right", no_wrap=True)
    table.add_column("chroma", justify="right", no_wrap=True)
    for score in made.scores:
        shown = (score.raw, score.balanced, score.chroma)
        cells = (f"{i.value:.1f} [{i.low:.1f}, {i.high:.1f}]" for i in shown)
        table.add_row(score.colors, *cells)
    return Group(
        table,
        Text(),
        Text(
            f"Over {made.scored:,} color images. AuC: the fraction of pixels whose ab is within a threshold of the truth, averaged "
            "over thresholds from 0 to 150; chroma: mean distance from gray. Brackets: 95 % intervals over images.",
            style="dim",
        ),
    )


def adapted(made: "Adapted") -> Group:
    """Accuracy of the weights and of each candidate, its gain, and the verdict in words."""
    table = Table(box=None, pad_edge=False, padding=(0, 1))
    table.add_column("weights")
    for heading in ("accuracy, %", "gain, points", "p"):
        table.add_column(heading, justify="right", no_wrap=True)
    table.add_column("")
    for name, score in made.comparison.scores.items():
        verdict = made.comparison.verdicts.get(name)
        cells = [f"{score.value:.1f}", "", "", ""]
        if verdict:
            word = "better" if verdict.better else "worse" if verdict.worse else "no clear difference"
            gain = f"{verdict.gain:+.1f} [{verdict.low:+.1f}, {verdict.high:+.1f}]"
            cells[1:] = [gain, f"{verdict.p:.2g}", word]
        table.add_row(name, *cells, style="bold" if name == made.chosen else "")
    by = "a paired t over test images" if made.data["test"] else "Nadeau and Bengio's corrected t over folds"
    note = (
        f"Linear probes on pooled features. Brackets: intervals of the gain over the weights as they are, by {by}; p and "
        "brackets are corrected for the number of methods (Holm)."
    )
    return Group(table, Text(), *map(Text, made.sentences()), Text(), Text(note, style="dim"))


def clustered(made: "Clusters") -> Group:
    """Cluster sizes and, if there are labels, NMI and ACC."""
    sizes = sorted(made.sizes, reverse=True)
    shown = ", ".join(f"{n:,}" for n in sizes[:MANY]) + (", …" if len(sizes) > MANY else "")
    how = "k-means" if made.by == "kmeans" else f"agglomerative, {made.neighbors} nearest neighbors"
    parts = [
        Text(f"{made.n:,} images of {made.data} by {made.subject} ({how}): {len(sizes)} clusters of {shown}")
    ]
    if made.nmi and made.acc:
        scores = (
            f"{name} {i.value:.1f} [{i.low:.1f}, {i.high:.1f}]"
            for name, i in (("NMI", made.nmi), ("ACC", made.acc))
        )
        note = "%; labels are used only for these scores. NMI: geometric mean. Brackets: 95 % intervals over images."
        parts += [Text("   ".join(scores), style="bold"), Text(note, style="dim")]
    return Group(*parts)


HEADINGS = {
    "data": ("Pretraining on fewer images", "images"),
    "labels": ("Scoring with fewer labels", "labels"),
    "change": ("Feature drift in fine-tuning", "stage"),
    "supervised images": ("Supervised pretraining on fewer images", "images"),
    "supervised labels": ("Supervised pretraining with fewer labels", "labels"),
    "supervised classes": ("Supervised pretraining with fewer classes", "classes"),
}
"""question, and axis if it has several -> title and heading of the first column"""
WAYS = {
    ("knn", "run"): "kNN",
    ("linear", "run"): "linear",
    ("linear", "untrained"): "untrained, linear",
    ("finetune", "run"): "fine-tuned",
    ("finetune", "untrained"): "from scratch",
    ("cka", "run"): "CKA",
    ("cka", "untrained"): "untrained, CKA",
    ("knn", "supervised"): "supervised, kNN",
    ("linear", "supervised"): "supervised, linear",
}
"""(metric, role) -> column heading; "supervised" is the encoder pretrained with labels"""


@dataclass(frozen=True)
class Grid:
    """The answer to one question: a row per number of images, labels or classes, or per stage; a column per score."""

    title: str
    first: str
    columns: Sequence[str]
    lines: Sequence[tuple[str, Sequence[Row | Interval | None]]]
    skipped: Sequence[str]
    baselines: Sequence[str] = ()
    """columns of the encoders that the run is compared with"""
    counts: Sequence[int] = ()
    """images, labels or classes of each row; empty if rows are stages or rounds"""
    decimals: int = 1


def grids(study: "Study") -> dict[str, Grid]:
    """The answers of a study, by keys of HEADINGS; for the terminal and for the report."""
    found: dict[str, Grid] = {}
    for question, answer in study.answers.items():
        for i, axis in enumerate(dict.fromkeys(row.axis for row in answer.rows)):
            rows = sorted((row for row in answer.rows if row.axis == axis), key=lambda row: row.at or 0)
            at = {(name(question, row), way(question, row)): row for row in rows}
            counts = {} if question == "change" else {name(question, row): count(row) for row in rows}
            names, there = (list(dict.fromkeys(key[i] for key in at)) for i in (0, 1))
            ways = {heading: role for (_, role), heading in WAYS.items() if heading in there}
            key = f"{question} {axis}".strip()
            found[key] = Grid(
                *HEADINGS[key],
                columns=list(ways),
                lines=[(n, [at.get((n, w)) for w in ways]) for n in names],
                skipped=() if i else answer.skipped,
                baselines=[heading for heading, role in ways.items() if role != "run"],
                counts=list(counts.values()),
                decimals=2 if question == "change" else 1,
            )
    return found


def way(question: str, row: "StudyRow") -> str:
    """The column of a row; for "data" the untrained encoder is a row, with 0 images, not a column."""
    return WAYS[row.metric, "run" if question == "data" else row.role]


def count(row: "StudyRow") -> int:
    """Number of images, labels or classes of a row."""
    return (row.images or 0) if row.at is None else row.at


def name(question: str, row: "StudyRow") -> str:
    """The name of a row: its stage, its number on the axis, or its number of images with their fraction."""
    if question == "change":
        return row.stage
    if question == "supervised":
        return f"{row.at:,}"
    return f"{row.images:,} ({100 * row.fraction:g} %)" if row.fraction else "0 (untrained)"


def studied(study: "Study") -> Group:
    """A table for each question."""
    parts: list[Table | Text] = []
    for grid in grids(study).values():
        table = Table(box=None, pad_edge=False, padding=(0, 1))
        table.add_column(grid.first, no_wrap=True)
        for column in grid.columns:
            table.add_column(column, justify="right", no_wrap=True)
        for name, cells in grid.lines:
            table.add_row(name, *(measured(cell, grid.decimals) for cell in cells))
        parts += [
            Text(grid.title, style="bold"),
            table,
            *(Text(sentence, style="dim") for sentence in grid.skipped),
            Text(),
        ]
    data = study.data
    runs = max(len(answer.seeds) for answer in study.answers.values())
    return Group(
        *parts,
        Text(
            f"{study.method}, labeled {data['train']}, n = {data['n_train']:,}; scores in % on {data['test']}, "
            f"n = {data['n_test']:,}, {len(data['classes'])} classes, chance {100 / len(data['classes']):.1f}"
            f"{f'; {runs} runs' if runs > 1 else ''}. CKA of 1: equal up to rotation and scale. ± is half the "
            "95 % interval.",
            style="dim",
        ),
    )


def measured(cell: Row | Interval | None, decimals: int = 1) -> str:
    """41.2 ±0.6"""
    if cell is None or cell.low is None or cell.high is None:
        return "–"
    return f"{cell.value:.{decimals}f} ±{(cell.high - cell.low) / 2:.{decimals}f}"

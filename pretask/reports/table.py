"""The score table in the terminal: the run's features beside what they have to beat."""

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from rich.console import Group
from rich.table import Table
from rich.text import Text

from pretask.evals.protocol import PROTOCOL, Scores
from pretask.workflows.audit import Audit

if TYPE_CHECKING:
    from pretask.workflows.cluster import Clusters
    from pretask.workflows.colorize import Coloured
    from pretask.workflows.study import Study

BLOCKS = (
    {"knn": "kNN", "linear": "linear", "best linear": "best stage"},
    {"1-shot": "1-shot", "5-shot": "5-shot", "10-shot": "10-shot", "100-shot": "100-shot"},
    {"nmi": "NMI", "ari": "ARI", "acc": "ACC", "recall@1": "R@1"},
    {"text@1": "its text@1", "text@10": "its text@10", "image@1": "an image@1", "image@10": "an image@10"},
    {"partner@1": "partner@1", "partner@5": "partner@5"},
    {"mlp": "MLP probe", "conv": "conv probe", "svm": "quadrant SVM"},
    {"finetune 10-shot": "tuned 10-shot", "finetune 100-shot": "tuned 100-shot", "finetune": "fine-tuned"},
    {"rankme": "RankMe", "alpha": "α", "std": "std", "cosine": "cosine"},
)
"""eval -> heading, for one table after the other, of what there is; each fits into 80 columns"""
MANY = 20
"""sizes of clusters that are told"""
DECIMALS = {"alpha": 2, "std": 4, "cosine": 3}
"""of all others 1"""


def render(scores: Scores) -> Group:
    """Tables of the same rows, and the notes that make their numbers mean something."""
    parts: list[Table | Text] = []
    for columns in BLOCKS:
        if any(r["eval"] in columns for r in scores.rows):
            parts += [block(scores, columns), Text()]
    return Group(*parts, *(Text(note, style="dim") for note in notes(scores)))


def block(scores: Scores, columns: Mapping[str, str]) -> Table:
    table = Table(box=None, pad_edge=False, padding=(0, 1))
    table.add_column("features", overflow="fold")  # numbers are never cut, names wrap
    there = [e for e in columns if any(r["eval"] == e for r in scores.rows)]
    for eval in there:
        table.add_column(columns[eval], justify="right", no_wrap=True)
    for name in dict.fromkeys(r["features"] for r in scores.rows):
        rows = [scores.get(name, eval, "pool" if eval == "linear" else None) for eval in there]
        if any(rows):
            own = any(r["own"] for r in rows if r)
            table.add_row(brief(name), *(cell(r) for r in rows), style="bold" if own else "")
    return table


def brief(name: str) -> str:
    """Without the options of an encoder, which the run card has: "untrained resnet_small:width=32" is so wide."""
    return re.sub(r":\w+=\S*", "", name)


def cell(row: Mapping[str, Any] | None) -> str:
    """41.2 ±0.6, and the stage in front where one was chosen."""
    if row is None:
        return "–"
    decimals = DECIMALS.get(row["eval"], 1)
    text = f"{row['value']:.{decimals}f}"
    if row["low"] is not None:
        text += f" ±{(row['high'] - row['low']) / 2:.1f}"
    stages = dict.fromkeys(c["stage"] for c in row["chosen"] if c.get("stage", "pool") != "pool")
    return f"({', '.join(stages)}) {text}" if stages else text


def notes(scores: Scores) -> Sequence[str]:
    data = scores.data
    own = next(r for r in scores.rows if r["own"])
    runs = (
        f", {len(own['values'])} runs (seeds {', '.join(map(str, own['seeds']))})"
        if len(own["values"]) > 1
        else ""
    )
    lines = [
        f"%, on {data['test']}, n = {data['n_test']:,}; {how(data)}{runs}",
        f"± is half of the interval: {PROTOCOL['interval']}.",
    ]
    if data["n_train"]:
        lines.append(f"Chosen: {PROTOCOL['chosen']}; no choice sees the test set.")
    for d in scores.differences:
        if d["minus"].startswith(("untrained", "k-means")) and d["eval"] != "knn":
            lines.append(f"{d['eval']}: {against(d)}")
    return [*lines, *scores.skipped]


def how(data: Mapping[str, Any]) -> str:
    """What was learned from, and what chance is; of tracks nothing, and one of all."""
    if not data["n_train"]:
        return f"nothing is trained; chance of partner@1 {100 / data['n_test']:.1f}"
    trained = f"trained on {data['train']}, n = {data['n_train']:,}"
    return f"{trained}; {len(data['classes'])} classes, chance {100 / len(data['classes']):.1f}"


def transferred(scores: Scores) -> Group:
    """One table of a task's numbers, and the notes that make them mean something."""
    task, data = scores.data["task"], scores.data
    evals = {e: e.removeprefix(f"{task} ") for e in dict.fromkeys(r["eval"] for r in scores.rows)}
    lead = next(iter(evals))
    own = next(r for r in scores.rows if r["own"])
    runs = f", {len(own['values'])} runs" if len(own["values"]) > 1 else ""
    lines = [
        f"% if no unit is named, on {data['test']}, n = {data['n_test']:,}; trained on {data['train']}, n = {data['n_train']:,}{runs}",
        f"{scores.protocol[task]}.",
        *(f"{short}: {scores.protocol[e]}." for e, short in evals.items()),
        f"± is half of the interval: {scores.protocol['interval']}.",
        *(
            f"{evals[d['eval']]}: {against(d)}"
            for d in scores.differences
            if d["eval"] == lead and d["low"] is not None
        ),
        *scores.skipped,
    ]
    return Group(block(scores, evals), Text(), *(Text(line, style="dim") for line in lines))


def against(difference: Mapping[str, Any]) -> str:
    d = difference
    return f"{d['value']:+.1f} [{d['low']:+.1f}, {d['high']:+.1f}] against {brief(d['minus'])}"


def audited(audit: Audit) -> Group:
    """What a solver scores without each clue, and how much that explains."""
    table = Table(box=None, pad_edge=False, padding=(0, 1))
    table.add_column("without")
    table.add_column("right, %", justify="right", no_wrap=True)
    table.add_column("explains, %", justify="right", no_wrap=True)
    table.add_column("the clue", style="dim")
    table.add_row("(as it is)", f"{audit.accuracy:.1f}", "", f"chance {audit.chance:.1f}")
    for f in audit.findings:
        share = "–" if f.explains is None else f"{f.explains:.0f} [{f.low:.0f}, {f.high:.0f}]"
        table.add_row(f.clue, f"{f.accuracy:.1f}", share, f.told_by, style="bold" if f.sure else "")
    return Group(
        table,
        Text(),
        Text(audit.verdict),
        Text(
            f"{audit.method} on {audit.data}, {audit.n:,} images. A clue explains at most the share of the accuracy above "
            "chance that goes with it: some of what an image shows goes too. Brackets: 95 % intervals over images.",
            style="dim",
        ),
    )


def coloured(made: "Coloured") -> Group:
    """How near painted colours are to the true ones, beside no colours at all."""
    table = Table(box=None, pad_edge=False, padding=(0, 1))
    table.add_column("colours")
    table.add_column("AuC, %", justify="right", no_wrap=True)
    table.add_column("every colour alike, %", justify="right", no_wrap=True)
    table.add_column("chroma", justify="right", no_wrap=True)
    for score in made.scores:
        shown = (score.raw, score.balanced, score.chroma)
        cells = (f"{i.value:.1f} [{i.low:.1f}, {i.high:.1f}]" for i in shown)
        table.add_row(score.colours, *cells)
    return Group(
        table,
        Text(),
        Text(
            f"Over {made.judged:,} images that have colours. AuC: the share of places whose ab is within a distance of "
            "the truth, averaged over distances from 0 to 150; chroma: their mean distance from grey. Brackets: 95 % "
            "intervals over images.",
            style="dim",
        ),
    )


def clustered(made: "Clusters") -> Group:
    """How large the clusters are and, where there are labels, how well they agree."""
    sizes = sorted(made.sizes, reverse=True)
    shown = ", ".join(f"{n:,}" for n in sizes[:MANY]) + (", …" if len(sizes) > MANY else "")
    how = "k-means" if made.by == "kmeans" else f"agglomerative, on {made.neighbours} nearest neighbours"
    parts = [
        Text(f"{made.n:,} images of {made.data} by {made.subject} ({how}): {len(sizes)} clusters of {shown}")
    ]
    if made.nmi and made.acc:
        scores = (
            f"{name} {i.value:.1f} [{i.low:.1f}, {i.high:.1f}]"
            for name, i in (("NMI", made.nmi), ("ACC", made.acc))
        )
        note = "%, against the labels, which nothing else has seen. NMI: geometric mean. Brackets: 95 % intervals over images."
        parts += [Text("   ".join(scores), style="bold"), Text(note, style="dim")]
    return Group(*parts)


ASKED = {
    "data": ("How much data?", "trained on"),
    "labels": ("How many labels?", "labels"),
    "change": ("How much do features change in fine-tuning?", "stage"),
    "supervised images": ("Pretrained with labels: on fewer images?", "images"),
    "supervised labels": ("Pretrained with labels: with fewer labels?", "labels"),
    "supervised classes": ("Pretrained with labels: of fewer classes?", "classes"),
}
"""question, and axis if there are several -> as it is asked, and what the rows of its answer are"""
WAYS = {
    ("knn", True): "kNN",
    ("linear", True): "linear",
    ("linear", False): "untrained, linear",
    ("finetune", True): "fine-tuned",
    ("finetune", False): "from scratch",
    ("cka", True): "CKA",
    ("cka", False): "untrained, CKA",
}
"""(eval, of the run or of the untrained encoder) -> heading"""
TAUGHT = {("knn", False): "with labels, kNN", ("linear", False): "with labels, linear"}
"""the same of the encoder that was pretrained with labels"""


@dataclass(frozen=True)
class Grid:
    """The answer to one question: rows of images, labels or stages, columns of what was measured."""

    question: str
    first: str
    columns: Sequence[str]
    lines: Sequence[tuple[str, Sequence[Mapping[str, Any] | None]]]
    skipped: Sequence[str]


def grids(study: "Study") -> dict[str, Grid]:
    """What a study found, for the terminal and for the page, by keys of ASKED."""
    found: dict[str, Grid] = {}
    for ask, answer in study.answers.items():
        for i, axis in enumerate(dict.fromkeys(row.get("axis", "") for row in answer.rows)):
            rows = [row for row in answer.rows if row.get("axis", "") == axis]
            at = {
                (name(ask, row), way(ask, row)): row for row in sorted(rows, key=lambda row: row.get("at", 0))
            }
            names, ways = (list(dict.fromkeys(key[i] for key in at)) for i in (0, 1))
            ways = [w for w in (*WAYS.values(), *TAUGHT.values()) if w in ways]
            lines = [(n, [at.get((n, w)) for w in ways]) for n in names]
            key = f"{ask} {axis}".strip()
            found[key] = Grid(*ASKED[key], ways, lines, () if i else answer.skipped)
    return found


def way(ask: str, row: Mapping[str, Any]) -> str:
    """The untrained encoder is the row of no images where data is asked for, else a column."""
    if ask == "supervised" and not row["own"]:
        return TAUGHT[row["eval"], False]
    return WAYS[row["eval"], row["own"] or ask == "data"]


def name(ask: str, row: Mapping[str, Any]) -> str:
    """Of a row: a stage, how many there are on an axis, or a share."""
    if ask == "change":
        return row["stage"]
    if ask == "supervised":
        return f"{row['at']:,}"
    return f"{row['images']:,} ({100 * row['share']:g} %)" if row["share"] else "0 (untrained)"


def studied(study: "Study") -> Group:
    """A table for each question."""
    parts: list[Table | Text] = []
    for grid in grids(study).values():
        table = Table(box=None, pad_edge=False, padding=(0, 1))
        table.add_column(grid.first, no_wrap=True)
        for column in grid.columns:
            table.add_column(column, justify="right", no_wrap=True)
        for name, cells in grid.lines:
            table.add_row(name, *map(measured, cells))
        parts += [
            Text(grid.question, style="bold"),
            table,
            *(Text(sentence, style="dim") for sentence in grid.skipped),
            Text(),
        ]
    data = study.data
    runs = max(len(answer.seeds) for answer in study.answers.values())
    return Group(
        *parts,
        Text(
            f"{study.method}, labelled {data['train']}, n = {data['n_train']:,}; scores in % on {data['test']}, "
            f"n = {data['n_test']:,}, {len(data['classes'])} classes, chance {100 / len(data['classes']):.1f}"
            f"{f'; {runs} runs' if runs > 1 else ''}. CKA: 1 is unchanged up to rotation and scale. ± is half of the "
            "95 % interval.",
            style="dim",
        ),
    )


def measured(row: Mapping[str, Any] | None) -> str:
    """41.2 ±0.6; CKA has two decimals."""
    if row is None:
        return "–"
    decimals = 2 if row["eval"] == "cka" else 1
    return f"{row['value']:.{decimals}f} ±{(row['high'] - row['low']) / 2:.{decimals}f}"

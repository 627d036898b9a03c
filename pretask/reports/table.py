"""The score table in the terminal: the run's features beside what they have to beat."""

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

from rich.console import Group
from rich.table import Table
from rich.text import Text

from pretask.auditing import Audit
from pretask.evals.evaluate import PROTOCOL, Scores

if TYPE_CHECKING:
    from pretask.colorizing import Coloured

BLOCKS = (
    {"knn": "kNN", "linear": "linear", "best linear": "best stage"},
    {"1-shot": "1-shot", "5-shot": "5-shot", "10-shot": "10-shot", "100-shot": "100-shot"},
    {"nmi": "NMI", "ari": "ARI", "acc": "ACC", "recall@1": "R@1"},
    {"mlp": "MLP probe", "conv": "conv probe"},
    {"finetune 10-shot": "tuned 10-shot", "finetune 100-shot": "tuned 100-shot", "finetune": "fine-tuned"},
    {"rankme": "RankMe", "alpha": "α", "std": "std", "cosine": "cosine"},
)
"""eval -> heading, for one table after the other, of what there is; each fits into 80 columns"""
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
    table.add_column("features", no_wrap=True)
    there = [e for e in columns if any(r["eval"] == e for r in scores.rows)]
    for eval in there:
        table.add_column(columns[eval], justify="right", no_wrap=True)
    for name in dict.fromkeys(r["features"] for r in scores.rows):
        rows = [scores.get(name, eval, "pool" if eval == "linear" else None) for eval in there]
        if any(rows):
            own = any(r["own"] for r in rows if r)
            table.add_row(name, *(cell(r) for r in rows), style="bold" if own else "")
    return table


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
        f"%, on {data['test']}, n = {data['n_test']:,}; trained on {data['train']}, n = {data['n_train']:,}; "
        f"{len(data['classes'])} classes, chance {100 / len(data['classes']):.1f}{runs}",
        f"± is half of the interval: {PROTOCOL['interval']}.",
        f"Chosen: {PROTOCOL['chosen']}; no choice sees the test set.",
    ]
    for d in scores.differences:
        if d["minus"].startswith(("untrained", "k-means")) and d["eval"] != "knn":
            lines.append(
                f"{d['eval']}: {d['value']:+.1f} [{d['low']:+.1f}, {d['high']:+.1f}] against {d['minus']}"
            )
    return [*lines, *scores.skipped]


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

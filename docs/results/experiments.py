"""The page of one experiment: commands, scores, differences, remarks, and a picture."""

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import curves
from matplotlib import rc_context
from matplotlib.figure import Figure
from outdated import OUTDATED

from pretask.evals import scores as kept_scores
from pretask.evals.scores import Difference, Measurement, Scores
from pretask.evals.scores import Row as ScoreRow

Row = Mapping[str, Any]

SHOWN = {
    Measurement("knn", "pool"): "kNN",
    Measurement("linear", "pool"): "linear",
    Measurement("best linear"): "best stage",
    Measurement("few-shot", "pool", shots=10): "10-shot",
    Measurement("nmi", "pool"): "NMI",
    **{
        Measurement(metric, "pool", k=k): f"{whose} {metric}@{k}"
        for metric, whose in (("text", "its"), ("image", "an"))
        for k in (1, 10)
    },
    **{Measurement("track recall", "pool", k=k): f"track recall@{k}" for k in (1, 5)},
    Measurement("finetune", shots=10): "tuned 10-shot",
    Measurement("finetune", shots=100): "tuned 100-shot",
    Measurement("finetune"): "fine-tuned",
}
"""measurement -> heading of its column"""
COLORS: Mapping[str, str] = {
    "run": "#3f51b5",
    "published": "#2a9d8f",
    "untrained": "#9e9e9e",
    "pixels": "#c9a227",
    "patches": "#d1495b",
    "supervised": "#7f6a93",
    "floor": "#8d6e63",
}
"""role of a row -> its color on all pages"""


@dataclass(frozen=True)
class Experiment:
    """Stored results of one experiment."""

    folder: Path

    @property
    def name(self) -> str:
        return self.folder.name

    @cached_property
    def scores(self) -> Scores:
        return kept_scores.read(self.folder / "scores.json")

    @cached_property
    def card(self) -> Row:
        """The run card of the first run."""
        return read(self.folder / "run-s0.json")

    @cached_property
    def about(self) -> Row:
        return read(self.folder / "about.json")

    @property
    def title(self) -> str:
        return self.about["title"]

    @property
    def seeds(self) -> int:
        return len(self.scores.rows[0].seeds)


def find(folder: Path) -> list[Experiment]:
    """All experiments in a folder, sorted by name."""
    return [Experiment(path.parent) for path in sorted(folder.glob("*/scores.json"))]


def write(experiment: Experiment) -> None:
    """Write the page and the picture of an experiment into its folder."""
    (experiment.folder / "index.md").write_text(page(experiment))
    picture(experiment)


def page(experiment: Experiment) -> str:
    """Commands, length, picture, table and differences, as Markdown."""
    scores, card, about = experiment.scores, experiment.card, experiment.about
    seeds = experiment.seeds
    return "\n".join(
        [
            f"# {experiment.title}\n",
            "```sh",
            *(command.replace(" --", " \\\n    --") for command in about["commands"]),
            "```\n",
            f"{card['steps']:,} steps of {card['train']['batch']} images of {card['size']} px with "
            f"`{card['encoder']}`, {seeds} seed{'s' * (seeds > 1)}; the first run {took(about)} on "
            f"{card['device']}, {card['threads']} thread{'s' * (card['threads'] > 1)}, {card['precision']}, "
            f"torch {card['versions']['torch']}.\n",
            "![Loss, mean and range over runs; scores with their intervals](picture.svg)\n",
            *table(scores),
            "",
            *(
                f"- {line}"
                for line in (
                    *differences(scores),
                    *units(scores),
                    *extras(about),
                    *older(experiment.name, card),
                )
            ),
            "",
            "[All results](../index.md)",
            "",
        ]
    )


def took(about: Row) -> str:
    return f"took {about['took']:.0f} s" if about["took"] else "was interrupted and resumed,"


def read(path: Path) -> Any:
    return json.loads(path.read_text())


def deeper(text: str) -> str:
    """Text of a stored result, written for the page of all results, adapted to a page one folder below it."""
    return text.replace("](../", "](../../").replace(
        "this page at commit", "the [results](../index.md) at commit"
    )


# ---- tables


def columns(scores: Scores) -> dict[Measurement, str]:
    """Shown measurements -> headings; metrics of a task keep their names."""
    if scores.data.get("task"):
        return {Measurement(row.metric): row.metric for row in scores.rows}
    keys = {row.key for row in scores.rows}
    return {what: heading for what, heading in SHOWN.items() if what.key in keys}


def table(scores: Scores) -> list[str]:
    shown = columns(scores)
    return [
        f"| features | {' | '.join(shown.values())} |",
        "|---|" + "---:|" * len(shown),
        *(
            f"| {name} | {' | '.join(cell(scores.find(name, what)) for what in shown)} |"
            for name in scores.names
        ),
    ]


def cell(row: ScoreRow | None) -> str:
    """The value and the chosen stages."""
    stages = dict.fromkeys(c["stage"] for c in row.chosen if "stage" in c) if row else ()
    return number(row) + (f" ({', '.join(stages)})" if stages else "")


def number(row: ScoreRow | None) -> str:
    return spread(vars(row), 2 if row.metric == "rmse" else 1) if row else "–"  # rmse: meters


def spread(score: Row, places: int = 1) -> str:
    known = score["low"] is not None
    return f"{score['value']:.{places}f}" + (
        f" ±{(score['high'] - score['low']) / 2:.{places}f}" if known else ""
    )


def differences(scores: Scores) -> list[str]:
    """One line per baseline: differences of the run from it."""
    headings = {what.key: heading for what, heading in columns(scores).items()}
    found: dict[str, list[str]] = {d.minus: [] for d in scores.differences}
    for d in scores.differences:
        found[d.minus].append(f"{headings[d.key]} {signed(d)}")
    return [f"minus {other}: {', '.join(each)}" for other, each in found.items()]


def signed(difference: Difference) -> str:
    return "{value:+.1f} [{low:+.1f}, {high:+.1f}]".format(**vars(difference))


def units(scores: Scores) -> list[str]:
    """Definitions of a task's metrics."""
    task = scores.data.get("task")
    return [f"{what.metric}: {scores.protocol[what.metric]}" for what in columns(scores) if task]


def plus_minus(found: Sequence[float]) -> str:
    return f"{found[0]:.1f} ±{found[1]:.1f}"


def older(name: str, card: Row) -> list[str]:
    """A remark if the default recipe has changed since the measurement."""
    if name not in OUTDATED:
        return []
    return [
        f"measured at commit {card['commit'][:7]}, before {OUTDATED[name]} changed the default recipe; the commands above now give other "
        "numbers"
    ]


def extras(about: Row) -> list[str]:
    """Lines about additional measurements of an experiment."""
    found = []
    if "patches" in about:
        at = about["patches"]
        found.append(
            f"k-means patches with about the time budget of the first run: {at['centers']:,} centers, fitted and embedded in "
            f"{at['seconds']} s: linear {at['linear']:.1f}, kNN {at['knn']:.1f}"
        )
    rounds = about.get("rounds", ())
    for number, row in enumerate(rounds, 1):
        text = f"after {number} of {len(rounds)} rounds: kNN of the memory bank {plus_minus(row['knn'])}"
        if "anchors" in row:
            text += (
                f"; {plus_minus(row['pure'])} % of the next {row['anchors']:,} anchors have a neighbor of their "
                f"class, {plus_minus(row['of all'])} % of all images"
            )
        found.append(text)
    return found + ([deeper(about["remark"])] if "remark" in about else [])


# ---- picture


def reach(row: ScoreRow) -> list[list[float]] | None:
    """Distances of a row's interval bounds from its value, for error bars; None without an interval."""
    if row.low is None or row.high is None:
        return None
    return [[row.value - row.low], [row.high - row.value]]


def picture(experiment: Experiment) -> None:
    """Write picture.svg: the loss on the left, scores with their intervals on the right."""
    scores = experiment.scores
    figure = Figure(figsize=(9, 2.8), layout="constrained")
    loss, score = figure.subplots(1, 2, width_ratios=(5, 4))
    curve = read(experiment.folder / curves.FILE)
    found = curve["columns"]["loss"]
    loss.plot(curve["step"], found["mean"], color=COLORS["run"], lw=1.4)
    loss.fill_between(curve["step"], found["low"], found["high"], color=COLORS["run"], alpha=0.2, lw=0)
    loss.set(xlabel="step", title="loss, mean and range over runs" if curve["runs"] > 1 else "loss")
    task = scores.data.get("task")
    shown = [*columns(scores).items()][: 1 if task else 4]  # metrics of a task have different units
    middle = (len(scores.names) - 1) / 2
    for i, name in enumerate(scores.names):
        for j, (what, _) in enumerate(shown):
            if row := scores.find(name, what):
                y, bar = -j + 0.72 / len(scores.names) * (middle - i), reach(row)
                label = name.partition(":")[0] if j == 0 else None  # without the encoder's arguments
                score.errorbar(row.value, y, xerr=bar, fmt="o", color=COLORS[row.role], ms=4, label=label)
    score.set(
        title=task or "accuracy, %", yticks=range(0, -len(shown), -1), yticklabels=[h for _, h in shown]
    )
    figure.legend(loc="outside lower center", ncols=4, frameon=False, fontsize=8)
    for axes in (loss, score):
        axes.spines[["top", "right"]].set_visible(False)
        axes.grid(color="#e6e6e6", lw=0.8)
        axes.set_axisbelow(True)
        axes.title.set_size(10)
    save(figure, experiment.folder / "picture.svg")


def save(figure: Figure, path: Path) -> None:
    with rc_context({"svg.hashsalt": "pretask"}):  # the same file from the same numbers
        figure.savefig(path, metadata={"Date": None})

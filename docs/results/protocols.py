"""Tables and charts of all experiments that share a protocol: data, labels, test images, cores and precision."""

import re
import textwrap
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import experiments
from experiments import Experiment, columns, number, reach, signed
from matplotlib.figure import Figure
from outdated import OUTDATED

from pretask.evals.scores import Measurement
from pretask.evals.scores import Row as ScoreRow

DATASETS = {
    ("cifar10_train_full_jpeg", "cifar10_test_full_jpeg"): "CIFAR-10",
    ("cifar10_train", "cifar10_test"): "CIFAR-10",
    ("train", "val"): "Imagenette",
    ("mnist_train", "mnist_test3k"): "MNIST",
    ("mnist_test3k (80 %)", "mnist_test3k (20 % set aside)"): "MNIST",
    ("coil20 (80 %)", "coil20 (20 % set aside)"): "COIL-20",
    ("train", "test"): "Figures of an astronomy textbook",
    ("four fifths", "all folds"): "Figures of an astronomy textbook, five folds",
    ("nothing", "test"): "Tracks in video clips",
    ("seven_scenes", "seven_scenes (each fifth in turn)"): "7-Scenes, five folds",
    ("coco_semantic (80 %)", "coco_semantic (20 % set aside)"): "COCO",
    ("coco_mini train2017", "coco_mini val2017"): "COCO",
}
"""names of the training and the test data -> title"""
LEFT_OUT = (
    ", from JPEG files",
    ", on CIFAR-10",
    " on CIFAR-10",
    " of CIFAR-10",
    " on Imagenette",
    " on MNIST",
)
"""parts of an experiment's title that the protocol's title states"""
PRECISIONS = {"bf16-mixed": "bf16", "32-true": "fp32"}
LINEAR = Measurement("linear", "pool")
CHARTS = "charts"
"""folder of the charts"""
BASELINES = {"pixels": "#c9a227", "patches": "#d1495b", "supervised": "#2a9d8f", "floor": "#c9a227"}
"""role of a baseline -> its color"""
RUN, UNTRAINED = "#3f51b5", "#a9b1dd"


@dataclass(frozen=True)
class Protocol:
    """What two experiments must share for a comparison of their scores."""

    task: str
    """downstream task; "": classification or retrieval with frozen features"""
    train: str
    n_train: int
    test: str
    n_test: int
    threads: int
    precision: str
    device: str

    @property
    def title(self) -> str:
        task = f"{self.task.capitalize()}, " if self.task else ""
        labels = (
            f"{self.n_train:,} {'labeled images' if self.task else 'labels'}" if self.n_train else "no labels"
        )
        cores = f"{self.threads} {self.device.upper()} core{'s' * (self.threads > 1)}"
        return (
            f"{task}{DATASETS[self.train, self.test]}, {labels}, {self.n_test:,} test images · {cores}, "
            f"{PRECISIONS[self.precision]}"
        )

    @property
    def chart(self) -> str:
        """Path of the chart."""
        return f"{CHARTS}/{re.sub('[^a-z0-9]+', '-', self.title.lower().replace(',', ''))}.svg"


def protocol(experiment: Experiment) -> Protocol:
    data, card = experiment.scores.data, experiment.card
    return Protocol(
        data.get("task", ""),
        *(data[key] for key in ("train", "n_train", "test", "n_test")),
        *(card[key] for key in ("threads", "precision", "device")),
    )


def group(found: Sequence[Experiment]) -> dict[Protocol, list[Experiment]]:
    """Protocol -> its experiments, the highest score first; protocols with most experiments first, downstream tasks last."""
    groups: dict[Protocol, list[Experiment]] = {}
    for experiment in found:
        groups.setdefault(protocol(experiment), []).append(experiment)
    order = sorted(groups, key=lambda each: (bool(each.task), -len(groups[each]), each.title))
    return {each: sorted(groups[each], key=lambda e: main_score(e).value, reverse=True) for each in order}


def section(shared: Protocol, group: Sequence[Experiment]) -> list[str]:
    """Heading, chart and table of a protocol, as lines of Markdown."""
    outdated = any(experiment.name in OUTDATED for experiment in group)
    return [
        f"## {shared.title}\n",
        f"![Experiments with their 95 % intervals and baselines; {x_label(group[0])}]({shared.chart})\n",
        *table(group),
        "",
        *(["† measured before its [default recipe changed](changes/index.md)\n"] if outdated else []),
    ]


# ---- rows


def main(experiment: Experiment) -> Measurement:
    """The measurement that charts show: the linear probe, or else the first one."""
    shown = columns(experiment.scores)
    return LINEAR if LINEAR in shown else next(iter(shown))


def main_score(experiment: Experiment) -> ScoreRow:
    score = score_of(experiment, "run")
    assert score
    return score


def score_of(experiment: Experiment, role: str) -> ScoreRow | None:
    """The main measurement of the features with a role."""
    key = main(experiment).key
    return next((row for row in experiment.scores.rows if (row.role, row.key) == (role, key)), None)


def label(experiment: Experiment) -> str:
    """The title without what the protocol's title states, and a mark if the recipe is outdated."""
    title = experiment.title
    for part in LEFT_OUT:
        title = title.replace(part, "")
    return f"{title} †" if experiment.name in OUTDATED else title


def table(group: Sequence[Experiment]) -> list[str]:
    """A row for each experiment, then one for each baseline at each image size."""
    shown = {what: heading for experiment in group for what, heading in columns(experiment.scores).items()}
    difference = f"{shown[main(group[0])]} − untrained"
    return [
        f"| experiment | image size | seeds | steps | seconds | {' | '.join(shown.values())} | {difference} |",
        f"|---|{'---:|' * (len(shown) + 5)}",
        *(run_line(experiment, [*shown]) for experiment in group),
        *baseline_lines(group, [*shown]),
    ]


def run_line(experiment: Experiment, shown: Sequence[Measurement]) -> str:
    """The scores of an experiment, and the paired difference from its untrained encoder; steps and time of the first run."""
    card, took = experiment.card, experiment.about["took"]
    cells = [
        f"[{label(experiment)}]({experiment.name}/index.md)",
        f"{card['size']} px",
        str(experiment.seeds),
        f"{card['steps']:,}",
        f"{took:.0f}" if took else "–",
        *scores_of(experiment, main_score(experiment).name, shown),
        *(
            signed(each)
            for each in experiment.scores.differences
            if (each.minus_role, each.key) == ("untrained", main(experiment).key)
        ),
    ]
    return f"| {' | '.join(cells)} |"


def baseline_lines(group: Sequence[Experiment], shown: Sequence[Measurement]) -> list[str]:
    """Baselines are the same for all experiments with images of one size."""
    sizes = sorted({experiment.card["size"] for experiment in group})
    lines = {}
    for experiment in sorted(group, key=lambda each: each.card["size"]):
        size = experiment.card["size"]
        names = {row.name: row for row in experiment.scores.rows if row.role in BASELINES}
        for name, row in names.items():
            title = baseline(row) + (f", {size} px" if len(sizes) > 1 else "")
            cells = [
                title,
                f"{size} px",
                str(len(row.seeds)),
                "",
                "",
                *scores_of(experiment, name, shown),
                "",
            ]
            lines[f"| {' | '.join(cells)} |"] = None
    return [*lines]


def baseline(row: ScoreRow) -> str:
    return "supervised" if row.role == "supervised" else row.name  # without the encoder's arguments


def scores_of(experiment: Experiment, name: str, shown: Sequence[Measurement]) -> list[str]:
    return [number(experiment.scores.find(name, what)) for what in shown]


# ---- chart


def chart(group: Sequence[Experiment], path: Path) -> None:
    """Write an SVG: a row per experiment, with its main score, its untrained encoder and its baselines."""
    labels = [textwrap.fill(label(experiment), 30) for experiment in group]
    figure = Figure(figsize=(6.2, 1.2 + 0.34 * len(group)), layout="constrained")
    axes = figure.subplots()
    named = {}
    for y, experiment in enumerate(group):
        for role, color in BASELINES.items():
            if row := score_of(experiment, role):
                line = axes.vlines(row.value, y - 0.5, y + 0.5, color=color, lw=1.6)
                named[baseline(row)] = line
        if row := score_of(experiment, "untrained"):
            named["untrained encoder"] = axes.plot(row.value, y, "o", color=UNTRAINED, ms=6)[0]
        row = main_score(experiment)
        named["pretrained encoder"] = axes.errorbar(
            row.value, y, xerr=reach(row), fmt="o", color=RUN, ms=5, capsize=2
        )
    axes.set(yticks=range(len(group)), yticklabels=labels, ylim=(len(group) - 0.5, -0.5))
    axes.set_xlabel(textwrap.fill(x_label(group[0]), 60))
    axes.tick_params(axis="y", length=0, labelsize=9)
    axes.spines[["top", "right", "left"]].set_visible(False)
    axes.grid(axis="x", color="#e6e6e6", lw=0.8)
    axes.set_axisbelow(True)
    figure.legend(
        [*named.values()][::-1],
        [*named][::-1],
        loc="outside upper center",
        ncols=4,
        frameon=False,
        fontsize=9,
    )
    experiments.save(figure, path)


def x_label(experiment: Experiment) -> str:
    """The main measurement and its unit."""
    scores, measured = experiment.scores, main(experiment)
    if scores.data.get("task"):
        return f"{measured.metric}: {scores.protocol[measured.metric]}"
    if measured == LINEAR:
        return "linear probe on pooled features, accuracy in %"
    return f"{columns(scores)[measured]}, %"

"""Makes the page of measured results and its pictures from the folders beside this file."""

import json
import math
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

import curves
import numpy as np
from matplotlib import rc_context
from matplotlib.figure import Figure

from pretask.evals import scores as kept_scores
from pretask.evals.confidence import student_interval
from pretask.evals.scores import Measurement, Scores
from pretask.evals.scores import Row as ScoreRow
from pretask.reports import table as tables
from pretask.workflows.study import Study, answered

Row = Mapping[str, Any]

INTRODUCTION = """\
# Measured results

Made by `python docs/results/make.py`, which runs the commands below. Each folder beside this page holds the scores, the
cards of the runs (settings, versions, device) and their training curves (`curve.json`), to compare yours with. [Which
method?](../which-method.md) draws conclusions for choosing one. Values are %, on held-out test images; ± is half of the 95 % interval.

Before you compare numbers:

- The CIFAR-10 here is a copy in JPEG of quality 75, so its numbers cannot be compared with published ones.
- If a command says `cifar10_train.npz`, the run was scored with 8,000 labels on 2,000 test images. Compare only within a section.
- CPUs with native bf16 run about twice as many steps per minute. The line below the commands says what was used.
- RotNet, neighborhood discovery and the denoising autoencoder were scored when the penalty of the probe was searched in whole decades; it is
  now searched in half decades, so expect differences of a few tenths if you repeat them.
- Everything scored with 2,000 labels or fewer (Imagenette, text topics, tracks) was scored when k, penalty and stage were chosen on one
  split, and all k-means patches when patches were drawn with replacement and k-means made twelve passes over them.
- Text topics, video triplets and cross-domain tasks were trained beside one or two other jobs on the same two cores: alone, they would
  take less time, and ten minutes of video triplets would hold more steps.
"""
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
SHORTCUTS = ("edges", "JPEG grid", "fringes", "shading", "fine traces")
FOLDS = "text_topic-folds"
OWED = {
    **dict.fromkeys(("exemplar-imagenette", "exemplar-cifar10"), "47def2c"),
    **dict.fromkeys(("context-imagenette", "context-cifar10", "context-lossless"), "47def2c"),
    **dict.fromkeys(("jigsaw-imagenette", "jigsaw-cifar10", "jigsaw-grid", "jigsaw-no-grid"), "47def2c"),
    **dict.fromkeys(("damaged-imagenette", "damaged-cifar10"), "47def2c"),
    **dict.fromkeys(
        (f"{name}-cifar10" for name in ("barlow_twins", "swav", "dino", "ibot", "ijepa", "lejepa")), "47def2c"
    ),
    **dict.fromkeys(("text_topic-astronomy", "text_topic-cifar10", FOLDS), "47def2c"),
    **dict.fromkeys(("mae-cifar10", "mae-imagenette"), "d2eb21a"),
    **dict.fromkeys(
        (
            f"cross_domain-{name}"
            for name in (
                "imagenette",
                "cifar10",
                "normals",
                "depth",
                "normals-tuned",
                "depth-tuned",
                "segmentation",
                "classification",
                "detection",
            )
        ),
        "891903c",
    ),
}
"""experiments that have to be repeated -> the commit that changed the default recipe since"""
OWED_STUDIES = {
    **dict.fromkeys(("exemplar-copies", "context-gap"), "47def2c"),
    **dict.fromkeys(("scene-adversary", "scene-tasks"), "891903c"),
}
"""the same for orderings"""
COLORS = ("#3f51b5", "#9e9e9e", "#c9a227", "#d1495b")
"""of the run, the untrained encoder, raw pixels and k-means patches"""


def write(folder: Path, names: Sequence[str]) -> None:
    """Write index.md, and a picture for each experiment of `names` whose scores exist."""
    parts = [INTRODUCTION]
    for name in names:
        if (folder / name / "scores.json").exists():
            parts.append(section(folder / name))
            picture(folder / name)
    if studies := sorted((folder / "orderings").glob("*.json")):
        parts.append(orderings({path.stem: read(path) for path in studies}))
    if found := sorted((folder / "changes").glob("*.json")):
        parts.append(changes([read(path) for path in found]))
    if (kept := folder / "stacks" / "mnist.json").exists():
        parts.append(stacks(read(kept)))
    if sets := sorted((folder / "clusters").glob("*.json")):
        parts.append(clusters([read(path) for path in sets]))
    if sets := sorted((folder / "choices").glob("*.json")):
        parts.append(choices([read(path) for path in sets]))
    if (kept := folder / "patches" / "cifar10.json").exists():
        parts.append(patches(read(kept)))
    if (kept := folder / "supervised" / "cifar10.json").exists():
        parts.append(supervised(kept_scores.read_json(kept)))
    if (kept := folder / "shuffling" / "cifar10.json").exists():
        parts.append(shuffling(read(kept)))
    parts += [paintings(folder / "painting"), audits(folder / "audits"), speed(folder / "speed")]
    (folder / "index.md").write_text("\n".join(parts))


def took(about: dict[str, Any]) -> str:
    return f"took {about['took']:.0f} s" if about["took"] else "was interrupted and resumed,"


def section(kept: Path) -> str:
    """Commands, length, picture, table and differences of one experiment, as Markdown."""
    scores = kept_scores.read(kept / "scores.json")
    card, about = (read(kept / f) for f in ("run-s0.json", "about.json"))
    seeds = len(scores.rows[0].seeds)
    return "\n".join(
        [
            f"## {about['title']}\n",
            "```sh",
            *(command.replace(" --", " \\\n    --") for command in about["commands"]),
            "```\n",
            f"{card['steps']:,} steps of {card['train']['batch']} images of {card['size']} px with "
            f"`{card['encoder']}`, {seeds} seed{'s' * (seeds > 1)}; the first run {took(about)} on "
            f"{card['device']}, {card['threads']} thread{'s' * (card['threads'] > 1)}, {card['precision']}, "
            f"torch {card['versions']['torch']}.\n",
            f"![Loss, mean and range over runs; scores with their intervals]({kept.name}/picture.svg)\n",
            *table(scores),
            "",
            *(
                f"- {line}"
                for line in (*differences(scores), *units(scores), *extras(about), *older(kept.name, card))
            ),
            "",
        ]
    )


def read(path: Path) -> Any:
    return json.loads(path.read_text())


def orderings(studies: Mapping[str, Row]) -> str:
    """A table per study, with the paper's claim."""
    lines = [
        "## Orderings that the papers report, in small\n",
        "Made by `python docs/results/orderings.py`: the same number of steps for each arm, on one core. *Linear* is the probe on "
        "pooled features of Imagenette, *solved* the accuracy on the pretext task at the end of training, %; the task differs "
        "between arms, and the accuracy stays at chance if its head is not trained. Brackets are differences from the first arm.\n",
    ]
    if any("domain accuracy" in study["n"] for study in studies.values()):
        lines.append(
            "*CIFAR-10* is the same probe there, with 8,000 labels; *domain accuracy* is that of a new linear probe that "
            "separates rendered images from photographs by the discriminator's input, %.\n"
        )
    for name, study in studies.items():
        solved = any(arm["solved"] is not None for arm in study["arms"])
        shown = [*study["n"]]
        lines += [
            f"**`{study['method']}`**, {study['seeds']} seeds: {study['paper']}\n",
            f"| arm | {'solved | ' if solved else ''}{' | '.join(shown)} |",
            "|---|" + "---:|" * (len(shown) + solved),
        ]
        for arm in study["arms"]:
            cells = [f"{arm['solved']:.1f}"] if solved else []
            cells += [f"{spread(arm[score])}{against(arm[score]['difference'])}" for score in shown]
            lines.append(f"| {arm['arm']}: `{arm['command']}` | {' | '.join(cells)} |")
        if name in OWED_STUDIES:
            lines.append(f"\n(made before {OWED_STUDIES[name]} changed the default recipe)")
        lines.append("")
    return "\n".join(lines)


def against(less: Row | None) -> str:
    return "" if less is None else f" [{less['low']:+.1f}, {less['high']:+.1f}]"


def owed() -> str:
    return (
        "Other rows of these methods on this page, where marked, and their numbers in the README were made with older default "
        "recipes. To repeat them:\n\n"
        f"```sh\npython docs/results/make.py {' '.join(name for name in OWED if name != FOLDS)} --data FOLDER\n"
        f"python docs/results/folds.py --data FOLDER\npython docs/results/orderings.py {' '.join(OWED_STUDIES)} --data FOLDER\n```\n"
    )


def changes(found: Sequence[Row]) -> str:
    """Default recipes before and after they were compared with papers and released code."""
    rows = []
    for one in found:
        solved = {when: np.mean(each) for when, each in one["solved"].items()}
        share = "" if math.isnan(solved["after"]) else f"{solved['before']:.1f} → {solved['after']:.1f}"
        cells = [f"`{one['method']}`: {one['what']}", str(one["seeds"]), share]
        for kind in ("kNN", "linear"):
            before, after, off = (one[kind][when] for when in ("before", "after", "difference"))
            cells.append(
                f"{before['value']:.1f} → {after['value']:.1f}, {off['value']:+.1f} [{off['low']:+.1f}, {off['high']:+.1f}]"
            )
        rows.append(f"| {' | '.join(cells)} |")
    first = found[0]
    return "\n".join(
        [
            "## Default recipes that changed\n",
            "Made by `python docs/results/changes.py`: the same seeds before (commit "
            f"{first['before']}) and after the recipes were compared with papers and released code, "
            f"`{first['command'].replace(first['method'], 'METHOD')}` (text_topic: figures and captions of a textbook; cross_domain: with rendered rooms; mae, ijepa and ibot: 1,500 steps, patches of 12 px), on one core. *Solved* is the accuracy on the pretext task in the last "
            "tenth of the run, %; kNN and linear probe use pooled features on Imagenette's test images, %, with the paired "
            "difference and its interval.\n",
            f"{owed()}\n",
            "| what changed | seeds | solved | kNN | linear |",
            "|---|---:|---:|---:|---:|",
            *rows,
            "",
            *(painted(one) for one in found if "painted" in one),
        ]
    )


def painted(change: Row) -> str:
    """Scores of `pretask colorize` for the runs before and after a change."""
    kinds = {"raw": "AuC", "balanced": "balanced AuC", "chroma": "chroma"}

    def mean(when: str, colors: str, kind: str) -> str:
        return f"{np.mean([one[colors][kind] for one in change['painted'][when]]):.1f}"

    scores = "; ".join(
        f"{what} {mean('before', 'painted', kind)} → {mean('after', 'painted', kind)} (gray {mean('after', 'none', kind)})"
        for kind, what in kinds.items()
    )
    return (
        f"Colors of the runs of `{change['method']}` ([the scores](#painting)), mean over seeds: {scores}.\n"
    )


def choices(found: Sequence[Row]) -> str:
    """Regret of each way to choose, mean over encoders and draws of labels."""
    rules = [*found[0]["rows"][0]["regret"]["linear"]]
    kinds = {"linear": "stage and penalty", "knn": "k"}
    lines = [
        "## What a choice from few labels costs\n",
        "Made by `python docs/results/choices.py`: for each dataset, two short runs and an untrained encoder, and 20 draws of the "
        "labels. Each number is a regret: the difference in test accuracy between the best candidate in hindsight and the one "
        "chosen on training labels, in points (mean ± standard error). *One split* holds out a fifth once; *folds* are five, "
        "stratified and repeated, as in `pretask evaluate` up to 2,000 labels; *one standard error* takes the deepest stage, "
        "the strongest penalty and the largest k within one standard error of the best. Candidates were solved to 1e-3 nats (commit 352556a); they are now solved to 1e-4.\n",
    ]
    for kind, what in kinds.items():
        lines += [
            f"**{what}**\n",
            f"| set | labels | {' | '.join(rules)} |",
            "|---|---:|" + "---:|" * len(rules),
        ]
        for name in [*dict.fromkeys(each["set"] for each in found), "all"]:
            rows = [row for each in found if name in (each["set"], "all") for row in each["rows"]]
            for n in sorted({row["labels"] for row in rows}):
                of = [row["regret"][kind] for row in rows if row["labels"] == n]
                cells = [mean_error([each[rule] for each in of]) for rule in rules]
                lines.append(f"| {name} | {n:,} | {' | '.join(cells)} |")
        lines.append("")
    return "\n".join(lines)


def supervised(found: Row) -> str:
    """The run and the same encoder pretrained with labels, a table per axis."""
    data = found["data"]
    lines = [
        "## What pretraining with labels would have given\n",
        "Made by `python docs/results/supervised.py`, one seed:\n",
        "```sh",
        *(command.replace(" --", " \\\n    --") for command in found["commands"]),
        "```\n",
        f"{data['n_train']:,} training images, {data['n_test']:,} test images; all encoders are frozen, and scored with all "
        "labels. An encoder that is pretrained with labels cannot use an unlabeled image, so fewer labels mean "
        "fewer images for it, but not for the run.\n",
    ]
    study = Study(found["method"], data, {"supervised": answered(**found["answers"]["supervised"])})
    for grid in tables.grids(study).values():
        lines += [
            f"**{grid.title}**\n",
            f"| {grid.first} | {' | '.join(grid.columns)} |",
            "|---:|" + "---:|" * len(grid.columns),
            *(f"| {name} | {' | '.join(map(tables.measured, cells))} |" for name, cells in grid.lines),
            "",
        ]
    return "\n".join(lines)


def stacks(found: Row) -> str:
    """Test error after fine-tuning, with and without pretraining."""
    n = found["n"]
    lines = [
        "## Stacks, fine-tuned\n",
        f"Made by `python docs/results/stacks.py`: {n['train']:,} digits for training, {n['valid']:,} to choose the best of "
        f"{found['epochs']} epochs, {n['test']:,} for the test, all from MNIST's training images; three layers of "
        f"500 units, {found['seeds']} seeds. SGD, {found['batch']} images per step, learning rate {found['rate']:g}. Error in % with its "
        "95 % interval, and the paired difference from the first row. The paper, with three layers of 1,000 to 3,000 units, tuned "
        "settings, and also 10,000 digits (MNIST-basic): SDAE 2.84, SAE 3.46; with 50,000: 1.28 and 1.40 (table 3, quoted from summaries of it).\n",
        "| stack | error | difference |",
        "|---|---:|---:|",
    ]
    for arm in found["arms"]:
        error, less = arm["error"], arm["difference"]
        reach = (error["high"] - error["low"]) / 2
        name = f"{arm['arm']}: `{arm['command']}`" if arm["command"] else arm["arm"]
        off = "" if less is None else f"{less['value']:+.2f} [{less['low']:+.2f}, {less['high']:+.2f}]"
        lines.append(f"| {name} | {error['value']:.2f} ±{reach:.2f} | {off} |")
    significant = [
        arm
        for arm in found["arms"]
        if arm["difference"] and arm["difference"]["low"] * arm["difference"]["high"] > 0
    ]
    remark = [] if significant else ["- no difference is significant: every interval contains 0"]
    return "\n".join([*lines, "", *remark, f"- {found['pilots']}", ""])


def shuffling(found: Row) -> str:
    """Information that queries and keys exchange through shared batch norms."""
    lines = [
        "## Batch norms that queries and keys share\n",
        f"Made by `python docs/results/shuffling.py`: MoCo on 8,000 images, {found['seeds']} seeds. kNN on {found['n']:,} test images with "
        "its 95 % interval, and the paired difference from the first row. Last column, after training: how much lower InfoNCE is "
        f"if keys share the batch norms of their queries, an eighth of the batch, than if keys are shuffled among the eighths (mean ± standard error over "
        f"{found['batches']} batches, one value per seed).\n",
        "| network | kNN | difference | lower by |",
        "|---|---:|---:|---|",
    ]
    for arm in found["arms"]:
        score, less = arm["kNN"], arm["difference"]
        off = "" if less is None else f"{less['value']:+.1f} [{less['low']:+.1f}, {less['high']:+.1f}]"
        reach = (score["high"] - score["low"]) / 2
        lower = ", ".join(f"{one['lower']:.3f} ±{one['error']:.3f}" for one in arm["leak"])
        lines.append(
            f"| {arm['arm']}: `{arm['command']}` | {score['value']:.1f} ±{reach:.1f} | {off} | {lower} |"
        )
    lines.append(f"| untrained | {found['untrained']['value']:.1f} | | |")
    return "\n".join([*lines, ""])


def patches(rows: Sequence[Row]) -> str:
    """The k-means patches baseline with few and with many images."""
    lines = [
        "## k-means patches of few images\n",
        "Made by `python docs/results/patches.py`: 200,000 patches used to be drawn *with repetition* for any number of images, and k-means "
        "made twelve passes over them. Now *every place* is drawn at most *once*, and k-means uses at most as many "
        "patches as were drawn, in mini-batches. Scores use the labels of the same images, on 2,000 test images of "
        "CIFAR-10, %; seconds are those of one core until the centers are found; means of three draws, of one for 50,000 images.\n",
        "| images | patches | drawn | seconds | kNN | linear |",
        "|---:|---|---:|---:|---:|---:|",
        *(
            f"| {row['images']:,} | {row['way']} | {row['drawn']:,.0f} | {row['seconds']:.1f} | {row['kNN']:.1f} "
            f"| {row['linear']:.1f} |"
            for row in rows
        ),
    ]
    return "\n".join([*lines, ""])


def mean_error(values: Sequence[float]) -> str:
    return f"{np.mean(values):.2f} ±{np.std(values) / len(values) ** 0.5:.2f}"


def clusters(sets: Sequence[Row]) -> str:
    """Agreement of clusters with the labels, a table per dataset."""
    lines = [
        "## Clusters\n",
        "Made by `python docs/results/clusters.py`: NMI (geometric mean) and ACC against the labels, %, with 95 % "
        "intervals over images; for a run of JULE, those of its own clusters ([how it merges](../clustering.md)). "
        "These intervals do not cover the seed: runs differ by more.\n",
    ]
    for found in sets:
        lines += [
            f"**{found['title']}.** {found['published']}\n",
            "| command | NMI | ACC |",
            "|---|---:|---:|",
        ]
        for row in found["rows"]:
            lines.append(f"| `{row['command']}` | {spread(row['nmi'])} | {spread(row['acc'])} |")
        runs = [row for row in found["rows"] if " pretrain " in row["command"]]
        nmi, acc = (
            asdict(student_interval(np.array([run[score]["value"] for run in runs]), 0.0, runs[0]["n"]))
            for score in ("nmi", "acc")
        )
        lines += [f"| mean of {len(runs)} runs, interval over runs | {spread(nmi)} | {spread(acc)} |", ""]
    return "\n".join(lines)


def paintings(kept: Path) -> str:
    """Similarity of predicted and true colors, a table per folder of `kept`, named after its images; the files
    are the output of `pretask colorize --json`, with its command."""
    lines = [
        "## Painting\n",
        "Scores of `pretask colorize`: AuC over all pixels, and with every color weighted equally (balanced), %, and the mean distance "
        "from gray (chroma; [definitions](../colorize.md)). Low temperatures give the most likely color, 1 the mean. The "
        "runs of the second table are those of the [orderings](#orderings-that-the-papers-report-in-small): 300 steps each.\n",
    ]
    for images in sorted(kept.iterdir()):
        lines += ["| colors | AuC | balanced AuC | chroma |", "|---|---:|---:|---:|"]
        rows: dict[str, str] = {}
        for found in (read(path) for path in sorted(images.glob("*.json"))):
            for score in found["scores"]:
                numbers = " | ".join(spread(score[name]) for name in ("raw", "balanced", "chroma"))
                name = f"`{found['command']}`" if score["colors"] == "predicted" else score["colors"]
                rows.setdefault(name, f"| {name} | {numbers} |")
        last = [rows.pop(name) for name in ("gray", "true")]
        lines += [*rows.values(), *last, ""]
    return "\n".join(lines)


def spread(score: Row, places: int = 1) -> str:
    known = score["low"] is not None
    return f"{score['value']:.{places}f}" + (
        f" ±{(score['high'] - score['low']) / 2:.{places}f}" if known else ""
    )


def audits(kept: Path) -> str:
    """Accuracy of runs and explained shares of shortcuts: the files are the output of `pretask audit RUN --json`, and how
    the run was made."""
    lines = [
        "## Audits\n",
        "`pretask audit` on runs of a few minutes: accuracy, and the share of the accuracy above chance that each shortcut "
        "explains at most, %; see [shortcuts](../shortcuts.md#two-examples).\n",
        f"| run | accuracy | chance | {' | '.join(SHORTCUTS)} |",
        "|---|---:|---:|" + "---:|" * len(SHORTCUTS),
    ]
    for found in (read(path) for path in sorted(kept.glob("*.json"))):
        found_by_name = {each["shortcut"]: each for each in found["findings"]}
        shares = " | ".join(
            "{explained_share:.0f} [{low:.0f}, {high:.0f}]".format(**found_by_name[name])
            for name in SHORTCUTS
        )
        lines.append(f"| `{found['command']}` | {found['accuracy']:.1f} | {found['chance']:.1f} | {shares} |")
    return "\n".join([*lines, ""])


def speed(kept: Path) -> str:
    """Output of each benchmark in `kept` with --json: its ratios, their goals, and the machine."""
    lines = []
    for bench in (read(path) for path in sorted(kept.glob("*.json"))):
        on = bench["machine"]
        device = on["instructions"] if on["gpu"] == "none" else on["gpu"]
        lines.append(f"- `{bench['command']}` ({device}, {on['precision']}, torch {on['torch']})")
        for goal in bench["goals"]:
            limit = f"{'<' if goal['less'] else '≥'} {goal['limit']:g} {goal['unit']}"
            met = "" if goal["met"] else ", **not met**"
            lines.append(f"    - {goal['what']}: {goal['value']:.3g} {goal['unit']} (goal {limit}{met})")
        lines += [f"    - {bench['remark']}"] if "remark" in bench else []
    where = "Measured on two cores of an x86-64 CPU, or one GPU and 16 cores, with nothing else running.\n"
    return "\n".join(["## Speed\n", where, *lines, ""])


# ---- words


def columns(scores: Scores) -> dict[Measurement, str]:
    """Shown measurements -> headings; metrics of a task have their own names."""
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
    if row is None:
        return "–"
    stages = dict.fromkeys(c["stage"] for c in row.chosen if "stage" in c)
    where = f" ({', '.join(stages)})" if stages else ""
    return f"{spread(vars(row), 2 if row.metric == 'rmse' else 1)}{where}"  # meters


def differences(scores: Scores) -> list[str]:
    """One line per baseline: the run's differences from it."""
    headings = {what.key: heading for what, heading in columns(scores).items()}
    found: dict[str, list[str]] = {d.minus: [] for d in scores.differences}
    for d in scores.differences:
        found[d.minus].append(f"{headings[d.key]} {d.value:+.1f} [{d.low:+.1f}, {d.high:+.1f}]")
    return [f"minus {other}: {', '.join(each)}" for other, each in found.items()]


def units(scores: Scores) -> list[str]:
    """Definitions of a task's metrics."""
    task = scores.data.get("task")
    return [f"{what.metric}: {scores.protocol[what.metric]}" for what in columns(scores) if task]


def plus_minus(found: Sequence[float]) -> str:
    return f"{found[0]:.1f} ±{found[1]:.1f}"


def older(name: str, card: Row) -> list[str]:
    """A remark if the default recipe has changed since."""
    if name not in OWED:
        return []
    return [
        f"made at commit {card['commit'][:7]}, before {OWED[name]} changed the default recipe; the commands above now give other "
        "numbers"
    ]


def extras(about: Row) -> list[str]:
    """Lines about what only this experiment measured."""
    found = []
    if "patches" in about:
        at = about["patches"]
        found.append(
            f"k-means patches with about the time budget of the first run: {at['centers']:,} centers, learned and embedded in "
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
    return found + ([about["remark"]] if "remark" in about else [])


# ---- picture


def reach(row: ScoreRow) -> list[list[float]] | None:
    """Distances of a row's interval bounds from its value, for error bars; None without an interval."""
    if row.low is None or row.high is None:
        return None
    return [[row.value - row.low], [row.high - row.value]]


def picture(kept: Path) -> None:
    """Write picture.svg: the loss on the left, scores with their intervals on the right."""
    scores = kept_scores.read(kept / "scores.json")
    figure = Figure(figsize=(9, 2.8), layout="constrained")
    loss, score = figure.subplots(1, 2, width_ratios=(5, 4))
    curve = json.loads((kept / curves.FILE).read_text())
    found = curve["columns"]["loss"]
    loss.plot(curve["step"], found["mean"], color=COLORS[0], lw=1.4)
    loss.fill_between(curve["step"], found["low"], found["high"], color=COLORS[0], alpha=0.2, lw=0)
    loss.set(xlabel="step", title="loss, mean and range over runs" if curve["runs"] > 1 else "loss")
    task = scores.data.get("task")
    shown = [*columns(scores).items()][: 1 if task else 4]  # metrics of a task have different units
    for i, (name, color) in enumerate(zip(scores.names, COLORS, strict=False)):
        for j, (what, _) in enumerate(shown):
            if row := scores.find(name, what):
                y, bar = -j + 0.18 * (1.5 - i), reach(row)
                label = name.partition(":")[0] if j == 0 else None  # without the encoder's arguments
                score.errorbar(row.value, y, xerr=bar, fmt="o", color=color, ms=4, label=label)
    score.set(
        title=task or "accuracy, %", yticks=range(0, -len(shown), -1), yticklabels=[h for _, h in shown]
    )
    figure.legend(loc="outside lower center", ncols=4, frameon=False, fontsize=8)
    for axes in (loss, score):
        axes.spines[["top", "right"]].set_visible(False)
        axes.grid(color="#e6e6e6", lw=0.8)
        axes.set_axisbelow(True)
        axes.title.set_size(10)
    with rc_context({"svg.hashsalt": "pretask"}):  # the same file from the same numbers
        figure.savefig(kept / "picture.svg", metadata={"Date": None})

"""The page of the measured results and its pictures, from the folders beside this file."""

import json
import math
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

import numpy as np
from matplotlib import rc_context
from matplotlib.figure import Figure

from pretask.evals.confidence import over_runs
from pretask.reports import table as tables
from pretask.workflows.study import Answer, Study

Row = Mapping[str, Any]

INTRODUCTION = """\
# Measured results

Made by `python docs/results/make.py`, which runs the commands below. Each folder beside this page holds the scores, the
cards of the runs (settings, versions, device) and a thinned log of each, to compare a loss curve with. Values are %, on
test images that no choice has seen; ± is half of the 95 % interval. The CIFAR-10 here is a copy in JPEG of quality 75, so
these numbers are not to be compared with published ones; where a command says `cifar10_train.npz`, it was scored with
8,000 labels on 2,000 test images, so that sections compare within themselves. A minute is worth about twice as many
steps on a processor with bf16 as on one without: the line below the commands says which it was. RotNet, neighbourhood
discovery and the denoising autoencoder were scored while the probe's penalty was searched in whole decades; now that it is
halves of them, expect differences of some tenths where they are made again. Everything scored with 2,000 labels or fewer (Imagenette,
text topics, tracks) was scored while k, penalty and stage were chosen on one split, and all k-means patches while patches were
drawn with repetition, and k-means went over all of them twelve times. Text topics, video triplets and cross-domain
tasks were trained beside one or two other jobs on the same two cores: alone they would take less time, and of video triplets
ten minutes would hold more steps.
"""
SHOWN = (
    ("knn", "kNN"),
    ("linear", "linear"),
    ("best linear", "best stage"),
    ("10-shot", "10-shot"),
    ("nmi", "NMI"),
)
MORE = (
    *(
        (f"{kind}@{k}", f"{whose} {kind}@{k}")
        for kind, whose in (("text", "its"), ("image", "an"))
        for k in (1, 10)
    ),
    *((f"partner@{k}", f"partner@{k}") for k in (1, 5)),
    ("finetune 10-shot", "tuned 10-shot"),
    ("finetune 100-shot", "tuned 100-shot"),
    ("finetune", "fine-tuned"),
)
CLUES = ("edges", "JPEG grid", "fringes", "shading", "fine traces")
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
"""experiments to be made again -> the commit by which the default recipe has changed since"""
OWED_STUDIES = {
    **dict.fromkeys(("exemplar-copies", "context-gap"), "47def2c"),
    **dict.fromkeys(("scene-adversary", "scene-tasks"), "891903c"),
}
"""the same of orderings"""
COLOURS = ("#3f51b5", "#9e9e9e", "#c9a227", "#d1495b")
"""of the run, the untrained encoder, raw pixels and k-means patches"""


def write(folder: Path, names: Sequence[str]) -> None:
    """index.md, and a picture for each of the experiments `names` that is there."""
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
        parts.append(supervised(read(kept)))
    if (kept := folder / "shuffling" / "cifar10.json").exists():
        parts.append(shuffling(read(kept)))
    parts += [paintings(folder / "painting"), audits(folder / "audits"), speed(folder / "speed")]
    (folder / "index.md").write_text("\n".join(parts))


def took(about: dict[str, Any]) -> str:
    return f"took {about['took']:.0f} s" if about["took"] else "was cut off, and resumed,"


def section(kept: Path) -> str:
    """Commands, length, picture, table and differences of one experiment, as Markdown."""
    scores, card, about = (read(kept / f) for f in ("scores.json", "run-s0.json", "about.json"))
    seeds = len(scores["rows"][0]["seeds"])
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
            f"![Loss of each run, and scores with their intervals]({kept.name}/picture.svg)\n",
            *table(scores),
            "",
            *(
                f"- {said}"
                for said in (*differences(scores), *units(scores), *extras(about), *older(kept.name, card))
            ),
            "",
        ]
    )


def read(path: Path) -> Any:
    return json.loads(path.read_text())


def orderings(studies: Mapping[str, Row]) -> str:
    """A table for each study: what the paper says, what came out."""
    lines = [
        "## Orderings that the papers report, in small\n",
        "Made by `python docs/results/orderings.py`: as many steps for each arm, on one core. *Linear* is the probe on "
        "pooled features of Imagenette, *solved* the share of puzzles at the end of training, %, which is another puzzle in "
        "every arm; where the head that tells it is not trained, it stays at chance. Brackets are against the first arm.\n",
    ]
    if any("told apart" in study["n"] for study in studies.values()):
        lines.append(
            "*CIFAR-10* is the same probe there, with 8,000 labels; *told apart* how often a fresh linear probe tells "
            "rendered images from photographs, by the map that the judge sees, %.\n"
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
        "Other rows on this page of these methods, where it is said beside them, and what the README says of them, were made by the "
        "default recipes of an older time. To make them again:\n\n"
        f"```sh\npython docs/results/make.py {' '.join(name for name in OWED if name != FOLDS)} --data FOLDER\n"
        f"python docs/results/folds.py --data FOLDER\npython docs/results/orderings.py {' '.join(OWED_STUDIES)} --data FOLDER\n```\n"
    )


def changes(found: Sequence[Row]) -> str:
    """Default recipes before and after they were held against papers and released code."""
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
            f"{first['before']}) and after recipes were held against papers and released code, "
            f"`{first['command'].replace(first['method'], 'METHOD')}` (text_topic: figures and captions of a textbook; cross_domain: rendered rooms beside them; mae, ijepa and ibot: 1,500 steps, patches of 12 px), on one core. *Solved* is the share of puzzles in the last "
            "tenth of the run, %; kNN and linear probe of pooled features on Imagenette's test images, %, and the paired "
            "difference with its interval.\n",
            f"{owed()}\n",
            "| what changed | seeds | solved | kNN | linear |",
            "|---|---:|---:|---:|---:|",
            *rows,
            "",
            *(painted(one) for one in found if "painted" in one),
        ]
    )


def painted(change: Row) -> str:
    """What `pretask colorize` said of the runs of a painter before and after."""
    kinds = {"raw": "AuC", "balanced": "every color alike", "chroma": "chroma"}

    def mean(when: str, colours: str, kind: str) -> str:
        return f"{np.mean([one[colours][kind] for one in change['painted'][when]]):.1f}"

    said = "; ".join(
        f"{what} {mean('before', 'painted', kind)} → {mean('after', 'painted', kind)} (gray {mean('after', 'none', kind)})"
        for kind, what in kinds.items()
    )
    return (
        f"What the runs of `{change['method']}` paint ([the measures](#painting)), mean over seeds: {said}.\n"
    )


def choices(found: Sequence[Row]) -> str:
    """How far below the best in hindsight each way to choose ends, mean over encoders and draws of labels."""
    rules = [*found[0]["rows"][0]["regret"]["linear"]]
    kinds = {"linear": "stage and penalty", "knn": "k"}
    lines = [
        "## What a choice from few labels costs\n",
        "Made by `python docs/results/choices.py`: for each set, two short runs and an untrained encoder, and 20 draws of the "
        "labels. Each number is a regret: by how many points of test accuracy the candidate that was chosen on training labels "
        "is below the best in hindsight (mean, ± its standard error). *One split* holds a fifth out once; *folds* are five, "
        "stratified and repeated, as `pretask evaluate` has them up to 2,000 labels; *one standard error* takes the deepest stage, "
        "the strongest penalty and the largest k that the folds cannot tell from the best. Candidates were solved to within 1e-3 nats (commit 352556a); they are solved to within 1e-4 now.\n",
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
    """The run beside the same encoder pretrained with labels, a table for each axis."""
    data = found["data"]
    lines = [
        "## What pretraining with labels would have given\n",
        "Made by `python docs/results/supervised.py`, one seed:\n",
        "```sh",
        *(command.replace(" --", " \\\n    --") for command in found["commands"]),
        "```\n",
        f"{data['n_train']:,} training images, {data['n_test']:,} test images; all encoders are frozen, and scored with all "
        "labels. An image without a label teaches the encoder that is pretrained with labels nothing, so fewer labels are "
        "fewer images to it, but not to the run.\n",
    ]
    study = Study(found["method"], data, {"supervised": Answer(**found["answers"]["supervised"])})
    for grid in tables.grids(study).values():
        lines += [
            f"**{grid.question}**\n",
            f"| {grid.first} | {' | '.join(grid.columns)} |",
            "|---:|" + "---:|" * len(grid.columns),
            *(f"| {name} | {' | '.join(map(tables.measured, cells))} |" for name, cells in grid.lines),
            "",
        ]
    return "\n".join(lines)


def stacks(found: Row) -> str:
    """Test error after fine-tuning, with pretraining and without."""
    n = found["n"]
    lines = [
        "## Stacks, fine-tuned\n",
        f"Made by `python docs/results/stacks.py`: {n['train']:,} digits to learn from, {n['valid']:,} that say which of "
        f"{found['epochs']} epochs is best, {n['test']:,} for the test, all from MNIST's training images; three layers of "
        f"500 units, {found['seeds']} seeds. SGD, {found['batch']} images a step, rate {found['rate']:g}. Error in %, with its "
        "95 % interval, and the paired difference against the first row. The paper, with three layers of 1,000 to 3,000 units, settings that "
        "were searched, and 10,000 digits as well (MNIST-basic): SDAE 2.84, SAE 3.46; with 50,000: 1.28 and 1.40 (table 3, as summaries of it say).\n",
        "| stack | error | difference |",
        "|---|---:|---:|",
    ]
    for arm in found["arms"]:
        error, less = arm["error"], arm["difference"]
        reach = (error["high"] - error["low"]) / 2
        name = f"{arm['arm']}: `{arm['command']}`" if arm["command"] else arm["arm"]
        off = "" if less is None else f"{less['value']:+.2f} [{less['low']:+.2f}, {less['high']:+.2f}]"
        lines.append(f"| {name} | {error['value']:.2f} ±{reach:.2f} | {off} |")
    sure = [
        arm
        for arm in found["arms"]
        if arm["difference"] and arm["difference"]["low"] * arm["difference"]["high"] > 0
    ]
    unsure = [] if sure else ["- none of the differences is sure: every interval holds 0"]
    return "\n".join([*lines, "", *unsure, f"- {found['pilots']}", ""])


def shuffling(found: Row) -> str:
    """What queries and keys tell each other through batch norms that they share."""
    lines = [
        "## Batch norms that queries and keys share\n",
        f"Made by `python docs/results/shuffling.py`: MoCo on 8,000 images, {found['seeds']} seeds. kNN on {found['n']:,} test images with "
        "its 95 % interval, and the paired difference against the first row. The last column, after training: how much lower InfoNCE is "
        f"where keys share the batch norms of their queries, an eighth of the batch, than where keys are shuffled among the eighths (mean of "
        f"{found['batches']} batches and its standard error, one value for each seed).\n",
        "| network | kNN | difference | lower by |",
        "|---|---:|---:|---|",
    ]
    for arm in found["arms"]:
        score, less = arm["kNN"], arm["difference"]
        off = "" if less is None else f"{less['value']:+.1f} [{less['low']:+.1f}, {less['high']:+.1f}]"
        reach = (score["high"] - score["low"]) / 2
        told = ", ".join(f"{one['lower']:.3f} ±{one['error']:.3f}" for one in arm["told"])
        lines.append(
            f"| {arm['arm']}: `{arm['command']}` | {score['value']:.1f} ±{reach:.1f} | {off} | {told} |"
        )
    lines.append(f"| untrained | {found['untrained']['value']:.1f} | | |")
    return "\n".join([*lines, ""])


def patches(rows: Sequence[Row]) -> str:
    """The baseline of k-means patches from few and from many images."""
    lines = [
        "## k-means patches of few images\n",
        "Made by `python docs/results/patches.py`: 200,000 patches were drawn *with repetition* however few the images, and k-means "
        "went over all of them twelve times. Now *every place* is drawn *once*, no more than there are, and k-means is shown as many "
        "patches as were drawn at most, by mini-batches. Scores are those of the labels of the same images on 2,000 test images of "
        "CIFAR-10, %, seconds those of one core, until the centers are found; means of three draws, of 50,000 images one.\n",
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
    """How well clusters agree with the labels, a table for each set."""
    lines = [
        "## Clusters\n",
        "Made by `python docs/results/clusters.py`: NMI (geometric mean) and ACC against the labels, %, with 95 % "
        "intervals over images; of a run of JULE those of the clusters that it sorts the images into ([how it merges](../clustering.md)). "
        "Each run is one draw: they differ by more than their intervals say.\n",
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
            asdict(over_runs(np.array([run[score]["value"] for run in runs]), 0.0, runs[0]["n"]))
            for score in ("nmi", "acc")
        )
        lines += [f"| mean of {len(runs)} runs, interval over runs | {spread(nmi)} | {spread(acc)} |", ""]
    return "\n".join(lines)


def paintings(kept: Path) -> str:
    """How near painted colours are to the true ones, a table for each folder of `kept`, named after its images: the files
    are what `pretask colorize --json` printed, and how."""
    lines = [
        "## Painting\n",
        "What `pretask colorize` said: AuC, once over all places and once with every colour alike, %, and the mean distance "
        "from grey ([what they are](../colorize.md)). Low temperatures paint the likeliest colour, 1 the mean of all. The "
        "runs of the second table are those of the [orderings](#orderings-that-the-papers-report-in-small): 300 steps each.\n",
    ]
    for images in sorted(kept.iterdir()):
        lines += ["| colours | AuC | every colour alike | chroma |", "|---|---:|---:|---:|"]
        rows: dict[str, str] = {}
        for found in (read(path) for path in sorted(images.glob("*.json"))):
            for score in found["scores"]:
                numbers = " | ".join(spread(score[name]) for name in ("raw", "balanced", "chroma"))
                name = f"`{found['command']}`" if score["colours"] == "painted" else score["colours"]
                rows.setdefault(name, f"| {name} | {numbers} |")
        last = [rows.pop(name) for name in ("none", "true")]
        lines += [*rows.values(), *last, ""]
    return "\n".join(lines)


def spread(score: Row) -> str:
    places = 2 if score.get("eval", "").endswith("rmse") else 1  # metres
    known = score["low"] is not None
    return f"{score['value']:.{places}f}" + (
        f" ±{(score['high'] - score['low']) / 2:.{places}f}" if known else ""
    )


def audits(kept: Path) -> str:
    """How far runs solved their puzzle by each clue: the files are what `pretask audit RUN --json` printed, and how the
    run was made."""
    lines = [
        "## Audits\n",
        "What `pretask audit` said of runs of some minutes: how many answers were right, and how much of what is above "
        "chance goes with a clue, %, at most; what it means is told in [shortcuts](../shortcuts.md#two-that-were-caught).\n",
        f"| run | right | chance | {' | '.join(CLUES)} |",
        "|---|---:|---:|" + "---:|" * len(CLUES),
    ]
    for found in (read(path) for path in sorted(kept.glob("*.json"))):
        clues = {each["clue"]: each for each in found["findings"]}
        shares = " | ".join("{explains:.0f} [{low:.0f}, {high:.0f}]".format(**clues[clue]) for clue in CLUES)
        lines.append(f"| `{found['command']}` | {found['accuracy']:.1f} | {found['chance']:.1f} | {shares} |")
    return "\n".join([*lines, ""])


def speed(kept: Path) -> str:
    """What each benchmark in `kept` printed with --json: its ratios beside their goals, and where they come from."""
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
    where = (
        "Printed on two cores of an x86-64 processor, or one GPU and 16 cores, with nothing else running.\n"
    )
    return "\n".join(["## Speed\n", where, *lines, ""])


# ---- words


def features(scores: Row) -> list[str]:
    """Whose rows the table has, the runs first."""
    return list(dict.fromkeys(row["features"] for row in scores["rows"]))


def find(scores: Row, name: str, eval: str) -> Row | None:
    stage = "pool" if eval == "linear" else None
    rows = [r for r in scores["rows"] if (r["features"], r["eval"]) == (name, eval)]
    return next((r for r in rows if stage in (None, r.get("stage"))), None)


def columns(scores: Row) -> list[tuple[str, str]]:
    """Each eval that is shown, and its heading: those of a task by their own names."""
    there = dict.fromkeys(row["eval"] for row in scores["rows"])
    if task := scores["data"].get("task"):
        return [(eval, eval.removeprefix(f"{task} ")) for eval in there]
    return [column for column in (*SHOWN, *MORE) if column[0] in there]


def table(scores: Row) -> list[str]:
    shown = columns(scores)
    return [
        f"| features | {' | '.join(heading for _, heading in shown)} |",
        "|---|" + "---:|" * len(shown),
        *(
            f"| {name} | {' | '.join(cell(find(scores, name, eval)) for eval, _ in shown)} |"
            for name in features(scores)
        ),
    ]


def cell(row: Row | None) -> str:
    if row is None:
        return "–"
    stages = dict.fromkeys(c["stage"] for c in row["chosen"] if "stage" in c)
    where = f" ({', '.join(stages)})" if stages else ""
    return f"{spread(row)}{where}"


def differences(scores: Row) -> list[str]:
    """One sentence for each row that the run stands against."""
    headings, found = dict(columns(scores)), scores["differences"]
    said: dict[str, list[str]] = {d["minus"]: [] for d in found}
    for d in found:
        said[d["minus"]].append(
            f"{headings[d['eval']]} {d['value']:+.1f} [{d['low']:+.1f}, {d['high']:+.1f}]"
        )
    return [f"against {other}: {', '.join(each)}" for other, each in said.items()]


def units(scores: Row) -> list[str]:
    """What the numbers of a task are."""
    task = scores["data"].get("task")
    return [f"{heading}: {scores['protocol'][eval]}" for eval, heading in columns(scores) if task]


def plus_minus(found: Sequence[float]) -> str:
    return f"{found[0]:.1f} ±{found[1]:.1f}"


def older(name: str, card: Row) -> list[str]:
    """A remark where the default recipe has changed since."""
    if name not in OWED:
        return []
    return [
        f"made at commit {card['commit'][:7]}, before {OWED[name]} changed the default recipe; the commands above give other "
        "numbers now"
    ]


def extras(about: Row) -> list[str]:
    """Sentences for what only this experiment measured."""
    said = []
    if "patches" in about:
        at = about["patches"]
        said.append(
            f"k-means patches in about the time of the first run: {at['centres']:,} centres, learned and embedded in "
            f"{at['seconds']} s: linear {at['linear']:.1f}, kNN {at['knn']:.1f}"
        )
    rounds = about.get("rounds", ())
    for number, row in enumerate(rounds, 1):
        text = f"when {number} of {len(rounds)} rounds are over: kNN of the bank {plus_minus(row['knn'])}"
        if "anchors" in row:
            text += (
                f"; of the {row['anchors']:,} next anchors {plus_minus(row['pure'])} have a neighbour of their "
                f"class, of all images {plus_minus(row['of all'])}"
            )
        said.append(text)
    return said + ([about["remark"]] if "remark" in about else [])


# ---- picture


def reach(row: Row) -> list[list[float]] | None:
    """Of an interval, to both sides of its value."""
    if row["low"] is None:
        return None
    return [[row["value"] - row["low"]], [row["high"] - row["value"]]]


def picture(kept: Path) -> None:
    """picture.svg: the loss of every run on the left, scores with their intervals on the right."""
    scores = read(kept / "scores.json")
    figure = Figure(figsize=(9, 2.8), layout="constrained")
    loss, score = figure.subplots(1, 2, width_ratios=(5, 4))
    for log in sorted(kept.glob("log-s*.jsonl")):
        rows = [json.loads(line) for line in log.read_text().splitlines()]
        loss.plot([r["step"] for r in rows], [r["loss"] for r in rows], color=COLOURS[0], alpha=0.7, lw=1.2)
    loss.set(xlabel="step", title="loss, one line for each run")
    task = scores["data"].get("task")
    shown = columns(scores)[: 1 if task else 4]  # those of a task have several units
    for i, (name, colour) in enumerate(zip(features(scores), COLOURS, strict=False)):
        for j, (eval, _) in enumerate(shown):
            if row := find(scores, name, eval):
                y, bar = -j + 0.18 * (1.5 - i), reach(row)
                label = name.partition(":")[0] if j == 0 else None  # the table has an encoder's arguments
                score.errorbar(row["value"], y, xerr=bar, fmt="o", color=colour, ms=4, label=label)
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

"""From encoders to scores: every protocol on every row, each setting chosen on held-out training samples.

`evaluate` embeds, `measure` (its own file) scores one pair of training and test features, `combined` puts several
runs together.
"""

import copy
import json
import math
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from pretask.encoders import Encoder
from pretask.evals import baselines, fewshot, knn
from pretask.evals import cluster_metrics as clustering
from pretask.evals import finetune as tuning
from pretask.evals import linear_probe as linear
from pretask.evals import nonlinear_probes as probing
from pretask.evals import svm as machines
from pretask.evals import text_retrieval as crossmodal
from pretask.evals.confidence import LEVEL, RESAMPLES, interval, over_runs
from pretask.evals.features import embed
from pretask.evals.holdout import FEW, FIT, FOLDS, HELD, REPEATS, Part, split
from pretask.evals.measure import Result, choose, feasible, measure
from pretask.rng import Rng
from pretask.runtime import files as checkpoint
from pretask.types import Labelled, UserError

SCHEMA = 1
TEST_SHARE = 0.2
"""of each class, where no test set is given"""
PROTOCOL = {
    "features": "evaluation mode, no augmentation, one pass; maps average-pooled to at most 4096 numbers",
    "knn": f"pooled features, cosine, votes exp(s/{knn.TEMPERATURE}), k among {list(knn.NEIGHBOURS)}",
    "linear": "multinomial logistic regression to the optimum on standardised features; penalty among "
    f"{list(linear.PENALTIES)} (C = 1 / (penalty n))",
    "best linear": "the same at the stage that is best on held-out training samples",
    "few-shot": f"linear probe on pooled features of {fewshot.DRAWS} draws, penalty {fewshot.PENALTY} fixed; mean over draws",
    "clustering": f"k-means of the pooled test features, k = classes, unit length, best of {clustering.RESTARTS}; "
    "ACC under the best one-to-one map",
    "recall@K": "hit rate among the K nearest test samples, itself excluded, cosine, pooled features",
    "text@K, image@K": "of images with texts: hit rate of a test image's own text among the K nearest of the different test "
    "texts, and of an image of a text among the K nearest test images; by KL(text ‖ image) of the topics, an image's by the "
    "run's own head, if it has one, else by a linear probe on pooled features",
    "partner@K": "of tracks: hit rate of a track's later patch among the K nearest later patches to its first one, cosine, "
    "pooled features, without tracks of the same clip and time; nothing is trained",
    "label-free": "RankMe, α of the spectrum, mean std per dimension (1/√D at best) and mean cosine of unit rows; test, pooled",
    "finetune": f"on request: encoder and linear classifier trained on the labels, AdamW, lr {tuning.TRAIN.lr}, layer decay "
    f"{tuning.DECAY} (untrained: 1), shifts and flips, {tuning.STEPS} steps of {tuning.TRAIN.batch} images at any number of "
    "labels; nothing chosen, last weights; N-shot: one draw for each run",
    "mlp, conv": "on request: RotNet's two non-linear probes, SGD, lr 0.1 falling in its proportions, "
    f"{probing.STEPS} steps of {probing.SGD.batch}; frozen map, no augmentation, pooled to {probing.SIDE} x {probing.SIDE} at "
    "most; the map that the linear probe is best on among held-out training samples",
    "svm": "on request: Exemplar-CNN's read-out, linear SVMs, each class against the others, squared hinge, on the maximum of "
    f"every map of every stage in each quadrant; stages divided by their {machines.PERCENTILE}th percentile on training "
    "samples; penalty as for linear",
    "chosen": f"k, penalty and stage on held-out training samples: of up to {FEW} by {FOLDS} stratified folds, repeated up to "
    f"{REPEATS} times; of more on 20 % of them (at most {HELD}), fitted to at most {FIT} others, and the penalty in proportion",
    "interval": f"{LEVEL:.0%}, bootstrap over test samples ({RESAMPLES} resamples); of NMI, ARI and several runs "
    "Student's t, with the variances of runs and of test samples added",
}

COMPARED = (
    *(("knn", "pool"), ("linear", "pool"), ("best linear", ""), ("mlp", ""), ("conv", ""), ("svm", "")),
    *((f"{kind}@{k}", "pool") for kind in ("text", "image") for k in crossmodal.AT),
    *((tuning.eval_name(shots), "") for shots in (*tuning.SHOTS, None)),
)
"""(eval, stage) of which differences are taken, where both rows have them"""


@dataclass(frozen=True)
class Scores:
    """What `evaluate` found, and the JSON that it is kept as.

    {"schema": 1, "data": {"train", "n_train", "test", "n_test", "classes"}, "protocol": {eval: sentence},
     "rows": [row, …], "differences": [difference, …], "skipped": [sentence, …], "seconds": {features: s}}

    row: {"features": whose, "own": true for the runs that are judged, "eval": "knn" | "linear" | "best linear" |
    "1-shot" … | "nmi" | "ari" | "acc" | "recall@1" … | "rankme" | "alpha" | "std" | "cosine" | "mlp" | "conv" | "svm" |
    "finetune" | "finetune 10-shot" | "finetune 100-shot" | "partner@1" …, "stage", "value", "low", "high" (both null where the number
    has no interval), "n": test samples, "data": the test set's name, "seeds": of the runs, "values": of each run,
    "chosen": settings of each run, and a few-shot score's draws}. Values are percentages, but for rankme, alpha, std
    and cosine. "best linear", "mlp" and "conv" have no "stage": their stages are in "chosen"; "finetune" and
    "svm" have none.

    difference: {"features", "minus", "eval", "value", "low", "high"}, paired over test samples and runs.

    Of a transfer (transfer.py) "data" has the "task" as well, "eval" begins with it, and "protocol" is the task's own.
    """

    data: Mapping[str, Any]
    rows: Sequence[Mapping[str, Any]]
    differences: Sequence[Mapping[str, Any]]
    skipped: Sequence[str]
    seconds: Mapping[str, float]
    protocol: Mapping[str, str] = field(default_factory=lambda: PROTOCOL)

    def to_json(self) -> str:
        whole = {"schema": SCHEMA, "data": self.data, "protocol": self.protocol}
        return json.dumps(whole | asdict(self), indent=2, allow_nan=False)

    def write(self, folder: Path) -> Path:
        """`scores/TEST.json` in a run's folder; of a transfer `scores/TASK-TEST.json`."""
        path = self.path(folder)
        path.parent.mkdir(parents=True, exist_ok=True)
        checkpoint.write_text(path, self.to_json() + "\n")
        return path

    def path(self, folder: Path) -> Path:
        named = [self.data[key] for key in ("task", "test") if key in self.data]
        return folder / "scores" / file_name("-".join(named))

    def get(self, features: str, eval: str, stage: str | None = None) -> Mapping[str, Any] | None:
        """The first row of that name."""
        return next(
            (
                r
                for r in self.rows
                if (r["features"], r["eval"]) == (features, eval) and stage in (None, r.get("stage"))
            ),
            None,
        )


def file_name(test: str) -> str:
    """That of what was found on a test set."""
    plain = "".join(c if c.isalnum() or c in "-_." else "-" for c in test).strip("-.")
    return f"{plain or 'scores'}.json"


# ---- the whole


def evaluate(
    encoders: Sequence[Encoder],
    train: Labelled,
    test: Labelled | None = None,
    *,
    name: str = "encoder",
    seeds: Sequence[int] = (0,),
    fresh: Sequence[Encoder] = (),
    heads: Sequence[crossmodal.Head] = (),
    seed: int = 0,
    supervised_steps: int | None = None,
    finetune: bool = False,
    nonlinear: bool = False,
    svm: bool = False,
    centres: int = baselines.CENTRES,
    device: torch.device | str = "cpu",
    cache: Path | None = None,
    look: Callable[[Labelled, Tensor], None] | None = None,
    progress: bool = True,
) -> Scores:
    """Score the encoders of runs that differ in their seed alone, beside the rows that every table carries.

    `fresh` are the encoders as their runs began, the untrained row; without them it is drawn with `seeds`, the runs'
    own, as the supervised encoders are (with `supervised_steps`). `heads` are those of runs that foretell topics. `seed` is that of the split, the draws and k-means.
    Without `test`, a fifth of each class is set aside.
    `finetune`, `nonlinear` and `svm` take the encoders and the untrained ones through the files of that name.
    `look` is given the images that the report shows, those of `test`, without it all, and what the first encoder makes
    of them at "pool", so that nobody needs to embed them again; not if some could not be read.
    """
    if len(encoders) != len(seeds):
        raise UserError(f"{len(encoders)} encoders came with {len(seeds)} seeds; expected one seed for each")
    shown = train if test is None else test
    train, test = parts(train, seed) if test is None else (train, test)
    check(encoders, train, test)
    test, untrained = renumbered(test, train), f"untrained {encoders[0].name}"
    known = {"device": device, "progress": progress}

    def results(row: str, net: nn.Module, run: int) -> Iterator[Result]:
        of_train, of_test = (embed(net, source, cache=cache, **known) for source in (train, test))
        if look and net is encoders[0] and not shown.ledger.bad:
            pool = of_test.stages["pool"]
            if isinstance(train, Part) and isinstance(test, Part):
                order = torch.cat([train.index, test.index]).argsort()
                pool = torch.cat([of_train.stages["pool"], pool])[order]
            look(shown, pool)
        chosen = choose(of_train, len(train.classes), seed)
        yield from measure(of_train, of_test, chosen, seed)
        head = heads[seeds.index(run)] if heads and row == name else None
        yield from crossmodal.by_text(of_train, of_test, train, test, chosen, head)
        del of_train, of_test  # gigabytes, and the maps need as much
        if not isinstance(net, Encoder) or row not in (name, untrained):
            return
        if nonlinear:
            yield from probing.by_maps(net, train, test, chosen, seed=run, **known)
        if svm:
            yield from machines.by_quadrants(net, train, test, seed=seed, **known)
        if finetune:
            decay = tuning.DECAY if row == name else 1.0
            yield from tuning.by_finetuning(net, train, test, seed=seed, run=run, decay=decay, **known)

    def rows() -> Iterator[tuple[str, Sequence[int], Iterator[nn.Module]]]:
        """Whose features, the seeds of its runs, and their networks, each made when it is needed."""
        first, pairs = encoders[0].name, list(zip(encoders, seeds, strict=True))
        yield name, seeds, iter(encoders)
        yield untrained, seeds, iter(fresh or [baselines.untrained(e, s) for e, s in pairs])
        yield baselines.Pixels.name, [seed], iter([baselines.Pixels()])
        yield baselines.Patches.name, [seed], (baselines.patches(train, centres, s) for s in [seed])
        if (steps := supervised_steps) is not None:
            trained = (baselines.supervised(e, train, steps, s, device, progress) for e, s in pairs)
            yield f"supervised {first}", seeds, trained

    found: dict[str, list[list[Result]]] = {}
    scored: list[dict[str, Any]] = []
    seconds: dict[str, float] = {}
    for row, drawn, nets in rows():
        began = time.perf_counter()
        found[row] = [[*results(row, net, run)] for net, run in zip(nets, drawn, strict=True)]
        about = {"features": row, "own": row == name}
        rest = {"data": test.name, "seeds": list(drawn)}
        scored += [about | one | rest for one in combined(found[row], seed)]
        seconds[row] = round(time.perf_counter() - began, 1)
    data = {"train": train.name, "n_train": len(train), "test": test.name, "n_test": len(test)}
    return Scores(
        data | {"classes": list(train.classes)},
        scored,
        [d for row in found if row != name for d in differences(name, found[name], row, found[row], seed)],
        [*too_few(train, finetune), *flat(encoders[0], nonlinear)],
        seconds,
    )


def parts(source: Labelled, seed: int) -> tuple[Part, Part]:
    """A fifth of each class for testing, the rest for training."""
    if isinstance(source, crossmodal.Told):  # images of one text stay together
        count = int(source.which.max()) + 1
        out = Rng(seed, "test").permutation(count) < TEST_SHARE * count
        kept, out = (~out[source.which]).nonzero().flatten(), out[source.which].nonzero().flatten()
    else:
        kept, out = split(source.label, Rng(seed, "test"), TEST_SHARE)
    return Part(source, kept, f"{source.name} (80 %)"), Part(source, out, f"{source.name} (20 % set aside)")


def numbers(train: Labelled, test: Labelled) -> Tensor:
    """(K of test,): which class of the training set each class of the test set is, by name; -1 of one without images."""
    known, shown = ([s.classes[k] for k in s.label.unique().tolist()] for s in (train, test))
    unknown = [c for c in shown if c not in known]
    if unknown:
        raise UserError(
            f"{test.name} has classes that the training set lacks: {', '.join(unknown[:5])}; "
            f"expected only {', '.join(known[:10])}"
        )
    return torch.tensor([train.classes.index(c) if c in shown else -1 for c in test.classes])


def renumbered(test: Labelled, train: Labelled) -> Labelled:
    """The test set with its classes numbered as those of the training set."""
    other = copy.copy(test)
    other.label, other.classes = numbers(train, test)[test.label], train.classes
    return other


def check(encoders: Sequence[Encoder], train: Labelled, test: Labelled) -> None:
    if len(train.label.unique()) < 2:
        raise UserError(f"{train.name} shows {len(train.label.unique())} class; scores need at least 2")
    for encoder in encoders:
        for source in (train, test):
            if (source.channels, source.size) != (encoder.channels, encoder.size):
                raise UserError(
                    f"{source.name} holds {source.channels} x {source.size} px images, the encoder takes "
                    f"{encoder.channels} x {encoder.size}; open it with that size and channels"
                )


def too_few(train: Labelled, finetune: bool = False) -> list[str]:
    """Which numbers of shots are missing, and why."""
    count = train.label.bincount(minlength=len(train.classes))
    least = int(torch.where(count > 0, count, count.max()).argmin())
    lacking = [shots for shots in fewshot.SHOTS if shots not in feasible(train.label)]
    missing = [f"{shots}-shot" for shots in lacking]
    missing += [tuning.eval_name(shots) for shots in lacking if finetune and shots in tuning.SHOTS]
    said = f"no {', '.join(missing)}: class {train.classes[least]!r} has {count[least]} training images"
    return [said] if missing else []


def flat(encoder: Encoder, nonlinear: bool) -> list[str]:
    """Why the non-linear probes are missing, where they were asked for."""
    missing = nonlinear and not probing.maps(encoder)
    return [f"no mlp, conv: {encoder.name} has no map of more than one place"] if missing else []


# ---- several runs


def combined(runs: Sequence[Sequence[Result]], seed: int, n: int | None = None) -> Iterator[dict[str, Any]]:
    """The same result of every run -> one row with its interval; no row where a run has no such number.

    `n` is the number of test samples, where no result says something of each.
    """
    n = n or next(len(r.right) for r in runs[0] if r.right is not None)
    for first in runs[0]:
        group = alike(runs, first.eval, first.stage)
        values = [r.value for r in group]
        if not all(map(math.isfinite, values)):
            continue
        row: dict[str, Any] = {"eval": first.eval} | ({"stage": first.stage} if first.stage else {})
        row |= {"value": float(np.mean(values)), "low": None, "high": None}
        if first.right is not None:
            found = interval(100 * right(runs, first.eval, first.stage), seed)
            row |= {"low": found.low, "high": found.high}
        elif variances := [r.variance for r in group if r.variance is not None]:
            found = over_runs(np.array(values), float(np.mean(variances)), n)
            row |= {"low": found.low, "high": found.high}
        yield row | {"n": n, "values": values, "chosen": [dict(r.notes) for r in group]}


def alike(runs: Sequence[Sequence[Result]], eval: str, stage: str) -> list[Result]:
    """The same result of every run; runs that choose different stages list theirs in different places."""
    return [r for run in runs for r in run if (r.eval, r.stage) == (eval, stage)]


def differences(
    name: str,
    own: Sequence[Sequence[Result]],
    other: str,
    theirs: Sequence[Sequence[Result]],
    seed: int,
    compared: Sequence[tuple[str, str]] = COMPARED,
) -> Iterator[dict[str, Any]]:
    """How far a run is above another row, sample by sample; a row of one run stands against each of several."""
    for eval, stage in compared:
        if not (alike(own, eval, stage) and alike(theirs, eval, stage)):
            continue
        found = interval(100 * (right(own, eval, stage) - right(theirs, eval, stage)), seed)
        yield {"features": name, "minus": other, "eval": eval} | asdict(found)


def right(runs: Sequence[Sequence[Result]], eval: str, stage: str) -> Tensor:
    """(S, N): which test samples each of S runs got right."""
    return torch.stack([r.right for r in alike(runs, eval, stage) if r.right is not None])

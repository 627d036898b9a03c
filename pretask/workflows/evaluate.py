"""From a run and labelled images to its scores, beside honest baselines: `pretask evaluate RUN --data LABELLED`.

With several seeds the run is repeated by its sisters, which differ from it in their seed alone: those that lie
beside it are used, those that are missing are trained.
"""

import dataclasses
import re
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
from torch import Tensor

from pretask import data as sources
from pretask.data import Labelled, store
from pretask.data import image_text as pairs
from pretask.data import in_memory as memory
from pretask.data.base import Asked, Images, numbered
from pretask.encoders import Encoder
from pretask.evals import baselines
from pretask.evals import protocol as evals
from pretask.evals import track_retrieval as partners
from pretask.evals.protocol import Scores
from pretask.evals.text_retrieval import Head, Told, texts_of
from pretask.methods.text_topic import TextTopic
from pretask.rng import Rng
from pretask.runtime.device import find_device
from pretask.text import topics
from pretask.train import run
from pretask.train.logger import Tell
from pretask.train.plan import cautions, entries_of
from pretask.train.run import Run
from pretask.types import UserError
from pretask.workflows import embed as embedding
from pretask.workflows import pretrain as pretraining


def evaluate(
    what: Run | Encoder | str | Path,
    data: Any,
    test: Any = None,
    *,
    seeds: int = 1,
    supervised: bool = False,
    finetune: bool = False,
    nonlinear: bool = False,
    svm: bool = False,
    size: int | None = None,
    root: Path | None = None,
    max_bad: float = 0.1,
    progress: bool = True,
    tell: Tell | None = None,
    look: Callable[[Labelled, Tensor], None] | None = None,
) -> Scores:
    """Score frozen features on labelled images; of a run, the scores are also kept in RUN/scores.

        scores = pretask.evaluate("runs/rotnet-photos-s0", "labelled/", test="held_out/")
        scores = pretask.evaluate("timm:resnet18", (images, labels))

    `what` is a run, its folder, an encoder, or "timm:NAME" with the weights that timm publishes; `data` and `test`
    are what `pretrain` takes, with labels, or a pair (images, labels) of arrays. Without `test`, a fifth of each
    class is set aside; tracks, as `pretask track` mines them, need neither labels nor `test`. `supervised` adds the same encoder trained with the labels on as many images as the run saw.
    `finetune` adds the encoder trained on, with few labels and all; `nonlinear` RotNet's two probes on its best map, `svm`
    Exemplar-CNN's linear SVMs on all of its maps. `look` is given the labelled images that a report shows and their pooled features.
    """
    loaded = Run(what) if isinstance(what, str | Path) and not str(what).startswith("timm:") else what
    if not isinstance(loaded, Run) and (seeds > 1 or supervised):
        raise UserError("--seeds and --supervised repeat a run and take its budget; timm:NAME is no run")
    first = loaded.encoder if isinstance(loaded, Run) else embedding.encoder_of(loaded, size)
    known = {"size": first.size, "channels": first.channels, "root": root, "max_bad": max_bad}
    known |= {"progress": progress}
    tracks, by_text = followed(data, **known), None
    more: dict[str, Any] = {}
    if tracks is not None:
        if test is not None or supervised or finetune or nonlinear or svm:
            raise UserError(
                f"{data} holds tracks, which have no labels to train on; give held-out tracks as --data, and no more"
            )
        judge = partial(partners.evaluate, tracks=tracks)
    else:
        by_text = told(data, test, loaded.folder if isinstance(loaded, Run) else None, **known)
        train, unseen = by_text or (
            labelled(data, **known),
            None if test is None else labelled(test, **known),
        )
        steps = budget(loaded) if supervised and isinstance(loaded, Run) else None
        more = {
            "supervised_steps": steps,
            "finetune": finetune,
            "nonlinear": nonlinear,
            "svm": svm,
            "look": look,
        }
        judge = partial(evals.evaluate, train=train, test=unseen)
    # what can be wrong with run and data has been found before other seeds are trained
    if isinstance(loaded, Run):
        family = sisters(loaded, seeds, tell)
        if by_text:
            more["heads"] = heads(family)
        encoders, fresh = [each.encoder for each in family], [each.untrained for each in family]
        numbers: Sequence[int] = [each.card["seed"] for each in family]
        name = run.title(loaded.card)
    else:
        name = what if isinstance(what, str) else first.name
        encoders, fresh, numbers = [first], [], (0,)
    more |= {"device": find_device(), "progress": progress}
    scores = judge(encoders, name=name, seeds=numbers, fresh=fresh, **more)
    if isinstance(loaded, Run):
        scores = dataclasses.replace(scores, skipped=[*scores.skipped, *cautions(loaded.card)])
        scores.write(loaded.folder)
    return scores


def labelled(data: Any, *, size: int, channels: int, **known: Any) -> Labelled:
    """A path or name, or a pair (images, labels), as a labelled source for one encoder."""
    if isinstance(data, str | Path):
        return sources.open_labelled(data, size=size, channels=channels, **known)
    try:
        images, labels = data
    except (TypeError, ValueError):
        raise UserError("labelled images in memory are a pair (images, labels)") from None
    source, (number, classes) = memory.held(images, size, channels), numbered(np.asarray(labels))
    if len(number) != len(source):
        raise UserError(f"{len(source)} images came with {len(number)} labels; expected one for each")
    return Labelled(source, number, classes)


def followed(data: Any, **known: Any) -> Images | None:
    """Tracks of moving things, as `pretask track` mines them; None of any other data."""
    if not (isinstance(data, str | Path) and store.understands(str(data))):
        return None
    found = sources.open(data, **known)
    return found if {"tracked", "clip", "span"} <= found.provides else None


def told(data: Any, test: Any, run: Path | None, **known: Any) -> tuple[Told, Told | None] | None:
    """Images with texts, which are labelled by topic: one that the run has learned, or that the texts of `data` show.

    None of any other data, and of texts that have labels beside them.
    """
    if not (isinstance(data, str | Path) and pairs.understands(str(data))):
        return None
    found = sources.opened(str(data), Asked(labels="all", **known))
    if found.label is not None:
        return None
    texts = texts_of(found.images)
    if run is not None and (run / topics.CARD).is_file():
        learned = topics.Topics.load(run)
    else:
        learned = topics.learn(texts, Rng(0, "topics"))
    if test is None:
        return Told(found.images, texts, learned), None
    unseen = sources.open(test, **known)
    if "words" not in unseen.provides:
        raise UserError(f"{test} has no texts, and {data} has; give two sets of images with texts")
    return Told(found.images, texts, learned), Told(unseen, texts_of(unseen), learned)


def heads(family: Sequence[Run]) -> list[Head]:
    """What runs of text_topic say of the topics that each has learned; nothing of other runs."""
    learned = [(each, each.method) for each in family if (each.folder / topics.CARD).is_file()]
    return [
        Head(topics.Topics.load(each.folder), method.foretold)
        for each, method in learned
        if isinstance(method, TextTopic)
    ]


def budget(of: Run) -> int:
    """Steps in which the supervised row sees as many images as the run did."""
    return max(1, of.card["steps"] * of.card["train"]["batch"] // baselines.SUPERVISED.batch)


# ---- several seeds


def sisters(of: Run, count: int, tell: Tell | None) -> list[Run]:
    """`count` runs with seeds from the run's own on, itself first."""
    if count < 1:
        raise UserError(f"--seeds {count} is not a number of runs; give 1 or more")
    seeds = range(of.card["seed"] + 1, of.card["seed"] + count)
    return [of, *(sister(of, seed, tell) for seed in seeds)]


def sister(of: Run, seed: int, tell: Tell | None) -> Run:
    """The same run with another seed: found beside it, finished, or trained now."""
    own = of.card["seed"]
    plain = re.sub(rf"-s{own}$", "", of.folder.resolve().name)
    return repeated(of, of.folder.resolve().with_name(f"{plain}-s{seed}"), tell, seed=seed)


def repeated(of: Run, folder: Path, tell: Tell | None, **change: Any) -> Run:
    """The same run with a setting changed: found in `folder`, finished, or trained now."""
    method, settings, config, train = run.revive(of.card)
    again = dataclasses.replace(settings, out=folder, plan=of.folder, steps=None, budget=None, **change)
    if (folder / run.CARD).is_file():
        check_alike(of, Run(folder), again, " and ".join(change))
        if (folder / run.DONE).exists():
            return Run(folder)
        return pretraining.pretrain(None, pretraining.Settings(""), resume=folder, tell=tell)
    return pretraining.pretrain(method, again, config, train, tell=tell)


def check_alike(one: Run, other: Run, wanted: pretraining.Settings, changed: str) -> None:
    """UserError unless two runs differ as is wanted, and in nothing else."""
    decides = ("method", "recipe", "config", "train", "encoder", "data", "size", "channels", "steps")
    unlike = [key for key in decides if one.card[key] != other.card[key]]
    if "steps" not in unlike and entries_of(one.card) != entries_of(other.card):
        unlike.append("plan")
    settings = run.revive(other.card)[1]
    unlike += [key for key in ("seed", "share") if getattr(settings, key) != getattr(wanted, key)]
    if wanted.share == run.revive(one.card)[1].share and one.card["n"] != other.card["n"]:
        unlike.append("n")
    if unlike:
        raise UserError(
            f"{other.folder} is not {one.folder} with another {changed}: they differ in {', '.join(unlike)}; "
            "move it away"
        )

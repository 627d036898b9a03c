"""Convert runs and stores of an older version of pretask in place: python scripts/convert_runs.py RUN [RUN ...]

RUN is the folder of a run, with the runs inside it (at-N-steps, study/...), or of a prepared store. A whole run is converted and
checked in memory, including loading the checkpoint into its method, before the first file is written. Each file is written to a
temporary file and renamed, and the card is written last, so a run counts as old until it is completely converted. After an
interruption, start the script again: it skips files that are already converted.
"""

import argparse
import json
import sys
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from old_scores import convert as convert_scores

from pretask.data import store
from pretask.encoders import saved
from pretask.errors import UserError
from pretask.runtime import files, formats
from pretask.text import topics
from pretask.train import checkpoint, run
from pretask.workflows import audit

# ---- changes since formats 1 and 2; those of format 1 do not apply to a file of format 2, which has the new names already
#
# A key is the path of an old name ("settings.watch"); its value is only the last part in the new format ("monitor").
# FIELDS has the fields of each kind of file. The following are per method: CONFIG has the fields of its Config ("*": of all methods),
# LOG the columns of its log, ANSWERS the values of `answer` in its audit, STATE the weights and buffers in its checkpoints; methods
# outside the package have none of these. VALUES maps old to new values of fields, by their old names. ADDED has fields that did not
# exist, with equivalent values. FILES has names of files in a run's folder. A new name must not be an old name at the same place.

FIELDS: dict[str, dict[str, str]] = {
    "run.json": {
        "settings.share": "fraction",
        "settings.watch": "monitor",
        "train.drop": "gamma",
        "train.drops": "milestones",
        "train.rises": "undo_milestones",
        "train.rounds": "cycles",
        "train.vector_lr": "bias_lr_scale",
        "watch_fingerprint": "monitor_fingerprint",
    },
    "encoder.json": {},
    "store.json": {},
    "topics.json": {"chance": "unigram_perplexity", "learned": "num_texts", "top": "top_words"},
    "checkpoint.pt": {},
    "audit.json": {
        "findings.clue": "shortcut",
        "findings.explains": "explained_share",
        "findings.told_by": "description",
    },
    "log.jsonl": {"waiting": "data_wait"},
    "watch.jsonl": {
        "paid": "probe_loss",
        "relative": "relative_variance",
        "round": "cycle",
        "swapped": "shuffled_loss",
    },
}
CONFIG: dict[str, dict[str, str]] = {
    "*": {"views.grey": "gray"},
    "barlow_twins": {"redundancy": "lambda_"},
    "byol": {"keep": "ema_momentum"},
    "color_proxy": {"places": "num_locations"},
    "colorization": {"every": "stride", "neighbours": "num_neighbors", "regress": "regression"},
    "context_prediction": {
        "colour": "color",
        "coarse": "downsample",
        "flat": "flatten",
        "layers": "num_layers",
        "pairs": "num_pairs",
        "zoom": "crop",
    },
    "cross_domain": {
        "adversary": "adversarial",
        "fewest": "min_contours",
        "judge": "discriminator",
        "judge_lr": "discriminator_lr",
        "tap": "feature_layer",
        "whole": "squeeze",
    },
    "damaged_jigsaw": {
        "colour": "color",
        "flat": "flatten",
        "fringe": "channel_shift",
        "grey": "gray",
        "normalise": "normalize",
        "orders": "num_permutations",
        "spread": "distance_stat",
    },
    "dino": {
        "centring": "center_momentum",
        "frozen": "freeze_prototypes",
        "keep": "ema_momentum",
        "norm": "use_bn_in_head",
        "sharp": "teacher_temp",
        "small": "local_crops",
        "small_crop": "local_scale",
        "small_side": "local_size",
        "warm": "teacher_temp_warmup",
    },
    "exemplar_cnn": {
        "axes": "pca_contrast",
        "merge": "merge_threshold",
        "offset": "hsv_offset",
        "per_image": "seeds_per_image",
        "power": "hsv_power",
        "seeds": "num_classes",
        "shift": "translation",
        "stretch": "hsv_factor",
        "turn": "rotation",
    },
    "ibot": {
        "centring": "center_momentum",
        "frozen": "freeze_prototypes",
        "hides": "mask_ratio",
        "keep": "ema_momentum",
        "masked": "mask_probability",
        "norm": "use_bn_in_head",
        "sharp": "teacher_temp",
        "small": "local_crops",
        "small_crop": "local_scale",
        "small_side": "local_size",
        "warm": "teacher_temp_warmup",
    },
    "ijepa": {
        "aspect": "block_aspect",
        "blocks": "num_blocks",
        "context": "context_scale",
        "depth": "predictor_depth",
        "heads": "predictor_heads",
        "keep": "ema_momentum",
        "scale": "block_scale",
        "width": "predictor_width",
    },
    "jigsaw": {
        "flat": "flatten",
        "fringe": "channel_shift",
        "grey": "gray",
        "normalise": "normalize",
        "orders": "num_permutations",
        "spread": "distance_stat",
    },
    "jule": {
        "neighbours": "neighbors",
        "negatives": "num_negatives",
        "own": "positive_weight",
        "rivals": "neighbor_clusters",
        "unroll": "unrolling_rate",
    },
    "lejepa": {
        "directions": "num_slices",
        "embedding": "embed_dim",
        "gaussian": "lambda_",
        "small": "local_crops",
        "small_crop": "local_scale",
        "small_side": "local_size",
    },
    "mae": {
        "blocks": "decoder_depth",
        "heads": "decoder_heads",
        "mask": "mask_ratio",
        "normalise": "norm_pix_loss",
        "width": "decoder_width",
    },
    "moco": {"keep": "ema_momentum", "normed": "hidden_bn"},
    "neighbourhood_discovery": {"grey": "gray", "keep": "bank_momentum", "neighbours": "neighbors"},
    "rotation_decoupling": {
        "exponent": "weight_exponent",
        "half": "half_dim",
        "judge": "rotnet_encoder",
        "keep": "bank_momentum",
        "late": "weighted_fraction",
        "negatives": "num_negatives",
    },
    "sdae": {"amount": "corruption_level"},
    "simclr": {"normed": "final_bn"},
    "swav": {
        "frozen": "freeze_prototypes",
        "iterations": "sinkhorn_iterations",
        "small": "local_crops",
        "small_crop": "local_scale",
        "small_side": "local_size",
    },
    "text_topic": {"fewest": "min_df", "most": "max_df", "stop": "stop_words"},
    "video_triplet": {"hard": "hard_start", "mined": "num_hard"},
}
LOG: dict[str, dict[str, str]] = {
    "barlow_twins": {"agreement": "invariance"},
    "cross_domain": {
        "adversary": "adversarial",
        "judge": "discriminator",
        "told apart": "discriminator_accuracy",
    },
    "damaged_jigsaw": {"colour": "color"},
    "ibot": {"images": "cls", "patches": "patch"},
    "jule": {"closer": "triplet_accuracy"},
    "lejepa": {"apart": "prediction", "normality": "sigreg"},
    "rotation_decoupling": {"judges": "rotnets"},
    "sdae": {"damage": "input_mse", "left": "output_mse"},
    "text_topic": {"above": "excess_loss"},
    "video_triplet": {"hard": "hard_mining", "nearest": "accuracy"},
}
ANSWERS: dict[str, dict[str, str]] = {
    "context_prediction": {"place": "position"},
    "damaged_jigsaw": {"entry": "label"},
    "exemplar_cnn": {"seed": "label"},
    "jigsaw": {"entry": "label"},
    "rotation_decoupling": {"turn": "rotation"},
    "rotnet": {"turn": "rotation"},
}
STATE: dict[str, dict[str, str]] = {
    "barlow_twins": {"head": "projector"},
    "byol": {"head": "projector"},
    "colorization": {"share": "prior"},
    "context_prediction": {"column": "embed"},
    "cross_domain": {"judge": "discriminator", "photographed.held": "count", "rendered.held": "count"},
    "damaged_jigsaw": {"around": "fuse", "colour": "color", "column": "embed", "hole": "mask_token"},
    "dino": {
        "centre": "center",
        "head.narrow": "bottleneck",
        "sharpness": "teacher_temp",
        "teacher.1.narrow": "bottleneck",
    },
    "exemplar_cnn": {"axes": "color_axes", "colour": "color_mean", "place": "box"},
    "ibot": {
        "centre": "center",
        "head.narrow": "bottleneck",
        "patch_centre": "patch_center",
        "sharpness": "teacher_temp",
        "teacher.1.narrow": "bottleneck",
        "unknown": "mask_token",
    },
    "ijepa": {"narrow": "predictor_embed", "unknown": "mask_token"},
    "jule": {"first": "initial_clusters"},
    "lejepa": {"head": "projector"},
    "mae": {"narrow": "decoder_embed", "unknown": "mask_token"},
    "moco": {"head": "projector", "place": "queue_ptr"},
    "neighbourhood_discovery": {"neighbour": "neighbor"},
    "rotation_decoupling": {"describe": "embed", "first": "rotnet1", "layer": "widen", "second": "rotnet2"},
    "simclr": {"head": "projector"},
    "simsiam": {"head": "projector"},
    "swav": {"head": "projector", "queued": "queue_filled"},
    "text_topic": {"share": "topic_probs", "told": "topic_words"},
    "vicreg": {"head": "projector"},
    "video_triplet": {"mines": "hard_mining"},
}
VALUES: dict[str, dict[str, dict[Any, Any]]] = {
    "watch.jsonl": {
        "state": {
            "loss falls while features are constant": "loss falls with constant features",
            "loss falls whatever the image": "loss does not depend on the input",
        }
    },
}
ADDED: dict[str, dict[str, Any]] = {
    "run.json": {
        "fingerprint": None,
        "monitor_fingerprint": None,
        # since format 2
        "loaded": None,
        "settings.init_partial": False,
        "settings.mean": None,
        "settings.std": None,
        "train.encoder_lr_scale": 1.0,
        "train.freeze_norms": False,
        "train.head_first": 0.0,
        "train.freeze": 0,
        "train.layer_decay": 1.0,
        "train.lora": 0,
        "train.pull": 0.0,
    }
}
FILES: dict[str, str] = {"watch.jsonl": "monitor.jsonl"}


# ---- documents


def renamed(
    document: Mapping[str, Any], names: Mapping[str, str], values: Mapping[str, Any], place: str = ""
) -> dict[str, Any]:
    """`document` with new names and values, in the same order."""
    found: dict[str, Any] = {}
    for name, value in document.items():
        path = place + name
        if isinstance(value, dict):
            value = renamed(value, names, values, f"{path}.")
        elif isinstance(value, list) and value and all(isinstance(each, dict) for each in value):
            value = [renamed(each, names, values, f"{path}.") for each in value]
        elif path in values and isinstance(value, str):
            value = values[path].get(value, value)
        found[names.get(path, name)] = value
    return found


def moved(name: str, names: Mapping[str, str]) -> str:
    """The new name of a tensor, whose parts are separated by dots."""
    parts = name.split(".")
    return ".".join(names.get(".".join(parts[: i + 1]), part) for i, part in enumerate(parts))


def converted(
    kind: str, document: Mapping[str, Any], names: Mapping[str, str] | None = None
) -> dict[str, Any]:
    """The content of a file of one kind in the new format."""
    table = FIELDS[kind] | dict(names or {})
    new = renamed(document, table, VALUES.get(kind, {}))
    for path, value in ADDED.get(kind, {}).items():
        *parents, name = path.split(".")
        part = new
        for parent in parents:
            part = part.get(parent, {})
        part.setdefault(name, value)
    return {formats.KEY: formats.FORMAT} | {name: value for name, value in new.items() if name != formats.KEY}


def card_of(document: Mapping[str, Any]) -> dict[str, Any]:
    """The card of a run in the new format."""
    method = CONFIG.get("*", {}) | CONFIG.get(document["method"], {})
    return converted("run.json", document, {f"config.{path}": name for path, name in method.items()})


def state_of(state: Mapping[str, Any], method: str) -> dict[str, Any]:
    """A checkpoint in the new format; the state of optimizers has positions instead of names."""
    names = STATE.get(method, {})
    weights = {moved(name, names): tensor for name, tensor in state["method"].items()}
    new = {FIELDS["checkpoint.pt"].get(key, key): value for key, value in state.items()}
    return new | {FIELDS["checkpoint.pt"].get("method", "method"): weights, formats.KEY: formats.FORMAT}


def rows_of(kind: str, path: Path, columns: Mapping[str, str]) -> str:
    """The rows of a log in the new format; `columns` are those of the method."""
    rows = (renamed(row, FIELDS[kind] | dict(columns), VALUES.get(kind, {})) for row in files.read_rows(path))
    return "".join(json.dumps(row) + "\n" for row in rows)


def is_old(path: Path) -> bool:
    """Whether a file has an older format; UserError if it is newer than this script."""
    number = read(path).get(formats.KEY, 1)
    if number > formats.FORMAT:
        raise UserError(f"{path} has format {number}; this script converts to format {formats.FORMAT}")
    return number < formats.FORMAT


def read(path: Path) -> dict[str, Any]:
    try:
        found = json.loads(path.read_text())
    except (OSError, ValueError) as error:
        raise UserError(f"{path} cannot be read: {error}") from None
    if not isinstance(found, dict):
        raise UserError(f"{path} is damaged: it contains a {type(found).__name__}, not named fields")
    return found


# ---- folders


def convert(folder: Path) -> str:
    """Convert a run with the runs in it, or a store. Returns one line that lists the changes."""
    if (folder / store.CARD).is_file():
        return convert_store(folder)
    if not (folder / run.CARD).is_file():
        raise UserError(f"{folder} is neither a run nor a store: it has no {run.CARD} and no {store.CARD}")
    done = []
    for card in sorted(folder.rglob(run.CARD), key=lambda path: -len(path.parts)):  # the outermost run last
        if is_old(card):
            with files.locked(card.parent):
                done += [str((card.parent / name).relative_to(folder)) for name in convert_run(card.parent)]
    for part in sorted(folder.rglob("study/share-*")):
        new = part.with_name(part.name.replace("share", "fraction"))
        part.replace(new)
        done.append(f"{part.relative_to(folder)} → {new.name}")
    if not done:
        return f"{folder}: nothing to do, it has format {formats.FORMAT}"
    return f"{folder}: converted to format {formats.FORMAT}: {', '.join(done)}"


def convert_store(folder: Path) -> str:
    path = folder / store.CARD
    if not is_old(path):
        return f"{folder}: nothing to do, it has format {formats.FORMAT}"
    card = converted(store.CARD, read(path))
    formats.check(path, card, store.FIELDS)
    files.write_text(path, json.dumps(card, indent=1))
    return f"{folder}: converted to format {formats.FORMAT}: {store.CARD}"


def convert_run(folder: Path) -> list[str]:
    """Convert one run. Returns the names of the files that were written or renamed."""
    old = read(folder / run.CARD)
    card = card_of(old)
    formats.check(folder / run.CARD, card, run.FIELDS)
    run.parse_card(card, folder / run.CARD)
    states = {name: state_of(state, old["method"]) for name, state in checkpoints(folder)}
    for name, state in states.items():
        formats.check(folder / name, state, checkpoint.FIELDS)
        with files.restoring_from(folder / name):
            checkpoint.load_method(run.build_method(card, folder / run.CARD), state["method"])
    texts = dict(documents(folder, old["method"]))
    for name, state in states.items():
        checkpoint.save(folder / name, state)
    for name, text in texts.items():
        files.write_text(folder / name, text)
    present = {before: after for before, after in FILES.items() if (folder / before).exists()}
    for before, after in present.items():
        (folder / before).replace(folder / after)
    run.write_card(folder, card)
    return [*states, *texts, *(f"{before} → {after}" for before, after in present.items()), run.CARD]


def checkpoints(folder: Path) -> Iterator[tuple[str, dict[str, Any]]]:
    for name in (checkpoint.LATEST, checkpoint.HEALTHY):
        if (folder / name).exists():
            state = checkpoint.unpickled(folder / name)
            if state.get(formats.KEY, 1) < formats.FORMAT:
                yield name, state


def documents(folder: Path, method: str) -> Iterator[tuple[str, str]]:
    """Name and new text of each file whose text changes."""
    for name, fields in ((saved.SHAPE, saved.FIELDS), (topics.CARD, topics.FIELDS)):
        if (folder / name).exists() and is_old(folder / name):
            document = converted(name, read(folder / name))
            formats.check(folder / name, document, fields)
            yield name, json.dumps(document, indent=2, ensure_ascii=False) + "\n"
    for name, columns in (("log.jsonl", LOG.get(method, {})), ("watch.jsonl", {})):
        path = folder / name
        if path.exists() and (text := rows_of(name, path, columns)) != path.read_text():
            yield name, text
    if (folder / audit.FILE).exists() and (document := read(folder / audit.FILE))["schema"] == 1:
        values = {"answer": ANSWERS.get(method, {})}
        new = renamed(document, FIELDS[audit.FILE], values) | {"schema": audit.SCHEMA}
        yield audit.FILE, json.dumps(new, indent=2) + "\n"
    for path in [*folder.glob("scores/*.json"), *folder.glob("study/*.json")]:
        document = read(path)
        if (new := convert_scores(document)) != document:
            yield str(path.relative_to(folder)), json.dumps(new, indent=2) + "\n"


def main() -> int:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("runs", nargs="+", type=Path, metavar="RUN", help="folder of a run or a store")
    exit_code = 0
    for folder in parser.parse_args().runs:
        try:
            print(convert(folder))
        except UserError as error:
            print(f"convert_runs: {error}", file=sys.stderr)
            exit_code = 2
    return exit_code


if __name__ == "__main__":
    sys.exit(main())

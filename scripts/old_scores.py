"""Convert scores and studies of schema 1, whose rows were identified by their display text, to schema 2.

These are pure functions; convert_runs.py reads and writes the files.
"""

import re
from collections.abc import Mapping
from typing import Any

OLD, NEW = 1, 2
ROLES = {"untrained": "untrained", "supervised": "supervised", "raw": "pixels", "k-means": "patches"}
"""first word of the name of a baseline -> its role"""
NUMBERED = (
    (re.compile(r"(\d+)-shot"), "few-shot", "shots"),
    (re.compile(r"(\d+) images mAP"), "few-shot mAP", "shots"),
    (re.compile(r"finetune (\d+)-shot"), "finetune", "shots"),
    (re.compile(r"finetune (\d+) images mAP"), "finetune mAP", "shots"),
    (re.compile(r"partner@(\d+)"), "track recall", "k"),
    (re.compile(r"(recall|text|image)@(\d+)"), "", "k"),
)
"""pattern of an old eval with a number, its metric, and the meaning of the number"""
POOLED = ("knn", "linear", "knn mAP", "linear mAP", "text", "image", "track recall")
"""metrics whose differences are of pooled features; other differences have no stage"""


def convert(document: Mapping[str, Any]) -> dict[str, Any]:
    """Convert a document of `pretask evaluate`, `transfer` or `study` from schema 1 to schema 2; one of schema 2 is unchanged.

    ValueError if the document has another schema, or a row that no version of pretask wrote.
    """
    if document.get("schema") == NEW:
        return dict(document)
    if document.get("schema") != OLD or not {"rows", "answers"} & document.keys():
        raise ValueError(f"schema {document.get('schema')}; expected scores or a study of schema {OLD}")
    task = document["data"].get("task", "")
    found = dict(document) | {"schema": NEW}
    if "answers" in document:
        test = document["data"]["test"]
        return found | {"answers": {ask: answer(old, ask, test) for ask, old in document["answers"].items()}}
    return found | {
        "protocol": protocol(document["protocol"], task),
        "rows": [row(old, task) for old in document["rows"]],
        "differences": [difference(old, task) for old in document["differences"]],
    }


def protocol(old: Mapping[str, str], task: str) -> dict[str, str]:
    renamed = {"partner@K": "track recall@K"}
    return {
        renamed.get(key, key.removeprefix(f"{task} ") if task else key): text for key, text in old.items()
    }


def answer(old: Mapping[str, Any], ask: str, test: str) -> dict[str, Any]:
    """The answer to one question of a study; old rows lack the test set and the seeds, and call `fraction` `share`."""
    more = {"data": test, "seeds": old["seeds"]}
    rows = [row(each, "", supervised=ask == "supervised") | more for each in old["rows"]]
    return {
        **old,
        "rows": [{"fraction" if key == "share" else key: x for key, x in each.items()} for each in rows],
    }


def row(old: Mapping[str, Any], task: str, supervised: bool = False) -> dict[str, Any]:
    kept = {key: value for key, value in old.items() if key not in ("features", "own", "eval")}
    whose = {"name": old["features"], "role": role(old["features"], old["own"], task)}
    if supervised and not old["own"]:
        whose["role"] = "supervised"
    return measured(old["eval"], task) | whose | kept | ({"task": task} if task else {})


def difference(old: Mapping[str, Any], task: str) -> dict[str, Any]:
    what = measured(old["eval"], task)
    if what["metric"] in POOLED and not task:
        what["stage"] = "pool"
    whose = {"name": old["features"], "minus": old["minus"], "minus_role": role(old["minus"], False, task)}
    return what | whose | {key: old[key] for key in ("value", "low", "high")}


def role(name: str, own: bool, task: str) -> str:
    if own:
        return "published" if name.startswith("timm:") else "run"
    found = ROLES.get(name.partition(" ")[0], "floor" if task else "")
    if not found:
        raise ValueError(f"a row of {name!r}, which is not a baseline")
    return found


def measured(old: str, task: str) -> dict[str, Any]:
    """The metric of an old eval, with its number if it has one."""
    if task:
        return {"metric": old.removeprefix(f"{task} ")}
    for pattern, metric, key in NUMBERED:
        if match := pattern.fullmatch(old):
            *given, number = match.groups()
            return {"metric": metric or given[0], key: int(number)}
    return {"metric": old}

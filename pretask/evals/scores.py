"""Scores: the rows of a score table, the differences between rows, and their JSON format."""

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, fields
from pathlib import Path
from typing import Any, Literal

from pretask.runtime import files
from pretask.types import UserError

SCHEMA = 2
"""version of the JSON of scores and studies; incremented whenever a key changes"""
Role = Literal["run", "untrained", "published", "pixels", "patches", "supervised", "floor"]
"""whose features a row scores: the runs' own (or those of an encoder without a run), the same encoder untrained, published
weights, raw pixels, k-means patches, the same encoder trained with labels; floor: predictions that ignore the image"""
FEW_LABEL_TITLES = {
    "few-shot": "{}-shot",
    "few-shot mAP": "{} images mAP",
    "finetune": "finetune {}-shot",
    "finetune mAP": "finetune {} images mAP",
}
"""title of a metric measured with few labeled images"""


@dataclass(frozen=True)
class Measurement:
    """What a number measures."""

    metric: str
    """"knn", "linear", "best linear", "few-shot", "nmi", "ari", "acc", "recall", "text", "image", "track recall", "rankme", "alpha",
    "std", "cosine", "lidar", "stability", "mlp", "conv", "svm", "finetune"; for multi-label images "knn mAP" and so on; for a downstream task its own
    metrics, such as "mIoU" """
    stage: str = ""
    """stage of the encoder; "": no stage, or a chosen one"""
    shots: int | None = None
    """labeled training images per class, or in total for multi-label images; None: all of them"""
    k: int | None = None
    """K of "recall@K": the number of neighbors searched for a hit"""

    @property
    def key(self) -> tuple[str, str, int | None, int | None]:
        return self.metric, self.stage, self.shots, self.k

    @property
    def title(self) -> str:
        """Display name: "knn", "10-shot", "recall@1"."""
        if self.k is not None:
            return f"{self.metric}@{self.k}"
        return self.metric if self.shots is None else FEW_LABEL_TITLES[self.metric].format(self.shots)

    def to_json(self) -> dict[str, Any]:
        """The fields, except those with their default value."""
        return {f.name: value for f in fields(self) if (value := getattr(self, f.name)) != f.default}


@dataclass(frozen=True, kw_only=True)
class Row(Measurement):
    """One number for one kind of features, with its interval."""

    name: str
    """display name of the features: a method, "untrained resnet18", "raw pixels" """
    role: Role
    value: float
    """in %, except for rankme, alpha, std, cosine and lidar, and for task metrics with another unit"""
    low: float | None
    """lower end of the 95 % interval; None: no interval"""
    high: float | None
    n: int
    """number of test samples"""
    values: Sequence[float]
    """one per run"""
    chosen: Sequence[Mapping[str, Any]]
    """chosen hyperparameters of each run, and the single draws of a few-shot score"""
    data: str = ""
    """name of the test set"""
    seeds: Sequence[int] = ()
    """one per run"""
    task: str = ""
    """downstream task; "": none"""


@dataclass(frozen=True, kw_only=True)
class Difference(Measurement):
    """The row `name` minus the row `minus`, paired over test samples and runs."""

    name: str
    minus: str
    minus_role: Role
    value: float
    low: float | None
    high: float | None


@dataclass(frozen=True)
class Scores:
    """The scores of `evaluate` or `transfer`, and their JSON format.

    {"schema": 2, "data": {"train", "n_train", "test", "n_test", "classes"}, "protocol": {metric: sentence},
     "rows": [row, …], "differences": [difference, …], "skipped": [sentence, …], "seconds": {name: s},
     "records": {"train": card, "test": card}, "leaks": {"exact", "near", "looked", "n"}}

    row: the fields of `Row`; difference: those of `Difference`. "stage", "shots", "k" and "task" are omitted if they have their
    default value. "best linear", "mlp" and "conv" have no "stage": their stages are in "chosen"; "finetune" and "svm" have none.

    card: {"found", "used", "left_out": {reason: n}, "other_files": {ending: n}, "not_looked_at"} for the whole source, even if
    a part of it was set aside for testing. "leaks" counts test images that are in the training set too (leaks.py); it is omitted if they
    were not looked for.

    For multi-label images (multilabel.py) "data" also has "chance", the mAP of images in random order. For a transfer
    (tasks/base.py) "data" also has "task", and "protocol" is the task's own.
    """

    data: Mapping[str, Any]
    rows: Sequence[Row]
    """the rows of the evaluated encoders first"""
    differences: Sequence[Difference]
    skipped: Sequence[str]
    seconds: Mapping[str, float]
    protocol: Mapping[str, str]
    records: Mapping[str, Any] = field(default_factory=dict)
    leaks: Mapping[str, int] = field(default_factory=dict)

    def to_json(self) -> str:
        whole = {
            "schema": SCHEMA,
            "data": self.data,
            "protocol": self.protocol,
            "rows": [row.to_json() for row in self.rows],
            "differences": [difference.to_json() for difference in self.differences],
            "skipped": self.skipped,
            "seconds": self.seconds,
            "records": self.records,
        } | ({"leaks": self.leaks} if self.leaks else {})
        return json.dumps(whole, indent=2, allow_nan=False)

    def write(self, folder: Path) -> Path:
        """Write `scores/TEST.json` in a run's folder; for a transfer `scores/TASK-TEST.json`."""
        path = self.path(folder)
        path.parent.mkdir(parents=True, exist_ok=True)
        files.write_text(path, self.to_json() + "\n")
        return path

    def path(self, folder: Path) -> Path:
        parts = [self.data[key] for key in ("task", "test") if key in self.data]
        return folder / "scores" / file_name("-".join(parts))

    @property
    def names(self) -> list[str]:
        """Names of the rows, the evaluated encoders first."""
        return list(dict.fromkeys(row.name for row in self.rows))

    def get(
        self,
        role: Role,
        metric: str,
        stage: str | None = None,
        *,
        shots: int | None = None,
        k: int | None = None,
    ) -> Row | None:
        """The first row with that role and metric, and that stage if one is given."""
        key = (metric, shots, k)
        rows = (r for r in self.rows if r.role == role and (r.metric, r.shots, r.k) == key)
        return next((r for r in rows if stage in (None, r.stage)), None)

    def find(self, name: str, what: Measurement) -> Row | None:
        """The row with that name and measurement."""
        return next((r for r in self.rows if (r.name, r.key) == (name, what.key)), None)


def read(path: Path) -> Scores:
    """Scores written by `Scores.write`; UserError if they have another schema."""
    content = read_json(path)
    return Scores(
        content["data"],
        [Row(**row) for row in content["rows"]],
        [Difference(**difference) for difference in content["differences"]],
        content["skipped"],
        content["seconds"],
        content["protocol"],
        content.get("records", {}),
        content.get("leaks", {}),
    )


def read_all(folder: Path) -> list[Scores]:
    """All scores in a run's folder."""
    return [read(path) for path in sorted((folder / "scores").glob("*.json"))]


def read_json(path: Path, expected: int = SCHEMA) -> dict[str, Any]:
    """The content of a JSON file with a schema number, by default of scores or a study; UserError if it has another one."""
    content = json.loads(path.read_text())
    schema = content.get("schema") if isinstance(content, dict) else None
    if schema != expected:
        raise UserError(
            f"{path} has schema {schema}, expected {expected}; scripts/convert_runs.py RUN converts runs made earlier"
        )
    return content


def file_name(test: str) -> str:
    """The name of the score file for a test set."""
    plain = "".join(c if c.isalnum() or c in "-_." else "-" for c in test).strip("-.")
    return f"{plain or 'scores'}.json"

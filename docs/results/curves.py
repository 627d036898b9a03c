"""Training curves of several runs in one small file: mean and range over seeds at 50 points of the run."""

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

POINTS = 50
LEFT_OUT = {"step", "epoch", "lengthened"}
FILE = "curve.json"

Rows = Sequence[Mapping[str, Any]]


def write(kept: Path, logs: Sequence[Rows]) -> None:
    (kept / FILE).write_text(json.dumps(curve(logs)) + "\n")


def read_log(path: Path) -> Rows:
    return [json.loads(line) for line in path.read_text().splitlines()]


def curve(logs: Sequence[Rows]) -> dict[str, Any]:
    """Logs of runs with different seeds -> {"runs", "step": [50], "columns": {name: {"mean", "low", "high": [50]}}}.

    Each point is the mean over a fiftieth of a run, since runs with a time budget differ in their number of steps; `step`
    is the mean last step of these parts. A column that only some rows have is None where no run has it.
    """
    parts = [[part(rows, i) for i in range(POINTS)] for rows in logs]
    names = dict.fromkeys(name for rows in logs for row in rows for name in row if name not in LEFT_OUT)
    columns = {}
    for name in names:
        values = np.array([[mean(some, name) for some in each] for each in parts])  # (runs, POINTS)
        there = [not np.isnan(x).all() for x in values.T]
        columns[name] = {
            what: [rounded(float(f(values[:, i]))) if there[i] else None for i in range(POINTS)]
            for what, f in (("mean", np.nanmean), ("low", np.nanmin), ("high", np.nanmax))
        }
    step = [round(float(np.mean([each[i][-1]["step"] for each in parts]))) for i in range(POINTS)]
    return {"runs": len(logs), "step": step, "columns": columns}


def part(rows: Rows, i: int) -> Rows:
    """The i-th of POINTS parts of a log, at least one row."""
    start, stop = (len(rows) * k // POINTS for k in (i, i + 1))
    return rows[start : max(start + 1, stop)]


def mean(rows: Rows, name: str) -> float:
    found = [row[name] for row in rows if row.get(name) is not None]
    return float(np.mean(found)) if found else float("nan")


def rounded(x: float) -> float:
    return float(f"{x:.4g}")

"""A method and its twin without one part, trained one after the other with the same seed and steps, and what names the difference.

The weights are not kept: a run's card cannot say that a part was missing.
"""

import dataclasses
import math
import tempfile
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from unittest.mock import patch

import torch
from torch import Tensor

from pretask import faults, methods
from pretask.config import RunConfig
from pretask.data import loader
from pretask.encoders import pooled
from pretask.evals import label_free
from pretask.limits import Seed, checked
from pretask.runtime.files import read_rows, strict_json
from pretask.train import monitor, run
from pretask.train.health import HEALTHY
from pretask.train.logger import OnLog
from pretask.train.run import Run
from pretask.workflows import length, pretrain
from pretask.workflows.audit import Audit, audit
from pretask.workflows.job import fresh
from pretask.workflows.verify import Verification, verify_planted

SHARES: Mapping[faults.Named, float] = {"monitor": 0.42, "audit": 0.33, "verify": 0.33}
"""fraction of the time for each of the two runs, by what names the fault, which takes the rest"""
CHECKED = 0.1
"""fraction of a run's time that the monitor may take, more than usual, since the step at which it names a collapse is shown"""
SAMPLES = 512
"""images whose features' spectrum is shown"""
SCORED = "demo:test"
"""labeled images of the kNN score, for the demo images"""


@dataclass(frozen=True)
class Side:
    """What one of the two runs did."""

    log: Sequence[Mapping[str, Any]]
    monitor: Sequence[Mapping[str, Any]]
    spectrum: tuple[float, ...]
    """singular values of the centered features relative to the largest, in descending order"""
    audit: Audit | None

    @property
    def state(self) -> str:
        return self.monitor[-1]["state"]

    @property
    def named_at(self) -> int | None:
        """Step of the first check that did not find the features healthy."""
        return next((row["step"] for row in self.monitor if row["state"] != HEALTHY), None)

    @property
    def knn(self) -> float:
        """Last kNN accuracy, %; NaN without labels."""
        return next((row["knn"] for row in reversed(self.monitor) if "knn" in row), math.nan)


@dataclass(frozen=True)
class Ablated:
    method: str
    fault: str
    about: str
    paper: str
    named_by: faults.Named
    data: str
    steps: int
    healthy: Side
    broken: Side
    verification: Verification | None

    @property
    def named(self) -> bool:
        """Whether the command that is to name the fault does."""
        if self.named_by == "monitor":
            return self.broken.state != HEALTHY and self.healthy.state == HEALTHY
        if self.named_by == "verify":
            return self.verification is not None and not self.verification.passed
        return self.shortcut is not None

    @property
    def shortcut(self) -> str | None:
        """The shortcut that explains more of the twin's accuracy than of the healthy method's, with intervals that do not overlap."""
        if self.healthy.audit is None or self.broken.audit is None:
            return None
        before = {found.shortcut: found for found in self.healthy.audit.findings}
        for found in self.broken.audit.findings:
            high = before[found.shortcut].high if found.shortcut in before else None
            if found.significant and found.low is not None and found.low > (high or 0.0):
                return found.shortcut
        return None

    def to_json(self) -> str:
        fields = dataclasses.asdict(self)
        return strict_json({"named": self.named, "shortcut": self.shortcut} | fields, indent=1)


@checked
def ablate(
    method: str,
    without: str,
    data: str = "",
    *,
    budget: str = "3m",
    seed: Seed = 0,
    on_log: OnLog | None = None,
) -> Ablated:
    """Train the method, and then without one of its parts, in `budget` altogether, on `data` or on drawings that show the difference.

    Raises UserError.
    """
    fault = faults.find(method, without)
    data = data or fault.data
    seconds = length.parse_duration(budget)
    with tempfile.TemporaryDirectory() as folder, patch.object(monitor, "BUDGET", CHECKED):
        settings = RunConfig(
            data,
            Path(folder) / "healthy",
            budget=f"{seconds * SHARES[fault.named_by]:.0f}s",
            seed=seed,
            monitor=SCORED if data.startswith("demo") else None,
        )
        config = methods.recipe(method)()
        healthy = pretrain.pretrain(fresh(method, settings, config), on_log=on_log)
        with faults.planted(method, config, fault) as broken:
            twin = dataclasses.replace(settings, out=Path(folder) / "twin", budget=None, plan=healthy.folder)
            made = pretrain.pretrain(fresh(method, twin, broken), on_log=on_log)
            audited = audit(made, progress=False) if fault.named_by == "audit" else None
            broken_side = side(made, audited)
            verification = verify_planted(method, fault) if fault.named_by == "verify" else None
        audited = audit(healthy, progress=False) if fault.named_by == "audit" else None
        return Ablated(
            method, fault.name, fault.about, fault.paper, fault.named_by, data, healthy.card["steps"],
            side(healthy, audited), broken_side, verification,
        )  # fmt: skip


def side(of: Run, audited: Audit | None) -> Side:
    image = loader.sample(of.source, SAMPLES).image
    with torch.no_grad():
        values = spectrum(pooled(of.encoder, image))
    return Side(read_rows(of.folder / run.LOG), read_rows(of.folder / run.MONITOR), values, audited)


def spectrum(x: Tensor) -> tuple[float, ...]:
    """(N, D) -> singular values of the centered rows relative to the largest, in descending order."""
    values = torch.linalg.eigvalsh(label_free.gram(x - x.mean(0))).clamp(min=0).sqrt().flip(0)
    return tuple((values / values[0].clamp(min=1e-12)).tolist())

"""Record correct runs of methods for `pretask verify`, and find out which planted faults it sees.

    python bench/reference.py simclr byol      pretask/reference/NAME.json of these methods: five seeds
    python bench/reference.py --all            of all methods
    python bench/reference.py --all --faults   docs/results/faults/faults.json: every fault of pretask/faults, planted one at a time

A run takes at most --seconds of one core, which sets its number of steps; a file that exists keeps its steps.
"""

import dataclasses
import json
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any

import torch
import tyro
from common import flags

from pretask import faults, methods, reference
from pretask.runtime import files
from pretask.workflows import recording, verify
from pretask.workflows.pretrain import commit
from pretask.workflows.recording import Recording, Setup

SEEDS = 5
LENGTHS = (40, 60, 80, 120, 160, 240, 320)
"""steps, of which a method gets the most that fit"""
TRIED = 12
"""steps that are timed"""
TABLE = Path(__file__).parents[1] / "docs" / "results" / "faults" / "faults.json"


@dataclass(frozen=True)
class Flags:
    methods: Annotated[tuple[str, ...], tyro.conf.Positional] = ()
    """methods to record"""
    all: bool = False
    """all methods"""
    faults: bool = False
    """plant faults instead"""
    seconds: float = 20.0
    """longest run"""


def main() -> None:
    args = flags(Flags, __doc__ or "")
    torch.set_num_threads(1)
    for name in methods.names() if args.all else args.methods:
        if args.faults:
            plant(name)
        else:
            make(name, args.seconds)


def make(name: str, seconds: float) -> None:
    with recording.constants(name) as config:
        setup = known_setup(name) or timed_setup(name, seconds)
        began = time.perf_counter()
        runs = [rounded(recording.record(config, setup, seed)) for seed in range(SEEDS)]
        took = (time.perf_counter() - began) / SEEDS
        found = {
            "format": reference.FORMAT,
            "method": name,
            "commit": commit(),
            "setup": dataclasses.asdict(setup),
            "constants": verify.constants(config),
            "runs": runs,
        }
    files.write_text(reference.FOLDER / f"{name}.json", json.dumps(found, indent=1) + "\n")
    print(f"{name}: {setup.steps} steps on {setup.data} at {setup.size} px, {took:.1f} s a run", flush=True)


def known_setup(name: str) -> Setup | None:
    return verify.load(name)[1] if name in reference.names() else None


def timed_setup(name: str, seconds: float) -> Setup:
    """The setup with as many steps as fit into `seconds`, and at least two in each cycle of the recipe."""
    with recording.constants(name) as config:
        setup = recording.setup(config, TRIED * config.train.cycles)
        recording.record(config, setup, 0)
        began = time.perf_counter()
        recording.record(config, setup, 0)
        per_step = (time.perf_counter() - began) / setup.steps
    fit = [steps for steps in LENGTHS if steps * per_step <= seconds]
    return dataclasses.replace(setup, steps=max(fit or LENGTHS[:1]))


def rounded(found: Recording) -> dict[str, Any]:
    """Six significant digits."""
    return {
        key: [digits(x) for x in value]
        if isinstance(value, tuple)
        else {name: digits(x) for name, x in value.items()}
        if isinstance(value, dict)
        else digits(value)
        for key, value in dataclasses.asdict(found).items()
    }


def digits(value: float) -> float:
    return float(f"{value:.6g}")


def plant(name: str) -> None:
    """Plant each fault of a method, and store which quantities are outside."""
    rows = json.loads(TABLE.read_text()) if TABLE.is_file() else {}
    rows[name] = {}
    for fault in faults.of(name):
        seen = verify.verify_planted(name, fault)
        by = [each.title for each in seen.compared if each.distance > 1]
        rows[name][fault.name] = {"about": fault.about, "seen by": by}
        print(
            f"{name}, {fault.name}: {', '.join(by) or 'not seen'} ({seen.farthest.distance:.2f})", flush=True
        )
    files.write_text(TABLE, json.dumps(dict(sorted(rows.items())), indent=1) + "\n")


if __name__ == "__main__":
    main()

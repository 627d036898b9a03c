"""pretask verify METHOD: is this method implemented right?"""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from pretask.cli.flags import parse
from pretask.errors import UserError
from pretask.limits import PositiveInt, Seed
from pretask.runtime.console import say

if TYPE_CHECKING:
    from pretask.workflows.verify import Verification


@dataclass(frozen=True)
class Flags:
    """Train a method once, for less than half a minute on one core, and hold loss, pretext accuracy, gradient and features against those of
    five runs that are known to be right. One test, in which a correct run fails once in a hundred. Exit code 1 if the run is outside.

    pretask verify ./my_simclr.py --against simclr compares your own implementation with one of ours: features and pretext accuracy,
    and the loss if your file says same_loss = True.
    """

    against: str = ""
    """method whose reference a method of your own is compared with"""
    all: bool = False
    """all methods, in one test"""
    seed: Seed = 100
    """random seed of the run; those of the reference are 0 to 4"""
    threads: PositiveInt = 1
    """processor cores to use"""
    out: Path = Path("runs/verify.html")
    """page with the pictures"""
    json: bool = False
    """print only JSON on standard output"""


def run(words: list[str]) -> int:
    named = bool(words) and not words[0].startswith("-")
    chosen = parse(Flags, words[1:] if named else words, f"verify {words[0] if named else 'METHOD'}")
    if named == chosen.all:
        raise UserError("pretask verify takes a METHOD or --all; see pretask verify --help")
    return verify(words[0] if named else "", chosen)


def verify(method: str, flags: Flags) -> int:
    import torch

    from pretask import reference
    from pretask.data.base import bar
    from pretask.evals import bands
    from pretask.reports import verification
    from pretask.workflows import verify as verifying

    torch.set_num_threads(flags.threads)
    methods = reference.names() if flags.all else [method]
    found: list[Verification] = []
    with bar(True) as shown:
        for each in methods:
            task = shown.add_task(f"training {each}", total=None)
            result = verifying.verify(
                each,
                against=flags.against,
                seed=flags.seed,
                error=bands.ERROR / len(methods),
                on_step=lambda done, steps, task=task: shown.update(task, completed=done, total=steps),
            )
            shown.remove_task(task)
            found.append(result)
            if not flags.json and flags.all:
                print(f"{verification.headline(result)} ({result.farthest.distance:.2f})", flush=True)
    report(found, flags)
    return 0 if all(each.passed for each in found) else 1


def report(found: Sequence["Verification"], flags: Flags) -> None:
    from pretask.reports import verification
    from pretask.runtime.files import strict_json

    verification.write(found, flags.out)
    if flags.json:
        each = [one.as_dict() for one in found]
        print(strict_json(each if flags.all else each[0], indent=2))
    elif not flags.all:
        print("\n".join(verification.lines(found[0])))
    say(f"wrote {flags.out}")

"""Estimated training time of a command, printed before it trains; measured on a few steps of each network."""

import time
from collections.abc import Callable, Iterable
from dataclasses import dataclass

from pretask.runtime.console import about, say

TIMED_STEPS = 2
"""number of timed steps, after one warmup step"""


@dataclass(frozen=True)
class Work:
    """`count` networks to train, each for `seconds`."""

    what: str
    count: int
    seconds: float


def announce(work: Iterable[Work]) -> None:
    """Print one line on standard error; print nothing if there is nothing to train."""
    work = [each for each in work if each.count]
    if not work:
        return
    listed = ", ".join(f"{each.count} {each.what}" for each in work)
    say(f"training takes {about(sum(each.count * each.seconds for each in work))}: {listed}")


def seconds_per_step(train: Callable[[int], object], clock: Callable[[], float] = time.perf_counter) -> float:
    """Seconds per step of `train(steps)`, above 0: the difference between a long and a short run, which excludes the setup.

    Where another process slowed the short run so that the long one was no longer, the setup is counted too.
    """
    train(1)
    took = []
    for steps in (1, 1 + TIMED_STEPS):
        began = clock()
        train(steps)
        took.append(clock() - began)
    short, long = took
    return (long - short) / TIMED_STEPS if long > short else long / (1 + TIMED_STEPS)

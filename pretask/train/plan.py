"""Plan of a run: its number of steps, which may change during training, and the fraction, epoch and cycle of each step.

A plan is a list of entries (step, steps): from that step on, the run has `steps` steps in total. Everything else is an
exact function of the list, so a run with a time budget can be repeated without a clock. An entry stretches or shortens
the rest of the schedule without a jump. An entry at the end of the previous one extends a finished run, which then
follows the schedule of the longer run.
"""

from bisect import bisect_right
from collections.abc import Mapping
from dataclasses import dataclass, replace
from fractions import Fraction
from functools import cached_property
from itertools import pairwise
from math import ceil, floor
from typing import Any

from pretask.types import Progress

RAMP = 0.01
"""fraction of the additional steps of an extended run used for a new warmup"""
MIN_STEPS = 200
"""steps per cycle: a warmup of 5 % has 10 of them, and AdamW's average of squared gradients, over about 1,000 steps, is 20 %
complete; SimCLR reached a kNN score of 58 % in 27 steps and 94 % in 1,200"""
MIN_PASSES = 2
"""passes over the images: in the first pass every image is new"""

Entry = tuple[int, int]


@dataclass(frozen=True)
class Segment:
    """The schedule from step `start` on, spread over the steps up to `steps`."""

    start: int
    fraction: Fraction
    steps: int

    def at(self, position: Fraction | int) -> Fraction:
        """Fraction of the schedule done before a position in the run, in steps."""
        return self.fraction + (1 - self.fraction) * Fraction(position - self.start) / (
            self.steps - self.start
        )

    def position(self, fraction: Fraction) -> Fraction:
        """Position, in steps, at which a fraction of the schedule is done."""
        return self.start + (fraction - self.fraction) / (1 - self.fraction) * (self.steps - self.start)


@dataclass(frozen=True)
class Block:
    """`count` epochs of equal length between two positions in one cycle."""

    count: int
    start: Fraction  # in steps; each epoch starts at its position rounded down
    stop: Fraction
    begins: Fraction  # as fractions of the schedule
    ends: Fraction
    cycle: int
    opens_cycle: bool  # whether its first epoch is the first of the cycle
    planned: int = 0  # planned steps of an epoch that was cut short

    @cached_property
    def first(self) -> int:
        """The first step."""
        return floor(self.start)

    def edge(self, epoch: int) -> int:
        """The first step of an epoch in the block."""
        return floor(self.start + epoch * (self.stop - self.start) / self.count)

    def epoch(self, step: int) -> int:
        """The epoch in the block that contains a step."""
        width = (self.stop - self.start) / self.count
        return min(ceil((step + 1 - self.start) / width), self.count) - 1

    def part(self, first: int, stop: int) -> "Block":
        """The epochs from `first` to the one before `stop`."""
        start, end = (self.start + e * (self.stop - self.start) / self.count for e in (first, stop))
        begins, ends = (self.begins + e * (self.ends - self.begins) / self.count for e in (first, stop))
        return replace(
            self,
            count=stop - first,
            start=start,
            stop=end,
            begins=begins,
            ends=ends,
            opens_cycle=self.opens_cycle and not first,
        )


@dataclass(frozen=True)
class Plan:
    """`entries` (step, total steps), steps in one pass over the source, number of cycles of the schedule.

    Cycles cover equal fractions of the schedule. Each is split into equal epochs, none longer than a pass.
    """

    entries: tuple[Entry, ...]
    per_pass: int
    cycles: int = 1

    @classmethod
    def of(cls, steps: int, per_pass: int, cycles: int = 1) -> "Plan":
        """A plan with a fixed number of steps."""
        return cls(((0, steps),), per_pass, cycles)

    @property
    def steps(self) -> int:
        return self.entries[-1][1]

    @property
    def epochs(self) -> int:
        return sum(block.count for block in self.layouts[-1][1])

    def as_card(self) -> dict[str, Any]:
        """The plan's entries in run.json."""
        return {"plan": [list(entry) for entry in self.entries], "steps": self.steps, "epochs": self.epochs}

    def changed(self, step: int, steps: int) -> "Plan":
        """The plan with `steps` steps in total from `step` on; later entries are dropped."""
        kept = tuple(entry for entry in self.entries if entry[0] < step)
        return replace(self, entries=(*kept, (step, steps)))

    def at(self, step: int) -> Progress:
        """Position of a step. It depends only on entries up to the step, so a replayed plan gives the same result."""
        made = bisect_right(self.entries, step, key=lambda entry: entry[0])
        segment, blocks = self.layouts[made - 1]
        b, e = find(blocks, step)
        epoch = blocks[b].part(e, e + 1)
        since, new = lengthening(self.entries[:made])
        return Progress(
            step=step,
            steps=segment.steps,
            fraction=float(segment.at(step)),
            done=float(segment.at(step + 1)),
            epoch=sum(block.count for block in blocks[:b]) + e,
            epochs=sum(block.count for block in blocks),
            start=epoch.edge(0),
            length=epoch.planned or epoch.edge(1) - epoch.edge(0),
            begins=epoch.begins,
            ends=epoch.ends,
            cycle=epoch.cycle,
            cycles=self.cycles,
            first_of_cycle=epoch.opens_cycle,
            ramp=min(1.0, (step - since) / (RAMP * new)) if since else 1.0,
            lengthened=since,
        )

    @cached_property
    def layouts(self) -> list[tuple[Segment, list[Block]]]:
        """For each entry, the rest of the schedule and all epochs of the run as planned from there on."""
        segment = Segment(0, Fraction(0), self.entries[0][1])
        found = [(segment, self.rest(segment, 0, 0, opens_cycle=True))]
        for start, steps in self.entries[1:]:
            former, blocks = found[-1]
            if start == former.steps:
                segment = Segment(start, Fraction(start, steps), steps)
                new = self.rest(segment, start, start * self.cycles // steps, opens_cycle=True)
                found.append((segment, [*blocks, *new]))
            else:
                segment = Segment(start, former.at(start), steps)
                found.append((segment, self.cut(blocks, segment)))
        return found

    def cut(self, blocks: list[Block], segment: Segment) -> list[Block]:
        """The epochs before an entry, the epoch in progress, and replanned epochs after it.

        The epoch in progress ends as planned, or with its cycle. If further epochs were planned in the cycle and no longer
        fit, it ends at once, since some methods do their last work when the last epoch begins.
        """
        b, e = find(blocks, segment.start)
        block, step = blocks[b], segment.start
        past = [*blocks[:b], *([block.part(0, e)] if e else [])]
        if block.edge(e) == step:  # the epoch has not begun
            return [*past, *self.rest(segment, step, block.cycle, opens_cycle=block.opens_cycle and not e)]
        epoch, stop = block.part(e, e + 1), block.edge(e + 1)
        end = floor(segment.position(Fraction(block.cycle + 1, self.cycles)))
        last = e + 1 == block.count and all(later.cycle != block.cycle for later in blocks[b + 1 :])
        stop = min(stop, end) if last or stop < end else step
        planned = epoch.planned or epoch.edge(1) - epoch.edge(0)
        epoch = replace(epoch, stop=Fraction(stop), planned=planned)
        return [*past, epoch, *self.rest(segment, stop, block.cycle, opens_cycle=False)]

    def rest(self, segment: Segment, step: int, first: int, opens_cycle: bool) -> list[Block]:
        """Epochs from a step in cycle `first` to the end; `opens_cycle` says whether the cycle begins there."""
        blocks, position = [], Fraction(step)
        for cycle in range(first, self.cycles):
            end = segment.position(Fraction(cycle + 1, self.cycles))
            if opens_cycle or floor(end) > position:
                count = ceil((end - position) / self.per_pass)
                blocks.append(
                    Block(count, position, end, segment.at(position), segment.at(end), cycle, opens_cycle)
                )
            position, opens_cycle = end, True
        return blocks


def find(blocks: list[Block], step: int) -> tuple[int, int]:
    """Index of the block that contains a step, and of the epoch in it."""
    b = bisect_right(blocks, step, key=lambda block: block.first) - 1
    return b, blocks[b].epoch(step)


def lengthening(entries: tuple[Entry, ...]) -> tuple[int, int]:
    """Last step at which a finished run was extended, and by how many steps; (0, 0) if never."""
    found = [(step, steps - step) for (_, former), (step, steps) in pairwise(entries) if step == former]
    return found[-1] if found else (0, 0)


# ---- the plan in run.json


def entries_of(card: Mapping[str, Any]) -> tuple[Entry, ...]:
    """Entries of the plan in a run's card."""
    return tuple((step, steps) for step, steps in card["plan"])


def cautions(card: Mapping[str, Any]) -> list[str]:
    """Warnings about a run's length that matter when its scores are compared with others."""
    if not {"steps", "n", "train"} <= card.keys() or not {"batch", "cycles"} <= card["train"].keys():
        return []  # the card lacks the entries needed
    steps, train = card["steps"], card["train"]
    since, _ = lengthening(entries_of(card))
    found = []
    if since:
        found.append(
            f"extended at step {since:,} from a finished run, which differs from {steps:,} steps from the start"
        )
    cycles, passes = train["cycles"], steps * train["batch"] / card["n"]
    if steps < MIN_STEPS * cycles or passes < MIN_PASSES:
        done = f"{steps:,} step{'s' if steps > 1 else ''}, {passes:.1f} passes over the images"
        least = f"{MIN_STEPS * cycles:,} steps and {MIN_PASSES} passes"
        found.append(f"too short to be meaningful: {done}; give it at least {least}")
    return found

"""How many steps a run has, as planned and planned anew, and what follows from it: fraction, epoch and round of a step.

A plan is a list of (step, steps): from that step on the run has so many steps in all. Everything else is a function of
the list, in exact numbers, so a run that was timed is repeated without a clock. An entry stretches or shortens what is
left of the schedule, without a jump. An entry at the end of the one before lengthens a finished run, which from there on
follows the schedule of the longer one.
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
"""share of the steps that lengthen a finished run in which the learning rate rises anew"""
FEWEST = 200
"""steps of a round: a warm-up of 5 % is 10 of them, and AdamW's mean of squared gradients, which spans 1,000, is a fifth full;
a SimCLR of 27 steps had a kNN score of 58 %, one of 1,200 had 94 %"""
PASSES = 2
"""over the images: before the second, no image has been learned from when it is seen"""

Entry = tuple[int, int]


@dataclass(frozen=True)
class Stretch:
    """What is left of the schedule at step `start`, spread over the steps up to `steps`."""

    start: int
    fraction: Fraction
    steps: int

    def at(self, place: Fraction | int) -> Fraction:
        """The fraction done before a place in the run, in steps."""
        return self.fraction + (1 - self.fraction) * Fraction(place - self.start) / (self.steps - self.start)

    def place(self, fraction: Fraction) -> Fraction:
        """Where a fraction is done, in steps."""
        return self.start + (fraction - self.fraction) / (1 - self.fraction) * (self.steps - self.start)


@dataclass(frozen=True)
class Block:
    """`count` epochs of equal length between two places in one round."""

    count: int
    start: Fraction  # steps; those of an epoch are rounded down
    stop: Fraction
    begins: Fraction  # fractions of the schedule
    ends: Fraction
    round: int
    opens: bool  # whether its first epoch is the first of the round
    planned: int = 0  # steps of an epoch that was cut short

    @cached_property
    def first(self) -> int:
        """The first step."""
        return floor(self.start)

    def edge(self, epoch: int) -> int:
        """The first step of an epoch of the block."""
        return floor(self.start + epoch * (self.stop - self.start) / self.count)

    def epoch(self, step: int) -> int:
        """The epoch of the block that has this step."""
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
            opens=self.opens and not first,
        )


@dataclass(frozen=True)
class Plan:
    """`entries` (step, steps in all), steps in one pass over the source, rounds of the schedule.

    A round ends with its share of the schedule and is cut into equal epochs, none longer than a pass.
    """

    entries: tuple[Entry, ...]
    per_pass: int
    rounds: int = 1

    @classmethod
    def of(cls, steps: int, per_pass: int, rounds: int = 1) -> "Plan":
        """So many steps, from the start."""
        return cls(((0, steps),), per_pass, rounds)

    @property
    def steps(self) -> int:
        return self.entries[-1][1]

    @property
    def epochs(self) -> int:
        return sum(block.count for block in self.layouts[-1][1])

    def as_card(self) -> dict[str, Any]:
        """What a run's card says of it."""
        return {"plan": [list(entry) for entry in self.entries], "steps": self.steps, "epochs": self.epochs}

    def changed(self, step: int, steps: int) -> "Plan":
        """From `step` on, `steps` in all; later entries are dropped."""
        kept = tuple(entry for entry in self.entries if entry[0] < step)
        return replace(self, entries=(*kept, (step, steps)))

    def at(self, step: int) -> Progress:
        """A function of the entries up to this step: a plan that is replayed says of it what it said the first time."""
        made = bisect_right(self.entries, step, key=lambda entry: entry[0])
        stretch, blocks = self.layouts[made - 1]
        b, e = find(blocks, step)
        epoch = blocks[b].part(e, e + 1)
        since, new = lengthening(self.entries[:made])
        return Progress(
            step=step,
            steps=stretch.steps,
            fraction=float(stretch.at(step)),
            done=float(stretch.at(step + 1)),
            epoch=sum(block.count for block in blocks[:b]) + e,
            epochs=sum(block.count for block in blocks),
            start=epoch.edge(0),
            length=epoch.planned or epoch.edge(1) - epoch.edge(0),
            begins=epoch.begins,
            ends=epoch.ends,
            round=epoch.round,
            rounds=self.rounds,
            first_of_round=epoch.opens,
            ramp=min(1.0, (step - since) / (RAMP * new)) if since else 1.0,
            lengthened=since,
        )

    @cached_property
    def layouts(self) -> list[tuple[Stretch, list[Block]]]:
        """What each entry makes of the schedule, and all epochs of the run as they are planned from there on."""
        stretch = Stretch(0, Fraction(0), self.entries[0][1])
        found = [(stretch, self.rest(stretch, 0, 0, opens=True))]
        for start, steps in self.entries[1:]:
            former, blocks = found[-1]
            if start == former.steps:
                stretch = Stretch(start, Fraction(start, steps), steps)
                new = self.rest(stretch, start, start * self.rounds // steps, opens=True)
                found.append((stretch, [*blocks, *new]))
            else:
                stretch = Stretch(start, former.at(start), steps)
                found.append((stretch, self.cut(blocks, stretch)))
        return found

    def cut(self, blocks: list[Block], stretch: Stretch) -> list[Block]:
        """The epochs before an entry, the one that it falls into, and what follows, planned anew.

        The epoch in progress ends where it was to end, or with its round. Where others were to follow it in the round
        and there is no room for them any more, it ends at once: some methods do their last work as the last epoch begins.
        """
        b, e = find(blocks, stretch.start)
        block, step = blocks[b], stretch.start
        past = [*blocks[:b], *([block.part(0, e)] if e else [])]
        if block.edge(e) == step:  # the epoch has not begun
            return [*past, *self.rest(stretch, step, block.round, opens=block.opens and not e)]
        epoch, stop = block.part(e, e + 1), block.edge(e + 1)
        end = floor(stretch.place(Fraction(block.round + 1, self.rounds)))
        last = e + 1 == block.count and all(later.round != block.round for later in blocks[b + 1 :])
        stop = min(stop, end) if last or stop < end else step
        planned = epoch.planned or epoch.edge(1) - epoch.edge(0)
        epoch = replace(epoch, stop=Fraction(stop), planned=planned)
        return [*past, epoch, *self.rest(stretch, stop, block.round, opens=False)]

    def rest(self, stretch: Stretch, step: int, first: int, opens: bool) -> list[Block]:
        """Epochs from a step in round `first` to the end; `opens` says that the round begins there."""
        blocks, place = [], Fraction(step)
        for r in range(first, self.rounds):
            end = stretch.place(Fraction(r + 1, self.rounds))
            if opens or floor(end) > place:
                count = ceil((end - place) / self.per_pass)
                blocks.append(Block(count, place, end, stretch.at(place), stretch.at(end), r, opens))
            place, opens = end, True
        return blocks


def find(blocks: list[Block], step: int) -> tuple[int, int]:
    """Which block a step is in, and which of its epochs."""
    b = bisect_right(blocks, step, key=lambda block: block.first) - 1
    return b, blocks[b].epoch(step)


def lengthening(entries: tuple[Entry, ...]) -> tuple[int, int]:
    """The last step at which a finished run was lengthened, and by how many; (0, 0) if it never was."""
    found = [(step, steps - step) for (_, former), (step, steps) in pairwise(entries) if step == former]
    return found[-1] if found else (0, 0)


# ---- what a card says of its plan


def entries_of(card: Mapping[str, Any]) -> tuple[Entry, ...]:
    """The plan in a run's card; older cards tell the number of steps alone."""
    return tuple((step, steps) for step, steps in card.get("plan", [[0, card["steps"]]]))


def cautions(card: Mapping[str, Any]) -> list[str]:
    """What has to be known of a run's length before its scores are compared with those of others."""
    if not {"steps", "n", "train"} <= card.keys() or not {"batch", "rounds"} <= card["train"].keys():
        return []  # of a run that tells less nothing is known
    steps, train = card["steps"], card["train"]
    since, _ = lengthening(entries_of(card))
    found = []
    if since:
        found.append(
            f"lengthened at step {since:,} from a finished run, which is not the same as {steps:,} steps from the start"
        )
    rounds, passes = train["rounds"], steps * train["batch"] / card["n"]
    if steps < FEWEST * rounds or passes < PASSES:
        done = f"{steps:,} step{'s' if steps > 1 else ''}, {passes:.1f} passes over the images"
        least = f"{FEWEST * rounds:,} steps and {PASSES} passes"
        found.append(f"too short to mean anything: {done}; give it {least} or more")
    return found
